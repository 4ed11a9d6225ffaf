"""Causal multi-head self-attention."""

from __future__ import annotations

import keras
from keras import ops

MASKED = -1e9
"""What a forbidden logit becomes, in float32: far below any real one, yet finite, so an all-padding row gives no NaN."""


def attention_weights(query, key, is_allowed):
    """Softmax of the scaled dot products of queries and keys.

    Args:
        query, key: float tensors, shape `(batch, heads, length, head_dim)`.
        is_allowed: bool tensor that broadcasts to `(batch, heads, length, length)`; True = the row may see the column.
    Returns:
        Float tensor, shape `(batch, heads, length, length)`, dtype of `query`; computed in float32 whatever that is.
    """
    scale = query.shape[-1] ** -0.5
    logits = ops.matmul(query * scale, ops.transpose(key, (0, 1, 3, 2)))  # B H L L
    weights = ops.softmax(ops.where(is_allowed, ops.cast(logits, "float32"), MASKED), axis=-1)
    return ops.cast(weights, query.dtype)


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
    Returns:
        Float tensor, shape and dtype of `x`. Padded positions are zero.
    Raises:
        ValueError: `num_heads` does not divide the width (the message gives both).
    """

    def __init__(self, num_heads: int, dropout_rate: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.dropout_rate = dropout_rate
        self.dropout = keras.layers.Dropout(dropout_rate, dtype=self.dtype_policy)

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

    def call(self, x, is_real, training=None):
        _, length, width = ops.shape(x)
        heads = ops.reshape(self.project_in(x), (-1, length, 3, self.num_heads, width // self.num_heads))
        query, key, value = ops.unstack(ops.transpose(heads, (2, 0, 3, 1, 4)), num=3, axis=0)  # B H L D/H each
        step = ops.arange(length)
        is_causal = ops.expand_dims(step, 1) >= ops.expand_dims(step, 0)  # L L
        is_allowed = ops.logical_and(is_causal, ops.expand_dims(ops.expand_dims(is_real, 1), 1))  # B 1 L L
        weights = self.dropout(attention_weights(query, key, is_allowed), training=training)
        out = ops.reshape(ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3)), (-1, length, width))
        return ops.where(ops.expand_dims(is_real, -1), self.project_out(out), 0)

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape

    def get_config(self):
        return super().get_config() | {"num_heads": self.num_heads, "dropout_rate": self.dropout_rate}
