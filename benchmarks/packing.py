"""The time of a training epoch with packed rows and with length buckets.

    python benchmarks/packing.py DATA

Both use the same model, the `sasrec` preset with a wider feed-forward layer, and the same number of positions in a batch. The
five bucket lengths are the best ones for this log; each history is padded to the next of them. The steps of the buckets are
timed on full rows, because only the shapes matter.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.training.compiling import compile_model
from tfrec.training.config import Config
from tfrec.training.presets import preset
from tfrec.training.resolve import resolve

POSITIONS, BUCKETS = 4096, 5


def best_buckets(lengths: np.ndarray) -> tuple[int, ...]:
    """The multiples of 8 that need the least padding as bucket lengths."""
    edges = np.arange(8, lengths.max() + 8, 8)
    count = np.searchsorted(np.sort(lengths), edges, side="right")

    def padded(chosen: tuple[int, ...]) -> int:
        held = np.diff([0, *(count[edges == e][0] for e in chosen)])
        return int(np.dot(held, chosen))

    return min(((*few, int(edges[-1])) for few in itertools.combinations(edges[:-1].tolist(), BUCKETS - 1)), key=padded)


def step_seconds(step, inputs: dict, target) -> float:
    """The median time of a training step on this batch."""
    batches = iter(tf.data.Dataset.from_tensors((inputs, target)).repeat())
    taken = []
    for _ in range(40):
        began = time.perf_counter()
        float(step(batches)["loss"])
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[5:])


def main(folder: str) -> None:
    split = LeaveLastOut(PreparedData.open(folder))
    config = Config.from_dict(preset("sasrec") | {"hidden_dim": None, "batch_positions": POSITIONS})
    model, batches = compile_model(resolve(config, split), split)
    model.make_train_function()
    lengths = batches.lengths[batches.lengths > 0]
    rng = np.random.default_rng(0)
    inputs, target = next(iter(batches))
    packed = step_seconds(model.train_function, inputs, target)
    padded, bucketed = 0, 0.0
    buckets = best_buckets(lengths)
    number = np.bincount(np.searchsorted(buckets, lengths), minlength=BUCKETS)
    for length, histories in zip(buckets, number, strict=True):
        shape = (POSITIONS // length, length)
        history = rng.integers(2, model.item_tower.num_items + 2, shape).astype(np.int32)
        steps = -(-histories // shape[0])
        padded += steps * shape[0] * length
        full = {"history": history, "is_real": np.ones(shape, bool)}
        bucketed += steps * step_seconds(model.train_function, full, history)
    real = batches.num_positions
    rows = len(batches) * batches.rows * batches.length
    print(f"packed rows of {batches.length}: {real / rows:.1%} real, {len(batches) * packed:.2f} s an epoch")
    print(f"buckets {buckets}: {real / padded:.1%} real, {bucketed:.2f} s an epoch, "
          f"{bucketed / (len(batches) * packed):.2f} times as long")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
