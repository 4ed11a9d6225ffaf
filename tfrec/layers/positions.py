"""Where an item stands in its history."""

from __future__ import annotations

import keras
from keras import ops


def steps_from_newest(is_real, end=None):
    """How many real items of the same history follow each position: 0 at the newest.

    >>> import numpy as np
    >>> np.array(steps_from_newest(np.array([[False, True, True, True]])))
    array([[3, 2, 1, 0]], dtype=int32)

    Args:
        is_real: bool tensor, shape `(batch, length)`.
        end: as of `CausalSelfAttention`.
    Returns:
        int32 tensor, shape `(batch, length)`; at padding it means nothing.
    """
    if end is not None:
        return ops.maximum(end - 1 - ops.arange(ops.shape(end)[1], dtype="int32"), 0)
    count = ops.cumsum(ops.cast(is_real, "int32"), axis=1)
    return count[:, -1:] - count


@keras.saving.register_keras_serializable("tfrec")
class PositionFromNewest(keras.layers.Layer):
    """Learned position embedding, counted from the newest item: the newest is position 0.

    Counted on `is_real`, so more padding changes nothing, wherever it stands. A longer history leaves the recent positions
    where they were.
    Source: Kang & McAuley 2018, section III-A (learned positions on left-padded rows). Differs from the source: none
    known; counting from the right is what left padding to a fixed length amounts to.

    Args:
        max_length: int > 0: positions further back share the last embedding.
    Call arguments:
        x: float tensor, shape `(batch, length, width)`.
        is_real: bool tensor, shape `(batch, length)`. True = real item, False = padding.
        end: as of `CausalSelfAttention`.
    Returns:
        `x` plus the embedding of each position.
    """

    def __init__(self, max_length: int, **kwargs):
        super().__init__(**kwargs)
        self.max_length = max_length

    def build(self, input_shape):
        self.embeddings = self.add_weight(
            shape=(self.max_length, input_shape[-1]),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="embeddings",
        )

    def call(self, x, is_real, end=None):
        position = ops.minimum(steps_from_newest(is_real, end), self.max_length - 1)
        return x + ops.take(self.embeddings, position, axis=0)

    def compute_output_shape(self, input_shape, *_, **__):
        return input_shape

    def get_config(self):
        return super().get_config() | {"max_length": self.max_length}
