"""Blocks: what a sequence tower stacks."""

from __future__ import annotations

import keras

from tfrec.layers.attention import CausalSelfAttention
from tfrec.layers.dropout import Dropout


@keras.saving.register_keras_serializable("tfrec")
class TransformerBlock(keras.layers.Layer):
    """Pre-LN transformer block: `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.

    Source: Xiong et al. 2020 (pre-LN); SASRec's block (Kang & McAuley 2018, section III-B) in that order. Differs from
    SASRec: normalisation before both sublayers, GELU, a feed-forward layer wider than the model.

    Args:
        num_heads: int > 0; must divide the width of the input.
        hidden_dim: int > 0: width of the feed-forward layer.
        dropout_rate: float in [0, 1): of the attention weights and of what each sublayer adds.
    Call arguments:
        x: float tensor, shape `(batch, length, width)`.
        is_real: bool tensor, shape `(batch, length)`. True = real item, False = padding.
        end: as of `CausalSelfAttention`.
    Returns:
        Float tensor, shape and dtype of `x`. Padded positions hold no information of real ones, and none flows back.
    """

    def __init__(self, num_heads: int, hidden_dim: int, dropout_rate: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.dropout_rate = dropout_rate
        own = {"dtype": self.dtype_policy}
        self.attention_norm = keras.layers.LayerNormalization(epsilon=1e-6, **own)
        self.attention = CausalSelfAttention(num_heads, dropout_rate, **own)
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

    def call(self, x, is_real, end=None, training=None):
        x = x + self.dropout(self.attention(self.attention_norm(x), is_real, end, training=training), training=training)
        return x + self.dropout(self.feed_out(self.feed_in(self.feed_norm(x))), training=training)

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape

    def get_config(self):
        own = {"num_heads": self.num_heads, "hidden_dim": self.hidden_dim, "dropout_rate": self.dropout_rate}
        return super().get_config() | own
