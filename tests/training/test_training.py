import csv
import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest

from tfrec.cli.training import PRESET_HELP, evaluate
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.data.vocabulary import Vocabulary
from tfrec.exceptions import DivergedError
from tfrec.models.cooccurrence import cooccurrence_vectors
from tfrec.training.compiling import build_model, compile_model
from tfrec.training.config import Config
from tfrec.training.fit import final_config, train
from tfrec.training.presets import PRESETS, parse_settings, preset
from tfrec.training.resolve import suited
from tfrec.training.run import Run


class StopAfter(keras.callbacks.Callback):
    """Ends training as a kill or Ctrl-C would, after an epoch or in the middle of one."""

    def __init__(self, error, epoch, batch=None):
        super().__init__()
        self.error, self.at_epoch, self.at_batch = error, epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (self.at_epoch, self.at_batch):
            raise self.error

    def on_epoch_end(self, epoch, logs=None):
        if self.at_batch is None and epoch == self.at_epoch:
            raise self.error


@pytest.fixture(scope="module")
def tiny(small_config):
    """Two compiled shapes, four short epochs."""
    return dataclasses.replace(small_config, epochs=4, validate_every=2, batch_positions=4096, num_blocks=1)


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny, folder)
    return folder


def state(folder):
    with np.load(folder / "checkpoint.npz") as saved:
        return {name: saved[name] for name in saved if name != "history"}


def history(folder):
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_run(a, b):
    for name, value in state(a).items():
        np.testing.assert_array_equal(value, state(b)[name])
    timed = {"seconds", "val_seconds", "positions_per_second"}
    rows = [[{k: v for k, v in row.items() if k not in timed} for row in history(folder)] for folder in (a, b)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(("loss", "lazy"), [("full_softmax", False), ("tfrs_retrieval", True)])
def test_a_resumed_run_equals_an_uninterrupted_one_and_seeds_make_runs_equal(tiny, tmp_path, loss, lazy):
    config = dataclasses.replace(tiny, loss=loss, lazy_table=lazy, num_negatives=64, epochs=3)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(config, whole)
    with pytest.raises(RuntimeError, match="killed"):
        train(config, killed, callbacks=[StopAfter(RuntimeError("killed"), epoch=1, batch=2)])
    train(config, killed, resume=True)  # the first epoch is from before, the second is done again
    assert_same_run(whole, killed)


def test_ctrl_c_leaves_a_usable_run(tiny, tmp_path, capfd):
    run = train(tiny, tmp_path / "run", callbacks=[StopAfter(KeyboardInterrupt(), epoch=1, batch=1)])
    assert run.metrics["epochs"] == 1
    assert "keeps the weights of epoch 1" in capfd.readouterr().err
    assert Run.open(tmp_path / "run").metrics == run.metrics


def test_the_run_folder_holds_what_it_should(uninterrupted, tiny):
    names = {path.name for path in uninterrupted.iterdir()}
    assert names == {
        "config.json",
        "model.weights.h5",
        "vocabulary.json",
        "items.parquet",
        "history.csv",
        "metrics.json",
        "logs",
        "checkpoint.npz",
    }
    written = suited(tiny, PreparedData.open(tiny.data)).to_dict()
    assert json.loads((uninterrupted / "config.json").read_text()) == json.loads(json.dumps(written))
    rows = history(uninterrupted)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[3]["loss"]) < float(rows[0]["loss"])
    validated = [row for row in rows if row["val_ndcg@10"]]
    assert [row["epoch"] for row in validated] == ["1", "2", "4"]  # the first, the last, and every second
    best = max(validated, key=lambda row: float(row["val_ndcg@10"]))
    metrics = json.loads((uninterrupted / "metrics.json").read_text())
    assert metrics["best_epoch"] == int(best["epoch"])
    assert metrics["validation"]["ndcg@10"] == float(best["val_ndcg@10"])
    assert list((uninterrupted / "logs").rglob("events.out.tfevents.*"))


def test_a_reopened_run_has_the_same_model(uninterrupted):
    a, b = Run.open(uninterrupted), Run.open(uninterrupted)
    for x, y in zip(a.model.get_weights(), b.model.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
    assert a.items["item_id"] == a.vocabulary.item_ids


def test_a_loss_that_diverges_says_where_and_what_to_do(tiny, tmp_path):
    config = dataclasses.replace(tiny, learning_rate=1e9)
    with pytest.raises(
        DivergedError, match=r"became nan in epoch 1, step \d+. Lower learning_rate.*No epoch was finished"
    ):
        train(config, tmp_path / "run")
    with pytest.raises(ValueError, match="has no weights yet"):
        Run.open(tmp_path / "run")


def test_patience_stops_training(tiny, tmp_path):
    config = dataclasses.replace(tiny, learning_rate=1e-9, epochs=30, patience=2)
    assert train(config, tmp_path / "run").metrics["epochs"] < 10


def test_a_final_model_learns_from_the_targets_too(uninterrupted, tmp_path, capsys):
    first = Run.open(uninterrupted)
    final = train(final_config(first), tmp_path / "final")
    assert final.metrics["epochs"] == final.metrics["best_epoch"] == first.metrics["best_epoch"]
    assert "validation" not in final.metrics
    _, batches = compile_model(first.config, first.data())
    _, final_batches = compile_model(final.config, final.data())
    assert final_batches.num_positions == batches.num_positions + 2 * final.data().num_users
    with pytest.raises(ValueError, match="was trained on all events"):
        evaluate(Run.open(tmp_path / "final").folder)


@pytest.mark.parametrize(
    ("events", "num_items", "width", "dropout_rate", "loss", "lazy_table"),
    [
        (1000, 100, 64, 0.5, "full_softmax", False),
        (900_000, 4000, 128, 0.3, "full_softmax", False),
        (900_000, 40_000, 128, 0.5, "sampled_softmax", False),
        (900_000, 90_000, 128, 0.5, "tfrs_retrieval", True),
    ],
)
def test_what_the_config_leaves_open_follows_from_the_data(events, num_items, width, dropout_rate, loss, lazy_table):
    items = np.resize(np.arange(2, num_items + 2, dtype=np.int32), events)
    vocabulary = Vocabulary([f"i{i}" for i in range(num_items)])
    data = PreparedData(vocabulary, items, np.zeros(events, np.int64), np.arange(0, events + 1, 100), {})
    config = suited(Config("x"), data)
    chosen = (config.width, config.dropout_rate, config.loss, config.lazy_table)
    assert chosen == (width, dropout_rate, loss, lazy_table)
    assert config.item_init == "cooccurrence"
    assert config.seen_weight == (0.0 if dropout_rate == 0.3 else 0.1)
    assert config.num_heads == width // 32
    assert config.num_blocks == (2 if events == 1000 else 3)
    assert config.epochs == (60 if events == 1000 else 20)
    assert suited(Config("x", steps=11_500), data).epochs == (60 if events == 1000 else 27)
    assert suited(config, data) == config
    assert suited(Config("x", width=48, dropout_rate=0.0), data).dropout_rate == 0.0
    with pytest.raises(ValueError, match=r"decide them with `suited\(config, data\)`"):
        build_model(Config("x"), 5)


def test_few_events_start_from_counts_and_many_do_not(data_folder):
    """Rows as long as random ones, in the directions of `cooccurrence_vectors` of the training part alone."""
    data, config = PreparedData.open(data_folder), Config(str(data_folder), width=16)
    assert suited(config, data).item_init == "cooccurrence"
    table = compile_model(config, data)[0].item_tower.table.numpy()[2:]
    known = cooccurrence_vectors(*LeaveLastOut(data).train_part(), data.num_items, 16)
    np.testing.assert_allclose(table, known * 0.02 * 4, atol=1e-6)
    random = compile_model(dataclasses.replace(config, item_init="normal"), data)[0].item_tower.table.numpy()[2:]
    assert np.linalg.norm(random, axis=1).mean() == pytest.approx(0.02 * 4, rel=0.1)
    assert abs(np.mean(np.sum(random * table, axis=1))) < 0.1 * np.mean(np.sum(table * table, axis=1))


def test_every_preset_makes_a_model_and_is_offered(data_folder):
    for name, settings in PRESETS.items():
        assert name in PRESET_HELP
        config = Config.from_dict({"data": str(data_folder)} | preset(name))
        assert all(json.loads(json.dumps(config.to_dict()))[k] == v for k, v in settings.items())
        build_model(suited(config, PreparedData.open(data_folder)), 5)
    with pytest.raises(ValueError, match="There is no preset `sasrek`. There are: default, large, sasrec"):
        preset("sasrek")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns_as_well(small_config, run, data, tmp_path, precision):
    from tfrec.evaluation.ranking import evaluate

    mixed = train(dataclasses.replace(small_config, precision=precision), tmp_path / "run")
    assert mixed.model.sequence_tower.compute_dtype == precision
    assert mixed.model.item_tower.table.dtype == "float32"
    both = [evaluate(data, "test", r.model)["model"]["hr@10"] for r in (run, mixed)]
    assert both[1] > 0.95 * both[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_bloks": 3}, "has no field `num_bloks`. Did you mean `num_blocks`?"),
        ({"colour": 3}, "has no field `colour`. There are: data, max_length"),
        ({"width": "wide"}, "`width` must be int. Received: 'wide'"),
        ({"width": True}, "`width` must be int. Received: True"),
        ({"width": 10, "num_heads": 3}, "`num_heads` must divide `width`. Received: num_heads=3, width=10"),
        (
            {"loss": "mse"},
            "`loss` must be one of full_softmax, sampled_softmax, gbce, tfrs_retrieval. Received: 'mse'",
        ),
        ({"epochs": 0}, "`epochs` must be above 0. Received: 0"),
        ({"seen_weight": 1.5}, "`seen_weight` must be in [0, 1]. Received: 1.5".replace("[", r"\[")),
    ],
)
def test_a_wrong_config_is_refused(values, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?").replace("(", r"\(")):
        Config.from_dict({"data": "x"} | values)


def test_settings_without_an_equals_sign_are_refused():
    with pytest.raises(ValueError, match="--set takes name=value. Received: 'width'"):
        parse_settings(["width"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 16),
        ("num_blocks", 1),
        ("num_heads", 4),
        ("hidden_dim", 5),
        ("mlp_dims", (7,)),
        ("max_length", 9),
        ("dropout_rate", 0.9),
        ("precision", "bfloat16"),
        ("block", "hstu"),
        ("block", "lstm"),
        ("calendar", True),
        ("attention_dropout_rate", 0.8),
        ("mask_rate", 0.3),
        ("positions", ("absolute",)),
        ("similarity", "dot"),
    ],
)
def test_every_field_of_the_model_changes_it(small_config, name, value):
    def describe(config):
        model = build_model(config, 5)
        weights = [(w.path.split("/")[-1], w.shape) for w in model.weights]
        return weights, model.sequence_tower.get_config(), model.item_tower.get_config()

    assert describe(dataclasses.replace(small_config, **{name: value})) != describe(small_config)


def test_folders_that_are_in_the_way_or_missing(uninterrupted, tiny, tmp_path):
    with pytest.raises(FileExistsError, match="Pass --resume to go on, --overwrite to replace it"):
        train(tiny, uninterrupted)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="is not a run, so --overwrite does not replace it"):
        train(tiny, tmp_path, overwrite=True)
    assert (tmp_path / "letter.txt").read_text() == "dear"
    with pytest.raises(ValueError, match="There is nothing to resume"):
        train(tiny, tmp_path / "none", resume=True)
    with pytest.raises(ValueError, match="is not a run"):
        Run.open(tmp_path)


def test_data_that_changed_is_noticed(uninterrupted, data_folder, tmp_path):
    moved = tmp_path / "data"
    shutil.copytree(data_folder, moved)
    vocabulary = json.loads((moved / "vocabulary.json").read_text())
    vocabulary["item_ids"].reverse()
    (moved / "vocabulary.json").write_text(json.dumps(vocabulary))
    run = Run.open(uninterrupted)
    run.config = dataclasses.replace(run.config, data=str(moved))
    with pytest.raises(ValueError, match="has another catalogue"):
        run.data()


def log_of(tmp_path, rows):
    from tfrec.data.interactions import Log, prepare

    (tmp_path / "log.csv").write_text("user,item\n" + "\n".join(rows) + "\n")
    prepare(Log([tmp_path / "log.csv"]), tmp_path / "data")
    assert PreparedData.open(tmp_path / "data").num_events == len(rows)
    return Config(str(tmp_path / "data"), epochs=1, width=8, num_blocks=1, max_length=8)


def test_a_log_of_single_events_cannot_train(tmp_path):
    with pytest.raises(ValueError, match="has no user with 3 events: none to validate on"):
        train(log_of(tmp_path, ["u,a", "v,b"]), tmp_path / "run")


def test_a_log_without_a_pair_to_learn_from_cannot_train(tmp_path):
    with pytest.raises(ValueError, match="no pair of items is left to learn from"):
        train(log_of(tmp_path, ["u,a", "u,b", "u,c"]), tmp_path / "run")


def test_users_with_one_event_do_not_disturb(tmp_path):
    rows = [f"u{u},{i}" for u in range(4) for i in "abcde"] + ["single,a", "other,z"]
    run = train(log_of(tmp_path, rows), tmp_path / "run")
    assert len(run.vocabulary) == 6


def test_a_catalogue_of_one_item_trains(tmp_path):
    run = train(log_of(tmp_path, ["u,a"] * 6), tmp_path / "run")
    assert run.metrics["validation"]["hr@10"] == 0.0  # the only item was seen: nothing is left to recommend


def test_the_learning_rate_rises_and_falls(small_config, data):
    config = dataclasses.replace(small_config, epochs=10, warmup_epochs=2, learning_rate=1e-3, final_rate=0.1)
    model, batches = compile_model(config, data)
    rate, steps = model.optimizer._learning_rate, len(batches)
    assert [round(float(rate(steps * epoch)), 6) for epoch in (0, 1, 2, 6, 10)] == [0, 5e-4, 1e-3, 5.5e-4, 1e-4]
    one = dataclasses.replace(config, epochs=1, final_rate=1.0)
    rate = compile_model(one, data)[0].optimizer._learning_rate
    assert float(rate(0)) == float(rate(steps)) == pytest.approx(1e-3)
