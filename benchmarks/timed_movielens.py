"""Prepare the ML-1M users whose events all have times: `python benchmarks/timed_movielens.py OUT`.

Times come from `ml-1m/ratings_partial_time.npz` under $TFREC_DATA_DIR (`ts_kind` 0 exact, 1 interpolated). Events keep the
order of the SASRec file, and times are made non-decreasing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from tfrec.data.preparation import prepare

MISSING = 2


def main(out: str) -> None:
    with np.load(Path(os.environ["TFREC_DATA_DIR"]) / "ml-1m" / "ratings_partial_time.npz") as saved:
        ratings = {name: saved[name] for name in ("sas_user", "sas_item", "sas_pos", "ts", "ts_kind")}
    kept = ratings["sas_item"] > 0
    ratings = {name: values[kept] for name, values in ratings.items()}
    untimed = np.unique(ratings["sas_user"][ratings["ts_kind"] == MISSING])
    kept = ~np.isin(ratings["sas_user"], untimed)
    order = np.lexsort((ratings["sas_pos"], ratings["sas_user"]))
    user, item, time = (ratings[name][order][kept[order]] for name in ("sas_user", "sas_item", "ts"))
    for events in np.split(np.arange(len(user)), np.flatnonzero(np.diff(user)) + 1):
        time[events] = np.maximum.accumulate(time[events])
    events = pa.table({"user": user.astype(str), "item": item.astype(str), "time": time.astype(np.int64)})
    prepare(events, out)
    print(f"Wrote {out}: {len(np.unique(user)):,} users, {len(user):,} events, all timed.")


if __name__ == "__main__":
    main(sys.argv[1])
