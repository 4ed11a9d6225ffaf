"""Shared by all contestants: the vectors, the clock, and the printed line. Needs NumPy only."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

WIDTH, K, QUERIES = 64, 100, 1000


def make_vectors(number: int, seed: int, normalised: bool) -> np.ndarray:
    """Draw points around 5,000 standard normal centres: each is its centre plus 0.9 standard normal noise."""
    centres = np.random.default_rng(0).standard_normal((5000, WIDTH), np.float32)
    rng = np.random.default_rng(seed)
    points = np.empty((number, WIDTH), np.float32)
    for i in range(0, number, 1 << 18):
        block = points[i : i + (1 << 18)]
        block[:] = centres[rng.integers(5000, size=len(block))] + 0.9 * rng.standard_normal(block.shape, np.float32)
        if normalised:
            block /= np.linalg.norm(block, axis=1, keepdims=True)
    return points


def exact_answers(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The best `K` items of each query, best first: int32 array, shape `(queries, K)`."""
    answers = []
    for i in range(0, len(queries), 16):
        scores = queries[i : i + 16] @ vectors.T
        best = np.argpartition(scores, -K, axis=1)[:, -K:]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        answers.append(np.take_along_axis(best, order, 1))
    return np.concatenate(answers).astype(np.int32)


def prepare(folder: Path, number: int) -> None:
    """Write `vectors.npy`, `queries.npy`, `tuning.npy` and the exact `answers.npy`, unless the folder has them."""
    if (folder / "answers.npy").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    vectors, queries = make_vectors(number, 1, normalised=True), make_vectors(QUERIES, 2, normalised=False)
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "queries.npy", queries)
    np.save(folder / "tuning.npy", make_vectors(QUERIES, 3, normalised=False))
    np.save(folder / "answers.npy", exact_answers(vectors, queries))


def measure(name: str, setting: object, search: Callable[[np.ndarray], np.ndarray], folder: Path, **others) -> None:
    """Time `search(queries) -> (batch, K) items` with batches of 1 and of 64; print a line of JSON."""
    queries, answers = np.load(folder / "queries.npy"), np.load(folder / "answers.npy")
    seconds = {}
    for batch, rounds in ((1, 200), (64, 12)):
        took = []
        for i in range(rounds + 3):
            start = i * batch % (len(queries) - batch)
            begin = time.perf_counter()
            search(queries[start : start + batch])
            took.append(time.perf_counter() - begin)
        seconds[batch] = float(np.median(took[3:]))  # the first three runs warm up
    found = np.concatenate([search(queries[i : i + 64]) for i in range(0, 512, 64)])
    recall = {
        k: np.mean([len(np.intersect1d(a[:k], b[:k])) / k for a, b in zip(found, answers[:512], strict=True)])
        for k in (10, 100)
    }
    line = {
        "name": name,
        "setting": setting,
        "ms_1": 1e3 * seconds[1],
        "ms_64": 1e3 * seconds[64],
        "recall@10": float(recall[10]),
        "recall@100": float(recall[100]),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(line | others), flush=True)
