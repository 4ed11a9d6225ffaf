"""The ScaNN index (Guo et al. 2020): quantised scoring, then exact scores for the best, in ScaNN's own TensorFlow ops.

The builder is used directly, not TFRS's layer: that one builds a tree whatever the size, cannot take the number of
reordered candidates at query time, and fills rows that come up short with item 0.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfrec.index.exact import ExactIndex

BRUTE_FORCE_ITEMS = 1_000
"""Below this many items there is nothing to quantise."""
FLAT_ITEMS = 200_000
"""Up to this many items all are scored, quantised; above, only those of the nearest leaves of a tree."""
REORDERED = 500
"""At least this many of the best by quantised scores get exact ones."""


class ScannIndex(ExactIndex):
    """Ranks items by quantised dot products, then the best of them again by exact ones.

    What comes back always has exact scores. When the searched leaves hold fewer than `k` items, an exact pass over all items
    answers instead, so that `k` results come back while the catalogue has them.
    """

    kind = "scann"
    is_exact = False
    custom_ops = ("Scann",)

    def __init__(self, vectors: np.ndarray) -> None:
        try:
            from scann.scann_ops.py import scann_ops
        except ImportError as error:
            raise ImportError(
                "The `scann` index needs the package scann (Linux only): pip install scann==1.4.2. "
                "Or choose `--index exact`."
            ) from error
        super().__init__(vectors)
        builder = scann_ops.builder(vectors, 10, "dot_product")
        if self.num_items < BRUTE_FORCE_ITEMS:
            self.settings = {"scoring": "brute force"}
            builder = builder.score_brute_force()
        else:
            self.settings = {
                "scoring": "anisotropic hashing",
                "dimensions_per_block": 2,
                "anisotropic_quantization_threshold": 0.2,
                "reorder": f"max({REORDERED}, 4 k)",
            }
            if self.num_items > FLAT_ITEMS:
                leaves = int(self.num_items**0.5)
                self.settings |= {"leaves": leaves, "leaves_to_search": leaves // 7}
                builder = builder.tree(leaves, leaves // 7, training_sample_size=min(self.num_items, 250_000))
            builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(REORDERED)
        self._searcher = builder.build().serialize_to_module()
        self._scann_ops = scann_ops

    def query(self, queries: tf.Tensor, k: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
        k = tf.minimum(k, self.num_items)
        searcher = self._scann_ops.searcher_from_module(self._searcher)
        candidates = tf.minimum(tf.maximum(REORDERED, 4 * k), self.num_items)
        items, scores = searcher.search_batched(queries, final_num_neighbors=k, pre_reorder_num_neighbors=candidates)
        items.set_shape((None, None))
        scores.set_shape((None, None))
        # rows that come up short are filled with NaN, or the whole answer is narrower
        is_complete = tf.logical_and(tf.shape(scores)[1] >= k, tf.reduce_all(tf.math.is_finite(scores)))
        return tf.cond(is_complete, lambda: (scores, items), lambda: tuple(self._rank_all(queries, k)))
