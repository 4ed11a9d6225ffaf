"""A second head predicts a column of the next event, trained with the ranking."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfrec
from tfrec.models.item_tower import ItemTower
from tfrec.models.lazy_table import LazyAdamW, LazyTableTrainer
from tfrec.models.losses import GBCE, FullSoftmax, SampledSoftmax
from tfrec.models.new_items import vectors_of, with_table
from tfrec.models.sequence_tower import SequenceTower
from tfrec.models.tasks import TaskHead
from tfrec.models.tfrs_task import TfrsRetrieval
from tfrec.models.two_tower import TwoTower

RNG = np.random.default_rng(0)
QUALITY = RNG.normal(3.5, 1.0, 13)
"""The rating of each item index, whoever rates it."""


@pytest.fixture
def batch():
    """Items at random; the rating and the type of the next event follow from its item; some are missing."""
    rng = np.random.default_rng(1)
    target = rng.integers(2, 13, size=(16, 7)).astype(np.int32)
    is_real = np.arange(7) >= rng.integers(0, 6, size=(16, 1))
    history = np.where(is_real, np.roll(target, 1, axis=1), 0)
    rating = np.where(rng.random(target.shape) < 0.1, np.nan, QUALITY[target]).astype(np.float32)
    return {"history": history, "is_real": is_real, "task": rating}, np.where(is_real, target, 0)


def rating_head(**options) -> TaskHead:
    return TaskHead("rating", **{"mean": 3.5, "stddev": 1.0, "hidden_dims": [16]} | options)


def make(head=None, loss=None, **kwargs) -> TwoTower:
    keras.utils.set_random_seed(0)
    tower = SequenceTower(7, num_blocks=1, hidden_dim=9, dropout_rate=0.1)
    model = TwoTower(ItemTower(11, 8), tower, head)
    model.compile(keras.optimizers.Adam(0.01), loss=loss or FullSoftmax(), **{"jit_compile": False} | kwargs)
    return model


def zero_head(**options) -> TaskHead:
    """A head whose output is its last bias."""
    head = TaskHead("x", hidden_dims=[], **options)
    head.build((None, 3))
    head.output_layer.kernel.assign(np.zeros(head.output_layer.kernel.shape))
    return head


def test_the_loss_of_a_number_by_hand():
    """Outputs are 0.5: numbers are 2 * 0.5 + 3 = 4. Of 5, NaN, 3 and a padded 9, two count: ((1 / 2)^2 + (-1 / 2)^2) / 2."""
    head = zero_head(mean=3.0, stddev=2.0)
    head.output_layer.bias.assign([0.5])
    x = np.ones((1, 4, 3), "float32")
    value, is_real = np.array([[5.0, np.nan, 3.0, 9.0]]), np.array([[True, True, True, False]])
    assert float(head.mean_loss(x, x, value, is_real)) == pytest.approx(0.25)
    np.testing.assert_allclose(head.predict(x, x), np.full((1, 4), 4.0))
    assert float(head.mean_loss(x, x, np.full((1, 4), np.nan), is_real)) == 0


def test_the_loss_of_a_category_by_hand():
    """Probabilities are 1/4 and 3/4: values 2 and 3 lose log 4 and log 4/3; missing and unknown ones do not count."""
    head = zero_head(kind="category", num_values=2)
    head.output_layer.bias.assign(np.log([0.25, 0.75]))
    x = np.ones((1, 5, 3), "float32")
    value, is_real = np.array([[2, 3, 0, 1, 2]]), np.array([[True, True, True, True, False]])
    assert float(head.mean_loss(x, x, value, is_real)) == pytest.approx((np.log(4) + np.log(4 / 3)) / 2)
    np.testing.assert_array_equal(head.predict(x, x), np.full((1, 5), 3))


def test_a_number_on_a_log_scale_comes_back():
    head = zero_head(mean=float(np.log1p(99)), stddev=1.0, is_log=True)
    x = np.ones((2, 3), "float32")
    np.testing.assert_allclose(head.predict(x, x), [99, 99], rtol=1e-5)
    value = np.array([[99.0, 99.0]])
    assert float(head.mean_loss(x[None], x[None], value, np.ones((1, 2), bool))) == pytest.approx(0, abs=1e-9)


def test_a_query_of_zeros_and_the_scale_of_vectors_do_no_harm():
    head = rating_head()
    query, candidate = RNG.normal(size=(2, 5, 8)).astype("float32")
    alone = head.predict(np.zeros_like(query), candidate)
    assert np.isfinite(alone).all()
    np.testing.assert_allclose(
        head.predict(query, candidate), head.predict(10 * query, 0.1 * candidate), rtol=1e-4, atol=1e-4
    )


def test_training_hides_some_queries():
    head = rating_head()
    query, candidate = RNG.normal(size=(2, 400, 8)).astype("float32")
    seen, hidden = (np.array(head(q, candidate, training=False)) for q in (query, np.zeros_like(query)))
    trained = np.array(head(query, candidate, training=True))
    is_hidden = np.isclose(trained, hidden, atol=1e-5)[:, 0]
    assert 0.04 < is_hidden.mean() < 0.2
    np.testing.assert_allclose(trained[~is_hidden], seen[~is_hidden], atol=1e-5)


LOSSES = {
    "full": lambda: FullSoftmax(),
    "sampled": lambda: SampledSoftmax(num_negatives=5),
    "gbce": lambda: GBCE(num_negatives=5),
    "tfrs": lambda: TfrsRetrieval(np.ones(11), num_negatives=5),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_head_learns_beside_every_loss(batch, name):
    model = make(rating_head(), LOSSES[name]())
    history = model.fit(*batch, epochs=60, batch_size=16, verbose=0).history
    assert history["task_loss"][-1] < 0.3 < history["task_loss"][0]
    inputs, target = batch
    predicted = np.array(model.task_head.predict(model(inputs), model.item_tower.candidates(target)))
    known = inputs["is_real"] & ~np.isnan(inputs["task"])
    assert np.abs(predicted - inputs["task"])[known].mean() < 0.5 * np.abs(inputs["task"][known] - 3.5).mean()


def test_the_head_learns_with_a_lazy_table(batch):
    model = make(rating_head(), SampledSoftmax(num_negatives=5))
    model.build()
    model.table_trainer = LazyTableTrainer(model, LazyAdamW(model.item_tower.table, 0.01), jit_compile=True)
    model.optimizer.build(model.table_trainer.dense)
    history = model.fit(*batch, epochs=60, batch_size=16, verbose=0).history
    assert history["task_loss"][-1] < 0.3 < history["task_loss"][0]


def test_a_category_is_learned(batch):
    inputs, target = batch
    inputs = inputs | {"task": (2 + (target % 3)).astype(np.int32)}
    model = make(TaskHead("kind", "category", num_values=3, hidden_dims=[16]))
    history = model.fit(inputs, target, epochs=60, batch_size=16, verbose=0).history
    assert history["task_loss"][-1] < 0.3 < 0.9 < history["task_loss"][0]


def test_the_total_is_the_ranking_and_the_weighted_task(batch):
    """And `sample_weight` weighs the ranking alone."""
    model = make(rating_head(loss_weight=0.25))
    logs = model.evaluate(*batch, batch_size=16, verbose=0, return_dict=True)
    plain = make()
    plain.build()
    plain.item_tower.set_weights(model.item_tower.get_weights())
    plain.sequence_tower.set_weights(model.sequence_tower.get_weights())
    alone = plain.evaluate(*batch, batch_size=16, verbose=0, return_dict=True)
    assert set(alone) == {"loss"}
    assert set(logs) == {"loss", "task_loss"}
    assert logs["loss"] == pytest.approx(alone["loss"] + 0.25 * logs["task_loss"], rel=1e-5)
    weight = np.where(np.arange(16) < 3, 1.0, 0.0)
    weighed = model.evaluate(*batch, batch_size=16, verbose=0, return_dict=True, sample_weight=weight)
    assert weighed["task_loss"] == pytest.approx(logs["task_loss"], rel=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(batch, policy):
    keras.utils.set_random_seed(0)
    own = {"dtype": keras.dtype_policies.DTypePolicy(policy)}
    tower = SequenceTower(7, num_blocks=1, hidden_dim=9, **own)
    model = TwoTower(ItemTower(11, 8, **own), tower, rating_head())
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))
    model.compile(optimizer, FullSoftmax(), jit_compile=False)
    history = model.fit(*batch, epochs=40, batch_size=16, verbose=0).history
    assert history["task_loss"][-1] < 0.5 * history["task_loss"][0]


def test_save_load_and_clone(batch, tmp_path):
    model = make(rating_head(dropout_rate=0.1))
    model.fit(*batch, epochs=1, batch_size=16, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.task_head.get_config() == model.task_head.get_config()
    inputs, target = batch
    expected = model.task_head.predict(model(inputs), model.item_tower.candidates(target))
    np.testing.assert_allclose(
        again.task_head.predict(again(inputs), again.item_tower.candidates(target)), expected, atol=1e-6
    )
    again.fit(*batch, epochs=1, batch_size=16, verbose=0)
    assert keras.models.clone_model(model).task_head.column == "rating"


def test_a_model_with_another_table_keeps_the_head(batch):
    model = make(rating_head())
    model.build()
    new = with_table(model, vectors_of(model.item_tower)[:9])
    for old, copied in zip(model.task_head.get_weights(), new.task_head.get_weights(), strict=True):
        np.testing.assert_array_equal(old, copied)


def test_the_layer_as_keras_layers_are():
    head = TaskHead("kind", "category", num_values=3, hidden_dims=[5], dropout_rate=0.2, loss_weight=0.3)
    x = keras.KerasTensor((None, 4, 8))
    assert head(x, x).shape == (None, 4, 3)
    again = TaskHead.from_config(head.get_config())
    assert again.get_config() == head.get_config()
    assert tfrec.TaskHead is TaskHead


def test_what_cannot_work_says_so(batch):
    with pytest.raises(ValueError, match="`kind` must be one of number, category. Received: 'text'"):
        TaskHead("x", "text")
    with pytest.raises(ValueError, match="A category needs two known values to choose from. Received: num_values=1"):
        TaskHead("x", "category", num_values=1)
    with pytest.raises(ValueError, match="`loss_weight` must be above 0. Received: 0"):
        TaskHead("x", loss_weight=0)
    with pytest.raises(TypeError, match=r"`task_head` must be a `tfrec.TaskHead`. Received: 'rating'"):
        TwoTower(ItemTower(11, 8), SequenceTower(7), "rating")
    inputs = {name: values for name, values in batch[0].items() if name != "task"}
    with pytest.raises(ValueError, match="learns from `inputs\\[\"task\"\\]`, column 'rating' of the event after each"):
        make(rating_head()).fit(inputs, batch[1], verbose=0)


def test_predict_and_export_need_no_task(batch, tmp_path):
    model = make(rating_head())
    inputs = {name: values for name, values in batch[0].items() if name != "task"}
    assert model.predict(inputs, verbose=0).shape == (16, 8)
    model.export(tmp_path / "saved")
    signature = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"]
    assert set(signature.structured_outputs) == {"embedding"}
