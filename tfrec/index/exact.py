"""The exact index: one matrix product and a top-k, in stock ops."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf


class ExactIndex(tf.Module):
    """Ranks every item by its dot product with the query.

    Args:
        vectors: float32 `(num_items, width)`.
    """

    kind = "exact"
    is_exact = True
    custom_ops: tuple[str, ...] = ()

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__(name=f"{self.kind}_index")
        self.vectors = tf.Variable(vectors, trainable=False, name="vectors", dtype=tf.float32)
        self.settings: dict[str, Any] = {}

    @property
    def num_items(self) -> int:
        return self.vectors.shape[0]

    def query(self, queries: tf.Tensor, k: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
        """`(scores, items)`, float32 and int32, shape `(batch, min(k, num_items))`, best first; ties by item number."""
        return self._rank_all(queries, tf.minimum(k, self.num_items))

    def _rank_all(self, queries, k):
        return tf.math.top_k(tf.linalg.matmul(queries, self.vectors, transpose_b=True), k)
