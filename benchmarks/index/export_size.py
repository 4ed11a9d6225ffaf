"""Time, peak memory and size on disk of exporting a large catalogue, and the time of a request to the export.

    python benchmarks/index/export_size.py KIND STORAGE NUM_ITEMS [WIDTH]

Another process writes a run whose item table holds clustered random vectors; training does not matter here. The peak is the
memory of the export beyond the memory of the process with the opened run. The memory of the run itself is printed too. It
is counted beyond the memory of the process after it has exported a run of 1,000 items.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pyarrow as pa
import tensorflow as tf
from common import make_vectors

from tfrec.data.preparation import prepare
from tfrec.deploy.saved_model import export
from tfrec.training.compiling import build_model
from tfrec.training.config import Config
from tfrec.training.run import Run


def resident_bytes() -> int:
    """The resident memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def make_run(folder: Path, num_items: int, width: int) -> None:
    """Write a prepared log in which every item has an event, and a run on it."""
    order = np.random.default_rng(0).permutation(num_items).astype(str)
    users = (np.arange(num_items) // 20).astype(str)
    data = prepare(pa.table({"user": users, "item": order}), folder / "data")
    config = Config(width=width, num_heads=2, dropout_rate=0.0, num_blocks=1, max_length=50)
    model = build_model(config, num_items)
    vectors = make_vectors(num_items, 1, normalised=True)[:, :width]
    model.item_tower.table.assign(np.concatenate([np.zeros((2, width), np.float32), vectors]))
    Run.from_model(model, data, folder / "run")


def seconds_of_a_request(version: Path, history: list[str]) -> float:
    """The median time of a `serving_default` request in this process."""
    ask = tf.saved_model.load(version).signatures["serving_default"]
    took = []
    for _ in range(33):
        began = time.perf_counter()
        ask(history=tf.constant([history]))
        took.append(time.perf_counter() - began)
    return float(np.median(took[3:]))


def main(kind: str, storage: str, num_items: int, width: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        small, large = Path(place, "small"), Path(place, "large")
        for folder, number in ((small, 1000), (large, num_items)):
            maker = multiprocessing.get_context("spawn").Process(target=make_run, args=(folder, number, width))
            maker.start()
            maker.join()
        export(small / "run", small / "export", index=kind, storage=storage, recall=0.95)

        warm = resident_bytes()
        run = Run.open(large / "run")
        before, stop = resident_bytes(), threading.Event()
        peak = [before]

        def watch() -> None:
            while not stop.wait(0.005):
                peak[0] = max(peak[0], resident_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        began = time.perf_counter()
        version = export(run, large / "export", index=kind, storage=storage, recall=0.95)
        seconds = time.perf_counter() - began
        stop.set()
        watcher.join()
        size = sum(path.stat().st_size for path in version.rglob("*") if path.is_file())
        one, mib = 4 * num_items * width, 1 << 20
        beyond = peak[0] - before
        print(
            f"{kind} {storage} {num_items:,} x {width} ({one / mib:,.0f} MiB): {seconds:.0f} s, run "
            f"{(before - warm) / mib:,.0f} MiB, "
            f"peak beyond it {beyond / mib:,.0f} MiB ({beyond / one:.2f} times), on disk {size / mib:,.0f} MiB, "
            f"a request {1e3 * seconds_of_a_request(version, run.vocabulary.item_ids[:50]):.2f} ms"
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 64)
