"""A run that recommends for some events only: trained, evaluated, stored and exported for the same targets."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

import tfrec
from tfrec.cli.main import app
from tfrec.data.preparation import prepare
from tfrec.data.prepared import PreparedData
from tfrec.evaluation.judgement import evaluate
from tfrec.evaluation.ranking import evaluate_model
from tfrec.training.config import Config
from tfrec.training.fit import train
from tfrec.training.run import Run

TARGETS = ("event_type=buy",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """200 users who look at items in a circle, and buy every third."""
    user, step = np.repeat(np.arange(200), 12), np.tile(np.arange(12), 200)
    item = (user + step) % 20
    types = np.where(step % 3 == 1, "buy", "view")
    log = pa.table({"user": user, "item": item, "event_type": types, "amount": step + 0.5})
    users = pa.table({"user": np.arange(200), "age": np.arange(200) / 2, "country": ["NO", "SE"] * 100})
    path = tmp_path_factory.mktemp("targets") / "data"
    prepare(log, path, event_features=["event_type"], context={"amount": "number"}, users=users)
    return path


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Run:
    out = tmp_path_factory.mktemp("targets") / "run"
    arguments = ["train", folder, "--out", out, "--epochs", 8, "--target", TARGETS[0], "--weight", "amount"]
    arguments += ["--weight", "event_type:buy=2", "--set", "width=16", "--set", "num_blocks=1", "--set", "max_length=8"]
    arguments += ["--set", "learning_rate=0.01", "--set", "batch_positions=256", "--set", "jit_compile=false"]
    arguments += ["--set", "dropout_rate=0.1", "--repeats", "allow"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return Run.open(out)


def test_the_run_knows_its_targets(run, folder):
    assert run.config.targets == run.targets == TARGETS
    assert run.config.weights == ("amount", "event_type:buy=2")
    data = PreparedData.open(folder)
    split = run.split(data)
    assert set(split.histories("test")[1] - data.offsets[split.users]) == {
        10
    }  # the eleventh event is the last purchase
    assert split.weights(run.config.weights).max() == 21  # twice 10.5


def test_the_sample_is_ranked_for_the_same_targets(run, folder):
    data = PreparedData.open(folder)
    assert run.sample.event_columns["amount"].dtype == np.float32
    assert run.sample.users.column_names[0] == "user_id"
    assert set(run.sample.users["user_id"].to_pylist()) == {str(n) for n in range(200)}
    for name, values in data.user_columns.items():
        np.testing.assert_array_equal(run.sample.user_columns[name], values)
    np.testing.assert_array_equal(run.sample_split().targets("test"), run.split(data).targets("test"))


def test_evaluation_ranks_the_targets(run, folder):
    result = evaluate(PreparedData.open(folder), "validation", run.model, repeats="allow", targets=run.targets)
    assert result["targets"] == [*TARGETS]
    assert result["num_users"] == 200
    assert result["model"]["ndcg@10"] == pytest.approx(run.metrics["validation"]["ndcg@10"], abs=1e-6)
    assert result["model"]["hr@10"] > result["popularity"]["hr@10"]
    of_sample = evaluate_model(run.model, run.sample_split(), "validation", "allow")
    assert of_sample == pytest.approx({name: result["model"][name] for name in of_sample}, abs=1e-6)
    shown = CliRunner().invoke(app, ["evaluate", str(run.folder), "--part", "validation", "--json", "-"])
    assert shown.exit_code == 0, shown.output
    assert '"targets": [' in shown.output
    shown = CliRunner().invoke(app, ["evaluate", str(run.folder)], env={"COLUMNS": "200"})
    assert "The targets are events with event_type=buy." in shown.output
    alone = ["evaluate", str(folder), "--baselines-only", "--target", TARGETS[0], "--repeats", "allow", "--json", "-"]
    assert json.loads(CliRunner().invoke(app, alone).output)["targets"] == [*TARGETS]
    other = CliRunner().invoke(app, ["evaluate", str(run.folder), "--target", "event_type=view"])
    assert "was trained for event_type=buy, and is evaluated on them: leave out --target" in str(other.exception)


def test_a_run_with_targets_is_exported(run, tmp_path):
    tfrec.export(run, tmp_path / "export", index="exact")
    assert (tmp_path / "export").is_dir()


def test_data_without_enough_targets_is_refused(folder, tmp_path):
    data = PreparedData.open(folder)
    config = Config(targets=["amount>=11"], width=8, epochs=1)
    with pytest.raises(ValueError, match="No user has 2 events amount>=11 after another one"):
        train(config, data, tmp_path / "run")
    with pytest.raises(ValueError, match="No user has 2 events amount>=11 after another one .*: nothing to evaluate"):
        evaluate(data, targets=["amount>=11"])
    with pytest.raises(ValueError, match="--weight 'price': the data has no column 'price' of events"):
        train(dataclasses.replace(config, targets=(), weights=("price",)), data, tmp_path / "run")


def test_resume_takes_the_targets_of_the_run(run, folder, tmp_path):
    arguments = ["train", "--resume", "--out", str(run.folder), "--target", "event_type=view"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "leave out --preset" in result.output
