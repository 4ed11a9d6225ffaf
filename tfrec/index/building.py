"""Builds an index of any kind, tunes it to a recall, and measures that.

index.query(queries, k, excluded, allows) -> (scores, items)   exact scores, `k` of them while the catalogue has them
index.candidates(queries, number)          the same without exclusions, and without completion
index.vectors_of(items), index.score_all(queries)
index.is_exact                             True when nothing better can be missed
index.custom_ops                           packages whose ops a server needs beyond stock TensorFlow
index.settings                             how it was built, for the manifest
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfrec.index.exact import ExactIndex
from tfrec.index.partitioned import STORAGES, PartitionedIndex

KINDS = ("exact", "partitioned", "scann")
BLOCK = 8
"""Queries that are asked at a time to measure recall."""


def estimate_bytes(kind: str, num_items: int, width: int, storage: str = "float32") -> int:
    """The approximate memory in bytes for building an index, which is more than it keeps, without the given vectors."""
    vectors = 4 * num_items * width
    kept = vectors * {"float32": 1.0, "bfloat16": 0.5, "int8": 1.25}[storage]
    if kind == "exact":
        return int(kept)
    return int(kept + {"partitioned": vectors + 12 * num_items, "scann": 1.75 * vectors}[kind])


def build_index(
    kind: str,
    vectors: np.ndarray | tf.Tensor,
    *,
    storage: str = "float32",
    queries: np.ndarray | None = None,
    recall: float = 0.99,
    k: int = 10,
) -> ExactIndex:
    """Build an index over item vectors; an approximate one is tuned to a recall.

    >>> build_index("exact", np.eye(3, dtype=np.float32)).num_items
    3

    Args:
        kind: str, one of `KINDS`.
        vectors: float32, shape `(num_items, width)`; an array is copied, a tensor is kept as it is where that suffices.
        storage: `"float32"` or `"bfloat16"`; for a partitioned index also `"int8"`. Default: `"float32"`.
        queries: float32, shape `(number, width)`, typical queries to tune an approximate index with. Default: some of the vectors.
        recall: float in (0, 1], share of the exact top `k` to be found. Default: 0.99.
        k: int, see `recall`. Default: 10.
    Raises:
        ValueError: there is no such kind, a vector is not finite, or memory does not suffice.
        ImportError: `scann` is not installed.
    """
    if kind not in KINDS:
        raise ValueError(f"`index` must be one of {', '.join(KINDS)}. Received: {kind!r}.")
    if storage not in STORAGES:
        raise ValueError(f"`storage` must be one of {', '.join(STORAGES)}. Received: {storage!r}.")
    if not 0 < recall <= 1:
        raise ValueError(f"`recall` must be above 0, and 1 at most. Received: {recall}.")
    if not len(vectors):
        raise ValueError("There is no item to build an index over.")
    rows = np.asarray(vectors)  # a view
    for start in range(0, len(rows), 1 << 16):
        is_bad = ~np.isfinite(rows[start : start + (1 << 16)]).all(axis=1)
        if is_bad.any():
            raise ValueError(f"Item {start + int(is_bad.argmax())} has a vector with NaN or infinity.")
    needed = estimate_bytes(kind, len(vectors), vectors.shape[1], storage)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > free:
        raise ValueError(
            f"To build a {kind} index over {len(vectors):,} items takes about {needed / 2**30:.1f} GiB of memory, and "
            f"{free / 2**30:.1f} are free. Use storage bfloat16, or a machine with more."
        )
    if kind == "exact":
        return ExactIndex(vectors, storage)
    index: PartitionedIndex
    if kind == "partitioned":
        index = PartitionedIndex(vectors, storage)
    else:
        from tfrec.index.scann import ScannIndex

        index = ScannIndex(vectors, storage)  # type: ignore[assignment]
    if queries is None:
        rng = np.random.default_rng(0)
        queries = rows[rng.choice(len(rows), min(len(rows), 1000), replace=False)]
    if len(queries):
        index.tune(queries, exact_top(index, queries, k), recall)
    return index


def _in_blocks(answer: Callable[[tf.Tensor], tf.Tensor], queries: np.ndarray) -> np.ndarray:
    """The answers to all queries, asked a few at a time, because each may need a score for every item."""
    compiled = tf.function(answer, reduce_retracing=True)
    blocks = (queries[i : i + BLOCK] for i in range(0, len(queries), BLOCK))
    return np.concatenate([compiled(tf.constant(block)).numpy() for block in blocks])


def exact_top(index: ExactIndex, queries: np.ndarray, k: int = 10) -> np.ndarray:
    """The exact top `k` of an index's items: int32 `(len(queries), min(k, num_items))`."""
    return _in_blocks(lambda q: tf.math.top_k(index.score_all(q), min(k, index.num_items))[1], queries)


def recall(index: ExactIndex, queries: np.ndarray, k: int = 10) -> float:
    """The share of the exact top `k` that `index` finds, averaged over `queries`; 1 without a query."""
    if index.is_exact or not len(queries):
        return 1.0
    best = exact_top(index, queries, k)
    found = _in_blocks(lambda q: index.query(q, best.shape[1])[1], queries)
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(best, found, strict=True)]))
