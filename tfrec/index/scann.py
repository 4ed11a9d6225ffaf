"""The ScaNN index (Guo et al. 2020): quantised scoring, then exact scores for the best, in ScaNN's own TensorFlow ops.

The builder is used directly, without TFRS's layer: the layer builds a tree for any size, cannot take the number of reordered
candidates at query time, and fills up short rows with item 0.
"""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
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
SAMPLE = 250_000
"""Size of the sample that a tree and its codes are learned from; the other items are added afterwards."""
BLOCK = 1 << 14
"""Items added at a time."""
REORDER = (100, 200, 350, 500, 1000, 2000, 4000)
"""Numbers of candidates that get exact scores, of which `tune` chooses one."""


def _parts(built: Any, place: np.ndarray) -> list[bytes | list[bytes] | np.ndarray]:
    """The parts of a searcher built in Python from which ScaNN's TensorFlow ops make one, beside the vectors.

    Args:
        built: a searcher of `scann_ops_pybind`.
        place: ints, shape `(num_items,)`, the place of each item in it.
    """
    with tempfile.TemporaryDirectory() as folder:
        built.serialize(folder)

        def text(name: str) -> bytes | list[bytes]:
            path = Path(folder, f"{name}.pb")
            return [path.read_bytes()] if path.is_file() else b""

        def rows(name: str, dtype: str) -> np.ndarray:
            path = Path(folder, f"{name}.npy")
            return np.load(path)[place] if path.is_file() else np.zeros((), dtype)

        return [
            text("scann_config"),
            text("serialized_partitioner"),
            rows("datapoint_to_token", "int32"),
            text("ah_codebook"),
            rows("hashed_dataset", "uint8"),
        ]


class ScannIndex(ExactIndex):
    """Ranks items by quantised dot products, then the best of them again by exact ones.

    The scores of an answer are always exact.

    Args:
        vectors: float32 `(num_items, width)`.
        storage: `"float32"`, the only one: ScaNN keeps its own codes beside the vectors. Default: `"float32"`.
        threshold: float, of anisotropic quantisation: the weight of an error along a vector against one across it. Default: 0.2.
    """

    kind = "scann"
    is_exact = False
    custom_ops = ("Scann",)

    def __init__(self, vectors: np.ndarray | tf.Tensor, storage: str = "float32", threshold: float = 0.2) -> None:
        try:
            from scann.scann_ops.py import scann_ops, scann_ops_pybind
        except ImportError as error:
            raise ImportError(
                "The `scann` index needs the package scann (Linux only): pip install scann==1.4.2. "
                "Or choose `--index partitioned`."
            ) from error
        if storage != "float32":
            raise ValueError(f"A scann index keeps float32 vectors beside its codes. Received: storage={storage!r}.")
        num_items = len(vectors)
        self.is_quantised, self.threshold, self.reordered = num_items >= BRUTE_FORCE_ITEMS, threshold, REORDER[3]
        self.leaves = round(LEAVES * num_items**0.5) if num_items > FLAT_ITEMS else 0
        self.probes = max(1, self.leaves // 10)
        rows = np.asarray(vectors)
        order = np.arange(num_items)
        if self.leaves:  # building on all items at once would hold them three times
            order = np.random.default_rng(0).permutation(num_items)
            order[:SAMPLE].sort()
            order[SAMPLE:].sort()
        builder = scann_ops_pybind.builder(rows[order[:SAMPLE]], 10, "dot_product")
        if self.leaves:
            builder = builder.tree(self.leaves, self.probes, training_sample_size=SAMPLE)
        if self.is_quantised:
            builder = builder.score_ah(2, anisotropic_quantization_threshold=threshold).reorder(self.reordered)
        else:
            builder = builder.score_brute_force()
        built = builder.build()
        for start in range(SAMPLE, num_items, BLOCK):
            more = rows[order[start : start + BLOCK]]
            built.searcher.upsert([None] * len(more), more, 256)
        super().__init__(vectors)
        self._parts = [tf.Variable(part, trainable=False, name="scann") for part in _parts(built, np.argsort(order))]
        self._scann_ops, self._shared_name = scann_ops, f"scann-{uuid.uuid4()}"

    @property
    def settings(self) -> dict[str, Any]:
        if not self.is_quantised:
            return super().settings | {"scoring": "brute force"}
        leaves = {"leaves": self.leaves, "leaves_to_search": self.probes} if self.leaves else {}
        scoring = {"scoring": "anisotropic hashing", "dimensions_per_block": 2, "threshold": self.threshold}
        return super().settings | scoring | leaves | {"reorder": f"max({self.reordered}, 2 k)"}

    def _handle(self) -> tf.Tensor:
        """The searcher. The first call makes it, with vectors of its own, and it stays until `handles` are destroyed."""
        unused = (tf.zeros((), dtype) for dtype in (tf.int8, tf.float32, tf.float32))  # of int8 reordering
        return self._scann_ops.tensors_to_scann(self.vectors, *self._parts, *unused, shared_name=self._shared_name)

    def handles(self) -> list[tf.Tensor]:
        return [self._handle()]

    def candidates(self, queries: tf.Tensor, number: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
        searcher = self._scann_ops.ScannSearcher(self._handle())
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

        The reordering is chosen first, with many leaves, then the leaves. For the arguments, see `PartitionedIndex.tune`.
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
