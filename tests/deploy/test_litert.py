import json

import numpy as np
import pytest

from tfrec.data.vocabulary import FIRST_ITEM_INDEX, Vocabulary
from tfrec.deploy.catalogue import change_catalogue
from tfrec.deploy.litert import load, run_edge, to_litert


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    return to_litert(run, tmp_path_factory.mktemp("lite") / "model.tflite")


def test_it_agrees_with_keras_by_value(report):
    assert report.num_histories == 100
    assert report.max_difference < 1e-4
    assert report.same_items == 1.0


def test_it_is_whole_and_free_of_flex_and_custom_ops(report, run):
    names = {op["op_name"] for op in load(report.path)._get_ops_details()}
    assert not {name for name in names if name.startswith("Flex") or name in ("CUSTOM", "HASHTABLE_FIND")}
    weights = sum(np.prod(w.shape) for w in run.model.weights) * 4
    assert report.size_bytes > weights  # a file that lost its weights is tiny


def test_the_vocabulary_lies_beside_it(report, run):
    assert Vocabulary.load(report.path.parent).item_ids == run.vocabulary.item_ids
    assert json.loads((report.path.parent / "vocabulary.json").read_text())["first_item_index"] == 2


def test_the_rules_of_the_contract_hold_at_the_edge(report, run, data):
    from reference import recommend

    interpreter = load(report.path)
    history = data.history(3)
    strewn = np.insert(history, [0, 4, 9], [1, 0, 1])  # unknown ids and padding anywhere change nothing
    expected, scores = recommend(run.model, [history, []], 10, data.item_counts)
    for row in (history, strewn):
        items, found = run_edge(interpreter, row)
        np.testing.assert_array_equal(items, expected[0])
        np.testing.assert_allclose(found, scores[0], atol=1e-4)
    items, found = run_edge(interpreter, np.array([], np.int32))
    np.testing.assert_array_equal(items, expected[1])
    np.testing.assert_allclose(found, scores[1], atol=1e-6)


@pytest.mark.parametrize("index", ["exact", "partitioned"])
def test_allowed_repeats_come_back_at_the_edge(run, tmp_path, data, index):
    from reference import recommend

    report = to_litert(run, tmp_path / "model.tflite", repeats="allow", index=index)
    assert json.loads((tmp_path / "model.json").read_text())["repeats"] == "allow"
    if index == "partitioned":
        assert report.same_items > 0.9
        return
    assert report.same_items == 1.0
    histories = [data.history(3), np.array([], np.int32)]
    expected, scores = recommend(run.model, histories, 10, data.item_counts, repeats="allow")
    for row, history in enumerate(histories):
        items, found = run_edge(load(report.path), history)
        np.testing.assert_array_equal(items, expected[row])
        np.testing.assert_allclose(found, scores[row], atol=1e-4)


def test_the_signature_is_named(report):
    runner = load(report.path).get_signature_runner()
    assert {name: list(d["shape"]) for name, d in runner.get_input_details().items()} == {"history": [1, 24]}
    assert {name: list(d["shape"]) for name, d in runner.get_output_details().items()} == {
        "items": [1, 10],
        "scores": [1, 10],
    }


def test_k_beyond_the_catalogue(run, tmp_path, data):
    report = to_litert(run, tmp_path / "model.tflite", k=500)
    items, _ = run_edge(load(report.path), data.history(0))
    num_seen = len(set(data.history(0).tolist()))
    assert len(items) == 200
    assert (items == 0).sum() == num_seen
    assert not set(items.tolist()) & set(data.history(0).tolist())


def test_a_partitioned_index_runs_at_the_edge(run, report, tmp_path, monkeypatch):
    monkeypatch.setattr("tfrec.index.partitioned.LEAVES", 12.0)  # leaves enough that only some are visited
    edge = to_litert(run, tmp_path / "model.tflite", index="partitioned", k=3)
    names = {op["op_name"] for op in load(edge.path)._get_ops_details()}
    assert not {name for name in names if name.startswith("Flex") or name == "CUSTOM"}
    assert edge.same_items > 0.9


@pytest.mark.parametrize("index", ["exact", "partitioned"])
def test_a_run_that_lost_all_items_but_one(run, tmp_path, index):
    """The histories that it is compared on are those of the items that are left."""
    ids = run.vocabulary.item_ids
    last = change_catalogue(run, removed=ids[:-1])
    report = to_litert(last, tmp_path / "model.tflite", index=index)
    assert report.num_histories == 0  # nobody has three events of one item left
    interpreter = load(report.path)
    for history, expected in (([], 2), ([1, 1], 2), ([2], 0)):
        items, scores = run_edge(interpreter, np.array(history, np.int32))
        assert items.tolist() == [expected]
        assert (scores[0] > -1e38) == bool(expected)


def test_the_sample_of_a_changed_run_has_the_items_that_are_left(run, tmp_path):
    removed = run.vocabulary.item_ids[::3]
    changed = change_catalogue(run, removed=removed)
    before = [run.vocabulary.item_ids[i - FIRST_ITEM_INDEX] for i in run.sample.item_index]
    after = [changed.vocabulary.item_ids[i - FIRST_ITEM_INDEX] for i in changed.sample.item_index]
    assert after == [i for i in before if i not in set(removed)]
    assert changed.sample.num_users == run.sample.num_users
    first = [i for i in before[: run.sample.offsets[1]] if i not in set(removed)]
    assert changed.vocabulary.decode(changed.sample.history(0)) == first
    assert to_litert(changed, tmp_path / "model.tflite").same_items == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "`k` must be at least 1. Received: k=0"),
        ({"out": "model.json"}, r"`model.json` must end in .tflite"),
        ({"out": "vocabulary.tflite"}, r"and not be vocabulary.tflite"),
        ({"repeats": "yes"}, "`repeats` must be one of exclude, allow. Received: 'yes'"),
        ({"index": "scann"}, "LiteRT runs an exact or a partitioned index. Received: index='scann'"),
    ],
)
def test_what_cannot_be_converted(run, arguments, message):
    with pytest.raises(ValueError, match=message):
        to_litert(run, **{"out": "model.tflite"} | arguments)
