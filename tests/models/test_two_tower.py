import keras
import numpy as np
import pytest

from tfrec.models.item_tower import ItemTower
from tfrec.models.losses import FullSoftmax
from tfrec.models.sequence_tower import SequenceTower
from tfrec.models.tfrs_task import TfrsRetrieval
from tfrec.models.two_tower import TwoTower


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    history = rng.integers(2, 13, size=(8, 6)).astype(np.int32)
    is_real = np.arange(6) >= rng.integers(0, 6, size=(8, 1))
    return {"history": np.where(is_real, history, 0), "is_real": is_real}, np.roll(history, -1, axis=1)


def make(loss=None) -> TwoTower:
    keras.utils.set_random_seed(0)
    model = TwoTower(ItemTower(11, 8), SequenceTower(6, num_blocks=1, hidden_dim=9, dropout_rate=0.1))
    model.compile(keras.optimizers.Adam(0.01), loss=loss or FullSoftmax(), jit_compile=True)
    return model


@pytest.mark.parametrize("loss", [FullSoftmax(), TfrsRetrieval(np.ones(11), num_negatives=5)], ids=["full", "tfrs"])
def test_fit_evaluate_predict(batch, loss):
    model = make(loss)
    history = model.fit(*batch, epochs=8, batch_size=8, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert np.isfinite(model.evaluate(*batch, batch_size=8, verbose=0))
    queries = model.predict(batch[0], batch_size=8, verbose=0)
    assert queries.shape == (8, 8)
    np.testing.assert_allclose(queries, np.array(model(batch[0]))[:, -1], atol=1e-5)


def test_a_query_of_nothing_but_zeros_has_a_gradient(batch):
    """Where all that was read is hidden, an HSTU query is zero, and has no direction."""
    tower = SequenceTower(6, 1, block="hstu", positions=["relative"], mask_rate=0.9, normalize=True)
    model = TwoTower(ItemTower(11, 8, normalize=True), tower)
    model.compile(keras.optimizers.Adam(0.01), loss=FullSoftmax(), jit_compile=True)
    losses = model.fit(*batch, epochs=5, batch_size=8, verbose=0).history["loss"]
    assert np.isfinite(losses).all()


def test_a_keras_file_holds_the_whole_model(batch, tmp_path):
    model = make(TfrsRetrieval(np.arange(11), num_negatives=5))
    model.fit(*batch, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(batch[0], verbose=0), model.predict(batch[0], verbose=0), atol=1e-6)
    loaded.fit(*batch, verbose=0)  # compiled, with its loss


def test_the_reported_loss_is_a_mean_over_positions(batch):
    """Two batches of different size in positions: the epoch's loss weighs them by positions, not by rows."""
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
