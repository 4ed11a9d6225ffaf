"""A `TwoTower` is a Keras model in every way a user tries; what cannot work raises a sentence."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec
from tfrec.models.item_tower import ItemTower
from tfrec.models.lazy_table import LazyAdamW, LazyTableTrainer
from tfrec.models.losses import FullSoftmax, SampledSoftmax
from tfrec.models.ranking_metrics import MRR, NDCG, HitRate, target_ranks
from tfrec.models.sequence_tower import SequenceTower
from tfrec.models.tfrs_task import TfrsRetrieval
from tfrec.models.two_tower import TwoTower


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    history = rng.integers(2, 13, size=(8, 6)).astype(np.int32)
    is_real = np.arange(6) >= rng.integers(0, 6, size=(8, 1))
    return {"history": np.where(is_real, history, 0), "is_real": is_real}, np.roll(history, -1, axis=1)


def make(loss=None, dropout_rate=0.1, **kwargs) -> TwoTower:
    keras.utils.set_random_seed(0)
    model = TwoTower(ItemTower(11, 8), SequenceTower(6, num_blocks=1, hidden_dim=9, dropout_rate=dropout_rate))
    model.compile(keras.optimizers.Adam(0.01), loss=loss or FullSoftmax(), **{"jit_compile": False} | kwargs)
    return model


def fresh(code: str, *arguments, **environment) -> str:
    """What a new process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("loss", [FullSoftmax(), TfrsRetrieval(np.ones(11), num_negatives=5)], ids=["full", "tfrs"])
def test_fit_evaluate_predict(batch, loss):
    model = make(loss, jit_compile=True)
    history = model.fit(*batch, epochs=8, batch_size=8, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert np.isfinite(model.evaluate(*batch, batch_size=8, verbose=0))
    queries = model.predict(batch[0], batch_size=8, verbose=0)
    assert queries.shape == (8, 8)
    np.testing.assert_allclose(queries, np.array(model(batch[0]))[:, -1], atol=1e-5)


def test_a_query_of_nothing_but_zeros_has_a_gradient(batch):
    """Where every item is hidden, an HSTU query is zero, and has no direction."""
    tower = SequenceTower(6, 1, block="hstu", positions=["relative"], mask_rate=0.9, normalize=True)
    model = TwoTower(ItemTower(11, 8, normalize=True), tower)
    model.compile(keras.optimizers.Adam(0.01), loss=FullSoftmax(), jit_compile=True)
    losses = model.fit(*batch, epochs=5, batch_size=8, verbose=0).history["loss"]
    assert np.isfinite(losses).all()


def test_the_reported_loss_is_a_mean_over_positions(batch):
    """Two batches with different numbers of positions: the epoch's loss weighs them by positions, not by rows."""
    inputs, target = batch
    model = make()
    parts = []
    for rows in (slice(0, 4), slice(4, 8)):
        part = {name: value[rows] for name, value in inputs.items()}
        total, count = model.loss(model(part), target[rows], part, model.item_tower)
        parts.append((float(total), float(count)))
    assert parts[0][1] != parts[1][1]
    expected = sum(total for total, _ in parts) / sum(count for _, count in parts)
    assert model.evaluate(inputs, target, batch_size=4, verbose=0) == pytest.approx(expected, rel=1e-5)


# --- weights of positions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [FullSoftmax, lambda: SampledSoftmax(5), lambda: TfrsRetrieval(np.ones(11), 5)])
def test_sample_weight_weighs_positions(batch, loss):
    """Weight 0 takes a position out, 2 counts it twice; by position, by row and from a tf.data triple."""
    inputs, target = batch
    weight = np.random.default_rng(1).integers(0, 3, target.shape).astype(np.float32)
    model = make(loss(), dropout_rate=0.0)
    total, count = model.loss(model(inputs), target, inputs, model.item_tower, weight * inputs["is_real"])
    model = make(loss(), dropout_rate=0.0)
    found = model.evaluate(inputs, target, sample_weight=weight, batch_size=8, verbose=0)
    assert found == pytest.approx(float(total) / float(count), rel=1e-5)
    assert float(count) == (weight * inputs["is_real"]).sum()
    model = make(loss(), dropout_rate=0.0)
    dataset = tf.data.Dataset.from_tensors((inputs, target, weight))
    assert model.evaluate(dataset, verbose=0) == pytest.approx(found, rel=1e-5)
    if isinstance(model.loss, FullSoftmax):  # nothing drawn: rows of weight 0 are as if they were not there
        rows = np.array([1, 1, 1, 0, 0, 1, 0, 1], np.float32)
        kept = {name: value[rows > 0] for name, value in inputs.items()}
        expected = model.evaluate(kept, target[rows > 0], batch_size=8, verbose=0)
        assert model.evaluate(inputs, target, sample_weight=rows, batch_size=8, verbose=0) == pytest.approx(
            expected, rel=1e-5
        )


def test_training_follows_the_sample_weight(batch):
    inputs, target = batch
    trained = []
    for weight in (None, np.zeros(8, np.float32)):
        model = make(dropout_rate=0.0)
        model.build()
        before = model.item_tower.table.numpy()
        model.fit(inputs, target, sample_weight=weight, batch_size=8, verbose=0)
        trained.append(np.abs(model.item_tower.table.numpy() - before).max())
    assert trained[0] > 1e-3
    assert trained[1] == 0


def test_class_weight_weighs_positions_by_their_target_in_training_alone(batch):
    inputs, target = batch
    by_position = np.where(target == 5, 0.0, np.where(target == 6, 3.0, 1.0)).astype(np.float32)
    models = [make(dropout_rate=0.0) for _ in range(2)]
    for model in models:
        keras.utils.set_random_seed(1)
        model.build()
    models[0].fit(inputs, target, class_weight={5: 0.0, 6: 3.0}, batch_size=8, verbose=0)
    models[1].fit(inputs, target, sample_weight=by_position, batch_size=8, verbose=0)
    tables = [model.item_tower.table.numpy() for model in models]
    np.testing.assert_allclose(*tables, atol=1e-6)
    plain = [model.evaluate(inputs, target, batch_size=8, verbose=0) for model in models]
    assert plain[0] == pytest.approx(plain[1], rel=1e-5)
    models[0].fit(inputs, target, batch_size=8, verbose=0)  # without them again
    models[1].fit(inputs, target, batch_size=8, verbose=0)
    np.testing.assert_allclose(*[model.item_tower.table.numpy() for model in models], atol=1e-6)


# --- losses that are added ---------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Penalised(tfrec.AbstractSequenceTower):
    """A dense layer with a regulariser, and a loss added in `call`."""

    def __init__(self, max_length, added=0.5, **kwargs):
        super().__init__(**kwargs)
        self.max_length, self.added = max_length, added
        self.dense = keras.layers.Dense(8, kernel_regularizer=keras.regularizers.L2(0.1), kernel_initializer="ones")

    def call(self, x, is_real, training=None):
        self.add_loss(self.added + 0 * keras.ops.sum(keras.ops.cast(x, "float32")))
        return self.dense(x) * keras.ops.expand_dims(keras.ops.cast(is_real, x.dtype), -1)

    def get_config(self):
        return super().get_config() | {"max_length": self.max_length, "added": self.added}


@pytest.mark.parametrize("lazy", [False, True])
def test_added_losses_and_regularisers_count(batch, lazy):
    inputs, target = batch
    keras.utils.set_random_seed(0)
    model = TwoTower(ItemTower(11, 8), Penalised(6))
    model.build()
    model.compile(keras.optimizers.SGD(0.1), SampledSoftmax(4, seed=3), jit_compile=False)
    if lazy:
        model.table_trainer = LazyTableTrainer(model, LazyAdamW(model.item_tower.table, 0.1))
        model.optimizer.build(model.table_trainer.dense)
    kernel = model.sequence_tower.dense.kernel
    plain, count = SampledSoftmax(4, seed=3)(model(inputs), target, inputs, model.item_tower)
    found = model.fit(inputs, target, batch_size=8, verbose=0).history["loss"][0]
    assert found == pytest.approx(float(plain) / float(count) + 0.5 + 0.1 * 64, rel=1e-4)
    assert kernel.numpy().mean() < 0.985  # the regulariser's gradient is 0.2 at each of them


# --- compile -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "A `TwoTower` needs a `loss`. Pass tfrec's FullSoftmax"),
        ({"loss": "mse"}, "a loss of Keras compares outputs with labels. Pass tfrec's FullSoftmax"),
        (
            {"loss": keras.losses.MeanSquaredError()},
            "or a callable loss(query, target, inputs, item_tower, sample_weight)",
        ),
        ({"loss": [FullSoftmax()]}, "a loss of Keras compares outputs"),
        ({"loss": lambda y_true, y_pred: 0.0}, "The loss must take five arguments"),
        ({"loss": FullSoftmax(), "loss_weights": [1.0]}, "leave out `loss_weights` and `weighted_metrics`"),
        ({"loss": FullSoftmax(), "weighted_metrics": ["mae"]}, "leave out `loss_weights` and `weighted_metrics`"),
        (
            {"loss": FullSoftmax(), "metrics": ["accuracy"]},
            r"`metrics` may hold tfrec's HitRate\(k\), NDCG\(k\) and MRR\(\)",
        ),
        (
            {"loss": FullSoftmax(), "metrics": keras.metrics.TopKCategoricalAccuracy()},
            "`metrics` may hold tfrec's HitRate",
        ),
    ],
)
def test_compile_refuses_what_cannot_work(arguments, message):
    model = TwoTower(ItemTower(11, 8), SequenceTower(6))
    with pytest.raises(
        TypeError, match=message if "\\" in message else message.replace("(", r"\(").replace(")", r"\)")
    ):
        model.compile("adam", **arguments)


def test_a_function_is_a_loss(batch):
    def distance(query, target, inputs, item_tower, sample_weight):
        each = keras.ops.sum(keras.ops.square(query - item_tower.candidates(target)), axis=-1)
        return keras.ops.sum(each * sample_weight), keras.ops.sum(sample_weight)

    losses = make(distance).fit(*batch, epochs=5, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("options", [{"run_eagerly": True, "jit_compile": False}, {"steps_per_execution": 2}])
def test_ways_to_execute(batch, options):
    model = make(**options)
    losses = model.fit(*batch, epochs=2, batch_size=4, shuffle=False, verbose=0).history["loss"]
    expected = make().fit(*batch, epochs=2, batch_size=4, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(losses, expected, rtol=1e-3)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_global_policy_of_mixed_precision(batch, policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = make(dropout_rate=0.0)
        losses = model.fit(*batch, epochs=8, batch_size=8, verbose=0).history["loss"]
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.sequence_tower.compute_dtype == policy.removeprefix("mixed_")
    assert model.item_tower.table.dtype == "float32"
    assert losses[-1] < losses[0]


def test_callbacks_set_the_learning_rate_of_a_plain_fit(batch):
    falls = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.01 / (1 + epoch))
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=0, min_delta=10)
    found = make().fit(*batch, epochs=3, verbose=0, callbacks=[falls]).history["learning_rate"]
    assert found == pytest.approx([0.01, 0.005, 0.01 / 3], rel=1e-5)
    assert make().fit(*batch, epochs=3, verbose=0, callbacks=[plateau]).history["learning_rate"][-1] < 0.01


# --- metrics -----------------------------------------------------------------------------------------------------------


def slow_metrics(model, inputs, target, weight, repeats) -> dict[str, float]:
    """HR@3, NDCG@3 and MRR by a loop over positions and a sort, ties by the mean over all orders of the tied."""
    queries, items = np.array(model(inputs)), np.array(model.item_tower.catalogue())
    end = inputs.get("end", np.full(target.shape, target.shape[1]))
    totals = np.zeros(3)
    for b, position in zip(*np.nonzero(inputs["is_real"]), strict=True):
        own = {
            int(inputs["history"][b, p])
            for p in range(position + 1)
            if inputs["is_real"][b, p] and end[b, p] == end[b, position] and repeats == "exclude"
        }
        wanted = int(target[b, position])
        if wanted in own:
            continue
        scores = {i + 2: float(score) for i, score in enumerate(items @ queries[b, position]) if i + 2 not in own}
        better = sum(score > scores[wanted] for score in scores.values())
        ranks = better + 1 + np.arange(sum(score == scores[wanted] for score in scores.values()))
        gains = [np.mean(ranks <= 3), np.mean(np.where(ranks <= 3, 1 / np.log2(ranks + 1), 0)), np.mean(1 / ranks)]
        totals += weight[b, position] * np.array(gains)
    return dict(zip(("hr@3", "ndcg@3", "mrr"), totals / (weight * inputs["is_real"]).sum(), strict=True))


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("block", [1024, 5])
def test_ranking_metrics_agree_with_a_slow_reference(batch, monkeypatch, is_packed, block):
    monkeypatch.setattr("tfrec.models.ranking_metrics.LARGEST_BLOCK", block)
    inputs, target = batch
    if is_packed:
        inputs = inputs | {"end": np.where(np.arange(6) < 3, 3, 6).astype(np.int32) * np.ones((8, 1), np.int32)}
    choices = {"exclude": "", "allow": " of all"}
    metrics = [
        kind(*k, name=name + more, repeats=repeats)
        for repeats, more in choices.items()
        for kind, k, name in ((HitRate, [3], "hr@3"), (NDCG, [3], "ndcg@3"), (MRR, [], "mrr"))
    ]
    model = make(metrics=metrics, dropout_rate=0.0)
    model.build()
    table = model.item_tower.table.numpy()
    table[4:8] = table[4]  # ties
    model.item_tower.table.assign(table)
    weight = np.random.default_rng(2).integers(0, 3, target.shape).astype(np.float32)
    found = model.evaluate(inputs, target, sample_weight=weight, batch_size=4, verbose=0, return_dict=True)
    for repeats, more in choices.items():
        expected = slow_metrics(model, inputs, target, weight, repeats)
        assert {name: found[name + more] for name in expected} == pytest.approx(expected, abs=1e-5)
        assert 0 < expected["hr@3"] < 1
    assert found["mrr"] != found["mrr of all"]
    num_above, num_tied = target_ranks(model(inputs), target, inputs, model.item_tower)
    assert np.array(num_above).shape == target.shape
    assert (np.array(num_tied) > 1).any()
    assert (np.array(num_tied)[inputs["is_real"]] == 0).any()  # targets that their history holds


def test_a_metric_keeps_its_choice_of_repeats():
    for metric in (HitRate(3, repeats="allow"), NDCG(repeats="allow"), MRR(repeats="allow")):
        config = metric.get_config()
        assert type(metric).from_config(config).get_config() == config
        assert config.pop("repeats") == "allow"
        assert type(metric).from_config(config).repeats == "exclude"  # of a file before there was a choice
    with pytest.raises(ValueError, match="`repeats` must be one of exclude, allow. Received: 'no'"):
        MRR(repeats="no")


def test_metrics_come_with_fit_validation_and_the_lazy_step(batch):
    model = make(metrics=[HitRate(3), MRR()])
    history = model.fit(
        *batch, epochs=2, batch_size=8, verbose=0, validation_data=batch, validation_batch_size=8
    ).history
    assert set(history) == {"loss", "hr@3", "mrr", "val_loss", "val_hr@3", "val_mrr"}
    lazy = make(SampledSoftmax(4), metrics=[HitRate(3)], dropout_rate=0.0, jit_compile=False)
    lazy.build()
    lazy.table_trainer = LazyTableTrainer(lazy, LazyAdamW(lazy.item_tower.table, 0.0))
    lazy.optimizer.build(lazy.table_trainer.dense)
    lazy.optimizer.learning_rate = 0.0
    trained = lazy.fit(*batch, batch_size=8, verbose=0).history["hr@3"][0]
    assert trained == pytest.approx(lazy.evaluate(*batch, batch_size=8, verbose=0, return_dict=True)["hr@3"])


# --- files -------------------------------------------------------------------------------------------------------------


def test_a_keras_file_holds_the_whole_model_and_loads_in_a_new_process(batch, tmp_path):
    """The classes, the loss with its counts, the metrics; `import tfrec` is all it takes, before Keras or after."""
    model = make(TfrsRetrieval(np.arange(11), num_negatives=5), metrics=[NDCG(3)])
    model.fit(*batch, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = model.predict(batch[0], verbose=0)
    np.testing.assert_allclose(loaded.predict(batch[0], verbose=0), expected, atol=1e-6)
    np.testing.assert_array_equal(loaded.loss.item_counts.numpy(), np.arange(11))
    loaded.fit(*batch, verbose=0)  # compiled, with its loss
    np.savez(tmp_path / "batch.npz", **batch[0])
    code = """
import sys
{imports}
import numpy as np
model = keras.models.load_model(sys.argv[1] + "/model.keras")
inputs = dict(np.load(sys.argv[1] + "/batch.npz"))
np.save(sys.argv[1] + "/found.npy", model.predict(inputs, verbose=0))
print(type(model.loss).__name__, [m.name for m in model.metrics])
"""
    for imports in ("import tfrec, keras", "import keras, tfrec"):
        printed = fresh(code.format(imports=imports), tmp_path)
        assert printed.split("\n")[-2] == "TfrsRetrieval ['loss', 'ndcg@3']"
        np.testing.assert_allclose(np.load(tmp_path / "found.npy"), expected, atol=1e-6)


def test_the_model_tracks_the_variables_of_its_loss():
    model = make(TfrsRetrieval(np.ones(11)))
    paths = [v.path for v in model.variables]
    assert len(paths) == len(set(map(id, model.variables)))
    assert any(v is model.loss.item_counts for v in model.non_trainable_variables)
    assert any(v is model.loss.seed_generator.state for v in model.non_trainable_variables)
    old = model.loss
    model.compile("adam", SampledSoftmax(5))
    assert not any(v is old.item_counts for v in model.variables)
    assert any(v is model.loss.seed_generator.state for v in model.variables)


def test_from_config_leaves_its_argument_alone_and_clones_are_equal(batch):
    model = make()
    model.build()
    config = model.get_config()
    before = repr(config)
    for _ in range(2):
        assert TwoTower.from_config(config).get_config().keys() == config.keys()
    assert repr(config) == before
    clone = keras.models.clone_model(model)
    clone.build()
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(clone.predict(batch[0], verbose=0), model.predict(batch[0], verbose=0), atol=1e-6)


def test_export_gives_a_signature_that_plain_tensorflow_calls(batch, tmp_path):
    model = make()
    model.build()
    model.export(tmp_path / "export")
    code = """
import json, sys
import tensorflow as tf
served = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
print(json.dumps(served(history=tf.constant(json.loads(sys.argv[2]), tf.int32))["embedding"].numpy().tolist()))
"""
    import json

    history = batch[0]["history"]
    found = json.loads(fresh(code, tmp_path / "export", json.dumps(history.tolist())).splitlines()[-1])
    np.testing.assert_allclose(found, model.predict(batch[0], verbose=0), atol=1e-5)
    with pytest.raises(ValueError, match="For ids in and recommendations out call `tfrec.export"):
        model.export(tmp_path / "model.onnx", format="onnx")


# --- towers of one's own -----------------------------------------------------------------------------------------------


def test_towers_that_lack_something_are_refused():
    class NoLength(tfrec.AbstractSequenceTower):
        def call(self, x, is_real, training=None):
            return x

    class NoMask(NoLength):
        max_length = 6

        def call(self, x, training=None):
            return x

    class NoTimes(NoLength):
        max_length, reads_times = 6, True

    class NoEnd(NoLength):
        max_length, supports_packing = 6, True

    class NoEvents(NoLength):
        max_length, reads_events = 6, True

    class NoContext(NoLength):
        max_length, reads_context = 6, True

    class Newest(NoLength):
        max_length = 6

        def call(self, x, is_real, training=None):
            return x[:, -1]

    class NoCall(tfrec.AbstractSequenceTower):
        max_length = 6

    class NoWidth(tfrec.AbstractItemTower):
        num_items = 11

    items = ItemTower(11, 8)
    for sequence, message in (
        (NoLength(), r"`NoLength.max_length` must be an int above 0, set in the constructor. Received: None"),
        (NoMask(), "`NoMask.call` must take the argument `is_real`"),
        (NoTimes(), "`NoTimes.call` must take the argument `timestamps`"),
        (NoEnd(), "`NoEnd.call` must take the argument `end`"),
        (NoEvents(), "`NoEvents.call` must take the argument `events`"),
        (NoContext(), "`NoContext.call` must take the argument `context`"),
        (keras.layers.Dense(8), "A tower must derive from `tfrec.AbstractSequenceTower`. Received: Dense"),
    ):
        with pytest.raises(TypeError, match=message):
            TwoTower(items, sequence)
    with pytest.raises(TypeError, match="`NoWidth.width` must be an int above 0"):
        TwoTower(NoWidth(), SequenceTower(6))
    with pytest.raises(TypeError, match="A tower must derive from `tfrec.AbstractItemTower`. Received: Embedding"):
        TwoTower(keras.layers.Embedding(11, 8), SequenceTower(6))
    inputs = {"history": np.array([[2, 3]], np.int32), "is_real": np.array([[True, True]])}
    with pytest.raises(ValueError, match="Newest must return a query after each position, shape"):
        TwoTower(ItemTower(11, 8), Newest())(inputs)
    with pytest.raises(NotImplementedError, match="NoCall needs `call"):
        NoCall()(np.ones((1, 2, 8), np.float32), is_real=np.ones((1, 2), bool))
    with pytest.raises(NotImplementedError, match="NoWidth needs `call"):
        NoWidth()(np.ones((1, 2), np.int32))
    with pytest.raises(ValueError, match="Penalised does not support packed rows, which have `end`"):
        TwoTower(ItemTower(11, 8), Penalised(6))(inputs | {"end": np.array([[2, 2]], np.int32)})


# --- features of events and requests -----------------------------------------------------------------------------------


def with_features(**kwargs) -> TwoTower:
    keras.utils.set_random_seed(0)
    events = {"kind": {"kind": "category", "num_values": 2}, "price": {"kind": "number", "mean": 2e5, "stddev": 10.0}}
    context = {"device": {"kind": "category", "num_values": 2}}
    tower = SequenceTower(6, 1, 1, dropout_rate=0.0, event_features=events, context_features=context, **kwargs)
    model = TwoTower(ItemTower(11, 8, dtype=kwargs.get("dtype")), tower)
    model.compile(keras.optimizers.Adam(0.01), loss=FullSoftmax(), jit_compile=True)
    model.build()
    return model


@pytest.fixture
def featured(batch):
    """The next item is that of before plus 1 or 2, as the device of the request says."""
    rng, inputs = np.random.default_rng(0), batch[0]
    device = rng.integers(2, 4, (8, 6)).astype(np.int32)
    target = 2 + (inputs["history"] - 3 + device) % 11
    price = rng.choice([2e5 - 10, 2e5 + 10, np.nan], (8, 6)).astype(np.float32)
    kind = rng.integers(0, 4, (8, 6)).astype(np.int32)
    return inputs | {"events": {"kind": kind, "price": price}, "context": {"device": device}}, target


def test_a_model_with_features_fits_and_lives_on(featured, tmp_path):
    inputs, target = featured
    model = with_features()
    losses = model.fit(inputs, target, epochs=150, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < 0.2  # who does not know the device: ln 2 at best
    dataset = tf.data.Dataset.from_tensors((inputs, target))
    assert model.evaluate(dataset, verbose=0) == pytest.approx(model.evaluate(inputs, target, verbose=0), rel=1e-4)
    queries = model.predict(inputs, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(inputs, batch_size=8, verbose=0), queries, atol=1e-5)
    clone = keras.models.clone_model(model)
    clone.build()
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(clone.predict(inputs, batch_size=8, verbose=0), queries, atol=1e-5)
    changed = inputs | {"events": {"kind": 5 - inputs["events"]["kind"], "price": inputs["events"]["price"]}}
    assert np.abs(model.predict(changed, batch_size=8, verbose=0) - queries).max() > 1e-3


def test_a_model_with_features_trains_its_table_lazily(featured):
    inputs, target = featured
    model = with_features()
    model.compile(keras.optimizers.Adam(0.01), SampledSoftmax(5), jit_compile=False)
    table = LazyAdamW(model.item_tower.table, lambda step: 0.01, 0.0)
    model.table_trainer = LazyTableTrainer(model, table)
    model.optimizer.build(model.table_trainer.dense)
    losses = model.fit(inputs, target, epochs=30, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 2


def test_the_exported_model_shifts_the_context(featured, tmp_path):
    """Each event's own device goes in, and that of the request."""
    inputs, _ = featured
    model = with_features()
    model.export(tmp_path / "export")
    served = tf.saved_model.load(str(tmp_path / "export")).signatures["serving_default"]
    device = inputs["context"]["device"]
    given = {"history": inputs["history"], "device": np.roll(device, 1, axis=1), "request_device": device[:, -1]}
    found = served(**{name: tf.constant(value) for name, value in (given | inputs["events"]).items()})["embedding"]
    np.testing.assert_allclose(found, model.predict(inputs, verbose=0), atol=1e-5)


def test_the_exported_model_has_inputs_that_tensorflow_takes(tmp_path):
    told = {"2nd device": {"kind": "category", "num_values": 2}, "self": {"kind": "number"}}
    model = TwoTower(ItemTower(5, 4), SequenceTower(6, num_heads=1, num_blocks=1, context_features=told))
    model.build()
    model.export(tmp_path / "export")
    served = tf.saved_model.load(str(tmp_path / "export")).signatures["serving_default"]
    own = {"column_2nd_device", "request_column_2nd_device", "column_self", "request_column_self"}
    assert set(served.structured_input_signature[1]) == own | {"history"}


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_reads_features_whole(featured, policy):
    """200,010 is beyond float16, and bfloat16 would not tell it from 199,990."""
    inputs, target = featured
    model = with_features(dtype=policy)
    assert np.isfinite(model.fit(inputs, target, batch_size=8, verbose=0).history["loss"]).all()
    prices = [inputs["events"] | {"price": np.full((8, 6), price, np.float32)} for price in (2e5 - 10, 2e5 + 10)]
    a, b = (np.array(model.sequence_tower.event(events), np.float32) for events in prices)
    assert np.abs(a - b).max() > 0.01
    a, b = (model.predict(inputs | {"events": events}, verbose=0) for events in prices)
    assert np.abs(a - b).max() > 1e-3


@pytest.mark.parametrize(("left_out", "name"), [("events", "kind"), ("context", "device")])
def test_a_model_with_features_needs_them(featured, left_out, name):
    inputs = {name: value for name, value in featured[0].items() if name != left_out}
    with pytest.raises(ValueError, match=f"The model reads the feature '{name}': pass its values in `{left_out}`"):
        with_features()(inputs)


# --- other backends ----------------------------------------------------------------------------------------------------

ON_JAX = """
import numpy as np
import keras
import tfrec

assert keras.backend.backend() == "jax"
rng = np.random.default_rng(0)
history = rng.integers(2, 13, size=(8, 6)).astype("int32")
inputs = {"history": history, "is_real": np.ones((8, 6), bool)}
losses = (tfrec.FullSoftmax(seen_weight=0.1), tfrec.SampledSoftmax(200), tfrec.GBCE(200))
for loss, block in zip(losses, ("gated", "transformer", "hstu")):
    keras.utils.set_random_seed(0)
    tower = tfrec.SequenceTower(6, num_blocks=1, block=block, positions=["relative"])
    model = tfrec.TwoTower(tfrec.ItemTower(11, 8), tower)
    model.compile(keras.optimizers.Adam(0.02), loss)
    fitted = model.fit(inputs, np.roll(history, -1, axis=1), epochs=5, verbose=0).history
    assert fitted["loss"][-1] < fitted["loss"][0], (loss, block, fitted)
    print(type(loss).__name__, np.array(model(inputs)).shape)
for refused in (lambda: tfrec.TfrsRetrieval([1, 2]), lambda: model.compile("adam", loss, metrics=[tfrec.HitRate(3)])):
    try:
        refused()
    except ValueError as error:
        print(error)
"""


def test_layers_towers_and_softmax_losses_run_on_jax():
    printed = fresh(ON_JAX, KERAS_BACKEND="jax").splitlines()
    assert printed == [
        "FullSoftmax (8, 6, 8)",
        "SampledSoftmax (8, 6, 8)",
        "GBCE (8, 6, 8)",
        "`TfrsRetrieval` runs TensorFlow Recommenders, which needs KERAS_BACKEND=tensorflow.",
        "Ranking metrics read the catalogue, which Keras hides from metrics on this backend: leave them out.",
    ]


def test_jax_gives_the_numbers_of_tensorflow(batch):
    """The same weights and batch: the same loss, to rounding."""
    model = make(FullSoftmax(seen_weight=0.1), dropout_rate=0.0)
    expected = model.evaluate(*batch, batch_size=8, verbose=0)
    code = """
import keras, numpy as np, tfrec
from numpy import array, int32
model = tfrec.TwoTower(tfrec.ItemTower(11, 8), tfrec.SequenceTower(6, num_blocks=1, hidden_dim=9, dropout_rate=0.0))
model.build()
weights = np.load({0!r})
model.set_weights([weights[f"arr_{{i}}"] for i in range(len(model.weights))])
model.compile("adam", tfrec.FullSoftmax(seen_weight=0.1))
batch = np.load({1!r})
inputs = {{"history": batch["history"], "is_real": batch["is_real"]}}
print(model.evaluate(inputs, batch["target"], batch_size=8, verbose=0))
"""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        weights = [w.numpy() for part in (model.item_tower, model.sequence_tower) for w in part.weights]
        np.savez(f"{folder}/weights.npz", *weights)
        np.savez(f"{folder}/batch.npz", **batch[0], target=batch[1])
        found = fresh(code.format(f"{folder}/weights.npz", f"{folder}/batch.npz"), KERAS_BACKEND="jax")
    assert float(found) == pytest.approx(expected, rel=1e-4)
