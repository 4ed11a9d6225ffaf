"""Training speed beside the peers', in one run: `make bench-training`.

    python benchmarks/training/compare.py DATA --rectools PYTHON --keras-rs PYTHON

Each contestant runs in a process and an environment of its own, one after the other, on the same sequences, sizes and
threads. The measure is real positions a second: padding is not work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run(python: str, script: str, *arguments: str) -> dict:
    """The figures of one contestant."""
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([python, HERE / script, *arguments], capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{script} failed:\n{done.stderr[-2000:]}")
    result = json.loads(lines[-1].removeprefix("RESULT "))
    print(f"{result['name']:38} {result['positions_per_second']:9,.0f} positions/s  {result['epoch_seconds']:6.1f} s an epoch  "
          f"{result['peak_rss_mib']:6,.0f} MiB", flush=True)  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="prepared folder, such as that of movielens-1m")
    parser.add_argument("--rectools", required=True, help="Python with rectools[torch]==0.19.0")
    parser.add_argument("--keras-rs", required=True, help="Python with keras-hub and keras-rs")
    given = parser.parse_args()
    ours = [sys.executable, "ours.py", given.data, "--warm-up", "1", "--epochs", "2"]
    softmax = run(*ours)
    rectools = run(given.rectools, "rectools_sasrec.py", given.data)
    keras_rs = run(given.keras_rs, "keras_rs_sasrec.py", given.data)
    again = run(*ours)
    sampled = run(*ours, "--loss", "sampled")
    rectools_sampled = run(given.rectools, "rectools_sasrec.py", given.data, "--loss", "sampled")
    gru = run(sys.executable, "tfrs_gru.py", given.data, "--warm-up", "1")
    print()
    mean = (softmax["positions_per_second"] + again["positions_per_second"]) / 2
    for name, rate, peer in (
        ("full softmax / RecTools", mean, rectools),
        ("full softmax / keras-hub, keras-rs", mean, keras_rs),
        ("sampled softmax / RecTools", sampled["positions_per_second"], rectools_sampled),
        ("full softmax / TFRS GRU", mean, gru),
    ):
        print(f"{name:38} {rate / peer['positions_per_second']:5.1f} times")
    print(f"{'peak memory / RecTools':38} {softmax['peak_rss_mib'] / rectools['peak_rss_mib']:5.2f}")


if __name__ == "__main__":
    main()
