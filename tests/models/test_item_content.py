"""Item towers with content, and models whose catalogue changes."""

import keras
import numpy as np
import pytest
from keras import ops

from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.layers import FeatureEmbedding
from tfrec.models.item_tower import ItemTower
from tfrec.models.losses import FullSoftmax
from tfrec.models.new_items import as_table, content_vectors, new_item_row, vectors_of, with_table
from tfrec.models.sequence_tower import SequenceTower
from tfrec.models.two_tower import TwoTower

NUM_ITEMS, WIDTH = 7, 6
FEATURES = {
    "genre": np.arange(NUM_ITEMS, dtype=np.int32) % 3 + FIRST_ITEM_INDEX,
    "image": np.random.default_rng(0).normal(size=(NUM_ITEMS, 4)).astype(np.float32),
}
SPECS = {"genre": {"kind": "category", "num_values": 3}, "image": {"kind": "vector", "width": 4}}


@keras.saving.register_keras_serializable("tests")
class MeanOfImage(keras.layers.Layer):
    """A content encoder of a user's own."""

    def build(self, input_shape):
        self.dense = keras.layers.Dense(WIDTH)
        self.dense.build((None, 4))

    def call(self, x):
        return self.dense(x["image"]) + 0 * ops.cast(x["genre"], "float32")[..., None]


def make(content=None, **others):
    content = FeatureEmbedding(SPECS, WIDTH) if content is None else content
    tower = ItemTower(NUM_ITEMS, WIDTH, content=content, features=FEATURES, **others)
    tower.build()
    return tower


def model_of(tower):
    model = TwoTower(tower, SequenceTower(max_length=5, num_heads=1, num_blocks=1, dropout_rate=0.0))
    model.build()
    return model


def batch():
    history = np.array([[2, 3, 4, 5, 6], [8, 7, 6, 5, 4]], np.int32)
    return {"history": history, "is_real": np.ones((2, 5), bool)}, np.roll(history, -1, axis=1)


def test_the_vector_of_an_item_is_its_row_and_its_content():
    tower = make()
    content = np.array(tower.content(FEATURES))
    expected = np.array(tower.table)[FIRST_ITEM_INDEX:] + content
    np.testing.assert_allclose(tower.catalogue(), expected, atol=1e-6)
    index = np.array([[2, 8], [4, 4]])
    np.testing.assert_allclose(tower(index), expected[index - FIRST_ITEM_INDEX], atol=1e-6)
    np.testing.assert_allclose(content_vectors(tower, FEATURES), content, atol=1e-6)


def test_training_leaves_out_rows_and_nothing_else_does():
    tower = make(id_dropout_rate=0.5)
    plain = np.array(tower.catalogue())
    content = np.array(tower.content(FEATURES))
    rows = np.array([tower.in_training().catalogue() for _ in range(50)])
    is_left_out = np.isclose(rows, content, atol=1e-6).all(-1)
    np.testing.assert_array_equal(is_left_out | np.isclose(rows, plain, atol=1e-6).all(-1), True)
    assert 0.4 < is_left_out.mean() < 0.6
    np.testing.assert_array_equal(tower.catalogue(), plain)
    index = np.arange(FIRST_ITEM_INDEX, FIRST_ITEM_INDEX + NUM_ITEMS)
    assert np.isclose(tower.in_training().candidates(index), content, atol=1e-6).all(-1).any()
    assert make().in_training().num_items == NUM_ITEMS


@pytest.mark.parametrize("content", [None, MeanOfImage()])
def test_it_trains_saves_and_loads(content, tmp_path):
    tower = make(content, id_dropout_rate=0.3, normalize=True, mlp_dims=[5])
    model = model_of(tower)
    model.compile("adam", FullSoftmax(temperature=0.1))
    before = [np.array(v) for v in tower.content.trainable_variables]
    model.fit(*batch(), epochs=2, verbose=0)
    assert all((a != np.array(b)).any() for a, b in zip(before, tower.content.trainable_variables, strict=True))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(batch()[0], verbose=0), model.predict(batch()[0], verbose=0))
    np.testing.assert_array_equal(loaded.item_tower.catalogue(), tower.catalogue())


@pytest.mark.parametrize("normalize", [False, True])
def test_as_a_table_the_model_is_the_same(normalize):
    model = model_of(make(normalize=normalize, mlp_dims=[5]))
    plain = as_table(model)
    assert plain.item_tower.content is None
    np.testing.assert_allclose(plain.item_tower.catalogue(), model.item_tower.catalogue(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        plain.predict(batch()[0], verbose=0), model.predict(batch()[0], verbose=0), rtol=1e-5, atol=1e-6
    )
    assert as_table(plain) is plain


def test_items_can_be_added_to_a_table():
    model = model_of(make())
    new = np.ones((2, WIDTH), np.float32)
    more = with_table(model, np.concatenate([vectors_of(model.item_tower), new]))
    assert more.item_tower.num_items == NUM_ITEMS + 2
    np.testing.assert_array_equal(np.array(more.item_tower.catalogue())[-2:], new)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_row_of_new_items_raises_their_scores(normalize):
    keras.utils.set_random_seed(0)
    tower = make(normalize=normalize)
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(500, WIDTH)).astype(np.float32) + 1
    if normalize:
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    scores = [
        (queries @ np.asarray(tower.as_candidates(content_vectors(tower, FEATURES, row))).T).mean()
        for row in (0.0, new_item_row(tower, queries, 0.05))
    ]
    assert scores[1] - scores[0] == pytest.approx(0.05, rel=0.3 if normalize else 1e-4)
    assert not new_item_row(tower, queries[:0], 0.05).any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="`content` reads `features`: give both, or none of them"):
        ItemTower(NUM_ITEMS, WIDTH, features=FEATURES)
    with pytest.raises(ValueError, match="`content` reads `features`: give both, or none of them"):
        ItemTower(NUM_ITEMS, WIDTH, content=MeanOfImage())
    with pytest.raises(ValueError, match="Feature `genre` has 7 rows, and there are 8 items"):
        ItemTower(8, WIDTH, content=MeanOfImage(), features=FEATURES)
