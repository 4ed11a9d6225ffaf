import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec.data.splits import LeaveLastOut
from tfrec.evaluation.judgement import evaluate
from tfrec.models.lazy_table import LazyAdamW
from tfrec.training.compiling import compile_model
from tfrec.training.fit import train
from tfrec.training.resolve import resolve


def test_with_every_row_in_every_batch_it_is_adamw():
    rng = np.random.default_rng(0)
    start = rng.normal(size=(6, 3)).astype(np.float32)
    dense, lazy = keras.Variable(start), keras.Variable(start)
    adamw = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    adamw.build([dense])
    optimizer = LazyAdamW(lazy, 0.01, weight_decay=0.1)
    for _ in range(5):
        gradient = tf.constant(rng.normal(size=(6, 3)), tf.float32)
        adamw.apply([gradient], [dense])
        order = rng.permutation(6)
        optimizer.update(order, tf.gather(lazy.value, order), tf.gather(gradient, order))
        np.testing.assert_allclose(lazy.numpy(), dense.numpy(), atol=1e-6)


def test_absent_rows_keep_value_and_moments():
    table = keras.Variable(np.ones((4, 2), np.float32))
    optimizer = LazyAdamW(table, 0.1, weight_decay=0.1)
    optimizer.update([2], tf.ones((1, 2)), tf.ones((1, 2)))
    for variable, untouched in ((table.value, 1), (optimizer.mean, 0), (optimizer.square, 0)):
        assert (variable.numpy()[[0, 1, 3]] == untouched).all()
        assert (variable.numpy()[2] != untouched).all()


@pytest.mark.parametrize("loss", ["sampled_softmax", "tfrs_retrieval"])
def test_a_step_gives_the_loss_and_the_gradients_of_the_dense_one(small_config, data, loss):
    """The same batch and negatives: the small table of the step stands for the whole one."""
    config = dataclasses.replace(
        small_config,
        loss=loss,
        num_negatives=32,
        dropout_rate=0.0,
        id_dropout_rate=0.0,
        lazy_table=True,
        seen_weight=0.0,
    )
    split = LeaveLastOut(data)
    model, batches = compile_model(resolve(config, split), split)
    inputs, target = next(iter(batches))
    inputs, target = {k: tf.constant(v) for k, v in inputs.items()}, tf.constant(target)
    negatives = model.loss.draw(data.num_items)
    with tf.GradientTape() as tape:
        total, count = model.loss(model(inputs, training=True), target, inputs, model.item_tower, negatives=negatives)
        expected_loss = total / count
    dense = model.table_trainer.dense
    expected = tape.gradient(expected_loss, [model.item_tower.table.value, *(v.value for v in dense)])

    model.loss.draw = lambda _: negatives
    got = {}
    model.optimizer.apply = lambda gradients, variables: got.update(dense=gradients)
    model.table_trainer.optimizer.update = lambda index, rows, gradient: got.update(
        index=index, rows=rows, gradient=gradient
    )
    model.table_trainer._step = model.table_trainer._differentiate  # eagerly, so that the gradients can be looked at
    model.table_trainer(inputs, target)
    assert float(model.mean_loss.result()) == pytest.approx(float(expected_loss), rel=1e-5)
    table = np.zeros(model.item_tower.table.shape, np.float32)
    np.add.at(table, got["index"].numpy(), got["gradient"].numpy())
    np.testing.assert_allclose(table, tf.convert_to_tensor(expected[0]), atol=1e-5)
    for a, b in zip(got["dense"], expected[1:], strict=True):
        np.testing.assert_allclose(tf.convert_to_tensor(a), tf.convert_to_tensor(b), atol=1e-5)


@pytest.mark.slow
def test_it_learns(small_config, run, data, tmp_path):
    """Close to the run with the full softmax and the dense update."""
    config = dataclasses.replace(small_config, loss="sampled_softmax", num_negatives=128, lazy_table=True)
    lazy = train(config, data, tmp_path / "run")
    both = [evaluate(data, "test", r.model)["model"]["hr@10"] for r in (run, lazy)]
    assert both[1] > 0.95 * both[0]


def test_the_full_softmax_cannot_be_lazy(small_config, data):
    with pytest.raises(ValueError, match="`lazy_table` needs a sampled loss"):
        resolve(dataclasses.replace(small_config, lazy_table=True), LeaveLastOut(data))
