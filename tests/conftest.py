"""One small real run, shared by the tests: of a synthetic log whose best hit rate is known and nearly reached."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# tests ask servers of this machine by urllib and gRPC, which would send them to a proxy of the environment
os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), "localhost", "127.0.0.1"]))

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tfrec.data.datasets import prepare_dataset
from tfrec.data.preparation import prepare
from tfrec.data.prepared import PreparedData
from tfrec.deploy.saved_model import export
from tfrec.models.item_tower import ItemTower
from tfrec.training.config import Config
from tfrec.training.run import Run

FORMATS = Path(__file__).parent / "formats"
LONGEST = (
    "test_readme.py", "test_fit.py", "test_run.py", "test_two_tower.py", "test_lifecycle.py", "test_notebooks.py",
    "test_catalogue.py", "test_saved_model.py", "test_main.py", "test_formats.py", "test_time.py", "test_faults.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Put the longest files first, since workers take a file at a time; `make test-fast` leaves these out."""
    for item in items:
        if item.path.name in LONGEST:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: (*LONGEST, item.path.name).index(item.path.name))


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "data"
    prepare_dataset("synthetic", folder, num_users=2000, num_items=200, events_per_user=20, num_interests=10)
    return folder


@pytest.fixture(scope="session")
def data(data_folder) -> PreparedData:
    return PreparedData.open(data_folder)


@pytest.fixture(scope="session")
def small_config() -> Config:
    return Config(
        max_length=24,
        width=32,
        num_blocks=2,
        num_heads=2,
        dropout_rate=0.1,
        learning_rate=5e-3,
        epochs=8,
    )


@pytest.fixture(scope="session")
def run(data_folder, tmp_path_factory) -> Run:
    """`train(small_config, data)` as it was when its format was new; the data is the same, or its fingerprint would differ."""
    folder = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(FORMATS / "v2" / "run", folder)
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(about | {"data": str(data_folder)}))
    return Run.open(folder)


@pytest.fixture(scope="session")
def exact_export(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "exact"
    export(run, folder, index="exact")
    return folder


@pytest.fixture(scope="session")
def scann_export(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "scann"
    export(run, folder, index="scann")
    return folder


@pytest.fixture(scope="session")
def device_data(tmp_path_factory) -> PreparedData:
    """The device of a request decides its item: item-(n + 1) on a phone, item-(n + 2) on a desktop."""
    rng, rows = np.random.default_rng(0), []
    for user in range(300):
        item = int(rng.integers(40))
        for second in range(16):
            device = str(rng.choice(["phone", "desktop"]))
            item = (item + (1 if device == "phone" else 2)) % 40
            kind, price = str(rng.choice(["view", "buy"])), float(rng.integers(1, 6))
            rows.append((f"u{user}", f"item-{item}", 1000 + second, device, kind, price))
    folder = tmp_path_factory.mktemp("devices")
    columns = zip(("user", "item", "time", "device", "event type", "price"), zip(*rows, strict=True), strict=True)
    pyarrow.parquet.write_table(pa.table({name: list(values) for name, values in columns}), folder / "log.parquet")
    users = {"user": [f"u{user}" for user in range(300)], "age": ["young", "old"] * 150}
    pyarrow.parquet.write_table(pa.table(users), folder / "users.parquet")
    return prepare(
        folder / "log.parquet",
        folder / "data",
        users=folder / "users.parquet",
        event_features={"event type": "category", "price": "number"},
        context={"device": "category", "event type": "category"},
    )


@pytest.fixture(scope="session")
def public_data() -> Path:
    """Where the public data lies; tests that need it are skipped on machines without it."""
    folder = os.environ.get("TFREC_DATA_DIR")
    if not folder:
        pytest.skip("TFREC_DATA_DIR is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def item_tower_of():
    """Makes an item tower with given vectors; those of padding and unknown are nothing that may be read."""

    def make(vectors) -> ItemTower:
        tower = ItemTower(*np.shape(vectors))
        tower.build()
        tower.table.assign(np.concatenate([np.full((2, np.shape(vectors)[1]), 99.0), vectors]))
        return tower

    return make


@pytest.fixture(scope="session")
def same_but_for_ties():
    """`check(ids, expected, scores)`: the same rows; only items whose scores differ by no more than rounding may change places."""

    def check(ids, expected, scores) -> None:
        for row, expected_row, scores_row in zip(ids, expected, scores, strict=True):
            assert sorted(row) == sorted(expected_row)
            score_of = dict(zip(expected_row, scores_row, strict=True))
            assert [score_of[i] for i in row] == pytest.approx(list(scores_row), rel=0, abs=2e-6)

    return check
