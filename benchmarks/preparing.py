"""How long a log takes to prepare, and how much memory: CSV and Parquet, side by side with another commit.

    python benchmarks/preparing.py FOLDER --rows 20000000 --before ../before

Makes a synthetic log once (kept in FOLDER): user and item ids as text, times in milliseconds, nearly in order. Each measurement
is a process of its own; with `--before`, the two checkouts take turns.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

STEP = 5_000_000
MEASURE = """
import os, resource, shutil, sys, time
import tfrec
from tfrec.data.preparation import prepare
log, out = sys.argv[1:]
shutil.rmtree(out, ignore_errors=True)
began = time.perf_counter()
data = prepare(log, out)
seconds = time.perf_counter() - began
assert tfrec.__file__.startswith(os.getcwd()), tfrec.__file__
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(f"{seconds:8.1f} s {peak:8.2f} GB {data.num_events:14,} events {data.manifest['num_refused']:6,} refused")
"""


def make(folder: Path, rows: int) -> list[Path]:
    """Write the log as CSV and as Parquet, a twentieth as many users as rows."""
    paths = [folder / f"log-{rows}.{kind}" for kind in ("csv", "parquet")]
    if all(path.exists() for path in paths):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64())])
    options = pa.csv.WriteOptions(quoting_style="none")
    with (
        pa.csv.CSVWriter(paths[0], schema, write_options=options) as text,
        pa.parquet.ParquetWriter(paths[1], schema) as columns,
    ):
        for begin in range(0, rows, STEP):
            number = min(STEP, rows - begin)
            users = pa.array(rng.integers(0, max(1000, rows // 20), number)).cast(pa.string())
            items = pa.array(rng.zipf(1.3, number) % 200_000).cast(pa.string())
            times = 1_500_000_000_000 + (begin + np.arange(number)) * 1000 + rng.integers(-5000, 5000, number)
            table = pa.table([users, items, times], schema=schema)
            text.write_table(table)
            columns.write_table(table)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--before", type=Path, help="Checkout of another commit.")
    parser.add_argument("--turns", type=int, default=1)
    given = parser.parse_args()
    checkouts = {"now": Path(__file__).resolve().parents[1]} | (
        {"before": given.before.resolve()} if given.before else {}
    )
    for path in make(given.folder, given.rows):
        for _ in range(given.turns):
            for name, checkout in checkouts.items():
                command = [sys.executable, "-c", MEASURE, str(path.resolve()), str((given.folder / "out").resolve())]
                done = subprocess.run(
                    command,
                    cwd=checkout,  # `-c` looks there first, before PYTHONPATH
                    env=os.environ | {"PYTHONPATH": str(checkout)},
                    capture_output=True,
                    text=True,
                )
                print(f"{path.suffix:9} {name:7} {done.stdout.strip() or done.stderr[-300:]}", flush=True)


if __name__ == "__main__":
    main()
