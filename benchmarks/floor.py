"""The lower bound of a training step: the machine's matrix rate and bandwidth, and the step's matrix products.

    python benchmarks/floor.py DATA

The model is the `sasrec` preset with a feed-forward layer four times as wide, and 4,096 positions a step. Each matrix
product of the step is timed alone, compiled by XLA as in the step.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.models.losses import LOGITS_BYTES, SMALLEST_BLOCK
from tfrec.training.compiling import compile_model
from tfrec.training.config import Config
from tfrec.training.presets import preset
from tfrec.training.resolve import resolve

SIZE, REPEATS = 2048, 20


def seconds(call, runs: int = 30) -> float:
    """The fastest of some runs: the machine is shared, and other runs are disturbed."""
    call()
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return min(taken)


@tf.function(jit_compile=True, autograph=False)
def repeated_product(a, b):
    """`a @ b`, `REPEATS` times, each after the one before: times the product without the cost of a call."""

    def again(i, scale):
        smaller = tf.size(a) < tf.size(b)
        left, right = (a * scale, b) if tf.get_static_value(smaller) else (a, b * scale)
        product = tf.reshape(tf.linalg.matmul(left, right), [-1])
        return i + 1, 1 + 1e-30 * product[0]

    return tf.while_loop(lambda i, _: i < REPEATS, again, (0, tf.ones(())))[1]


class Products:
    """Times matrix products and sums their times and FLOPs."""

    def __init__(self) -> None:
        self.seconds, self.flops = 0.0, 0.0

    def add(self, name: str, times: int, *shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
        """Time one product for each pair of shapes; the step does each of them `times` times."""
        taken = flops = 0.0
        for left, right in shapes:
            a, b = tf.random.normal(left), tf.random.normal(right)
            taken += times * seconds(lambda a=a, b=b: repeated_product(a, b).numpy()) / REPEATS
            flops += times * 2 * np.prod(left) * right[-1]
        print(f"  {name:38} {1e3 * taken:6.2f} ms  {flops / 1e9:5.2f} GFLOP  {flops / taken / 1e9:4.0f} GFLOP/s")
        self.seconds, self.flops = self.seconds + taken, self.flops + flops


def main(folder: str) -> None:
    square = tf.random.normal((SIZE, SIZE))
    rate = 2 * SIZE**3 / seconds(lambda: tf.linalg.matmul(square, square).numpy())
    big = np.ones(1 << 27, np.float32)
    bandwidth = 2 * big.nbytes / seconds(lambda: big.copy(), 5)
    print(f"machine: {SIZE} x {SIZE} x {SIZE} {rate / 1e9:.0f} GFLOP/s, memory copy {bandwidth / 1e9:.1f} GB/s")

    data = PreparedData.open(folder)
    split = LeaveLastOut(data)
    config = resolve(Config.from_dict(preset("sasrec") | {"hidden_dim": None, "batch_positions": 4096}), split)
    model, batches = compile_model(config, split)
    rows, length, width, heads, items = batches.rows, batches.length, config.width, config.num_heads, data.num_items
    positions, half, head = rows * length, (length + 1) // 2, width // heads
    print(f"matrix products of a step of {rows} x {length} positions:")
    parts = Products()
    for name, a, b in (
        ("query, key, value", width, 3 * width),
        ("attention out", width, width),
        ("feed-forward in", width, 4 * width),
        ("feed-forward out", 4 * width, width),
    ):
        forward, to_input, to_weight = (
            ((positions, a), (a, b)),
            ((positions, b), (b, a)),
            ((a, positions), (positions, b)),
        )
        parts.add(f"{name}, and its gradients", config.num_blocks, forward, to_input, to_weight)
    for r, c in ((half, half), (length - half, length)):
        logits = (rows, heads, r, head), (rows, heads, head, c)
        mix, to_key = ((rows, heads, r, c), (rows, heads, c, head)), ((rows, heads, c, r), (rows, heads, r, head))
        parts.add(f"attention, {r} x {c}, and its gradients", 2 * config.num_blocks, logits, mix, to_key)
    block = max(SMALLEST_BLOCK, LOGITS_BYTES // (4 * items))
    softmax = ((items, width), (width, block)), ((width, items), (items, block)), ((items, block), (block, width))
    parts.add(f"softmax over {items} items", -(-positions // block), *softmax)
    reached = parts.flops / parts.seconds
    print(f"  {'all':38} {1e3 * parts.seconds:6.2f} ms  {parts.flops / 1e9:5.2f} GFLOP  {reached / 1e9:4.0f} GFLOP/s: "
          f"{reached / rate:.0%} of the matrix rate")  # fmt: skip

    model.make_train_function()
    iterator = iter(batches.dataset().repeat())
    same = iter(tf.data.Dataset.from_tensors(next(iterator)).repeat())
    for name, source in (("next batch each step", iterator), ("one batch again and again", same)):
        taken = []
        for _ in range(2 * len(batches)):
            began = time.perf_counter()
            float(model.train_function(source)["loss"])
            taken.append(time.perf_counter() - began)
        median, fast = statistics.median(taken[5:]), float(np.quantile(taken[5:], 0.1))
        print(f"a whole step, {name}: {1e3 * median:.1f} ms median, {1e3 * fast:.1f} ms at the 10 % quantile, "
              f"{parts.flops / fast / rate:.0%} of the matrix rate")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
