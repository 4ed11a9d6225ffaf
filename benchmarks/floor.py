"""The machine's floor: float32 matrix rate and memory bandwidth, and what a training step needs of the first.

python benchmarks/floor.py DATA
"""

from __future__ import annotations

import os
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from tfrec.prepared import PreparedData
from tfrec.training import Config, compile_model

SIZE, POSITIONS = 2048, 4096


def seconds(call, runs: int = 30) -> float:
    """The fastest of some runs: what the machine can do when nobody disturbs it."""
    call()
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return min(taken)


def main(folder: str) -> None:
    square = tf.random.normal((SIZE, SIZE))
    rate = 2 * SIZE**3 / seconds(lambda: tf.linalg.matmul(square, square).numpy())
    data = PreparedData.open(folder)
    thin = tf.random.normal((POSITIONS, 64)), tf.random.normal((64, data.num_items))
    thin_rate = 2 * POSITIONS * 64 * data.num_items / seconds(lambda: tf.linalg.matmul(*thin)[0, 0].numpy())
    big = np.ones(1 << 27, np.float32)
    bandwidth = 2 * big.nbytes / seconds(lambda: big.copy(), 5)
    print(f"matrix product {SIZE} x {SIZE} x {SIZE}: {rate / 1e9:.0f} GFLOP/s; {POSITIONS} x 64 x {data.num_items}: "
          f"{thin_rate / 1e9:.0f} GFLOP/s; memory copy {bandwidth / 1e9:.1f} GB/s")  # fmt: skip

    config = Config(folder)
    model, batches = compile_model(config, data)
    width, hidden = config.width, 4 * config.width
    steps = len(batches)
    padded = batches.rows * batches.length * steps
    mean_length = batches.length / 2 * 1.5  # attention works in two halves, the first of which skips the second
    per_block = 2 * width * (4 * width + 2 * hidden) + 4 * width * mean_length  # projections, feed-forward, attention
    tower = 3 * config.num_blocks * per_block * padded / steps
    softmax = 3 * 2 * width * data.num_items * padded / steps
    step = model.make_train_function() or model.train_function
    iterator = iter(batches.dataset().repeat())
    taken = []
    for _ in range(2 * steps):
        began = time.perf_counter()
        float(step(iterator)["loss"])
        taken.append(time.perf_counter() - began)
    median, fast = statistics.median(taken[steps:]), float(np.quantile(taken[steps:], 0.1))
    print(f"a step: {batches.num_positions / steps:.0f} real of {padded / steps:.0f} positions, matrix work tower "
          f"{tower / 1e9:.2f} + softmax {softmax / 1e9:.2f} GFLOP")  # fmt: skip
    print(f"{1e3 * median:.1f} ms median, {1e3 * fast:.1f} ms at the 10 % quantile: {(tower + softmax) / median / 1e9:.0f} and "
          f"{(tower + softmax) / fast / 1e9:.0f} GFLOP/s, {(tower + softmax) / fast / rate:.0%} of the matrix rate")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
