"""Causal multi-head self-attention."""

from __future__ import annotations

import functools

import keras
from keras import ops

from tfrec.layers.dropout import Dropout
from tfrec.layers.positions import rotate

MASKED = -1e9
"""The logit of a position that must not be seen: far below any real one, yet finite, so an all-padding row gives no NaN."""


def visible(is_real, end, rows: tuple, columns: tuple):
    """The positions that each row of attention may see: itself and earlier real positions of its own history.

    Args:
        is_real: bool tensor, shape `(batch, length)`.
        end: int tensor of that shape, or None; see `CausalSelfAttention`.
        rows, columns: `(begin, end)` of the positions that see, and of those that are seen.
    Returns:
        Bool tensor, shape `(batch, 1, rows, columns)`.
    """
    row, column = ops.arange(*rows), ops.arange(*columns)
    is_causal = ops.expand_dims(row, 1) >= ops.expand_dims(column, 0)
    is_allowed = ops.logical_and(is_causal, ops.expand_dims(is_real[:, columns[0] : columns[1]], 1))  # B R C
    if end is not None:
        looks, looked_at = end[:, rows[0] : rows[1]], end[:, columns[0] : columns[1]]
        is_allowed = ops.logical_and(is_allowed, ops.equal(ops.expand_dims(looks, 2), ops.expand_dims(looked_at, 1)))
    return ops.expand_dims(is_allowed, 1)


def _logits(query, key, bias, out_of_place):
    """Dot products of queries and keys, plus `bias` where there is one: float32 `(batch, heads, rows, columns)`.

    Out of place, the product has more columns than are read. XLA would otherwise write the exponentials in place, into the memory
    of the product, and LLVM vectorises no loop that writes in place: the exponentials took four times as long.
    """
    columns = ops.shape(key)[2]
    if out_of_place:
        key = ops.pad(key, [[0, 0], [0, 0], [0, 8], [0, 0]])
    logits = ops.cast(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))), "float32")
    if out_of_place:
        logits = logits[..., :columns]
    return logits if bias is None else logits + ops.cast(bias, "float32")


def attend(query, key, value, is_allowed, bias=None, keep=lambda w: w, out_of_place=False):
    """Values weighted by the softmax of the scaled dot products of queries and keys.

    The sum of the weights divides the result, not each weight: `(heads, length, length)` is written once less.

    Args:
        query: float tensor, shape `(batch, heads, rows, head_dim)`.
        key, value: float tensors, shape `(batch, heads, columns, head_dim)`.
        is_allowed: bool tensor that broadcasts to `(batch, heads, rows, columns)`; True = the row may see the column.
        bias: float tensor of such a shape, added to the logits. Default: none.
        keep: dropout of the weights. Default: none.
        out_of_place: bool, take a little more memory, for which XLA on a CPU takes a third less time. Default: False, for
            runtimes that gain nothing.
    Returns:
        Float tensor, shape and dtype of `query`; logits and sums are float32 under any policy.
    """
    logits = ops.where(is_allowed, _logits(query * query.shape[-1] ** -0.5, key, bias, out_of_place), MASKED)  # B H R C
    powers = ops.exp(logits - ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True)))
    total = ops.sum(powers, axis=-1, keepdims=True)
    mixed = ops.matmul(ops.cast(keep(powers), value.dtype), value)
    return mixed / ops.cast(total, value.dtype)


def silu(x):
    """`x * sigmoid(x)`. TensorFlow's own registers a gradient, which keeps its graph and all that it reads for ever."""
    return x * ops.sigmoid(x)


def pointwise_attend(query, key, value, is_allowed, bias=None, keep=lambda w: w, out_of_place=False):
    """As `attend`, with SiLU in place of the softmax: attended positions add up and do not compete."""
    weights = ops.where(is_allowed, silu(_logits(query, key, bias, out_of_place)), 0)  # B H R C
    return ops.matmul(ops.cast(keep(weights), value.dtype), value)


def attend_causally(
    query, key, value, is_real, end=None, bias=None, attend=attend, keep=lambda w: w, newest_only=False
):
    """`attend` in which each position sees itself and earlier real positions of its own history.

    The work is done in two halves: the older half never sees the newer one, which saves a quarter. Packed rows are attended to out
    of place; `fit` and `predict` read them, and no export does.

    Args:
        query, key, value: float tensors, shape `(batch, heads, length, head_dim)`.
        is_real, end: int tensor, for packed rows; see `CausalSelfAttention`. Default: one history a row.
        bias: float tensor that broadcasts to `(batch, heads, length, length)`; for the last column alone, its last row is enough.
            Default: none.
        newest_only: bool, only the last column attends. Default: False.
    Returns:
        Float tensor, shape of `value`; with `newest_only`, of its last column.
    """
    length = ops.shape(query)[2]
    half = (length + 1) // 2
    outs = []
    for begin, stop in ((length - 1, length),) if newest_only else ((0, half), (half, length)):
        outs.append(
            attend(
                query[:, :, begin:stop],
                key[:, :, :stop],
                value[:, :, :stop],
                visible(is_real, end, (begin, stop), (0, stop)),
                None if bias is None else bias[..., -1:, :] if newest_only else bias[..., begin:stop, :stop],
                keep,
                out_of_place=end is not None,
            )
        )
    return ops.concatenate(outs, axis=2)


def attend_in_window(
    query, key, value, is_real, end=None, bias=None, window=1, attend=attend, keep=lambda w: w, newest_only=False
):
    """`attend` in which each position sees the `window` newest positions up to itself; the cost is linear in the length.

    Rows are cut into blocks of `window` positions. A block sees itself and the block before.
    Source: Beltagy et al. 2020 (Longformer), section 3.1. Differs from the source: causal; blocks, no kernel of its own.

    Args:
        query, key, value: float tensors, shape `(batch, heads, length, head_dim)`.
        is_real, end: int tensor, for packed rows; see `CausalSelfAttention`. Default: one history a row.
        bias: float tensor that broadcasts to `(batch, heads, window, 2 * window)`; `[..., i, j]` belongs to the distance
            `window + i - j`. Default: none.
        window: int > 0.
        newest_only: bool, return the last column alone. Default: False.
    Returns:
        Float tensor, shape of `value`; with `newest_only`, of its last column.
    """
    _, heads, length, _ = ops.shape(query)
    num_blocks = (length + window - 1) // window
    padding = num_blocks * window - length

    def blocks(x):  # (B, H, L, D/H) to (B * blocks, H, window, D/H)
        x = ops.pad(x, [[0, 0], [0, 0], [0, padding], [0, 0]])
        x = ops.reshape(x, (-1, heads, num_blocks, window, ops.shape(x)[3]))
        return ops.transpose(x, (0, 2, 1, 3, 4))

    def with_previous(x, axis):  # a block of zeros, which is not real, stands before the first
        earlier = ops.concatenate([ops.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
        both = ops.concatenate([earlier, x], axis=axis)
        return ops.reshape(both, (-1, *ops.shape(both)[2:]))

    def row_blocks(x):  # (B, L) to (B, blocks, window)
        return ops.reshape(ops.pad(x, [[0, 0], [0, padding]]), (-1, num_blocks, window))

    distance = window + ops.expand_dims(ops.arange(window), 1) - ops.expand_dims(ops.arange(2 * window), 0)
    is_near = ops.logical_and(distance >= 0, distance < window)
    is_allowed = ops.logical_and(is_near, ops.expand_dims(with_previous(row_blocks(is_real), 2), 1))
    if end is not None:
        looks = row_blocks(end)
        same = ops.equal(ops.reshape(looks, (-1, window, 1)), ops.expand_dims(with_previous(looks, 2), 1))
        is_allowed = ops.logical_and(is_allowed, same)
    out = attend(
        ops.reshape(blocks(query), (-1, heads, window, ops.shape(query)[3])),
        with_previous(blocks(key), 3),
        with_previous(blocks(value), 3),
        ops.expand_dims(is_allowed, 1),
        bias,
        keep,
        out_of_place=end is not None,
    )
    width = ops.shape(value)[3]
    out = ops.transpose(ops.reshape(out, (-1, num_blocks, heads, window, width)), (0, 2, 1, 3, 4))
    return ops.reshape(out, (-1, heads, num_blocks * window, width))[:, :, length - 1 if newest_only else 0 : length]


def attend_to_history(window: int | None):
    """`attend_in_window` with that window; without one, `attend_causally`."""
    return functools.partial(attend_in_window, window=window) if window else attend_causally


def weights_of(mix, query, key, is_real, end=None, bias=None, **how):
    """The weights with which attention adds up values, by the rule of `mix` itself: what it makes of one-hot values.

    Args:
        mix: `attend_causally` or `attend_in_window`; see `attend_to_history`.
        query, key, is_real, end, bias, how: see `attend_causally`.
    Returns:
        Float32 tensor, shape `(batch, heads, length, length)`: how much of each column a row takes. Rows of padding are zero.
    """
    batch, heads, length, _ = ops.shape(key)
    place = ops.arange(length)
    one_hot = ops.cast(ops.equal(ops.expand_dims(place, 1), place), "float32")
    weights = mix(query, key, ops.broadcast_to(one_hot, (batch, heads, length, length)), is_real, end, bias, **how)
    return ops.where(ops.expand_dims(is_real, (1, 3)), weights, 0)


def split_heads(x, num_heads: int):
    """`(batch, length, num_heads * head_dim)` to `(batch, num_heads, length, head_dim)`."""
    _, length, width = ops.shape(x)
    return ops.transpose(ops.reshape(x, (-1, length, num_heads, width // num_heads)), (0, 2, 1, 3))


def merge_heads(x):
    """`(batch, num_heads, length, head_dim)` to `(batch, length, num_heads * head_dim)`."""
    _, heads, length, head_dim = ops.shape(x)
    return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, length, heads * head_dim))


@keras.saving.register_keras_serializable("tfrec")
class CausalSelfAttention(keras.layers.Layer):
    """Multi-head self-attention in which each position sees itself and earlier ones.

    It takes the place of `keras.layers.MultiHeadAttention`, because a padded position must come out as exact zero, and the mask is
    passed along and never inferred.
    Source: Vaswani et al. 2017, section 3.2; causal as in Kang & McAuley 2018 (SASRec), section III-B. Differs from the
    sources: one bias-free projection makes query, key and value; softmax in float32 under mixed precision.

    >>> import numpy as np
    >>> x, is_real = np.ones((1, 3, 4), "float32"), np.array([[False, True, True]])
    >>> CausalSelfAttention(num_heads=2)(x, is_real).shape
    TensorShape([1, 3, 4])

    Args:
        num_heads: int > 0; must divide the width of the input.
        dropout_rate: float in [0, 1), dropout of the attention weights. Default: 0.
        rotary: bool, turn queries and keys by their position (`rotate`); the width of a head must be even. Default: False.
        window: int > 0, the number of newest positions up to itself that a position sees (`attend_in_window`). Default: all.
    Call arguments:
        x: float tensor, shape `(batch, length, width)`.
        is_real: bool tensor, shape `(batch, length)`. True = real item, False = padding.
        end: int tensor, shape `(batch, length)`, for rows that pack several histories: at each real position, the column
            after the newest item of its history. Positions with another `end` are not seen. Default: one history a row.
        bias: float tensor that broadcasts to `(batch, num_heads, length, length)`, added to the logits; with a window, to
            `(batch, num_heads, window, 2 * window)`. Default: none.
        newest_only: bool, return the last column alone; the other columns are read, but do not attend. Default: False.
    Returns:
        Float tensor, shape and dtype of `x`, or of its last column. Padded positions are zero.
    Raises:
        ValueError: `num_heads` does not divide the width (the message gives both).
    """

    def __init__(
        self, num_heads: int, dropout_rate: float = 0.0, rotary: bool = False, window: int | None = None, **kwargs
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.rotary = rotary
        self.window = window
        self.dropout = Dropout(dropout_rate, dtype=self.dtype_policy)

    def build(self, input_shape):
        width = input_shape[-1]
        if width % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide the width of `x`. Received: num_heads={self.num_heads}, width={width}."
            )
        self.project_in = keras.layers.Dense(3 * width, use_bias=False, name="project_in", dtype=self.dtype_policy)
        self.project_out = keras.layers.Dense(width, use_bias=False, name="project_out", dtype=self.dtype_policy)
        self.project_in.build(input_shape)
        self.project_out.build(input_shape)

    def _project(self, x):
        """Query, key and value of each head."""
        length, width = ops.shape(x)[1], x.shape[-1]
        heads = ops.reshape(self.project_in(x), (-1, length, 3, self.num_heads, width // self.num_heads))
        query, key, value = ops.unstack(ops.transpose(heads, (2, 0, 3, 1, 4)), num=3, axis=0)  # B H L D/H each
        return (rotate(query), rotate(key), value) if self.rotary else (query, key, value)

    def call(self, x, is_real, end=None, bias=None, newest_only=False, training=None):
        query, key, value = self._project(x)
        mix = attend_to_history(self.window)
        keep = lambda w: self.dropout(w, training=training)  # noqa: E731
        out = mix(query, key, value, is_real, end, bias, keep=keep, newest_only=newest_only)
        is_real = is_real[:, -1:] if newest_only else is_real
        return ops.where(ops.expand_dims(is_real, -1), self.project_out(merge_heads(out)), 0)

    def attention_weights(self, x, is_real, end=None, bias=None):
        """The weights of `call`; see `weights_of`. Those of a row add up to 1."""
        query, key, _ = self._project(x)
        return weights_of(attend_to_history(self.window), query, key, is_real, end, bias)

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape

    def get_config(self):
        own = {"num_heads": self.num_heads, "dropout_rate": self.dropout_rate, "rotary": self.rotary}
        return super().get_config() | own | {"window": self.window}
