"""The peers: `python peers.py NAME FOLDER`, in their own environment."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
from common import WIDTH, K, measure


def faiss_ivf(vectors: np.ndarray):
    """IVF-Flat by inner product, with the number of leaves that FAISS advises for a million items: 4 sqrt(N)."""
    import faiss

    leaves = int(4 * len(vectors) ** 0.5)
    index = faiss.index_factory(WIDTH, f"IVF{leaves},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[np.random.default_rng(0).choice(len(vectors), min(len(vectors), 64 * leaves), replace=False)])
    index.add(vectors)

    def at(probes):
        index.nprobe = probes
        return lambda queries: index.search(queries, K)[1]

    return at, (1, 2, 4, 8, 16, 32, 64, 128)


def faiss_hnsw(vectors: np.ndarray):
    import faiss

    index = faiss.IndexHNSWFlat(WIDTH, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    index.add(vectors)

    def at(ef):
        index.hnsw.efSearch = ef
        return lambda queries: index.search(queries, K)[1]

    return at, (100, 150, 200, 400, 800)


def hnswlib(vectors: np.ndarray):
    import hnswlib

    index = hnswlib.Index(space="ip", dim=WIDTH)
    index.init_index(max_elements=len(vectors), ef_construction=100, M=16)
    index.add_items(vectors)

    def at(ef):
        index.set_ef(ef)
        return lambda queries: index.knn_query(queries, k=K)[0]

    return at, (100, 150, 200, 400, 800)


def voyager(vectors: np.ndarray):
    import voyager

    index = voyager.Index(voyager.Space.InnerProduct, num_dimensions=WIDTH, M=16, ef_construction=100)
    index.add_items(vectors)

    def at(ef):
        return lambda queries: index.query(queries, k=K, query_ef=ef)[0]

    return at, (100, 150, 200, 400, 800)


def main(name: str, folder: Path) -> None:
    vectors = np.load(folder / "vectors.npy")
    begin = time.perf_counter()
    at, settings = globals()[name](vectors)
    took = time.perf_counter() - begin
    for setting in settings:
        measure(name, setting, at(setting), folder, build_seconds=took)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main(sys.argv[1], Path(sys.argv[2]))
