import keras
import numpy as np
import pytest

from tfrec.losses import FullSoftmax


def test_full_softmax_by_hand(item_tower_of):
    """Items (1, 0) and (0, 1); query (log 3, 0): logits log 3 and 0, so the first has probability 3/4."""
    tower = item_tower_of([[1.0, 0.0], [0.0, 1.0]])
    query = np.array([[[np.log(3), 0.0], [np.log(3), 0.0], [7.0, 7.0]]], np.float32)
    target = np.array([[2, 3, 0]])
    is_real = np.array([[True, True, False]])
    total, count = FullSoftmax()(query, target, is_real, tower)
    assert float(total) == pytest.approx(-np.log(3 / 4) - np.log(1 / 4), rel=1e-5)
    assert float(count) == 2
    # at temperature 1/2 the odds are squared: 9 to 1
    total, _ = FullSoftmax(temperature=0.5)(query[:, :1], target[:, :1], is_real[:, :1], tower)
    assert float(total) == pytest.approx(-np.log(9 / 10), rel=1e-5)


def test_config_round_trip():
    loss = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(FullSoftmax(0.3)))
    assert loss.temperature == 0.3
