"""How many users a second `tfrec recommend-all` answers, beside what the matrix products of the sequence tower take at least.

    python benchmarks/bulk.py RUN_OR_EXPORT DATA [--run RUN] [--k 50] [--num-users N]

Rates are those after the first part, whose requests also trace the model. CPU time is user and system time of the process: on a
busy machine it says more than the wall time. The lower bound counts the dense layers and the products of attention, at the rate
of a large matrix product on the same cores.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from tfrec.data.prepared import PreparedData
from tfrec.deploy import bulk
from tfrec.training.run import CONFIG, Run

PART = 1024
SIZE = 2048


def now() -> np.ndarray:
    """Wall time, and CPU time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])


def matrix_rate() -> float:
    """FLOP per CPU second of a large matrix product: the best of some."""
    a = tf.random.normal((SIZE, SIZE))
    tf.matmul(a, a)
    taken = []
    for _ in range(5):
        began = now()
        for _ in range(4):
            product = tf.matmul(a, a)
        product.numpy()
        taken.append((now() - began)[1] / 4)
    return 2 * SIZE**3 / min(taken)


def flops_of_users(run: Run, lengths: np.ndarray) -> float:
    """FLOP of the mean user: dense layers at each position, and attention of each pair of positions that see each other."""
    tower, width = run.model.sequence_tower, run.model.item_tower.width
    n = np.minimum(lengths, tower.max_length).astype(float)
    *blocks, last = [sum(int(np.prod(w.shape)) for w in b.weights if len(w.shape) == 2) for b in tower.blocks]
    read_by_all = 3 * width**2  # of the last block: queries, keys and values
    dense = 2 * (n * (sum(blocks) + read_by_all) + last - read_by_all)
    pairs = n**2 / 2  # a position sees itself and what is before it
    return float((dense + 4 * width * pairs * len(blocks) + 2 * width * run.model.item_tower.num_items).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--run", type=Path, help="the run of an export, for the lower bound")
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--num-users", type=int)
    asked = parser.parse_args()
    is_run = (asked.source / CONFIG).is_file()
    run = Run.open(asked.source if is_run else asked.run) if is_run or asked.run else None
    data = PreparedData.open(asked.data)
    users = data.users["user_id"].to_pylist()[: asked.num_users]
    times, answer = [], bulk._answer

    def timed(*arguments):
        table = answer(*arguments)
        times.append(now())
        return table

    bulk._answer = timed
    began = now()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "recs.parquet"
        bulk.recommend_all(asked.source, data, out, k=asked.k, users=users, part_users=PART)
    wall, cpu = now() - began
    print(
        f"{len(users):,} users, k={asked.k}: {wall:.1f} s, {cpu:.1f} s of CPU, opening the model and the data included"
    )
    if len(times) < 2:
        return
    wall, cpu = times[-1] - times[0]
    number = len(users) - PART
    print(f"after the first part: {number / wall:,.0f} users/s, {number / cpu:,.0f} users per CPU second")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    if run is not None:
        rate, flops = matrix_rate(), flops_of_users(run, data.lengths[: len(users)])
        floor = rate / flops
        print(f"matrix rate: {rate / 1e9:.0f} GFLOP per CPU second; {flops / 1e6:.0f} MFLOP a user")
        print(f"lower bound: {floor:,.0f} users per CPU second; reached: {number / cpu / floor:.0%}")


if __name__ == "__main__":
    main()
