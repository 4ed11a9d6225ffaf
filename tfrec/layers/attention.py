"""Causal multi-head self-attention."""

from __future__ import annotations

import keras
from keras import ops

from tfrec.layers.dropout import Dropout

MASKED = -1e9
"""What a forbidden logit becomes, in float32: far below any real one, yet finite, so an all-padding row gives no NaN."""


def visible(is_real, end, rows: tuple, columns: tuple):
    """Which positions a row of attention may see: itself and earlier real ones of its own history.

    Args:
        is_real: bool tensor, shape `(batch, length)`.
        end: None, or int tensor of that shape: see `CausalSelfAttention`.
        rows, columns: `(begin, end)` of the positions that look, and that are looked at.
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


def attend(query, key, value, is_allowed, keep=lambda weights: weights):
    """Values weighted by the softmax of the scaled dot products of queries and keys.

    The sum of the weights divides the result, not each weight: `(heads, length, length)` is written once less.

    Args:
        query: float tensor, shape `(batch, heads, rows, head_dim)`.
        key, value: float tensors, shape `(batch, heads, columns, head_dim)`.
        is_allowed: bool tensor that broadcasts to `(batch, heads, rows, columns)`; True = the row may see the column.
        keep: dropout of the weights.
    Returns:
        Float tensor, shape and dtype of `query`; logits and sums are float32 whatever that is.
    """
    logits = ops.matmul(query * query.shape[-1] ** -0.5, ops.transpose(key, (0, 1, 3, 2)))  # B H R C
    logits = ops.where(is_allowed, ops.cast(logits, "float32"), MASKED)
    powers = ops.exp(logits - ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True)))
    total = ops.sum(powers, axis=-1, keepdims=True)
    mixed = ops.matmul(ops.cast(keep(powers), value.dtype), value)
    return mixed / ops.cast(total, value.dtype)


@keras.saving.register_keras_serializable("tfrec")
class CausalSelfAttention(keras.layers.Layer):
    """Multi-head self-attention in which each position sees itself and earlier ones.

    Ours rather than `keras.layers.MultiHeadAttention`, because a padded position must come out as exact zero whatever it
    held, and the mask is passed along, never inferred.
    Source: Vaswani et al. 2017, section 3.2; causal as in Kang & McAuley 2018 (SASRec), section III-B. Differs from the
    sources: one bias-free projection makes query, key and value; softmax in float32 under mixed precision.

    Args:
        num_heads: int > 0; must divide the width of the input.
        dropout_rate: float in [0, 1): dropout of the attention weights.
    Call arguments:
        x: float tensor, shape `(batch, length, width)`.
        is_real: bool tensor, shape `(batch, length)`. True = real item, False = padding.
        end: int tensor, shape `(batch, length)`, for rows that pack several histories: at each real position, the column
            after the newest item of its history. Positions with another `end` are not seen.
    Returns:
        Float tensor, shape and dtype of `x`. Padded positions are zero.
    Raises:
        ValueError: `num_heads` does not divide the width (the message gives both).
    """

    def __init__(self, num_heads: int, dropout_rate: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
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

    def call(self, x, is_real, end=None, training=None):
        _, length, width = ops.shape(x)
        heads = ops.reshape(self.project_in(x), (-1, length, 3, self.num_heads, width // self.num_heads))
        query, key, value = ops.unstack(ops.transpose(heads, (2, 0, 3, 1, 4)), num=3, axis=0)  # B H L D/H each
        # in two halves: the older positions need not look at the newer ones, a quarter of the work
        half = (length + 1) // 2
        outs = []

        def keep(weights):
            return self.dropout(weights, training=training)

        for begin, stop in ((0, half), (half, length)):
            is_allowed = visible(is_real, end, (begin, stop), (0, stop))
            rows, columns = (slice(None), slice(None), slice(begin, stop)), (slice(None), slice(None), slice(0, stop))
            outs.append(attend(query[rows], key[columns], value[columns], is_allowed, keep))
        out = ops.reshape(ops.transpose(ops.concatenate(outs, axis=2), (0, 2, 1, 3)), (-1, length, width))
        return ops.where(ops.expand_dims(is_real, -1), self.project_out(out), 0)

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape

    def get_config(self):
        return super().get_config() | {"num_heads": self.num_heads, "dropout_rate": self.dropout_rate}
