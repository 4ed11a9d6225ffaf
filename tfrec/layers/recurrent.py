"""Recurrent encoders with additive attention, to compare self-attention with."""

from __future__ import annotations

import keras
from keras import ops

from tfrec.layers.attention import MASKED, visible
from tfrec.layers.dropout import Dropout

CELLS = {"gru": keras.layers.GRUCell, "lstm": keras.layers.LSTMCell}


@keras.saving.register_keras_serializable("tfrec")
class AdditiveAttention(keras.layers.Layer):
    """Attention pooling: each position mixes itself and earlier ones by `softmax_j(v tanh(A x_i + B x_j + bias))`.

    Its cost grows with length * length * width, where dot products do without the width's share of memory.
    Source: Bahdanau et al. 2015; over the states of a recommender's GRU in NARM (Li et al. 2017), section 3.4. Differs from
    NARM: tanh and softmax, as in Bahdanau, where NARM has a sigmoid and no softmax.

    Call arguments:
        x: float tensor, shape `(batch, length, width)`.
        is_real: bool tensor, shape `(batch, length)`. True = real item, False = padding.
        end: int tensor, for packed rows; see `CausalSelfAttention`. Default: one history a row.
        bias: None, or float tensor, shape `(batch or 1, heads, length, length)`: the mean over heads is added to the logits.
    Returns:
        Float tensor, shape and dtype of `x`.
    """

    def build(self, input_shape):
        width = input_shape[-1]
        self.looks = keras.layers.Dense(width, use_bias=False, name="looks", dtype=self.dtype_policy)
        self.looked_at = keras.layers.Dense(width, name="looked_at", dtype=self.dtype_policy)
        self.score = keras.layers.Dense(1, use_bias=False, name="score", dtype=self.dtype_policy)
        for layer in (self.looks, self.looked_at, self.score):
            layer.build(input_shape)

    def call(self, x, is_real, end=None, bias=None):
        length = ops.shape(x)[1]
        both = ops.tanh(ops.expand_dims(self.looks(x), 2) + ops.expand_dims(self.looked_at(x), 1))  # B L L D
        logits = ops.cast(ops.squeeze(self.score(both), -1), "float32")
        if bias is not None:
            logits += ops.cast(ops.mean(bias, axis=1), "float32")
        is_allowed = ops.squeeze(visible(is_real, end, (0, length), (0, length)), 1)
        weights = ops.softmax(ops.where(is_allowed, logits, MASKED), axis=-1)
        return ops.matmul(ops.cast(weights, x.dtype), x)

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape


@keras.saving.register_keras_serializable("tfrec")
class ForgettingCell(keras.layers.Layer):
    """A recurrent cell whose state can be wiped: where the last feature of its input is 0, it starts anew.

    Args:
        cell: `"gru"` or `"lstm"`.
        units: int > 0.
    """

    def __init__(self, cell: str, units: int, **kwargs):
        super().__init__(**kwargs)
        if cell not in CELLS:
            raise ValueError(f"`cell` must be one of {', '.join(CELLS)}. Received: {cell!r}.")
        self.kind, self.units = cell, units
        # not the orthogonal default: its QR decomposition knows no bfloat16
        self.cell = CELLS[cell](units, recurrent_initializer="glorot_uniform", dtype=self.dtype_policy)
        self.state_size, self.output_size = self.cell.state_size, units

    def build(self, input_shape):
        self.cell.build((*input_shape[:-1], input_shape[-1] - 1))

    def call(self, inputs, states, training=None):
        x, keep = inputs[..., :-1], inputs[..., -1:]
        return self.cell(x, [state * keep for state in states], training=training)

    def get_initial_state(self, batch_size=None):
        return self.cell.get_initial_state(batch_size)

    def get_config(self):
        return super().get_config() | {"cell": self.kind, "units": self.units}


@keras.saving.register_keras_serializable("tfrec")
class RecurrentBlock(keras.layers.Layer):
    """A GRU or LSTM, and additive attention over its states: `h = rnn(norm(x))`, then `x + W [h, attention(h)]`.

    Source: NARM, Li et al. 2017, "Neural Attentive Session-based Recommendation"; without attention GRU4Rec (Hidasi et al.
    2016). Differs from the sources: pre-normalised, with a residual, so that blocks stack; attention as stated in
    `AdditiveAttention`.

    Args:
        cell: `"gru"` or `"lstm"`.
        dropout_rate: float in [0, 1): of what the block adds.
    Call arguments:
        x: float tensor, shape `(batch, length, width)`.
        is_real: bool tensor, shape `(batch, length)`. True = real item, False = padding.
        end, bias: see `AdditiveAttention`. The state is cleared at the start of another history.
    Returns:
        Float tensor, shape and dtype of `x`. Padded positions hold no information of real ones, and none flows back.
    """

    def __init__(self, cell: str = "gru", dropout_rate: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.cell = cell
        self.dropout_rate = dropout_rate
        own = {"dtype": self.dtype_policy}
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, **own)
        self.attention = AdditiveAttention(**own)
        self.dropout = Dropout(dropout_rate, **own)

    def build(self, input_shape):
        *others, width = input_shape
        own = {"dtype": self.dtype_policy}
        self.rnn = keras.layers.RNN(ForgettingCell(self.cell, width, **own), return_sequences=True, name="rnn", **own)
        self.project_out = keras.layers.Dense(width, name="project_out", **own)
        self.norm.build(input_shape)
        self.rnn.build((*others, width + 1))
        self.attention.build(input_shape)
        self.project_out.build((*others, 2 * width))

    def call(self, x, is_real, end=None, bias=None, training=None):
        goes_on = is_real[:, :-1]  # whether a position continues the history of the one before
        if end is not None:
            goes_on = ops.logical_and(goes_on, ops.equal(end[:, :-1], end[:, 1:]))
        keep = ops.cast(ops.pad(goes_on, [[0, 0], [1, 0]]), x.dtype)
        h = self.rnn(ops.concatenate([self.norm(x), ops.expand_dims(keep, -1)], axis=-1), training=training)
        out = self.project_out(ops.concatenate([h, self.attention(h, is_real, end, bias)], axis=-1))
        return x + self.dropout(ops.where(ops.expand_dims(is_real, -1), out, 0), training=training)

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape

    def get_config(self):
        return super().get_config() | {"cell": self.cell, "dropout_rate": self.dropout_rate}
