"""A million items with features: a training step beside that of ids alone, and new items in an export.

    python benchmarks/features.py FOLDER [--items 1000000]

Makes a log in which each item occurs, and items with a category, a list of tags, a price, a vector of 64 and a title; prepares
them; takes steps with and without the features in turn; makes a run of the model, exports an exact index and adds 1,000 new items.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pyarrow as pa

import tfrec
from tfrec.data.splits import LeaveLastOut
from tfrec.deploy.saved_model import export, refresh
from tfrec.training.compiling import compile_model
from tfrec.training.resolve import resolve

EVENTS_PER_USER = 50
NEW_ITEMS = 1_000
TURNS, STEPS, WARM_UP = 6, 20, 5
WORDS = np.array(
    [a + b for a in ("ka", "lo", "mi", "ne", "pu", "ra", "so", "ti") for b in ("bel", "dor", "fan", "gil")]
)
SETTINGS: dict[str, Any] = {"max_length": 50, "width": 64, "num_blocks": 2, "num_heads": 2, "batch_positions": 4096}
SETTINGS |= {"loss": "sampled_softmax", "lazy_table": True, "item_init": "normal", "epochs": 1}


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - began:.1f} s", flush=True)


def make_items(first: int, number: int) -> pa.Table:
    """Items `first` to `first + number`, the same ones for the same numbers."""
    rng = np.random.default_rng(first)
    tags = pa.array(rng.integers(2_000, size=3 * number).astype(str))
    vectors = pa.array(rng.normal(size=number * 64).astype(np.float32))
    title = [" ".join(words) for words in WORDS[rng.integers(len(WORDS), size=(number, 5))]]
    return pa.table(
        {
            "item_id": pa.array(np.arange(first, first + number).astype(str)),
            "category": pa.array(np.char.add("c", rng.integers(500, size=number).astype(str))),
            "tags": pa.ListArray.from_arrays(pa.array(np.arange(0, 3 * number + 1, 3, dtype=np.int32)), tags),
            "price": pa.array(np.exp(rng.normal(3, 1, number))),
            "image": pa.FixedSizeListArray.from_arrays(vectors, 64),
            "title": pa.array(title),
        }
    )


def make_log(num_items: int) -> pa.Table:
    """Each item once, in random order, and a quarter as many events of popular items."""
    rng = np.random.default_rng(0)
    popular = (num_items * rng.random(num_items // 4) ** 4).astype(np.int64)
    item = rng.permutation(np.concatenate([np.arange(num_items), popular]))
    return pa.table({"user": np.arange(len(item)) // EVENTS_PER_USER, "item": item, "time": np.arange(len(item))})


def stepper(data: tfrec.PreparedData, item_features: str) -> tuple[tfrec.TwoTower, Callable[[int], float]]:
    """A model, and a function that takes some training steps and returns the median time of one in seconds."""
    split = LeaveLastOut(data)
    config = resolve(tfrec.Config.from_dict(SETTINGS | {"item_features": item_features}), split)
    model, batches = compile_model(config, split)
    model.make_train_function()
    iterator = iter(batches.dataset().repeat())

    def take(steps: int) -> float:
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            float(model.train_function(iterator)["loss"])
            seconds.append(time.perf_counter() - began)
        return float(np.median(seconds))

    return model, take


def compare_steps(data: tfrec.PreparedData) -> tfrec.TwoTower:
    """Print the time of a step with and without features; return the model with them."""
    (model, with_features), (_, without) = stepper(data, "all"), stepper(data, "none")
    takes = {"all": with_features, "none": without}
    for take in takes.values():
        take(WARM_UP)
    found = [{name: take(STEPS) for name, take in takes.items()} for _ in range(TURNS)]
    ratios = [turn["all"] / turn["none"] for turn in found]
    medians = {name: 1e3 * float(np.median([turn[name] for turn in found])) for name in takes}
    print(
        f"a step with features {medians['all']:.1f} ms, with ids alone {medians['none']:.1f} ms; ratio "
        f"{np.median(ratios):.2f} (turns: {', '.join(f'{ratio:.2f}' for ratio in ratios)})",
        flush=True,
    )
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=1_000_000)
    given = parser.parse_args()
    folder, number = given.folder, given.items
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "run").exists():
        if not (folder / "data").exists():
            log, items = make_log(number), make_items(0, number)
            with timed("preparing"):
                tfrec.prepare(log, folder / "data", user="user", item="item", time="time", items=items)
        data = tfrec.PreparedData.open(folder / "data")
        model = compare_steps(data)
        with timed("writing the run"):
            tfrec.Run.from_model(model, data, folder / "run")
    with timed("opening the run"):
        run = tfrec.Run.open(folder / "run")
    with timed("exporting an exact index"):
        export(run, folder / "export", index="exact")
    new = make_items(number, NEW_ITEMS)
    with timed(f"refreshing with {NEW_ITEMS:,} new items, the run open"):
        refresh(folder / "export", add_items=new, run=run)


if __name__ == "__main__":
    main()
