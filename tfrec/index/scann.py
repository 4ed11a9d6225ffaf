"""The ScaNN index (Guo et al. 2020): quantised scoring, then exact scores for the best, in ScaNN's own TensorFlow ops.

The builder is used directly, not TFRS's layer: that one builds a tree whatever the size, cannot take the number of
reordered candidates at query time, and fills rows that come up short with item 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.index.exact import ExactIndex

BRUTE_FORCE_ITEMS = 1_000
"""Below this many items there is nothing to quantise."""
FLAT_ITEMS = 200_000
"""Up to this many items all are scored, quantised; above, only those of the nearest leaves of a tree."""
LEAVES = 2.0
"""Leaves of the tree for each square root of the number of items."""
REORDER = (100, 200, 350, 500, 1000, 2000, 4000)
"""How many of the best by quantised scores may get exact ones: `tune` chooses."""


class ScannIndex(ExactIndex):
    """Ranks items by quantised dot products, then the best of them again by exact ones.

    What comes back always has exact scores.

    Args:
        vectors: float32 `(num_items, width)`.
        storage: `"float32"`: ScaNN keeps its own codes beside the vectors.
        threshold: of anisotropic quantization: how much more an error along a vector counts than one across it.
    """

    kind = "scann"
    is_exact = False
    custom_ops = ("Scann",)

    def __init__(self, vectors: np.ndarray, storage: str = "float32", threshold: float = 0.2) -> None:
        try:
            from scann.scann_ops.py import scann_ops
        except ImportError as error:
            raise ImportError(
                "The `scann` index needs the package scann (Linux only): pip install scann==1.4.2. "
                "Or choose `--index partitioned`."
            ) from error
        if storage != "float32":
            raise ValueError(f"A scann index keeps float32 vectors beside its codes. Received: storage={storage!r}.")
        num_items = len(vectors)
        is_quantised, reordered = num_items >= BRUTE_FORCE_ITEMS, REORDER[3]
        leaves = round(LEAVES * num_items**0.5) if num_items > FLAT_ITEMS else 0
        probes = max(1, leaves // 10)
        builder = scann_ops.builder(vectors, 10, "dot_product")
        if leaves:
            builder = builder.tree(leaves, probes, training_sample_size=min(num_items, 250_000))
        if is_quantised:
            builder = builder.score_ah(2, anisotropic_quantization_threshold=threshold).reorder(reordered)
        else:
            builder = builder.score_brute_force()
        built = builder.build()
        searcher = built.serialize_to_module()
        tf.raw_ops.DestroyResourceOp(resource=built.searcher_handle)  # it holds the vectors once more
        super().__init__(searcher.dataset)
        self._searcher, self._scann_ops = searcher, scann_ops
        self.is_quantised, self.threshold = is_quantised, threshold
        self.reordered, self.leaves, self.probes = reordered, leaves, probes

    @property
    def settings(self) -> dict[str, Any]:
        if not self.is_quantised:
            return super().settings | {"scoring": "brute force"}
        leaves = {"leaves": self.leaves, "leaves_to_search": self.probes} if self.leaves else {}
        scoring = {"scoring": "anisotropic hashing", "dimensions_per_block": 2, "threshold": self.threshold}
        return super().settings | scoring | leaves | {"reorder": f"max({self.reordered}, 2 k)"}

    def candidates(self, queries: tf.Tensor, number: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
        searcher = self._scann_ops.searcher_from_module(self._searcher)
        reordered = tf.minimum(tf.maximum(self.reordered, 2 * number), self.num_items)
        # as many more leaves as are reordered more than was tuned for
        probes = -1 if not self.leaves else tf.minimum(self.probes * reordered // self.reordered, self.leaves)
        arguments = {
            "final_num_neighbors": number, "pre_reorder_num_neighbors": reordered, "leaves_to_search": probes
        }  # fmt: skip
        items, scores = tf.cond(
            tf.shape(queries)[0] > 1,
            lambda: searcher.search_batched_parallel(queries, **arguments),
            lambda: searcher.search_batched(queries, **arguments),
        )
        # rows that come up short are filled with NaN, or the whole answer is narrower
        missing = [[0, 0], [0, tf.maximum(number - tf.shape(scores)[1], 0)]]
        scores = tf.pad(tf.where(tf.math.is_finite(scores), scores, -np.inf), missing, constant_values=-np.inf)
        items = tf.pad(items, missing)
        scores.set_shape((None, None))
        items.set_shape((None, None))
        return scores, items

    def tune(self, queries: np.ndarray, best: np.ndarray, recall: float) -> None:
        """Choose the cheapest reordering and search of leaves that reach a recall, by measuring.

        Args, as of `PartitionedIndex.tune`. First the reordering, with many leaves; then the leaves.
        """

        def reached() -> bool:
            search = tf.function(lambda q: self.candidates(q, best.shape[1])[1], reduce_retracing=True)
            found = search(tf.constant(queries)).numpy()
            hits = sum(len(np.intersect1d(a, b)) for a, b in zip(best, found, strict=True))
            return hits >= recall * best.size

        if not self.is_quantised:
            return
        self.probes = max(1, self.leaves // 3)
        for self.reordered in REORDER:
            if self.reordered >= self.num_items or reached():
                break
        if self.leaves:
            low, high = 1, self.probes  # the fewest leaves that reach it lie in low..high
            while high - low > max(1, high // 20):
                self.probes = (low + high) // 2
                low, high = (low, self.probes) if reached() else (self.probes, high)
            self.probes = high
