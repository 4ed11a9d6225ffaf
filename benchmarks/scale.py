"""The growth of step time and memory with the catalogue and the log: `make bench-scale`.

    python benchmarks/scale.py FOLDER

Makes synthetic logs (kept in FOLDER), then trains some steps on each in a process of its own: width 64, 2 blocks, length
50, 1,024 uniform negatives, sampled softmax. By default the item table is updated densely up to 50,000 items, and lazily
above. A second run on 10,000 items updates lazily, for a comparison of equal catalogues.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

STEPS, WARM_UP = 120, 30
# items to draw from (items without an event are not in the catalogue), events, lazy_table
SIZES = [(10_000, 500_000, None), (10_000, 500_000, True), (100_000, 2_000_000, None), (1_600_000, 8_000_000, None)]
EVENTS_PER_USER = 50


def measure(data: str, lazy: str) -> None:
    """Train some steps and print the figures as JSON."""
    import itertools

    import numpy as np

    from tfrec.data.prepared import PreparedData
    from tfrec.data.splits import LeaveLastOut
    from tfrec.training.compiling import compile_model
    from tfrec.training.config import Config
    from tfrec.training.presets import preset
    from tfrec.training.resolve import resolve

    settings = {"max_length": 50, "loss": "sampled_softmax", "lazy_table": json.loads(lazy)}
    settings |= {"hidden_dim": None, "batch_positions": 4096}
    split = LeaveLastOut(PreparedData.open(data))
    model, batches = compile_model(resolve(Config.from_dict(preset("sasrec") | settings), split), split)
    step = model.make_train_function() or model.train_function
    seconds, positions = [], []
    iterator = iter(batches.dataset().repeat())
    sizes = (int(inputs["is_real"].sum()) for inputs, _ in itertools.chain.from_iterable(itertools.repeat(batches)))
    for size in itertools.islice(sizes, STEPS + WARM_UP):
        began = time.perf_counter()
        float(step(iterator)["loss"])
        seconds.append(time.perf_counter() - began)
        positions.append(size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    median = float(np.median(seconds[WARM_UP:]))
    print(
        "RESULT",
        json.dumps(
            {"step_ms": 1e3 * median, "positions_per_second": np.mean(positions) / median, "peak_rss_mib": peak}
        ),
    )


def main(folder: Path) -> None:
    print(f"{'items':>10} {'events':>10} {'table':>8} {'step':>9} {'positions/s':>12} {'peak memory':>12}")
    for items, events, lazy in SIZES:
        data = folder / f"synthetic-{items}-{events}"
        if not data.exists():
            subprocess.run(
                ["tfrec", "prepare", "synthetic", "--out", data, "--users", str(events // EVENTS_PER_USER), "--catalogue",
                 str(items), "--events-per-user", str(EVENTS_PER_USER)], check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        done = subprocess.run(
            [sys.executable, __file__, "--measure", data, json.dumps(lazy)], capture_output=True, text=True
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            sys.exit(done.stderr[-2000:])
        got = json.loads(lines[0].removeprefix("RESULT "))
        counts = json.loads((data / "manifest.json").read_text())
        items, events = counts["num_items"], counts["num_events"]
        kind = "lazy" if lazy or (lazy is None and items > 50_000) else "dense"
        print(f"{items:10,} {events:10,} {kind:>8} {got['step_ms']:6.1f} ms {got['positions_per_second']:12,.0f} "
              f"{got['peak_rss_mib']:8,.0f} MiB", flush=True)  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "--measure":
        measure(*sys.argv[2:])
    else:
        main(Path(sys.argv[1]))
