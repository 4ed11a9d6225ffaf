"""An approximate index in stock TensorFlow ops: items lie in leaves around k-means centres, and a query visits the best leaves.

Any TensorFlow Serving loads it, and LiteRT too: it needs no ops of ScaNN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.index.exact import ExactIndex

STORAGES = ("float32", "bfloat16", "int8")
LEAVES = 4.0
"""Number of leaves, as a multiple of the square root of the number of items."""
LARGEST_LEAF = 1.5
"""Size of the largest leaf, as a multiple of the mean; larger leaves are split."""
SAMPLE = 64
"""Size of the sample for k-means, in items for each leaf."""
ITERATIONS = 10
BLOCK = 1 << 12
"""Items compared with the centres at a time."""
GATHERED = 4
"""Time of a vector gathered from its leaf, as a multiple of its time in a product with all vectors."""
RESCORED = 4
"""Candidates that get exact scores after a scan of int8 codes, as a multiple of the number asked for."""


@tf.function(reduce_retracing=True)
def _nearest(x, centres):
    scores = tf.linalg.matmul(x, centres, transpose_b=True) - tf.reduce_sum(tf.square(centres), axis=1) / 2
    return tf.argmax(scores, axis=1, output_type=tf.int32)


def _shaped(vectors: np.ndarray) -> np.ndarray:
    """The vectors to cluster: the direction of each vector, with the square root of its norm."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.sqrt(np.maximum(norm, 1e-12))).astype(np.float32)


def _assign(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest centre of each vector: int32 `(num_items,)`."""
    fixed = tf.constant(centres)
    blocks = (vectors[i : i + BLOCK] for i in range(0, len(vectors), BLOCK))
    return np.concatenate([_nearest(tf.constant(_shaped(block)), fixed).numpy() for block in blocks])


def _kmeans(vectors: np.ndarray, num_leaves: int, seed: int) -> np.ndarray:
    """Find centres by Lloyd's algorithm on a sample; a nearly empty leaf moves to a place where leaves are full."""
    rng = np.random.default_rng(seed)
    sample = vectors[np.sort(rng.choice(len(vectors), min(len(vectors), SAMPLE * num_leaves), replace=False))]
    centres = _shaped(sample[rng.choice(len(sample), num_leaves, replace=False)])
    for iteration in range(ITERATIONS):
        leaf = _assign(sample, centres)
        count = np.bincount(leaf, minlength=num_leaves)
        sums = np.zeros_like(centres)
        for start in range(0, len(sample), BLOCK):
            block = slice(start, start + BLOCK)
            sums += tf.math.unsorted_segment_sum(_shaped(sample[block]), leaf[block], num_leaves).numpy()
        centres = (sums / np.maximum(count, 1)[:, None]).astype(np.float32)
        tiny = np.flatnonzero(count < 0.1 * len(sample) / num_leaves)
        if iteration < ITERATIONS - 1 and len(tiny):
            crowd = np.maximum(count - len(sample) / num_leaves, 0)[leaf] + 1e-9
            centres[tiny] = _shaped(sample[rng.choice(len(sample), len(tiny), p=crowd / crowd.sum())])
    return centres


def _halves(vectors: np.ndarray, rows: np.ndarray, largest: int) -> list[np.ndarray]:
    """Cut `rows` into parts of at most `largest`, across the direction in which their vectors differ most."""
    parts = -(-len(rows) // largest)
    if parts == 1:
        return [rows]
    around = vectors[rows] - vectors[rows].mean(axis=0)
    _, direction = np.linalg.eigh(around.T @ around)
    return np.array_split(rows[np.argsort(around @ direction[:, -1], kind="stable")], parts)


class PartitionedIndex(ExactIndex):
    """Ranks the items of the leaves with the most promising centres.

    Leaves come from k-means and are split until none is much larger than the mean; vectors lie leaf by leaf, without padding.
    The promise of a leaf is the dot product of the query with the direction of its mean, times the norm of its longest vector. So
    vectors of any norm are ranked right, long ones first. All items are ranked where the candidates need a quarter of the leaves.
    Source: the inverted file of Jegou et al. 2011 (IVF-Flat, as in FAISS). Differs from the source: inner product over
    vectors of any length, leaves of bounded size.

    Args:
        vectors: float32 `(num_items, width)`.
        storage: `"float32"`; `"bfloat16"`: half the memory, and scores of the rounded vectors; or `"int8"`: codes are scanned,
            and the best of them get exact scores from float32 vectors: a quarter of the bytes to read, a quarter more to keep.
        probes: how many leaves a query visits; see `tune`.
        seed: int.
    """

    kind = "partitioned"
    is_exact = False

    def __init__(
        self, vectors: np.ndarray | tf.Tensor, storage: str = "float32", probes: int = 8, seed: int = 0
    ) -> None:
        if storage not in STORAGES:
            raise ValueError(
                f"`storage` of a partitioned index is one of {', '.join(STORAGES)}. Received: {storage!r}."
            )
        vectors = np.asarray(vectors)  # a view
        num_items = len(vectors)
        num_leaves = min(num_items, math.ceil(LEAVES * math.sqrt(num_items)))
        leaf = _assign(vectors, _kmeans(vectors, num_leaves, seed))
        by_leaf = np.argsort(leaf, kind="stable")
        borders = np.flatnonzero(np.diff(leaf[by_leaf])) + 1
        largest = math.ceil(LARGEST_LEAF * num_items / num_leaves)
        leaves = [part for rows in np.split(by_leaf, borders) for part in _halves(vectors, rows, largest)]
        means = np.stack([vectors[rows].mean(axis=0) for rows in leaves])
        longest = np.array([np.linalg.norm(vectors[rows], axis=1).max() for rows in leaves])
        means *= (longest / np.maximum(np.linalg.norm(means, axis=1), 1e-12))[:, None]
        order = np.concatenate(leaves).astype(np.int32)

        super().__init__(tf.gather(vectors, order), "bfloat16" if storage == "bfloat16" else "float32")
        sizes = np.array([len(rows) for rows in leaves], np.int32)
        self.largest_leaf, self.probes = int(sizes.max()), min(probes, len(leaves))
        variable = lambda values, name: tf.Variable(values, trainable=False, name=name)  # noqa: E731
        self.centres = variable(means.astype(np.float32), "centres")
        self._size = variable(sizes, "size")
        self._start = variable(np.cumsum(sizes, dtype=np.int32) - sizes, "start")
        self._item = variable(order, "item")
        self._row = variable(np.argsort(order).astype(np.int32), "row")
        self._codes: tf.Variable | None = None
        if storage == "int8":
            scale = np.maximum(np.abs(vectors).max(axis=1), 1e-12)[order] / 127
            codes = np.empty(vectors.shape, np.int8)
            for i in range(0, num_items, BLOCK):
                codes[i : i + BLOCK] = np.round(vectors[order[i : i + BLOCK]] / scale[i : i + BLOCK, None])
            self._codes, self._scale = variable(codes, "codes"), variable(scale.astype(np.float32), "scale")
        self.storage = storage

    @property
    def settings(self) -> dict[str, Any]:
        leaves = {"leaves": self.centres.shape[0], "largest_leaf": self.largest_leaf, "leaves_to_search": self.probes}
        return super().settings | leaves

    def vectors_of(self, items: tf.Tensor) -> tf.Tensor:
        return super().vectors_of(tf.gather(self._row.value(), items))

    def score_all(self, queries: tf.Tensor) -> tf.Tensor:
        return tf.gather(super().score_all(queries), self._row, axis=1)

    def candidates(self, queries: tf.Tensor, number: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
        num_leaves = self.centres.shape[0]
        # twice the leaves that `number` items fill: enough on average, as leaves are at most 1.5 times the mean
        enough = 2 * num_leaves / self.num_items * tf.cast(number, tf.float32)
        probes = tf.maximum(self.probes, tf.cast(tf.minimum(enough, num_leaves), tf.int32))
        return tf.cond(
            GATHERED * probes >= num_leaves,
            lambda: self._rank_all(queries, number),
            lambda: self._visit(queries, number, probes),
        )

    def _rank_all(self, queries, number):
        scores, rows = tf.math.top_k(super().score_all(queries), number)
        return scores, tf.gather(self._item.value(), rows)

    def _visit(self, queries, number, probes):
        """Answer one query at a time: its leaves fit the cache, and the threads of a server answer several."""
        promise = tf.linalg.matmul(queries, self.centres, transpose_b=True)
        _, leaves = tf.math.top_k(promise, probes)
        return tf.map_fn(
            lambda one: self._visit_one(one[0], one[1], number),
            (queries, leaves),
            fn_output_signature=(tf.float32, tf.int32),
        )

    def _visit_one(self, query, leaves, number):
        column = tf.expand_dims(tf.range(self.largest_leaf), 0)
        rows = tf.expand_dims(tf.gather(self._start.value(), leaves), 1) + column  # leaves, places in the largest
        is_real = tf.reshape(column < tf.expand_dims(tf.gather(self._size.value(), leaves), 1), (-1,))
        rows = tf.where(is_real, tf.reshape(rows, (-1,)), 0)
        scores = self._scan(rows, query)
        missing = tf.maximum(number - tf.size(rows), 0)
        scores = tf.pad(tf.where(is_real, scores, -np.inf), [[0, missing]], constant_values=-np.inf)
        rows = tf.pad(rows, [[0, missing]])
        if self._codes is not None:
            scores, kept = tf.math.top_k(scores, tf.minimum(RESCORED * number, tf.size(rows)))
            rows = tf.gather(rows, kept)
            exact = tf.linalg.matvec(tf.gather(self.vectors.value(), rows), query)
            scores = tf.where(scores > -np.inf, exact, -np.inf)
        scores, kept = tf.math.top_k(scores, number)
        return scores, tf.gather(self._item.value(), tf.gather(rows, kept))

    def _scan(self, rows, query):
        """The scores that choose the candidates: exact, or of int8 codes."""
        if self._codes is None:
            return tf.linalg.matvec(tf.cast(tf.gather(self.vectors.value(), rows), tf.float32), query)
        codes = tf.cast(tf.gather(self._codes.value(), rows), tf.float32)
        return tf.linalg.matvec(codes, query) * tf.gather(self._scale.value(), rows)

    def tune(self, queries: np.ndarray, best: np.ndarray, recall: float) -> None:
        """Choose the fewest leaves to search that reach a recall.

        Args:
            queries: float32 `(number, width)`.
            best: int32 `(number, k)`, the exact answer to each query.
            recall: float in (0, 1], share of `best` to be found.
        """
        promise = queries @ self.centres.numpy().T
        place = np.empty(promise.shape, np.int32)
        np.put_along_axis(place, np.argsort(-promise, axis=1), np.arange(promise.shape[1], dtype=np.int32)[None], 1)
        leaf = np.searchsorted(self._start.numpy(), self._row.numpy()[best], side="right") - 1
        visited = np.sort(np.take_along_axis(place, leaf, axis=1), axis=None)
        self.probes = int(visited[min(math.ceil(recall * visited.size), visited.size) - 1]) + 1
