"""Time and memory of an evaluation: `python benchmarks/evaluation.py DATA [USERS]`.

An untrained `sasrec` preset ranks the test targets of the first USERS users among the whole catalogue: alone, then with all
baselines, metrics, intervals, differences and slices. A first pass over 100 users compiles the model.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.evaluation.contenders import baselines_of, of_model
from tfrec.evaluation.judgement import judge
from tfrec.evaluation.ranking import evaluate_model
from tfrec.evaluation.slices import HISTORY, POPULARITY
from tfrec.training.compiling import build_model
from tfrec.training.config import Config
from tfrec.training.presets import preset
from tfrec.training.resolve import resolve


def first_users(data: PreparedData, number: int) -> PreparedData:
    """The data of the first users."""
    offsets = data.offsets[: number + 1]
    parts = {"item_index": data.item_index[: offsets[-1]], "timestamp": data.timestamp[: offsets[-1]]}
    return dataclasses.replace(data, offsets=offsets, users=data.users.slice(0, len(offsets) - 1), **parts)


def main(folder: str, num_users: str = "1000000000") -> None:
    data = first_users(PreparedData.open(folder), int(num_users))
    split = LeaveLastOut(data)
    model = build_model(resolve(Config.from_dict(preset("sasrec")), split), data.num_items)
    small = LeaveLastOut(first_users(data, 100))

    def everything():
        contenders = {"model": of_model(model)} | baselines_of(data)
        judged = judge(split, contenders, vectors=np.asarray(model.item_tower.catalogue()))
        judged.to_dict([HISTORY, POPULARITY])

    for name, work, users in (
        ("to compile", lambda: evaluate_model(model, small, "test"), small.users),
        ("model", lambda: evaluate_model(model, split, "test"), split.users),
        ("everything", everything, split.users),
    ):
        began, cpu = time.perf_counter(), time.process_time()
        work()
        took = f"{time.perf_counter() - began:.1f} s ({time.process_time() - cpu:.1f} s of CPU)"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{name}: {len(users):,} users, {data.num_items:,} items, {took}, peak memory {peak:,.0f} MiB")


if __name__ == "__main__":
    main(*sys.argv[1:])
