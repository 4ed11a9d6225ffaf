"""Filters, added and removed items, embeddings, and the check: what an export can do beyond a plain one."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf
from reference import recommend
from tensorflow_serving.apis import prediction_log_pb2

from tfrec.deploy.catalogue import change_catalogue, export_embeddings
from tfrec.deploy.check import WARMUP, check
from tfrec.deploy.saved_model import MANIFEST, export, latest_version, refresh
from tfrec.index import ExactIndex, PartitionedIndex
from tfrec.index.filters import ItemFilter, build_filter
from tfrec_serving import Client, ServingError
from tfrec_serving.server import Server


@pytest.fixture(scope="module")
def filtered_run(run):
    """A run whose items have genres, a shelf of their own (20 items on the last), and are in stock or not."""
    shelf, in_stock = [str(i // 20) for i in range(200)], [i % 3 > 0 for i in range(200)]
    items = run.items.append_column("shelf", pa.array(shelf)).append_column("in_stock", pa.array(in_stock))
    return dataclasses.replace(change_catalogue(run), items=items)


@pytest.fixture(scope="module", params=["exact", "partitioned"])
def filtered(request, filtered_run, tmp_path_factory):
    """A client of an export with filters."""
    folder = tmp_path_factory.mktemp("filtered") / "export"
    export(filtered_run, folder, index=request.param, filters=["shelf", "in_stock"])
    with Server(folder, 0) as server, Client(f"127.0.0.1:{server.port}") as client:
        yield client


def ranked(run, history, is_allowed):
    """Brute force: the ids of all items that are allowed and not in the history, best first."""
    ids = run.vocabulary.item_ids
    items, _ = recommend(run.model, [run.vocabulary.encode(history)], len(ids), run.items["num_events"])
    return [i for i in run.vocabulary.decode(items[0]) if i and is_allowed(ids.index(i))]


@pytest.mark.parametrize("is_cold", [False, True])
def test_filters_give_what_brute_force_gives(filtered, filtered_run, data, is_cold):
    history = ["nobody"] if is_cold else data.vocabulary.decode(data.history(5))
    for allow, deny, is_allowed in (
        ({"shelf": ["9"]}, {}, lambda i: i // 20 == 9),
        ({"shelf": ["2", "9"], "in_stock": ["true"]}, {}, lambda i: i // 20 in (2, 9) and i % 3),
        ({}, {"shelf": [str(n) for n in range(8)]}, lambda i: i // 20 > 7),
        ({"in_stock": ["false"]}, {"shelf": ["0"]}, lambda i: i >= 20 and i % 3 == 0),
        ({"shelf": ["nowhere"]}, {}, lambda i: False),
        ({"colour": ["red"]}, {}, lambda i: False),
        ({}, {"colour": ["red"]}, lambda i: True),
    ):
        expected = ranked(filtered_run, history, is_allowed)
        for k in (3, 20, 200):
            answer = [r.item_id for r in filtered.recommend(history, k, allow=allow, deny=deny)]
            assert answer == expected[:k], (allow, deny, k)
    excluded = ranked(filtered_run, history, lambda i: i // 20 == 9)[:4]
    answer = [r.item_id for r in filtered.recommend(history, 20, excluded, allow={"shelf": ["9"]})]
    assert answer == ranked(filtered_run, history, lambda i: i // 20 == 9)[4:]


def test_rows_of_a_batch_have_filters_of_their_own(filtered, filtered_run, data):
    history = data.vocabulary.decode(data.history(7))
    answer = filtered.predict(
        "recommend_filtered",
        history=np.array([history] * 3, object),
        exclude=np.zeros((3, 0), object),
        k=np.array([5, 5, 2], np.int32),
        allow=np.array([["shelf=1"], [""], ["shelf=3"]], object),
        deny=np.array([[""], ["in_stock=false"], [""]], object),
    )["item_ids"]
    rules = [lambda i: i // 20 == 1, lambda i: i % 3, lambda i: i // 20 == 3]
    for row, rule, k in zip(answer, rules, (5, 5, 2), strict=True):
        assert [i.decode() for i in row if i] == ranked(filtered_run, history, rule)[:k]


def test_an_export_without_filters_says_so(exact_export):
    with (
        Server(exact_export, 0) as server,
        Client(f"127.0.0.1:{server.port}") as client,
        pytest.raises(ServingError, match="recommend_filtered"),
    ):
        client.recommend(["item-1"], allow={"shelf": ["1"]})


def test_what_cannot_be_filtered_by_is_refused():
    with pytest.raises(ValueError, match="have no attribute `color` to filter by. There are: item_id, title"):
        build_filter(["color"], pa.table({"item_id": [], "title": []}))
    with pytest.raises(ValueError, match="No item has a value of `title`"):
        ItemFilter({"title": [None, ""]})
    with pytest.raises(ValueError, match="`a=b` has an equals sign"):
        build_filter(["a=b"], pa.table({"a=b": ["x"]}))


def test_an_added_item_is_recommended_and_read(run, data):
    ids = run.vocabulary.item_ids
    vector = np.asarray(run.model.item_tower.catalogue())[7] * 1.01
    rows = pa.table(
        {"item_id": ["new-1", "新-2"], "similar_to": [f"{ids[3]}|{ids[4]}", None], "vector": [None, vector.tolist()]}
    )
    changed = change_catalogue(run, rows, removed=[ids[0]])
    assert changed.vocabulary.item_ids == [*ids[1:], "new-1", "新-2"]
    assert changed.items["num_events"].to_pylist()[-2:] == [0, 0]
    table = np.asarray(changed.model.item_tower.catalogue())
    old = np.asarray(run.model.item_tower.catalogue())
    read, old_read = (np.asarray(r.model.item_tower.table)[2:] for r in (changed, run))  # what histories read
    mean, usual = old_read[3:5].mean(axis=0), np.median(np.linalg.norm(old_read, axis=1))
    expected = [*old[1:], mean / np.linalg.norm(mean), vector / 1.01]
    np.testing.assert_allclose(table, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(read, [*old_read[1:], mean, vector / 1.01 * usual], rtol=1e-4, atol=1e-6)
    best = changed.recommend([ids[8], ids[12]], 200).item_ids.tolist()
    assert best.index("新-2") in (best.index(ids[7]) - 1, best.index(ids[7]) + 1) if ids[7] in best else True
    assert ids[0] not in best
    scores = [changed.recommend(history, 3).scores.tolist() for history in ([ids[8], "新-2"], [ids[8]])]
    assert scores[0] != scores[1]  # it is read
    scores = [run.recommend(history, 5).scores.tolist() for history in ([ids[8]], [ids[8], "new-1"])]
    np.testing.assert_allclose(*scores, atol=1e-6)  # the run itself is as it was


def test_new_items_that_do_not_fit_are_named(run):
    ids = run.vocabulary.item_ids

    def add(**columns):
        change_catalogue(run, pa.table({name: [value] for name, value in columns.items()}))

    with pytest.raises(ValueError, match=r"(?s)is in the catalogue already"):
        add(item_id=ids[0], similar_to=ids[1])
    with pytest.raises(ValueError, match="'x' is in the catalogue already, or twice among the new items"):
        change_catalogue(run, pa.table({"item_id": ["x", "x"], "similar_to": [ids[1]] * 2}))
    with pytest.raises(ValueError, match="New item 'x' has neither `vector` nor `similar_to`"):
        add(item_id="x")
    with pytest.raises(ValueError, match="`similar_to` names 'nobody', which is not in the catalogue"):
        add(item_id="x", similar_to=f"{ids[1]}|nobody")
    with pytest.raises(ValueError, match="`vector` must be 32 finite numbers"):
        add(item_id="x", vector=[1.0, 2.0])
    with pytest.raises(ValueError, match="There is no item 'nobody' to remove"):
        change_catalogue(run, removed=["nobody"])
    with pytest.raises(ValueError, match="No item would be left"):
        change_catalogue(run, removed=ids)


def test_refreshing_an_export_adds_up(run, tmp_path):
    ids = run.vocabulary.item_ids
    export(run, tmp_path / "export", index="partitioned", k=7, storage="int8", recall=0.95)
    new = lambda *names: pa.table({"item_id": names, "similar_to": [ids[5]] * len(names)})  # noqa: E731
    refresh(tmp_path / "export", add_items=new("a", "b"), remove_items=[ids[0]])
    with pytest.raises(ValueError, match="Item 'b' is in the catalogue already"):
        refresh(tmp_path / "export", add_items=new("b"))
    # an added item that is removed may come again at once; text between bars is a list
    again = pa.table({"item_id": ["c", "a"], "similar_to": [ids[5]] * 2, "vector": pa.nulls(2)})
    third = refresh(tmp_path / "export", add_items=again, remove_items=["a", ids[1]])
    assert third.name == "3"
    manifest = json.loads((third / MANIFEST).read_text())
    assert manifest["num_items"] == 200 - 2 + 3
    assert manifest["k"] == 7
    assert manifest["index"]["settings"]["storage"] == "int8"
    catalogue = pyarrow.parquet.read_table(third / "assets.extra" / "items.parquet")["item_id"].to_pylist()
    assert catalogue == [*ids[2:], "b", "c", "a"]
    similar = tf.saved_model.load(str(third)).signatures["similar_items"]
    found = similar(item_ids=tf.constant([ids[5]]), k=tf.constant([3]))["item_ids"].numpy()[0]
    assert {i.decode() for i in found} == {"a", "b", "c"}


def test_embeddings_are_those_that_scores_are_made_of(run, tmp_path):
    assert export_embeddings(run, tmp_path / "items.parquet") == 200
    table = pyarrow.parquet.read_table(tmp_path / "items.parquet")
    assert table.column_names[:3] == ["item_id", "vector", "num_events"]
    vectors = np.array(table["vector"].to_pylist(), np.float32)
    np.testing.assert_array_equal(vectors, run.model.item_tower.catalogue())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    with pytest.raises(ValueError, match=r"must end in \.parquet"):
        export_embeddings(run, tmp_path / "items.csv")


def test_the_check_says_who_can_load_it(exact_export, scann_export):
    exact, scann = (check(latest_version(f)) for f in (exact_export, scann_export))
    assert exact.is_stock
    assert not exact.packages
    assert not scann.is_stock
    assert scann.packages == ["Scann"]
    assert all(op.startswith("Scann>") for op in scann.foreign_ops)
    assert exact.warmup_requests == 28
    assert len(exact.answer) == 10
    assert exact.size_bytes > 1e4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("saved_model.pb", None, "is no SavedModel"),
        ("saved_model.pb", b"\x0a\xff\xff", "is damaged"),
        ("variables/variables.index", None, "cannot be loaded"),
        (str(WARMUP), b"not a record file, nor long enough to be one", "is damaged: no server would load the export"),
    ],
)
def test_a_broken_export_is_told_apart(exact_export, tmp_path, name, content, message):
    folder = tmp_path / "1"
    shutil.copytree(latest_version(exact_export), folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        check(folder)


def test_a_partitioned_export_has_stock_ops_only_and_answers_as_the_exact_one(run, exact_export, data, tmp_path):
    folder = export(run, tmp_path / "export", index="partitioned")
    assert check(folder).is_stock
    history = tf.constant([data.vocabulary.decode(data.history(3))])
    models = [tf.saved_model.load(str(f)) for f in (folder, latest_version(exact_export))]
    answers = [model.signatures["serving_default"](history=history)["item_ids"].numpy().tolist() for model in models]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"removed": ["nobody", "item-1"]}, "There is no item 'nobody' to remove\\.$"),
        ({"removed": ["nobody", "somebody"]}, "There is no item 'nobody' to remove, nor 1 others"),
    ],
)
def test_items_that_are_not_there_cannot_be_removed(run, change, message):
    with pytest.raises(ValueError, match=message):
        change_catalogue(run, **change)


def test_refusals_name_the_argument(run, tmp_path):
    with pytest.raises(ValueError, match=r"items.csv` must end in .parquet"):
        export_embeddings(run, tmp_path / "items.csv")
    with pytest.raises(ValueError, match="No item has a value of `shelf`: there is nothing to filter by"):
        ItemFilter({"shelf": [None, "", []]})
    for kind in (ExactIndex, PartitionedIndex):
        with pytest.raises(ValueError, match=f"`storage` of an? {kind.kind} index is one of .*. Received: 'int4'"):
            kind(np.eye(4, dtype=np.float32), storage="int4")


def test_a_warm_up_file_that_asks_for_another_signature(run, exact_export, tmp_path):
    shutil.copytree(latest_version(exact_export), tmp_path / "1")
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.signature_name = "nothing"
    with tf.io.TFRecordWriter(str(tmp_path / "1" / WARMUP)) as writer:
        writer.write(log.SerializeToString())
    with pytest.raises(ValueError, match="asks for the signature `nothing`, which the export lacks"):
        check(tmp_path / "1")
