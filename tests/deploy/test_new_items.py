"""Items that arrive after training, by what they are: in Python, by `refresh`, and in the served graph."""

import dataclasses
import json

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from tfrec.data.preparation import prepare
from tfrec.data.prepared import PreparedData
from tfrec.deploy.catalogue import change_catalogue
from tfrec.deploy.litert import load, run_edge, to_litert
from tfrec.deploy.saved_model import MANIFEST, export, refresh
from tfrec.deploy.serving_model import NewItems
from tfrec.models.item_tower import ItemTower
from tfrec.models.sequence_tower import SequenceTower
from tfrec.models.two_tower import TwoTower
from tfrec.training.fit import train
from tfrec.training.run import Run
from tfrec_serving import Client
from tfrec_serving.server import Server

NEW = pa.table(
    {
        "item_id": ["new-1", "new-2", "new-3"],
        "title": ["Interest 3, number 7", None, "Unheard of"],
        "genres": pa.array([["interest 3"], ["interest 4", "unheard"], None], pa.list_(pa.string())),
    }
)


@pytest.fixture(scope="module")
def run(small_config, data, tmp_path_factory):
    """A run whose items have content: their titles and genres."""
    return train(dataclasses.replace(small_config, epochs=3), data, tmp_path_factory.mktemp("content") / "run")


@pytest.fixture(scope="module")
def refreshed(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("new") / "export"
    export(run, folder, index="exact")
    return refresh(folder, add_items=NEW)


def test_new_items_stand_near_what_they_are_like(run):
    """The mean vector of the genre is nearer than that of others."""
    changed = change_catalogue(run, NEW)
    vectors = np.array(changed.model.item_tower.catalogue())
    genres = np.array([own[0] for own in run.items["genres"].to_pylist()])
    means = {name: vectors[:200][genres == name].mean(axis=0) for name in np.unique(genres)}
    nearest = [max(means, key=lambda name: means[name] @ vectors[200 + n]) for n in (0, 1)]
    assert nearest == ["interest 3", "interest 4"]


def test_the_served_graph_embeds_new_items_as_refresh_does(refreshed):
    manifest = json.loads((refreshed / MANIFEST).read_text())
    assert manifest["num_added_items"] == 3
    assert manifest["unknown_values"] == {"genres": 1}
    assert {feature["column"]: feature["kind"] for feature in manifest["item_features"]} == {
        "title": "text",
        "genres": "multi",
    }
    assert "interest 3" in manifest["item_features"][1]["values"]
    loaded = tf.saved_model.load(str(refreshed))
    given = {
        "title": tf.constant(["Interest 3, number 7", "", "Unheard of"]),
        "genres": tf.constant([["interest 3", ""], ["interest 4", "unheard"], ["", ""]]),
    }
    embedded = loaded.signatures["embed_new_items"](**given)["embedding"].numpy()
    stored = loaded.signatures["embed_items"](item_ids=tf.constant(["new-1", "new-2", "new-3"]))["embedding"].numpy()
    np.testing.assert_allclose(embedded, stored, atol=1e-6)
    # blanks at the end of a list change nothing
    more = given | {"genres": tf.constant([["interest 3", "", ""], ["interest 4", "unheard", ""], ["", "", ""]])}
    np.testing.assert_allclose(loaded.signatures["embed_new_items"](**more)["embedding"], embedded, atol=1e-6)


def test_new_items_are_recommended_alike_in_python_over_grpc_and_at_the_edge(run, refreshed, tmp_path):
    changed = change_catalogue(run, NEW)
    to_litert(changed, tmp_path / "m.tflite", k=20)
    interpreter, found = load(tmp_path / "m.tflite"), 0
    genres = [own[0] for own in run.items["genres"].to_pylist()]
    histories = [
        [run.vocabulary.item_ids[i] for i, own in enumerate(genres) if own == f"interest {n}"][:9] for n in (2, 3, 4)
    ]
    histories += [["new-1", *histories[0][:3]]]
    with Server(refreshed.parent, 0) as server, Client(f"127.0.0.1:{server.port}") as client:
        for history in histories:
            in_python = changed.recommend(history, k=20).item_ids.tolist()
            assert [item for item, _ in client.recommend(history, k=20)] == in_python
            at_edge, _ = run_edge(interpreter, changed.vocabulary.encode(history))
            assert changed.vocabulary.decode(at_edge) == in_python
            found += sum(item.startswith("new-") for item in in_python)
    assert found


def test_similar_to_and_vector_go_before_features(run):
    width, ids = run.model.item_tower.width, run.vocabulary.item_ids
    rows = pa.table({"item_id": ["a", "b"], "similar_to": [[ids[0]], None], "vector": [None, [1.0] * width]})
    vectors = np.array(change_catalogue(run, rows).model.item_tower.catalogue())
    np.testing.assert_allclose(vectors[-2], vectors[0], atol=1e-6)
    np.testing.assert_allclose(vectors[-1], np.full(width, width**-0.5), atol=1e-6)


@keras.saving.register_keras_serializable("tests")
class OfImage(keras.layers.Layer):
    """A content encoder of a user's own, of features that the data does not have."""

    def build(self, input_shape):
        self.dense = keras.layers.Dense(8)
        self.dense.build((None, 4))

    def call(self, x):
        return self.dense(x["image"])


def test_content_of_your_own_is_exported_and_new_items_need_a_vector(tmp_path):
    data = PreparedData.from_histories([["a", "b", "c", "d"], ["b", "c", "d", "a"]])
    images = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    model = TwoTower(ItemTower(4, 8, content=OfImage(), features={"image": images}), SequenceTower(5, num_heads=1))
    model.build()
    run = Run.from_model(model, data, tmp_path / "run")
    served = tf.saved_model.load(str(export(run, tmp_path / "export", index="exact"))).signatures
    assert "embed_new_items" not in served
    expected = run.recommend(["a"], 3).item_ids
    assert served["serving_default"](history=tf.constant([["a"]]))["item_ids"][0, :3].numpy().astype(str).tolist() == [
        *expected
    ]
    with pytest.raises(ValueError, match="New item 'x' has neither `vector` nor `similar_to`"):
        change_catalogue(run, pa.table({"item_id": ["x"]}))
    assert (
        change_catalogue(run, pa.table({"item_id": ["x"], "similar_to": ["a"]})).recommend(["b"], 9).item_ids.size == 5
    )


def test_a_feature_called_vector_is_a_feature(small_config, tmp_path):
    """A catalogue of images may well have such a column; of a width that is not that of the towers."""
    rng = np.random.default_rng(0)
    items = pa.table({"item": [f"i{n}" for n in range(20)], "vector": rng.normal(size=(20, 5)).tolist()})
    log = pa.table({"user": np.repeat(range(30), 6), "item": [f"i{n}" for n in rng.integers(20, size=180)]})
    config = dataclasses.replace(small_config, epochs=1)
    run = train(config, prepare(log, user="user", item="item", items=items), tmp_path / "run")
    new = pa.table({"item_id": ["new"], "vector": items["vector"][:1]})
    changed = change_catalogue(run, new)
    assert changed.items["vector"].to_pylist()[-1] == items["vector"][0].as_py()
    assert np.abs(np.array(changed.model.item_tower.catalogue())[-1]).sum() > 0
    export(run, tmp_path / "export", index="exact", add_items=new)


def test_two_features_of_one_input_name_are_refused(run):
    features = run.features["items"][:1] * 2
    with pytest.raises(ValueError, match="Two item features would be the input 'title' of a served model: rename"):
        NewItems(run.model.item_tower, features, np.zeros(run.model.item_tower.width, np.float32))


def test_a_wrong_value_of_a_new_item_names_its_row(run):
    broken = NEW.set_column(2, "genres", pa.array([{"a": 1}] * 3))
    with pytest.raises(ValueError, match="Column `genres`"):
        change_catalogue(run, broken)


def test_columns_of_new_items_take_the_types_of_the_catalogue(run):
    """A CSV file has text where the catalogue has lists and numbers."""
    text = pa.table({"item_id": ["c"], "title": ["Interest 3, number 7"], "genres": ["interest 3|interest 4"]})
    lists = pa.table({"item_id": ["c"], "title": ["Interest 3, number 7"], "genres": [["interest 3", "interest 4"]]})
    by_text, by_lists = (change_catalogue(run, rows) for rows in (text, lists))
    assert by_text.items["genres"].to_pylist()[-1] == ["interest 3", "interest 4"]
    vectors = [np.array(changed.model.item_tower.catalogue())[-1] for changed in (by_text, by_lists)]
    np.testing.assert_array_equal(*vectors)
    bars = pa.array(["|".join(own) for own in run.items["genres"].to_pylist()])
    barred = run.items.set_column(run.items.column_names.index("genres"), "genres", bars)
    of_bars = change_catalogue(dataclasses.replace(run, items=barred), lists)
    assert of_bars.items["genres"].to_pylist()[-1] == "interest 3|interest 4"
    wrong = lists.append_column("num_events", pa.array(["many"]))
    with pytest.raises(
        ValueError, match="Column `num_events` of the new items holds string, and that of the catalogue int64"
    ):
        change_catalogue(run, wrong)
