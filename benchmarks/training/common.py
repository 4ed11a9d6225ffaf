"""Shared by all contestants: the sequences, the sizes and the count of positions. Needs NumPy only."""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import time
from pathlib import Path

import numpy as np

LENGTH, WIDTH, BLOCKS, HEADS, DROPOUT, LEARNING_RATE = 200, 64, 2, 2, 0.2, 1e-3
THREADS = 2
NEGATIVES = 256


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, help="prepared folder")
    parser.add_argument("--loss", default="softmax", help="softmax or sampled")
    parser.add_argument("--epochs", type=int, default=1, help="epochs that count, after --warm-up")
    parser.add_argument("--warm-up", type=int, default=0)
    return parser.parse_args()


def training_sequences(data: Path) -> list[np.ndarray]:
    """Each user's items without the last two events, numbered from 1. Users without a pair to learn from are left out."""
    item_index, offsets = (np.load(data / f"{name}.npy") for name in ("item_index", "offsets"))
    sequences = [item_index[a : b - 2] - 1 for a, b in itertools.pairwise(offsets)]
    return [s for s in sequences if len(s) > 1]


def num_items(data: Path) -> int:
    return int(np.load(data / "item_index.npy").max()) - 1


def real_positions(sequences: list[np.ndarray]) -> int:
    """The number of predictions in an epoch. Padding is not counted: it is not work."""
    return sum(min(len(s) - 1, LENGTH) for s in sequences)


class Clock:
    """Times epochs."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def start(self) -> None:
        self._began = time.perf_counter()

    def stop(self) -> None:
        self.seconds.append(time.perf_counter() - self._began)


def epoch_timer(callback: type, clock: Clock):
    """A Keras callback that times epochs. `callback` is the base class of the Keras in use: Keras 3, or Keras 2 for TFRS."""

    class Timed(callback):
        def on_epoch_begin(self, epoch, logs=None):
            clock.start()

        def on_epoch_end(self, epoch, logs=None):
            clock.stop()

    return Timed()


def report(name: str, positions: int, seconds: list[float], **others) -> None:
    """Print the figures of a contestant as its last line, in JSON."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate = positions / statistics.median(seconds)
    result = {
        "name": name,
        "positions_per_second": rate,
        "epoch_seconds": statistics.median(seconds),
        "peak_rss_mib": peak,
    }
    print("RESULT", json.dumps(result | others), flush=True)
