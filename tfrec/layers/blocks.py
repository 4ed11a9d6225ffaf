"""Blocks: what a sequence tower stacks.

All are called as `block(x, is_real, end=None, bias=None)`: the vectors, which positions are real, for packed rows where
each history ends, and what is added to the logits of attention (see `CausalSelfAttention`). Blocks of attention also take
`newest_only`, which returns the last column alone: nothing reads the other columns of the last block of a request.
"""

from __future__ import annotations

import keras
from keras import ops

from tfrec.layers.attention import (
    CausalSelfAttention,
    attend_to_history,
    merge_heads,
    pointwise_attend,
    silu,
    split_heads,
    weights_of,
)
from tfrec.layers.dropout import Dropout
from tfrec.layers.positions import rotate


@keras.saving.register_keras_serializable("tfrec")
class TransformerBlock(keras.layers.Layer):
    """Pre-LN transformer block: `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.

    Source: Xiong et al. 2020 (pre-LN); SASRec's block (Kang & McAuley 2018, section III-B) in that order. Differs from
    SASRec's code: keys and values are normalised like queries; GELU; there the feed-forward layer is as wide as the model, as
    it is in the preset `sasrec`.

    Args:
        num_heads: int > 0; must divide the width of the input.
        hidden_dim: int > 0, width of the feed-forward layer.
        dropout_rate: float in [0, 1), dropout of the sum that each sublayer adds. Default: 0.
        rotary, window: see `CausalSelfAttention`.
        attention_dropout_rate: float in [0, 1), dropout of the attention weights. Default: `dropout_rate`.
    Call arguments:
        x: float tensor, shape `(batch, length, width)`.
        is_real: bool tensor, shape `(batch, length)`. True = real item, False = padding.
        end, bias, newest_only: see `CausalSelfAttention`.
    Returns:
        Float tensor, shape and dtype of `x`. Padded positions hold no information of real ones, and none flows back.
    """

    def __init__(
        self,
        num_heads: int,
        hidden_dim: int,
        dropout_rate: float = 0.0,
        rotary: bool = False,
        window: int | None = None,
        attention_dropout_rate: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.dropout_rate = dropout_rate
        self.rotary = rotary
        self.window = window
        self.attention_dropout_rate = dropout_rate if attention_dropout_rate is None else attention_dropout_rate
        own = {"dtype": self.dtype_policy}
        self.attention_norm = keras.layers.LayerNormalization(epsilon=1e-6, **own)
        self.attention = CausalSelfAttention(num_heads, self.attention_dropout_rate, rotary, window, **own)
        self.feed_norm = keras.layers.LayerNormalization(epsilon=1e-6, **own)
        self.feed_in = keras.layers.Dense(hidden_dim, activation="gelu", **own)
        self.dropout = Dropout(dropout_rate, **own)

    def build(self, input_shape):
        width = input_shape[-1]
        self.feed_out = keras.layers.Dense(width, name="feed_out", dtype=self.dtype_policy)
        self.attention_norm.build(input_shape)
        self.attention.build(input_shape)
        self.feed_norm.build(input_shape)
        self.feed_in.build(input_shape)
        self.feed_out.build((*input_shape[:-1], self.hidden_dim))

    def call(self, x, is_real, end=None, bias=None, newest_only=False, training=None):
        attended = self.attention(
            self.attention_norm(x), is_real, end, bias, newest_only=newest_only, training=training
        )
        x = x[:, -1:] if newest_only else x
        x = x + self.dropout(attended, training=training)
        return x + self.dropout(self.feed_out(self.feed_in(self.feed_norm(x))), training=training)

    def attention_weights(self, x, is_real, end=None, bias=None):
        """The weights of the attention in `call`: float32 `(batch, num_heads, length, length)`; see `weights_of`."""
        return self.attention.attention_weights(self.attention_norm(x), is_real, end, bias)

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape

    def get_config(self):
        return super().get_config() | {
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "dropout_rate": self.dropout_rate,
            "rotary": self.rotary,
            "window": self.window,
            "attention_dropout_rate": self.attention_dropout_rate,
        }


@keras.saving.register_keras_serializable("tfrec")
class GatedBlock(TransformerBlock):
    """Pre-LN transformer block whose sublayers are gated by their input, with a SwiGLU feed-forward layer.

    `x + sigmoid(A x) * attention(norm(x))`, then `x + sigmoid(B x) * feed_forward(norm(x))`. Deep stacks train where plain
    residuals diverge.
    Source: the LiGR layer of Borisyuk et al. 2025, "From Features to Transformers: Redefining Ranking for Scalable Impact",
    with the SwiGLU of Shazeer 2020, as in eSASRec (Tikhonovich et al. 2025). Differs from the sources: none known.

    Args, call arguments and result: see `TransformerBlock`; `hidden_dim` is the width after the gate of SwiGLU.
    """

    def build(self, input_shape):
        width = input_shape[-1]
        own = {"dtype": self.dtype_policy}
        self.feed_in = keras.layers.Dense(2 * self.hidden_dim, use_bias=False, name="feed_in", **own)
        self.attention_gate = keras.layers.Dense(width, activation="sigmoid", name="attention_gate", **own)
        self.feed_gate = keras.layers.Dense(width, activation="sigmoid", name="feed_gate", **own)
        super().build(input_shape)
        self.attention_gate.build(input_shape)
        self.feed_gate.build(input_shape)

    def call(self, x, is_real, end=None, bias=None, newest_only=False, training=None):
        attended = self.attention(
            self.attention_norm(x), is_real, end, bias, newest_only=newest_only, training=training
        )
        x = x[:, -1:] if newest_only else x
        x = x + self.dropout(self.attention_gate(x) * attended, training=training)
        swish, linear = ops.split(self.feed_in(self.feed_norm(x)), 2, axis=-1)
        fed = self.feed_out(silu(swish) * linear)
        return x + self.dropout(self.feed_gate(x) * fed, training=training)


@keras.saving.register_keras_serializable("tfrec")
class HSTUBlock(keras.layers.Layer):
    """Hierarchical sequential transduction unit: pointwise aggregated attention, gated, no feed-forward layer.

    `u, v, q, k = SiLU(A norm(x))`, then `x + B (norm(SiLU(q k + bias) v / max_length) * u)`.
    Source: Zhai et al. 2024, "Actions Speak Louder than Words", section 3. Differs from the source: the attention is divided
    by `max_length`, not by the length of the batch.

    Args:
        num_heads: int > 0; must divide the width of the input.
        max_length: int > 0, the divisor of the attention.
        dropout_rate: float in [0, 1), dropout of the sum that the block adds. Default: 0.
        rotary, window: see `CausalSelfAttention`.
    Call arguments:
        x: float tensor, shape `(batch, length, width)`.
        is_real: bool tensor, shape `(batch, length)`. True = real item, False = padding.
        end, bias, newest_only: see `CausalSelfAttention`.
    Returns:
        Float tensor, shape and dtype of `x`. Padded positions hold no information of real ones, and none flows back.
    """

    def __init__(
        self,
        num_heads: int,
        max_length: int,
        dropout_rate: float = 0.0,
        rotary: bool = False,
        window: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.max_length = max_length
        self.dropout_rate = dropout_rate
        self.rotary = rotary
        self.window = window
        own = {"dtype": self.dtype_policy}
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, **own)
        self.attended_norm = keras.layers.LayerNormalization(epsilon=1e-6, **own)
        self.dropout = Dropout(dropout_rate, **own)

    def build(self, input_shape):
        width = input_shape[-1]
        own = {"dtype": self.dtype_policy}
        self.project_in = keras.layers.Dense(4 * width, activation=silu, use_bias=False, name="project_in", **own)
        self.project_out = keras.layers.Dense(width, name="project_out", **own)
        for layer in (self.norm, self.project_in, self.attended_norm, self.project_out):
            layer.build(input_shape)

    def _project(self, x):
        """The gate, and query, key and value of each head."""
        gate, *heads = ops.split(self.project_in(self.norm(x)), 4, axis=-1)
        value, query, key = (split_heads(h, self.num_heads) for h in heads)
        return (gate, rotate(query), rotate(key), value) if self.rotary else (gate, query, key, value)

    def call(self, x, is_real, end=None, bias=None, newest_only=False, training=None):
        gate, query, key, value = self._project(x)
        mix = attend_to_history(self.window)
        attended = merge_heads(
            mix(query, key, value, is_real, end, bias, attend=pointwise_attend, newest_only=newest_only)
        )
        if newest_only:
            x, gate, is_real = x[:, -1:], gate[:, -1:], is_real[:, -1:]
        out = self.project_out(self.attended_norm(attended / self.max_length) * gate)
        return x + self.dropout(ops.where(ops.expand_dims(is_real, -1), out, 0), training=training)

    def attention_weights(self, x, is_real, end=None, bias=None):
        """The weights of the attention in `call`, divided by `max_length`; see `weights_of`. They do not add up to 1."""
        _, query, key, _ = self._project(x)
        mix = attend_to_history(self.window)
        return weights_of(mix, query, key, is_real, end, bias, attend=pointwise_attend) / self.max_length

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape

    def get_config(self):
        return super().get_config() | {
            "num_heads": self.num_heads,
            "max_length": self.max_length,
            "dropout_rate": self.dropout_rate,
            "rotary": self.rotary,
            "window": self.window,
        }
