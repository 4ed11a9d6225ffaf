"""Time and memory of ranking the whole catalogue: `python benchmarks/evaluation.py DATA [USERS]`.

An untrained `sasrec` preset ranks the test targets of the first USERS users. A first pass over 100 users compiles the model.
"""

from __future__ import annotations

import os
import resource
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.evaluation.ranking import evaluate_model
from tfrec.training.compiling import build_model
from tfrec.training.config import Config
from tfrec.training.presets import preset
from tfrec.training.resolve import resolve


def main(folder: str, num_users: str = "1000000000") -> None:
    data = PreparedData.open(folder)
    split = LeaveLastOut(data)
    model = build_model(resolve(Config.from_dict(preset("sasrec")), split), data.num_items)
    for users, name in ((split.users[:100], "100 users, to compile"), (split.users[: int(num_users)], "all")):
        split.users = users
        began = time.perf_counter()
        evaluate_model(model, split, "test")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{name}: {len(users):,} users over {data.num_items:,} items in {time.perf_counter() - began:.1f} s, "
              f"peak memory {peak:,.0f} MiB")  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
