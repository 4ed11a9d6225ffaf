"""Top-k retrieval inside a SavedModel: one interface, several kinds.

index.query(queries, k) -> (scores, items)   float32 and int32, (batch, min(k, num_items)), best first
index.is_exact                               True when nothing better can be missed
index.custom_ops                             packages whose ops a server needs beyond stock TensorFlow
index.settings                               how it was built, for the manifest
"""

from __future__ import annotations

import numpy as np

from tfrec.index.exact import ExactIndex

KINDS = ("exact", "scann")


def build_index(kind: str, vectors: np.ndarray) -> ExactIndex:
    """Build an index over item vectors.

    Args:
        kind: one of `KINDS`.
        vectors: float32 `(num_items, width)`.
    Raises:
        ValueError: there is no such kind, or a vector is not finite.
        ImportError: `scann` is not installed.
    """
    if kind not in KINDS:
        raise ValueError(f"`index` must be one of {', '.join(KINDS)}. Received: {kind!r}.")
    if not np.isfinite(vectors).all():
        raise ValueError(
            f"Item {int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])} has a vector with NaN or infinity."
        )
    if kind == "exact":
        return ExactIndex(vectors)
    from tfrec.index.scann import ScannIndex

    return ScannIndex(vectors)


def recall(index: ExactIndex, queries: np.ndarray, k: int = 10) -> float:
    """Share of the exact top `k` that `index` finds, averaged over `queries`."""
    exact = np.asarray(ExactIndex(index.vectors.numpy()).query(queries, k)[1])
    found = np.asarray(index.query(queries, k)[1])
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(exact, found, strict=True)]))
