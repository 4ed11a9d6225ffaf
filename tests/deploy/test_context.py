"""A model that reads what happened and the context of a request: the same answers in Python, SavedModel, gRPC, REST and LiteRT."""

import dataclasses
import json
import re
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import tensorflow as tf

from tfrec import recommend_all
from tfrec.cli.main import main
from tfrec.data.features import Feature, input_name, twin_input
from tfrec.deploy.catalogue import change_catalogue
from tfrec.deploy.check import check
from tfrec.deploy.litert import load, run_edge, to_litert
from tfrec.deploy.saved_model import MANIFEST, export, latest_version
from tfrec.index.inputs import RequestEncoder, RequestInput
from tfrec.training.config import Config
from tfrec.training.fit import train
from tfrec.training.run import Run
from tfrec_serving import Client, ServingError
from tfrec_serving.ids import input_name as client_name
from tfrec_serving.server import Server

GOLDEN = Path(__file__).parent / "golden" / "signatures_with_features.json"
HISTORY = ["item-3", "nobody", "item-5", "item-6"]
EVENTS = {
    "event type": ["view", "buy", "buy", None],
    "price": [1.0, 2.0, None, 3.0],
    "device": ["phone", None, "desktop", "phone"],
}
CONTEXT = {"device": "desktop", "event type": "buy", "age": "young"}


@pytest.fixture(scope="module")
def device_run(device_data, tmp_path_factory):
    config = Config(
        max_length=16, width=16, num_blocks=1, dropout_rate=0.0, learning_rate=1e-2, epochs=25, batch_positions=512
    )
    return train(config, device_data, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def device_export(device_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    export(device_run, folder, index="exact")
    return folder


@pytest.fixture(scope="module")
def server(device_export):
    with Server(device_export, 0, rest_api_port=0) as server:
        yield server


def test_the_device_decides(device_run, device_data):
    """Who does not know the device has an NDCG of .82 at best."""
    data = device_data
    assert device_run.metrics["validation"]["ndcg@10"] > 0.9
    right = []
    for user in range(50):
        items = data.vocabulary.decode(data.history(user))[:-2]
        last, here = int(items[-1].removeprefix("item-")), slice(data.offsets[user], data.offsets[user + 1] - 2)
        events = {"price": data.event_columns["price"][here]}
        for feature in data.features["context"]:
            events[feature.name] = [feature.values[code - 2] for code in data.event_columns[feature.name][here]]
        for device, step in (("phone", 1), ("desktop", 2)):
            context = {"device": device, "event type": "buy", "age": "old"}
            best = device_run.recommend(items, 1, events=events, context=context).item_ids
            right.append(best[0] == f"item-{(last + step) % 40}")
    assert np.mean(right) > 0.9


def test_many_histories_at_a_time(device_run):
    alone = [device_run.recommend(HISTORY, 5, events=EVENTS, context=CONTEXT | {"device": d}) for d in ("phone", None)]
    both = {name: [values, values] for name, values in EVENTS.items()}
    found = device_run.recommend([HISTORY] * 2, 5, events=both, context=CONTEXT | {"device": ["phone", None]})
    np.testing.assert_array_equal(found.item_ids, [a.item_ids for a in alone])
    assert alone[0].scores.tolist() != alone[1].scores.tolist()  # the device is read
    nobody = device_run.recommend([], 5, events={"event type": []}, context=CONTEXT)
    assert nobody.item_ids.tolist() == device_run.recommend([], 5).item_ids.tolist()


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_the_same_over_the_network(device_run, server, scheme):
    port = server.rest_api_port if scheme else server.port
    with Client(f"{scheme}127.0.0.1:{port}") as client:
        for device in ("phone", "desktop", "watch", None):
            context = CONTEXT | {"device": device}
            expected = device_run.recommend(HISTORY, 5, events=EVENTS, context=context)
            answer = client.recommend(HISTORY, 5, events=EVENTS, context=context)
            assert [r.item_id for r in answer] == expected.item_ids.tolist()
            np.testing.assert_allclose([r.score for r in answer], expected.scores, rtol=1e-4)
            ids = [r.item_id for r in answer]
            np.testing.assert_allclose(
                client.score(HISTORY, ids, events=EVENTS, context=context), expected.scores, rtol=1e-4
            )
        vectors = client.embed_items(ids)
        query = client.embed_history(HISTORY, events=EVENTS, context=context)
        np.testing.assert_allclose(vectors @ query, expected.scores, rtol=1e-4)
        moved = device_run.explain(HISTORY, ids[:2], events=EVENTS, context=context).contributions
        answer = client.explain(HISTORY, ids[:2], events=EVENTS, context=context)
        np.testing.assert_allclose(answer, moved, rtol=1e-3, atol=1e-5)
        assert client.explain(HISTORY, [], events=EVENTS).shape == (0, 4)
        # what is left out is missing
        expected = device_run.recommend(HISTORY, 5, events={"device": EVENTS["device"]})
        for left_out in (client.recommend(HISTORY, 5, events={"device": EVENTS["device"]}),):
            assert [r.item_id for r in left_out] == expected.item_ids.tolist()
        assert client.recommend([], 5)
        with pytest.raises(ServingError, match="Sent extra: {colour}"):
            client.recommend(HISTORY, 5, events={"colour": [1.0] * 4})
        for argument in ({"events": {"history": list("abcd")}}, {"events": {"k": [1] * 4}}, {"context": {"time": 1}}):
            with pytest.raises(ValueError, match="is no column of its own, but the input"):
                client.recommend(HISTORY, 5, **argument)
        with pytest.raises(ValueError, match="'event.type' is no column of its own, but the input `event_type`"):
            client.recommend(HISTORY, 5, events=EVENTS | {"event.type": ["view"] * 4})
        with pytest.raises(TypeError, match="`events` and `context` are dicts by the names of columns. Received: 1"):
            client.recommend(HISTORY, 5, context={1: "phone"})
        with pytest.raises(ServingError, match="Missing but required: {candidates,.*history"):
            client.predict("score", surplus=np.zeros(1))
        with pytest.raises(ServingError, match='input "history" must have shape'):
            client.predict("embed_history", history=["item-3"])
        with pytest.raises(ServingError, match='input "request_device" (must be|is no tensor of|must hold) string'):
            client.recommend(HISTORY, 5, context={"device": 3})


def test_rest_rows_may_leave_features_out(device_run, server):
    row = {"history": ["item-3", "item-5"], "request_device": "phone"}
    url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/default:predict"
    with urllib.request.urlopen(url, json.dumps({"instances": [row, row]}).encode()) as answer:
        rows = json.load(answer)["predictions"]
    expected = device_run.recommend(row["history"], 10, context={"device": "phone"})
    assert [found["item_ids"] for found in rows] == [expected.item_ids.tolist()] * 2
    with urllib.request.urlopen(url, json.dumps({"instances": [["item-3", "item-5"]]}).encode()) as answer:
        (found,) = json.load(answer)["predictions"]
    assert found["item_ids"] == device_run.recommend(row["history"], 10).item_ids.tolist()


def test_the_signatures_are_the_golden_ones(device_export, server):
    """What clients of a model with features rely on; see `test_saved_model.py` for all others."""
    manifest = json.loads((latest_version(device_export) / MANIFEST).read_text())
    assert manifest["signatures"] == json.loads(GOLDEN.read_text())
    kind = {"column": "event type", "kind": "category", "input": "event_type", "values": ["buy", "view"]}
    kind |= {"request_input": "request_event_type", "values": sorted(kind["values"])}
    for owner in ("event_features", "context_features", "user_features"):
        for entry in manifest[owner]:
            entry.get("values", []).sort()
    assert manifest["event_features"] == [kind, {"column": "price", "kind": "number", "input": "price"}]
    assert [f["column"] for f in manifest["context_features"]] == ["event type", "device"]
    age = {"column": "age", "kind": "category", "request_input": "request_age", "values": ["old", "young"]}
    assert manifest["user_features"] == [age]


def test_any_column_is_an_input_that_tensorflow_takes(tmp_path):
    """It renames some, refuses others when a model is saved, and ignores case."""
    columns = [
        "event type",
        "größe",
        "цена",
        "цвет",
        "_id",
        "2nd",
        "class",
        "None",
        "self",
        "a.b/c",
        "",
        "名前",
        "Ⅷ",
        "x²",
    ]
    names = [input_name(column) for column in columns]
    assert names == [client_name(column) for column in columns]
    assert twin_input(columns) is None
    module = tf.Module()
    specs = [tf.TensorSpec((None,), tf.string, name) for name in names]
    module.join = tf.function(lambda *values: dict(zip(names, values, strict=True)), specs)
    tf.saved_model.save(module, tmp_path, signatures={"join": module.join})
    served = tf.saved_model.load(str(tmp_path)).signatures["join"]
    given = {name: tf.constant([name]) for name in names}
    assert {name: value.numpy()[0].decode() for name, value in served(**given).items()} == {n: n for n in names}


def test_the_check_shows_a_request(device_export, server):
    request = check(latest_version(device_export)).request
    assert set(request) == set(json.loads(GOLDEN.read_text())["recommend"]["inputs"])
    assert request["request_age"][0] in ("young", "old")
    with Client(f"127.0.0.1:{server.port}") as client:
        dtypes = {"k": np.int32, "price": np.float32}
        given = {name: np.array(value, dtypes.get(name)) for name, value in request.items()}
        assert client.predict("recommend", **given)["item_ids"].shape == (1, 10)


def test_values_are_the_text_that_prepared_data_has():
    """A column of pandas with a missing value holds 5.0 for 5."""
    told = Feature("stars", "category", values=("5", "true", "2.5"))
    encoder = RequestEncoder([RequestInput("stars", False, told)])
    given = [[5, 5.0, np.float32(5), "5", True, np.bool_(True), 2.5, None, float("nan"), "5.0"]]
    assert encoder.of_columns([10], {"stars": given}, {})["stars"][0].tolist() == [2, 2, 2, 2, 3, 3, 4, 0, 0, 1]


def test_a_column_of_another_length_is_refused(device_export):
    """Else the values of other items would be read."""
    served = tf.saved_model.load(str(latest_version(device_export))).signatures
    given = {"history": [["item-1", "item-2"]], "device": [["phone"]], "event_type": [["", ""]]}
    given |= {f"request_{name}": [""] for name in ("device", "event_type", "age")}
    inputs = {name: tf.constant(value) for name, value in given.items()} | {"price": tf.constant([[1.0, 1.0]])}
    for name, own in (("embed_history", {}), ("explain", {"item_ids": tf.constant(["item-3"])})):
        with pytest.raises(tf.errors.InvalidArgumentError, match="`device` must have the shape of `history`"):
            served[name](**inputs, **own)


def test_the_same_at_the_edge(device_run, tmp_path):
    report = to_litert(device_run, tmp_path / "model.tflite")
    assert report.num_histories == 100
    assert report.same_items > 0.98
    assert report.max_difference < 1e-4
    about = json.loads((tmp_path / "model.json").read_text())
    codes = {f["column"]: ["", None, *f["values"]] for f in (*about["context_features"], *about["user_features"])}
    events = {name: [v or "" for v in EVENTS[name]] for name in ("event type", "device")}
    features = {name.replace(" ", "_"): [codes[name].index(v) for v in values] for name, values in events.items()}
    features["price"] = [np.nan if price is None else price for price in EVENTS["price"]]
    features |= {"request_" + name.replace(" ", "_"): codes[name].index(value) for name, value in CONTEXT.items()}
    history, interpreter = device_run.vocabulary.encode(HISTORY), load(report.path)
    items, scores = run_edge(interpreter, history, features=features)
    expected = device_run.recommend(HISTORY, 10, events=EVENTS, context=CONTEXT)
    assert device_run.vocabulary.decode(items) == expected.item_ids.tolist()
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-4)
    nothing, _ = run_edge(interpreter, history)
    assert device_run.vocabulary.decode(nothing) == device_run.recommend(HISTORY, 10).item_ids.tolist()


def test_a_run_with_another_catalogue_keeps_its_features(device_run, tmp_path):
    changed = change_catalogue(Run.open(device_run.folder), removed=["item-0"])
    export(changed, tmp_path / "export", index="exact")
    assert to_litert(changed, tmp_path / "model.tflite").same_items > 0.98


def test_the_command_line(device_run, device_export, monkeypatch, capsys):
    events = ["event type=view,buy,buy,", "price=1,2,,3", "device=phone,,desktop,phone"]
    pairs = [text for event in events for text in ("--event", event)]
    pairs += [text for name, value in CONTEXT.items() for text in ("--context", f"{name}={value}")]
    arguments = ["recommend", str(device_export), "--history", ",".join(HISTORY), *pairs, "--json"]
    monkeypatch.setattr("sys.argv", ["tfrec", *arguments])
    with pytest.raises(SystemExit):
        main()
    expected = device_run.recommend(HISTORY, 10, events=EVENTS, context=CONTEXT)
    assert [item["item_id"] for item in json.loads(capsys.readouterr().out)] == expected.item_ids.tolist()


@pytest.mark.parametrize("kind", ["run", "export"])
def test_the_same_for_all_users(device_run, device_export, device_data, tmp_path, same_but_for_ties, kind):
    """Of data that was prepared later: its values have other numbers than those of the model."""
    data, later, columns = device_data, {}, dict(device_data.event_columns)
    for use, own in data.features.items():
        later[use] = [dataclasses.replace(feature, values=feature.values[::-1]) for feature in own]
    known = {feature.name: feature for use in ("events", "context") for feature in data.features[use]}
    for name in ("device", "event type"):
        columns[name] = np.array([0, 1, 3, 2], np.int32)[columns[name]]
    columns["price"] = np.where(np.arange(data.num_events) == data.offsets[5], np.nan, columns["price"]).astype(
        np.float32
    )
    columns["device"][data.offsets[5]] = 0
    source = device_run if kind == "run" else device_export
    asked = {"users": [f"u{user}" for user in range(30)], "context": {"device": "phone"}, "k": 5}
    changed = dataclasses.replace(data, features=later, event_columns=columns)
    recommend_all(source, changed, tmp_path / "recs.parquet", **asked)
    found = pyarrow.parquet.read_table(tmp_path / "recs.parquet")

    here = [slice(data.offsets[user], data.offsets[user + 1]) for user in range(data.num_users)]
    rows = [data.users["user_id"].to_pylist().index(user) for user in dict.fromkeys(found["user_id"].to_pylist())]
    assert len(rows) == 30
    texts = {name: [None, None, *known[name].values[::-1]] for name in ("device", "event type")}
    events = {name: [[texts[name][code] for code in columns[name][here[u]]] for u in rows] for name in texts}
    events["price"] = [columns["price"][here[u]].tolist() for u in rows]
    context = {"device": "phone", "age": [data.users["age"][u].as_py() for u in rows]}
    histories = [data.vocabulary.decode(data.history(u)) for u in rows]
    expected = device_run.recommend(histories, 5, events=events, context=context)
    ids = np.array(found["item_id"].to_pylist()).reshape(30, 5)
    same_but_for_ties(ids.tolist(), expected.item_ids.tolist(), expected.scores.tolist())
    np.testing.assert_allclose(np.array(found["score"]).reshape(30, 5), expected.scores, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"events": {"colour": ["red"] * 4}},
            "`events`: the model reads no column 'colour'. It reads: event type, price, device.",
        ),
        (
            {"context": {"price": 1.0}},
            "`context`: the model reads no column 'price'. It reads: event type, device, age.",
        ),
        ({"context": {"age": ["old", "old"]}}, "`context`: 'age' must have a value for each history: 1. Received: 2."),
        ({"events": {"price": [1.0]}}, "`events`: 'price' must have a value for each item: 4. Received: 1."),
        ({"events": {"price": [1.0, None, "x", 2.0]}}, "`events`: 'price' holds numbers. Received: 'x'."),
        ({"events": {"device": "four"}}, "`events`: 'device' has a list of values for each history. Received: 'four'."),
        ({"events": {"price": 3}}, "`events`: 'price' has a list of values for each history. Received: 3."),
        ({"events": ["phone"]}, "`events` is a dict by the names of columns. Received: ['phone']."),
        ({"context": ["phone"]}, "`context` is a dict by the names of columns. Received: ['phone']."),
    ],
)
def test_what_python_refuses(device_run, given, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        device_run.recommend(HISTORY, 5, **given)
