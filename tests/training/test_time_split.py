"""A run by time: training, validation, evaluation, the sample and the final model follow its split."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import tfrec
from tfrec.cli.main import app
from tfrec.evaluation.contenders import BASELINES
from tfrec.evaluation.judgement import evaluate, judge
from tfrec.training.judging import over_seeds


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """120 users who walk through 30 items, an event a day for 20 days; they start within 50 days."""
    rng = np.random.default_rng(0)
    starts, first = rng.integers(0, 50, 120), rng.integers(0, 30, 120)
    rows = [
        (f"u{u}", f"i{(first[u] + d) % 30}", int(1_700_000_000 + 86_400 * (starts[u] + d)))
        for u in range(120)
        for d in range(20)
    ]
    log = tmp_path_factory.mktemp("timed") / "log.csv"
    log.write_text("user,item,time\n" + "\n".join(",".join(map(str, row)) for row in rows))
    return tfrec.prepare(log, log.parent / "data")


@pytest.fixture(scope="module")
def timed_run(timed, tmp_path_factory):
    config = tfrec.Config(split="time", test="25d", validation="10d", width=16, num_blocks=1, max_length=8, epochs=8)
    return tfrec.train(config, timed, tmp_path_factory.mktemp("timed") / "run")


def test_training_and_validation_follow_the_split(timed, timed_run):
    split = timed_run.split(timed)
    assert isinstance(split, tfrec.TimeSplit)
    result = evaluate(timed, "validation", timed_run.model, split=split, against={})
    assert result["model"]["ndcg@10"] == pytest.approx(timed_run.metrics["validation"]["ndcg@10"])
    assert result["num_targets"] > result["num_users"] > 50
    assert result["num_new_users"] > 0
    assert len(timed_run.sample_split().users) > 50
    batches = tfrec.PackedBatches.for_training(split, max_length=8, batch_positions=64, seed=0)
    assert batches.num_positions == (split.train_ends - timed.offsets[:-1] - 1).clip(0, 8).sum()


def test_the_commands_know_the_split(timed_run, timed, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    call = lambda *words: CliRunner().invoke(app, [*map(str, words)])  # noqa: E731
    figures = tmp_path / "figures.json"
    options = ["--by", "history length", "--cutoffs", "1,3", "--against", "bigram"]
    said = call("evaluate", timed_run.folder, "--json", figures, *options)
    assert said.exit_code == 0, said.output
    result = json.loads(figures.read_text())
    assert result["split"].startswith("by time: validation since 2023-12-")
    assert f"{result['num_users']} users with {result['num_targets']} targets" in said.output
    assert "users are new: they have no history, and get the popular items" in said.output
    assert "new users" in said.output
    assert "NDCG@1 of model" in said.output
    assert {"hr@1", "ndcg@3"} <= set(result["bigram"])
    assert "hr@10" not in result["model"]
    options = ["--baselines-only", "--split", "time", "--test", "25d", "--validation", "10d"]
    alone = json.loads(call("evaluate", timed.folder, *options, "--json", "-").output)
    assert alone["bigram"] == evaluate(timed, split=timed_run.split(timed))["bigram"]
    for words, message in (
        (("evaluate", timed_run.folder, "--split", "time"), "A run has a split of its own"),
        (("evaluate", timed_run.folder, "--cutoffs", "one"), "--cutoffs takes numbers such as 1,5,10"),
        (("evaluate", timed_run.folder, timed_run.folder), "--as-seeds takes two runs or more"),
        (
            ("train", timed.folder, "--out", tmp_path / "x", "--resume", "--test", "7d"),
            "--resume and --final go on with the config",
        ),
    ):
        said = call(*words)
        assert said.exit_code == 2
        assert message in " ".join(said.output.replace("│", " ").split())
    old = call("evaluate", timed_run.folder, "--split", "validation", "--against", "popularity")
    assert "`--split validation` is called `--part validation` now" in old.output
    seeds = call("evaluate", timed_run.folder, timed_run.folder, "--as-seeds", "--json", figures)
    assert seeds.exit_code == 0, seeds.output
    assert "the model of 2 runs" in seeds.output
    assert json.loads(figures.read_text())["model"]["mrr"]["stddev"] == 0


def test_a_final_model_of_a_split_by_time_learns_everything(timed_run, timed, tmp_path):
    final = tfrec.train(tfrec.final_config(timed_run), timed, tmp_path / "final")
    assert final.split(timed).train_part()[1][-1] == timed.num_events
    with pytest.raises(ValueError, match="was trained on all events, the targets too"):
        tfrec.evaluate_run(final, timed)


def test_seeds_have_mean_and_deviation(timed, timed_run):
    judged = judge(timed_run.split(timed), {name: BASELINES[name] for name in ("popularity", "bigram", "random")})
    found = over_seeds(judged)
    values = [judged.metrics(name)["mrr"] for name in judged.names]
    expected = {"mean": np.mean(values), "stddev": np.std(values, ddof=1), "min": min(values), "max": max(values)}
    assert found["model"]["mrr"] == pytest.approx(expected)
    assert found["num_runs"] == 3
