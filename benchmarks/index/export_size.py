"""Building and exporting a large catalogue: time, peak memory, size on disk.

    python benchmarks/index/export_size.py KIND STORAGE NUM_ITEMS [WIDTH]

A run with clustered random vectors for item table (training does not matter here); the peak is what the process holds beyond
what it held before the run was made.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from common import make_vectors

from tfrec.export import export
from tfrec.interactions import prepare
from tfrec.prepared import ITEMS
from tfrec.training import Config, Run, build_model
from tfrec.vocabulary import Vocabulary


def resident_bytes() -> int:
    """What this process holds in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(kind: str, storage: str, num_items: int, width: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rng = np.random.default_rng(0)
        order = rng.permutation(num_items).astype(str)  # every item is somebody's, so that all are in the catalogue
        users = (np.arange(num_items) // 20).astype(str)
        prepare(
            {"events": pa.table({"user": users, "item": order, "time": pa.nulls(num_items, pa.string())})},
            folder / "data",
        )
        del order, users
        vocabulary = Vocabulary.load(folder / "data")
        items = pyarrow.parquet.read_table(folder / "data" / ITEMS).to_pydict()
        config = Config(str(folder / "data"), width=width, num_heads=2, dropout_rate=0.0, num_blocks=1, max_length=50)

        before = resident_bytes()
        peak, stop = [before], threading.Event()

        def watch() -> None:
            while not stop.wait(0.005):
                peak[0] = max(peak[0], resident_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        model = build_model(config, num_items)
        table = model.item_tower.table
        vectors = make_vectors(num_items, 1, normalised=True)[:, :width]
        table.assign(np.concatenate([np.zeros((2, width), np.float32), vectors]))
        del vectors
        (folder / "run").mkdir()
        began, held = time.perf_counter(), resident_bytes() - before
        peak[0] = before
        run = Run(folder / "run", config, model, vocabulary, items)
        version = export(run, folder / "export", index=kind, storage=storage, recall=0.95)
        seconds = time.perf_counter() - began
        stop.set()
        watcher.join()
        size = sum(path.stat().st_size for path in version.rglob("*") if path.is_file())
        one = 4 * num_items * width
        print(
            f"{kind} {storage} {num_items:,} x {width} ({one / 2**20:,.0f} MiB): {seconds:.0f} s, model {held / 2**20:,.0f} MiB, "
            f"peak {(peak[0] - before) / 2**20:,.0f} MiB ({(peak[0] - before) / one:.2f} times), on disk {size / 2**20:,.0f} MiB"
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 64)
