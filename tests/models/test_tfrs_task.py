"""The loss from TFRS, on Keras 3: nobody else offers that."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from tfrec.models.tfrs_task import TfrsRetrieval, import_tfrs


@pytest.fixture
def query():
    return np.array([[[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]]], np.float32)


TARGET = np.array([[2, 3, 0]])
INPUTS = {"is_real": np.array([[True, True, False]])}
VECTORS = [[1.0, 2.0], [3.0, 1.0]]


def test_a_batch_by_hand(query, item_tower_of):
    """Two real positions, no negatives: each other's target is the negative; the padded one is no candidate.

    Logits: (1, 0).(1, 2) = 1, (1, 0).(3, 1) = 3; (0, 2).(1, 2) = 4, (0, 2).(3, 1) = 2. Equal counts, so logQ cancels.
    Losses: log(1 + e^(3 - 1)) and log(1 + e^(4 - 2)).
    """
    total, count = TfrsRetrieval([1, 1], num_negatives=0)(query, TARGET, INPUTS, item_tower_of(VECTORS))
    assert float(total) == pytest.approx(2 * np.log1p(np.exp(2)), rel=1e-5)
    assert float(count) == 2


def test_logq_lowers_a_logit_by_the_log_of_how_often_it_is_drawn(query, item_tower_of):
    """The second item is drawn 3 times as often: its logits fall by log 3 against those of the first."""
    total, _ = TfrsRetrieval([1, 3], num_negatives=0)(query, TARGET, INPUTS, item_tower_of(VECTORS))
    expected = np.log1p(np.exp(3 - np.log(3) - 1)) + np.log1p(np.exp(4 - (2 - np.log(3))))
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_an_accidental_hit_has_no_probability(query, item_tower_of):
    """Both positions want the first item, and every negative is it: there is nothing to tell it from, so no loss."""
    loss = TfrsRetrieval([1], num_negatives=8)
    total, _ = loss(query, np.array([[2, 2, 0]]), INPUTS, item_tower_of(VECTORS[:1]))
    assert float(total) == pytest.approx(0.0, abs=1e-6)


def test_the_weight_of_what_a_history_holds(query, item_tower_of):
    """The second position has read the first item, its only negative: no loss, or its part in so many of the batches.

    The first position has read its own target alone.
    """
    inputs = INPUTS | {"history": np.array([[2, 2, 0]], np.int32)}
    ask = TARGET.astype(np.int32), inputs, item_tower_of(VECTORS)
    one = np.log1p(np.exp(2))
    total, _ = TfrsRetrieval([1, 1], num_negatives=0, seen_weight=0.0)(query, *ask)
    assert float(total) == pytest.approx(one, rel=1e-5)
    loss = TfrsRetrieval([1, 1], num_negatives=0, seen_weight=0.5)
    totals = np.array([float(loss(query, *ask)[0]) for _ in range(200)])
    assert totals.min() == pytest.approx(one, rel=1e-5)
    assert totals.max() == pytest.approx(2 * one, rel=1e-5)
    # the second position has read it twice: 1/2 squared
    assert (totals > 1.5 * one).mean() == pytest.approx(0.25, abs=0.1)


def test_negatives_are_uniform_and_new_each_time(query, item_tower_of):
    loss = TfrsRetrieval(np.ones(2), num_negatives=64, seed=1)
    first, second = (float(loss(query, TARGET, INPUTS, item_tower_of(VECTORS))[0]) for _ in range(2))
    assert first != second
    # many negatives with logQ estimate the full softmax: (1, 0) sees odds e^1 : e^3, (0, 2) sees e^4 : e^2
    loss = TfrsRetrieval(np.ones(2), num_negatives=20_000)
    total, _ = loss(query, TARGET, INPUTS, item_tower_of(VECTORS))
    item = 2 / 2 + 10_000  # expected draws of each item; a position's own target counts once, its doubles are removed
    assert float(total) == pytest.approx(2 * np.log1p(np.exp(2) * item), rel=0.02)


def test_config_round_trip():
    loss = TfrsRetrieval([3, 4], num_negatives=5, temperature=0.5, seed=6, seen_weight=0.2)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()


def test_it_needs_no_environment_variable_and_leaves_none():
    code = "import os, keras; from tfrec.models.tfrs_task import import_tfrs; import_tfrs(); "
    code += "print(os.environ.get('TF_USE_LEGACY_KERAS'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "None", done.stderr


def test_when_tf_keras_was_touched_the_error_names_the_remedy():
    code = "import tensorflow as tf; tf.keras.layers; from tfrec.models.tfrs_task import import_tfrs; import_tfrs()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: TensorFlow Recommenders needs `tf.keras` to be Keras 2" in done.stderr
    assert "TF_USE_LEGACY_KERAS=1" in done.stderr


def test_tfrs_index_layers_are_there():
    assert hasattr(import_tfrs().layers.factorized_top_k, "ScaNN")
