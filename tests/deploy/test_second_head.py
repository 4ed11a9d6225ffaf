"""A run with a second head, from the log to a served model: `score` also gives what the head predicts."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from typer.testing import CliRunner

from tfrec.cli.main import app
from tfrec.data.preparation import prepare
from tfrec.deploy.catalogue import change_catalogue
from tfrec.deploy.litert import to_litert
from tfrec.deploy.saved_model import export
from tfrec.models.item_tower import ItemTower
from tfrec.models.sequence_tower import SequenceTower
from tfrec.models.tasks import TaskHead
from tfrec.models.two_tower import TwoTower
from tfrec.training.config import Config
from tfrec.training.fit import train
from tfrec.training.run import Run
from tfrec_serving import Client
from tfrec_serving.server import Server

CONFIG = {
    "max_length": 12,
    "width": 16,
    "num_blocks": 1,
    "learning_rate": 0.01,
    "epochs": 15,
    "dropout_rate": 0.1,
    "batch_positions": 96,
}
HISTORY = ["item-3", "nobody", "item-5"]
SEEN = {"my stars": [5.0, float("nan"), 1.0], "kind": ["buy", "", "view"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Items at random; stars grow with the item's number, 1 to 5; items above 20 are bought. Some stars are missing."""
    rng = np.random.default_rng(0)
    item = rng.integers(0, 40, (150, 10))
    stars = np.where(rng.random(item.shape) < 0.1, np.nan, 1 + item / 10)
    log = {
        "user": [f"u{user}" for user in range(150) for _ in range(10)],
        "item": [f"item-{i}" for i in item.ravel()],
        "time": np.tile(np.arange(10), 150),
        "my stars": pa.array(stars.ravel(), from_pandas=True),
        "kind": np.where(item.ravel() > 20, "buy", "view"),
    }
    named = {"my stars": "number", "kind": "category"}
    return prepare(pa.table(log), tmp_path_factory.mktemp("rated") / "data", event_features=named)


@pytest.fixture(scope="module")
def rating_run(data, tmp_path_factory) -> Run:
    return train(Config(task="my stars", task_weight=1.0, **CONFIG), data, tmp_path_factory.mktemp("rated") / "run")


@pytest.fixture(scope="module")
def kind_run(data, tmp_path_factory) -> Run:
    config = Config(task="kind", loss="sampled_softmax", num_negatives=16, lazy_table=True, **CONFIG)
    return train(config, data, tmp_path_factory.mktemp("kinds") / "run")


def test_a_run_predicts(rating_run):
    assert rating_run.history["task_loss"][-1] < 0.3 < rating_run.history["task_loss"][0]
    candidates = ["item-0", "item-20", "item-39", "nobody"]
    for history, events in ((HISTORY, SEEN), ([], None)):  # an empty history leaves the item alone
        scores, stars = rating_run.score(history, candidates, events=events)
        np.testing.assert_allclose(stars[:3], [1, 3, 4.9], atol=1.0)
        assert np.isnan(stars[3])
        assert scores[3] == -np.inf
    many = rating_run.score([HISTORY, []], candidates, events={name: [v, []] for name, v in SEEN.items()})
    np.testing.assert_allclose(
        many.predicted[0], rating_run.score(HISTORY, candidates, events=SEEN).predicted, rtol=1e-5
    )
    best = rating_run.recommend(HISTORY, 3, events=SEEN)
    np.testing.assert_allclose(
        rating_run.score(HISTORY, list(best.item_ids), events=SEEN).scores, best.scores, rtol=1e-5
    )
    with pytest.raises(TypeError, match="Ids are text"):
        rating_run.score(HISTORY, [1])


def test_a_run_without_a_head_scores_too(run):
    scores, predicted = run.score(["item-1", "item-2"], ["item-3", "nobody"])
    assert predicted is None
    assert scores[1] == -np.inf


def test_categories_are_named(kind_run):
    assert kind_run.history["task_loss"][-1] < 0.2
    predicted = kind_run.score(HISTORY, ["item-0", "item-39", "nobody"], events=SEEN).predicted
    assert predicted.tolist() == ["view", "buy", ""]


@pytest.mark.parametrize(("index", "storage"), [("exact", "float32"), ("partitioned", "int8"), ("scann", "float32")])
def test_an_export_predicts_as_the_run_does(rating_run, tmp_path, index, storage):
    version = export(rating_run, tmp_path / "export", index=index, storage=storage)
    manifest = json.loads((version / "tfrec_manifest.json").read_text())
    assert manifest["signatures"]["score"]["outputs"] == {
        "my_stars": ["float32", [None, None]],
        "scores": ["float32", [None, None]],
    }
    signature = tf.saved_model.load(str(version)).signatures["score"]
    candidates = ["item-7", "nobody", "item-30"]
    found = signature(
        history=tf.constant([HISTORY, ["", "", ""]]),
        my_stars=tf.constant([SEEN["my stars"], [math.nan] * 3], tf.float32),
        kind=tf.constant([SEEN["kind"], [""] * 3]),
        candidates=tf.constant([candidates, candidates]),
    )
    events = {name: [values, []] for name, values in SEEN.items()}
    expected = rating_run.score([HISTORY, []], candidates, events=events)
    tolerance = 1e-4 if storage == "float32" else 0.1
    np.testing.assert_allclose(found["my_stars"], expected.predicted, atol=tolerance)
    np.testing.assert_allclose(found["scores"], expected.scores, atol=tolerance)


@pytest.mark.parametrize("rest", [False, True])
def test_clients_get_the_prediction(kind_run, tmp_path, rest):
    export(kind_run, tmp_path / "export", index="exact")
    with Server(tmp_path / "export", 0, 0 if rest else None) as server:
        address = f"http://127.0.0.1:{server.rest_api_port}" if rest else f"127.0.0.1:{server.port}"
        inputs = {
            "history": [HISTORY],
            "candidates": [["item-0", "item-39", "nobody"]],
            "my_stars": np.array([SEEN["my stars"]], np.float32),
            "kind": [SEEN["kind"]],
        }
        with Client(address) as client:
            answer = client.predict("score", **inputs)
    assert set(answer) == {"scores", "kind"}
    assert [one.decode() if isinstance(one, bytes) else one for one in answer["kind"][0]] == ["view", "buy", ""]


def test_litert_and_other_catalogues(rating_run, tmp_path):
    """LiteRT leaves the head out; a changed catalogue keeps it."""
    assert to_litert(rating_run, tmp_path / "model.tflite").same_items > 0.98
    assert set(json.loads((tmp_path / "model.json").read_text())["outputs"]) == {"items", "scores"}
    fewer = change_catalogue(rating_run, removed=["item-1"])
    own = {"events": SEEN}
    np.testing.assert_allclose(
        fewer.score(HISTORY, ["item-9"], **own).predicted,
        rating_run.score(HISTORY, ["item-9"], **own).predicted,
        rtol=1e-5,
    )
    assert np.isnan(fewer.score(HISTORY, ["item-1"], **own).predicted[0])


def test_evaluate_prints_the_head(rating_run, kind_run, tmp_path):
    printed = CliRunner().invoke(app, ["evaluate", str(rating_run.folder), "--json", str(tmp_path / "figures.json")])
    assert printed.exit_code == 0
    for text in ("my stars of", "MAE", "RMSE", "user + item bias"):
        assert text in printed.output
    task = json.loads((tmp_path / "figures.json").read_text())["task"]
    assert task["model"]["rmse"] < 0.5 < 1 < task["mean of all"]["rmse"]
    assert task["num_targets"] < 150
    printed = CliRunner().invoke(app, ["evaluate", str(kind_run.folder), "--split", "validation"])
    assert "most frequent of the item" in printed.output


def test_training_goes_on_and_ends(data, rating_run, tmp_path):
    """`--task` of the command line; `--resume` restores the head; a config without a head has none."""
    settings = [part for name, value in (CONFIG | {"epochs": 2}).items() for part in ("--set", f"{name}={value}")]
    out = str(tmp_path / "run")
    done = CliRunner().invoke(app, ["train", str(data.folder), "--out", out, "--task", "my stars", *settings])
    assert done.exit_code == 0, done.output
    before = Run.open(out)
    assert before.config.task == "my stars"
    assert train(out=out, resume=True).score(HISTORY, ["item-9"], events=SEEN) == before.score(
        HISTORY, ["item-9"], events=SEEN
    )
    refused = CliRunner().invoke(app, ["train", "--out", out, "--resume", "--task", "my stars"])
    assert refused.exit_code == 2


def test_a_head_of_your_own(data, tmp_path):
    """A model that is given brings its head along; the config says nothing of it."""
    tower = SequenceTower(8, 1, 1, event_features={"kind": data.features["events"][1].spec})
    model = TwoTower(ItemTower(data.num_items, 8), tower, TaskHead("my stars", mean=3.0, hidden_dims=[4]))
    run = train(Config(epochs=1), data, tmp_path / "run", model=model)
    assert run.task.name == "my stars"
    assert np.isfinite(run.score(HISTORY, ["item-9"], events={"kind": SEEN["kind"]}).predicted).all()
    again = "import sys, tfrec; print(tfrec.Run.open(sys.argv[1]).model.task_head.column)"
    found = subprocess.run(
        [sys.executable, "-c", again, str(tmp_path / "run")], capture_output=True, text=True, env=os.environ
    )
    assert found.stdout.strip() == "my stars", found.stderr
    with pytest.raises(ValueError, match="`task` describes the model, which is given"):
        train(Config(epochs=1, task="kind"), data, tmp_path / "other", model=model)
    wrong = TwoTower(ItemTower(data.num_items, 8), SequenceTower(8, 1, 1), TaskHead("kind"))
    with pytest.raises(ValueError, match="The head predicts column 'kind' as number, and in the data it is category"):
        train(Config(epochs=1), data, tmp_path / "wrong", model=wrong)


def test_a_column_that_is_not_there(data, tmp_path):
    with pytest.raises(ValueError, match="no column 'stars' of events to predict"):
        train(Config(task="stars", **CONFIG), data, tmp_path / "run")
    from tfrec.training.compiling import build_model

    with pytest.raises(ValueError, match="`features` have no column 'stars' of events, which `task` names"):
        build_model(Config(task="stars", num_heads=1, **CONFIG), 5)
    with pytest.raises(ValueError, match="`task_weight` must be above 0. Received: 0"):
        Config(task_weight=0.0)
