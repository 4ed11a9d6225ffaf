"""Training end to end: runs that resume, diverge, stop; own models, losses and callbacks."""

import csv
import dataclasses
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import tfrec
from tfrec.cli.evaluation import evaluate
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.exceptions import DataMismatchError, DivergedError
from tfrec.models.cooccurrence import cooccurrence_vectors
from tfrec.training.callbacks import Validation
from tfrec.training.compiling import compile_model
from tfrec.training.config import Config
from tfrec.training.fit import final_config, train
from tfrec.training.resolve import resolve
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
def uninterrupted(tiny, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny, data, folder)
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
def test_a_resumed_run_equals_an_uninterrupted_one_and_seeds_make_runs_equal(tiny, data, tmp_path, loss, lazy):
    config = dataclasses.replace(tiny, loss=loss, lazy_table=lazy, num_negatives=64, epochs=3)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(config, data, whole)
    with pytest.raises(RuntimeError, match="killed"):
        train(config, data, killed, callbacks=[StopAfter(RuntimeError("killed"), epoch=1, batch=2)])
    train(out=killed, resume=True)  # the first epoch is from before, the second is done again
    assert_same_run(whole, killed)


def test_a_model_learns_what_comes_back(tmp_path):
    """Baskets in turn: own items alone, in any order, would reach five sixths of the bound. The training validates with repeats."""
    options = {"num_users": 1500, "num_items": 60, "num_baskets": 4, "events_per_user": 40}
    data = tfrec.prepare_dataset("synthetic-groceries", **options)
    settings = {"num_blocks": 1, "max_length": 40, "dropout_rate": 0.0, "learning_rate": 0.01, "epochs": 8}
    run = train(Config(repeats="allow", **settings), data, tmp_path / "run")
    assert (run.repeats, run.config.seen_weight) == ("allow", 1.0)
    bound = data.manifest["bayes_optimal"]["hr@10"]
    found = tfrec.evaluate(data, "test", run.model, repeats="allow")
    assert 0.88 * bound < found["model"]["hr@10"] < bound + 0.024  # 3 sigma of 1,500 draws
    assert found["model"]["repeat_share@10"] > 0.95
    assert found["model"]["hr@10"] > 2 * max(found[name]["hr@10"] for name in ("bigram", "item-knn", "popularity"))
    validated = tfrec.evaluate(data, "validation", run.model, repeats="allow")["model"]
    for name, value in run.metrics["validation"].items():
        assert value == pytest.approx(validated[name]), name
    assert tfrec.evaluate(data, "test", run.model)["model"]["hr@10"] < 0.1  # all but impulses are misses then
    history = data.vocabulary.decode(data.history(0))
    assert set(run.recommend(history, 3).item_ids) <= set(history)
    assert final_config(run).repeats == "allow"


def test_ctrl_c_leaves_a_usable_run(tiny, data, tmp_path, capfd):
    run = train(tiny, data, tmp_path / "run", callbacks=[StopAfter(KeyboardInterrupt(), epoch=1, batch=1)])
    assert run.metrics["epochs"] == 1
    assert "keeps the weights of epoch 1" in capfd.readouterr().err
    assert Run.open(tmp_path / "run").metrics == run.metrics


def test_a_loss_that_diverges_says_where_and_what_to_do(tiny, data, tmp_path):
    config = dataclasses.replace(tiny, learning_rate=1e9)
    with pytest.raises(
        DivergedError, match=r"became nan in epoch 1, step \d+. Lower learning_rate.*No epoch was finished"
    ):
        train(config, data, tmp_path / "run")
    with pytest.raises(ValueError, match="has no weights yet"):
        Run.open(tmp_path / "run")


def test_patience_stops_training(tiny, data, tmp_path):
    config = dataclasses.replace(tiny, learning_rate=1e-9, epochs=30, patience=2)
    assert train(config, data, tmp_path / "run").metrics["epochs"] < 10


def test_a_final_model_learns_from_the_targets_too(uninterrupted, data, tmp_path):
    first = Run.open(uninterrupted)
    final = train(final_config(first), first.data(), tmp_path / "final")
    assert final.metrics["epochs"] == final.metrics["best_epoch"] == first.metrics["best_epoch"]
    assert "validation" not in final.metrics
    _, batches = compile_model(first.config, LeaveLastOut(data))
    _, final_batches = compile_model(final.config, LeaveLastOut(data, 0))
    assert final_batches.num_positions == batches.num_positions + 2 * data.num_users
    with pytest.raises(ValueError, match="was trained on all events"):
        evaluate([final.folder])


def test_few_events_start_from_counts_and_many_do_not(data):
    """Norms of a random start, directions of `cooccurrence_vectors` of the training part alone."""
    split = LeaveLastOut(data)
    config = resolve(Config(width=16), split)
    assert config.item_init == "cooccurrence"
    table = compile_model(config, split)[0].item_tower.table.numpy()[2:]
    known = cooccurrence_vectors(*split.train_part(), data.num_items, 16)
    np.testing.assert_allclose(table, known * 0.02 * 4, atol=1e-6)
    random = compile_model(dataclasses.replace(config, item_init="normal"), split)[0].item_tower.table.numpy()[2:]
    assert np.linalg.norm(random, axis=1).mean() == pytest.approx(0.02 * 4, rel=0.1)
    assert abs(np.mean(np.sum(random * table, axis=1))) < 0.1 * np.mean(np.sum(table * table, axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_reaches_the_stored_run_in_every_precision(small_config, run, data, tmp_path, precision):
    from tfrec.evaluation.judgement import evaluate

    stored = {"item_features": "none", "feature_dropout_rate": 0.0}
    config = dataclasses.replace(small_config, precision=precision, **stored)
    mixed = train(config, data, tmp_path / "run")
    assert mixed.model.sequence_tower.compute_dtype == precision
    assert mixed.config == run.config if precision == "float32" else mixed.config != run.config
    assert mixed.model.item_tower.table.dtype == "float32"
    both = [evaluate(data, "test", r.model)["model"]["hr@10"] for r in (run, mixed)]
    assert both[1] > 0.95 * both[0]


def test_folders_that_are_in_the_way_or_missing(uninterrupted, tiny, data, tmp_path):
    with pytest.raises(FileExistsError, match="Pass --resume to go on, --overwrite to replace it"):
        train(tiny, data, uninterrupted)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="is not a run, so --overwrite does not replace it"):
        train(tiny, data, tmp_path, overwrite=True)
    with pytest.raises(FileExistsError, match="letter.txt` is a file"):
        train(tiny, data, tmp_path / "letter.txt")
    assert (tmp_path / "letter.txt").read_text() == "dear"
    with pytest.raises(ValueError, match="is not a run"):
        train(out=tmp_path / "none", resume=True)
    with pytest.raises(ValueError, match="`train` needs `data`"):
        train(tiny, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def histories(*rows) -> PreparedData:
    return PreparedData.from_histories([list(row) for row in rows])


SMALLEST = Config(epochs=1, width=8, num_blocks=1, max_length=8)


def test_a_log_of_single_events_cannot_train(tmp_path):
    with pytest.raises(ValueError, match="No user has 3 events"):
        train(SMALLEST, histories("a", "b"), tmp_path / "run")
    with pytest.raises(ValueError, match="No user has 3 events"):
        Validation(LeaveLastOut(histories("a", "b")))


def test_a_log_without_a_pair_to_learn_from_cannot_train(tmp_path):
    with pytest.raises(ValueError, match="no pair of items is left to learn from"):
        train(SMALLEST, histories("abc"), tmp_path / "run")


def test_times_that_are_missing_are_said(tmp_path):
    with pytest.raises(ValueError, match="The model reads times .* and the data has none"):
        train(dataclasses.replace(SMALLEST, time_bias=True), histories("abcd", "abcd"), tmp_path / "run")


def test_users_with_one_event_do_not_disturb(tmp_path):
    run = train(SMALLEST, histories(*["abcde"] * 4, "a", "z"), tmp_path / "run")
    assert len(run.vocabulary) == 6


def test_a_catalogue_of_one_item_trains(tmp_path):
    run = train(SMALLEST, histories("aaaaaa"), tmp_path / "run")
    assert run.metrics["validation"]["hr@10"] == 0.0  # the only item was seen: nothing is left to recommend


def test_without_a_folder_the_run_lies_in_a_temporary_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = train(SMALLEST, histories(*["abcde"] * 4))
    assert run.folder.parent == tmp_path
    assert Run.open(run.folder).recommend(["a"], k=2).item_ids.shape == (2,)


def test_the_learning_rate_rises_and_falls(small_config, data):
    split = LeaveLastOut(data)
    changes = {"epochs": 10, "warmup_epochs": 2, "learning_rate": 1e-3, "final_rate": 0.1}
    config = resolve(dataclasses.replace(small_config, **changes), split)
    model, batches = compile_model(config, split)
    rate, steps = model.optimizer._learning_rate, len(batches)
    assert [round(float(rate(steps * epoch)), 6) for epoch in (0, 1, 2, 6, 10)] == [0, 5e-4, 1e-3, 5.5e-4, 1e-4]
    one = dataclasses.replace(config, epochs=1, final_rate=1.0)
    rate = compile_model(one, split)[0].optimizer._learning_rate
    assert float(rate(0)) == float(rate(steps)) == pytest.approx(1e-3)


# --- callbacks of Keras ------------------------------------------------------------------------------------------------


def test_callbacks_of_keras_find_the_validation_and_the_history_comes_back(tiny, data, tmp_path):
    config = dataclasses.replace(tiny, epochs=6, validate_every=2, learning_rate=1e-9, final_rate=1.0)
    seen = []
    run = train(
        config,
        data,
        tmp_path / "run",
        callbacks=[
            keras.callbacks.EarlyStopping(monitor="val_ndcg@10", mode="max", patience=2),
            keras.callbacks.ModelCheckpoint(
                tmp_path / "best.keras", monitor="val_hr@10", mode="max", save_best_only=True
            ),
            keras.callbacks.TensorBoard(tmp_path / "board", write_graph=False),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(dict(logs))),
        ],
    )
    assert len(run.history["loss"]) == run.metrics["epochs"] < 6  # nothing moves at this rate: stopped early
    assert all({"val_ndcg@10", "val_hr@10"} <= set(logs) for logs in seen)
    measured = np.isfinite(run.history["val_ndcg@10"])
    assert measured[:3].tolist() == [True, True, False]
    assert run.history["epoch"] == [float(e) for e in range(1, len(seen) + 1)]
    assert list((tmp_path / "board").rglob("events*"))
    loaded = keras.models.load_model(tmp_path / "best.keras")
    np.testing.assert_array_equal(loaded.item_tower.table.numpy().shape, run.model.item_tower.table.shape)


@pytest.mark.parametrize("lazy", [False, True])
def test_callbacks_set_the_learning_rate(tiny, data, tmp_path, lazy):
    config = dataclasses.replace(tiny, epochs=3, loss="sampled_softmax", num_negatives=64, lazy_table=lazy)
    falls = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 1e-3 if epoch < 2 else 0.0)
    run = train(dataclasses.replace(config, weight_decay=0.0), data, tmp_path / "run", callbacks=[falls])
    assert run.history["learning_rate"] == pytest.approx([1e-3, 1e-3, 0.0])
    assert (
        run.history["val_ndcg@10"][1] == run.history["val_ndcg@10"][2]
    )  # a rate of 0 moves nothing, the table neither
    plateau = keras.callbacks.ReduceLROnPlateau(
        monitor="val_ndcg@10", mode="max", factor=0.5, patience=0, min_delta=1.0
    )
    run = train(config, data, tmp_path / "other", callbacks=[plateau])
    assert run.history["learning_rate"][-1] < run.history["learning_rate"][0]


def test_several_steps_per_execution_train_the_same(tiny, data, tmp_path):
    config = dataclasses.replace(tiny, epochs=1)
    one = train(config, data, tmp_path / "one")
    four = train(dataclasses.replace(config, steps_per_execution=4), data, tmp_path / "four")
    assert four.model.compiled is False
    np.testing.assert_allclose(
        four.model.item_tower.table.numpy(), one.model.item_tower.table.numpy(), rtol=1e-3, atol=1e-5
    )


# --- models and losses of one's own ------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class MeanTower(tfrec.AbstractSequenceTower):
    """The query after each position: a layer on the running mean of the items."""

    def __init__(self, max_length, **kwargs):
        super().__init__(**kwargs)
        self.max_length = max_length
        self.dense = None

    def build(self, input_shape):
        self.dense = keras.layers.Dense(input_shape[-1])
        self.dense.build(input_shape)

    def call(self, x, is_real, training=None):
        weight = ops.expand_dims(ops.cast(is_real, x.dtype), -1)
        mean = ops.cumsum(x * weight, axis=1) / ops.maximum(ops.cumsum(weight, axis=1), 1)
        return self.dense(mean) * weight

    def get_config(self):
        return super().get_config() | {"max_length": self.max_length}


def own_model(data) -> tfrec.TwoTower:
    return tfrec.TwoTower(tfrec.ItemTower(data.num_items, 16), MeanTower(12))


def own_loss(query, target, inputs, item_tower, sample_weight):
    """Squared distance to the target's vector, minus that to the mean of all."""
    wanted = item_tower.candidates(target)
    others = ops.mean(item_tower.catalogue(), axis=0)
    distance = ops.sum(ops.square(query - wanted) - ops.square(query - others), axis=-1)
    return ops.sum(distance * sample_weight), ops.sum(sample_weight)


def test_a_model_and_a_loss_of_ones_own_train_resume_and_export(data, tmp_path):
    config = Config(epochs=2, learning_rate=5e-3)
    run = train(config, data, tmp_path / "run", model=own_model(data), loss=tfrec.FullSoftmax())
    assert run.history["loss"][1] < run.history["loss"][0]
    assert run.config.num_blocks is None  # model.json describes the model
    assert run.config.max_length == 12
    history = data.vocabulary.decode(data.history(0))[:8]
    expected = run.recommend(history, k=5)
    code = f"""
import sys
sys.path.insert(0, {str(__file__.rpartition("/")[0])!r})
import tfrec, test_fit
run = tfrec.Run.open({str(run.folder)!r})
print(tfrec.export(run, {str(tmp_path / "export")!r}, index="exact"))
print(*run.recommend({history!r}, k=5).item_ids)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == expected.item_ids.tolist()
    with pytest.raises(ValueError, match="trained with model and loss of your own, and --resume was given nothing"):
        train(out=run.folder, resume=True)
    more = train(data=data, out=run.folder, resume=True, model=own_model(data), loss=tfrec.FullSoftmax())
    assert more.metrics == run.metrics
    again = train(config, data, tmp_path / "other", model=own_model(data), loss=own_loss)
    assert again.history["loss"][1] < again.history["loss"][0]


@keras.saving.register_keras_serializable("tests")
class HashedItems(tfrec.AbstractItemTower):
    """The sum of two hashed embeddings, so items share vectors."""

    def __init__(self, num_items, width, **kwargs):
        super().__init__(**kwargs)
        self.num_items, self.width, self.normalize = num_items, width, True

    def build(self, input_shape=None):
        self.first = self.add_weight((64, self.width), "random_normal", name="first")
        self.second = self.add_weight((97, self.width), "random_normal", name="second")

    def call(self, item_index):
        return ops.take(self.first, item_index % 64, axis=0) + ops.take(self.second, item_index % 97, axis=0)

    def get_config(self):
        return super().get_config() | {"num_items": self.num_items, "width": self.width}


def test_an_item_tower_of_ones_own_trains_and_answers_the_same_everywhere(data, tmp_path):
    model = tfrec.TwoTower(HashedItems(data.num_items, 16), tfrec.SequenceTower(10, num_blocks=1, normalize=True))
    run = train(Config(epochs=2), data, tmp_path / "run", model=model)
    assert run.history["loss"][1] < run.history["loss"][0]
    assert run.config.similarity == "cosine"
    history = data.vocabulary.decode(data.history(0))[:6]
    expected = run.recommend(history, k=10).item_ids.tolist()
    version = tfrec.export(run, tmp_path / "export", index="exact")
    served = tf.saved_model.load(str(version)).signatures["serving_default"](history=tf.constant([history]))
    assert [i.decode() for i in served["item_ids"].numpy()[0]] == expected
    assert tfrec.to_litert(run, tmp_path / "model.tflite").same_items > 0.98
    with pytest.raises(
        ValueError, match="Items can be added to an `ItemTower` .* and this run has a HashedItems: train again"
    ):
        tfrec.refresh(tmp_path / "export", remove_items=["item-1"])


def test_a_run_of_unknown_classes_says_what_to_import(data, tmp_path):
    run = train(Config(epochs=1), data, tmp_path / "run", model=own_model(data))
    code = f"import tfrec; tfrec.Run.open({str(run.folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Import the module that defines its classes first" in done.stderr


def test_a_model_of_ones_own_excludes_fields_of_the_model(data, tmp_path):
    with pytest.raises(ValueError, match="`width` describes the model, which is given: leave it out of the config"):
        train(Config(width=32), data, tmp_path / "run", model=own_model(data))
    with pytest.raises(ValueError, match="`loss` describes the loss, which is given: leave it out of the config"):
        train(Config(loss="gbce"), data, tmp_path / "run", loss=tfrec.FullSoftmax())
    with pytest.raises(ValueError, match="item tower has 5 items and the data 200"):
        train(Config(), data, tmp_path / "run", model=tfrec.TwoTower(tfrec.ItemTower(5, 8), MeanTower(4)))
    with pytest.raises(ValueError, match="`lazy_table` needs the item table of `ItemTower` and a loss that draws"):
        train(Config(lazy_table=True), data, tmp_path / "run", model=own_model(data), loss=own_loss)
    model = own_model(data)
    model.compile("adam", tfrec.FullSoftmax())
    with pytest.raises(ValueError, match="compiled already, with a loss of its own: leave out `loss`"):
        train(Config(), data, tmp_path / "run", model=model, loss=tfrec.FullSoftmax())


def test_a_compiled_model_keeps_its_loss_and_its_optimizer(data, tmp_path):
    model = own_model(data)
    model.compile(keras.optimizers.Lion(1e-3), tfrec.SampledSoftmax(32))
    train(Config(epochs=1), data, tmp_path / "run", model=model)
    assert isinstance(model.optimizer, keras.optimizers.Lion)
    assert int(model.optimizer.iterations) > 0


def test_by_hand_from_histories_to_an_export(data, tmp_path):
    """The path without `train`: split, batches, compile, fit, a run, an export."""
    split = tfrec.LeaveLastOut(data)
    batches = tfrec.PackedBatches.for_training(split, max_length=12, batch_positions=4096, seed=0)
    model = tfrec.TwoTower(tfrec.ItemTower(data.num_items, 16), tfrec.SequenceTower(12, num_blocks=1))
    model.compile("adam", tfrec.FullSoftmax())
    fitted = model.fit(
        batches.dataset(), epochs=2, shuffle=False, verbose=0, callbacks=[Validation(split, names=("mrr",))]
    )
    assert len(fitted.history["val_mrr"]) == 2
    run = tfrec.Run.from_model(model, data, tmp_path / "run")
    np.testing.assert_array_equal(run.model.item_tower.table.numpy(), model.item_tower.table.numpy())
    assert tfrec.export(run, tmp_path / "export", index="exact").name == "1"
    with pytest.raises(FileExistsError, match="exists. Choose another folder"):
        tfrec.Run.from_model(model, data, tmp_path / "run")
    with pytest.raises(ValueError, match="was fitted by hand"):
        final_config(run)
    with pytest.raises(ValueError, match="The model has 200 items and the data 2"):
        tfrec.Run.from_model(model, histories("ab"), tmp_path / "other")


def test_training_on_another_backend_is_one_sentence():
    code = "import tfrec; tfrec.train(tfrec.Config(), None)"
    environment = {"KERAS_BACKEND": "jax", "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "`train` needs Keras on TensorFlow. KERAS_BACKEND is 'jax'" in done.stderr.splitlines()[-1]


def test_resume_on_other_data_is_refused(uninterrupted, data, tmp_path):
    """The same catalogue with one user's events in another order."""
    items = data.item_index.copy()
    items[: data.offsets[1]] = items[: data.offsets[1]][::-1]
    with pytest.raises(DataMismatchError, match="is not what .* was trained on: its events, users or items differ"):
        train(data=dataclasses.replace(data, item_index=items, folder=None), out=uninterrupted, resume=True)


def test_the_old_run_stays_until_the_new_one_has_an_epoch(data, small_config, tmp_path):
    class Stop(keras.callbacks.Callback):
        def __init__(self, epoch):
            super().__init__()
            self.epoch = epoch

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == self.epoch:
                raise RuntimeError("the machine is gone")

    config = dataclasses.replace(small_config, epochs=2)
    out = tmp_path / "run"
    train(config, data, out)
    before = (out / "metrics.json").read_bytes()
    with pytest.raises(RuntimeError):
        train(config, data, out, overwrite=True, callbacks=[Stop(0)])
    assert (out / "metrics.json").read_bytes() == before
    assert Run.open(out).history["epoch"] == [1, 2]
    with pytest.raises(RuntimeError):
        train(config, data, out, overwrite=True, callbacks=[Stop(1)])
    assert not (out / "metrics.json").exists()  # the new run, which has one epoch
    resumed = train(None, data, out, resume=True)
    assert resumed.history["epoch"] == [1, 2]
    assert (out / "logs").is_dir()
    assert os.listdir(tmp_path) == ["run"]
