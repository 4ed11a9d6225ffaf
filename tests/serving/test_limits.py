"""What one request can cost: memory, the time of its neighbours, a series of the metrics; and what its failure is called."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import re
import time
import tracemalloc
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tfrec_serving import Client, ServingError, rest, servable
from tfrec_serving.batching import Batcher, BatchingParameters
from tfrec_serving.grpc_services import read_tensor
from tfrec_serving.metrics import Metrics
from tfrec_serving.rest import format_answer, to_array
from tfrec_serving.servable import STATUS, RequestError, Servable
from tfrec_serving.server import Server
from tfrec_serving.wire import HTTP_CODES, from_json


@pytest.fixture(scope="module")
def server(exact_export, tmp_path_factory):
    monitoring = tmp_path_factory.mktemp("config") / "monitoring.txt"
    monitoring.write_text('prometheus_config { enable: true path: "/metrics" }')
    with Server(exact_export, 0, 0, monitoring_config_file=monitoring, max_concurrent_requests=4) as server:
        yield server


@pytest.fixture(scope="module")
def loaded(server):
    return server.models.find("default")


def ask(server, body, path="/v1/models/default:predict", headers=()):
    """`(HTTP status, text)`."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{server.rest_api_port}{path}", data, dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def counts(server) -> dict[tuple[str, str], int]:
    """The counted requests by model and status."""
    text = ask(server, None, "/metrics")[1]
    found = re.findall(r'request_count\{model_name="(.*)",status="(.*)"\} (\d+)', text)
    return {(name, status): int(number) for name, status, number in found}


def strict(text):
    """JSON as `JSON.parse` reads it."""

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([["x" * 100_000] + ["a"] * 5_000], tf.string),
        ([[{"b64": "eHh4" * 25_000}] + ["a"] * 5_000], tf.string),
        (["x" * 100_000] + ["1"] * 5_000, tf.int32),
        ([1, "x" * 100_000] + [2] * 5_000, tf.float32),
        (["1" * 4_000] * 1_000, tf.int64),
    ],
    ids=["ids", "base64", "text for numbers", "mixed", "long digits"],
)
def test_one_long_value_gives_the_others_no_room(value, dtype):
    tracemalloc.start()
    with contextlib.suppress(RequestError):
        to_array(value, "x", dtype, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


def test_values_keep_their_bytes_and_shapes():
    array = to_array([["a\0", {"b64": "AAE="}], ["", "\ud800"]], "x", tf.string, 2)
    assert array.tolist() == [[b"a\0", b"\0\1"], [b"", b"\xed\xa0\x80"]]
    assert to_array("a", "x", tf.string, 0).shape == ()
    assert to_array([], "x", tf.string, 2).shape == (0, 0)
    assert to_array([[], []], "x", tf.float32, 2).shape == (2, 0)
    assert to_array([1.0, 2], "k", tf.int32, 1).tolist() == [1, 2]
    assert to_array([True, False], "x", tf.bool, 1).tolist() == [True, False]
    with pytest.raises(RequestError, match="neither true nor false"):
        to_array([1], "x", tf.bool, 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, [2]], "rows of different lengths"),
        ([[1], 2], "rows of different lengths"),
        ([[1], [2, 3]], "rows of different lengths"),
        ([True], "not numbers"),
        ([None], "not numbers"),
        ([{"b64": "eA=="}], "not numbers"),
        ([10**30], "out of range"),
        ([2**31], "out of range, or not whole numbers"),
        ([math.nan], "out of range, or not whole numbers"),
        ([1e300], "out of range, or not whole numbers"),
    ],
)
def test_what_is_no_tensor_of_int32(value, message):
    with pytest.raises(RequestError, match=f'input "k" is no tensor of int32: {message}'):
        to_array(value, "k", tf.int32, 1)


@pytest.mark.parametrize("depth", [40, 600, 900, 5_000, 200_000])
def test_deep_nesting_is_an_error_of_the_request(server, depth):
    before = counts(server).get(("default", "INVALID_ARGUMENT"), 0)
    for body in ('{"instances": %s"a"%s}', '{"inputs": {"history": %s"a"%s}}', '{"inputs": %s{"b": 1}%s}'):
        status, text = ask(server, (body % ("[" * depth, "]" * depth)).encode())
        assert status == 400
        assert "JSON" in text or "lists are nested more than 32 deep" in text
    deep = '{"a":' * depth + "1" + "}" * depth
    assert ask(server, f'{{"inputs": {{"history": [{deep}]}}}}'.encode())[0] == 400
    assert counts(server)[("default", "INVALID_ARGUMENT")] == before + 4


def test_every_answer_is_json_for_strict_parsers(server):
    body = {"signature_name": "recommend", "inputs": {"history": [["item-1"]] * 2, "exclude": [[""]] * 2, "k": [1, 3]}}
    outputs = strict(ask(server, body)[1])["outputs"]
    assert outputs["item_ids"][0][1:] == ["", ""]
    assert outputs["scores"][0][1:] == [-3.4028235e38] * 2
    assert np.float32(outputs["scores"][0][1]) == np.finfo(np.float32).min
    row = {"history": ["item-1"], "candidates": ["item-2", "nobody"]}
    scores = strict(ask(server, {"signature_name": "score", "instances": [row]})[1])["predictions"][0]
    assert min(scores) == scores[1] == -3.4028235e38


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numbers_that_json_lacks(dtype):
    values = np.array([[np.nan, np.inf], [-np.inf, 0.5]], dtype)
    largest = float(str(np.finfo(dtype).max))
    answer = format_answer({"x": values}, is_row=False)
    assert answer == {"outputs": [[None, largest], [-largest, 0.5]]}
    assert dtype(largest) == np.finfo(dtype).max
    strict(json.dumps(answer))


def test_our_client_reads_infinity_of_either_server(server):
    with Client(f"http://127.0.0.1:{server.rest_api_port}") as client:
        assert client.score(["item-1"], ["nobody"]) == [-np.inf]
        inputs = {"history": np.array([["item-1"]] * 2, object), "exclude": np.array([[""]] * 2, object)}
        answer = client.predict("recommend", **inputs, k=np.array([1, 2], np.int32))
        assert answer["scores"][0, 1] == -np.inf
    other = json.loads("[-Infinity, Infinity, NaN, 0.5]")  # as TensorFlow Serving writes it
    ours = json.loads("[-3.4028235e+38, 3.4028235e+38, null, 0.5]")
    for read in (other, ours):
        np.testing.assert_array_equal(from_json("scores", read), np.array([-np.inf, np.inf, np.nan, 0.5], np.float32))


def test_bodies_are_bounded_one_by_one_and_together(server, monkeypatch):
    body = {"instances": [["x" * 200_000]]}
    monkeypatch.setattr(rest, "MAX_BODIES_BYTES", 100_000)
    status, text = ask(server, body)
    assert (status, "The bodies of all requests are too large together" in text) == (429, True)
    monkeypatch.setattr(rest, "MAX_BODIES_BYTES", 1_000_000)
    for _ in range(10):  # nothing is held of the one before
        assert ask(server, body)[0] == 200
    monkeypatch.setattr(rest, "MAX_MESSAGE_BYTES", 100_000)
    for headers, sent in (
        ({}, json.dumps(body).encode()),
        ({"Content-Encoding": "gzip"}, gzip.compress(json.dumps(body).encode())),
    ):
        status, text = ask(server, sent, headers=headers)
        assert (status, "more than 100000 bytes" in text) == (413, True)
    status, text = ask(server, b"no gzip", headers={"Content-Encoding": "gzip"})
    assert (status, "is damaged" in text) == (400, True)


def test_codes_of_tensorflow_keep_their_meaning(server, loaded, monkeypatch):
    """Over gRPC the same code; over REST the HTTP status of the table, which our client reads back."""
    classes = [
        kind for kind in vars(tf.errors).values() if isinstance(kind, type) and issubclass(kind, tf.errors.OpError)
    ]
    classes.remove(tf.errors.OpError)
    names = {number: (name, status) for number, name, status in STATUS}
    assert all(grpc.StatusCode[name].value[0] == number for number, (name, _) in names.items())
    assert {kind(None, None, "").error_code for kind in classes} == set(names)
    grpc_address, rest_address = f"127.0.0.1:{server.port}", f"http://127.0.0.1:{server.rest_api_port}"
    alike = {"UNKNOWN": "INTERNAL", "DATA_LOSS": "INTERNAL", "FAILED_PRECONDITION": "INVALID_ARGUMENT",
             "OUT_OF_RANGE": "INVALID_ARGUMENT", "ALREADY_EXISTS": "ABORTED", "CANCELLED": "UNKNOWN"}  # fmt: skip
    inputs = {"history": np.array([[b"a"]], object)}
    for kind in classes:
        error = kind(None, None, "the reason")
        name, status = names[error.error_code]

        def fail(error=error, **_):
            raise error

        monkeypatch.setattr(loaded, "_functions", dict.fromkeys(loaded.signature_defs, fail))
        with pytest.raises(RequestError, match="the reason") as caught:
            loaded.run("serving_default", inputs)
        assert caught.value.code == name
        assert ask(server, {"instances": [["a"]]}) == (status, '{"error": "the reason"}')
        assert HTTP_CODES.get(status, grpc.StatusCode.UNKNOWN).name == alike.get(name, name)
        if name in ("RESOURCE_EXHAUSTED", "UNAVAILABLE"):
            continue  # which a client asks again
        for address in (grpc_address, rest_address):
            with Client(address) as client, pytest.raises(ServingError, match="the reason") as caught:
                client.recommend(["a"])
            assert caught.value.code.name == (name if address == grpc_address else alike.get(name, name))


@pytest.mark.parametrize(
    ("error", "code", "status", "message"),
    [
        (ZeroDivisionError("secret"), "INTERNAL", 500, r"The server failed on this request \(ZeroDivisionError\)"),
        (MemoryError(), "RESOURCE_EXHAUSTED", 429, "The request needs more memory than there is"),
    ],
)
def test_a_crash_is_no_success(server, loaded, monkeypatch, caplog, error, code, status, message):
    def fail(**_):
        raise error

    monkeypatch.setattr(loaded, "_functions", dict.fromkeys(loaded.signature_defs, fail))
    before = counts(server)
    got, text = ask(server, {"instances": [["a"]]})
    assert got == status
    assert re.search(message, json.loads(text)["error"])
    assert "secret" not in text
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "default"
    request.inputs["history"].CopyFrom(tf.make_tensor_proto([["a"]]))
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError, match=message) as caught:
            stub.Predict(request)
    assert caught.value.code() == grpc.StatusCode[code]
    after = counts(server)
    assert after[("default", code)] == before.get(("default", code), 0) + 2
    assert after.get(("default", "OK")) == before.get(("default", "OK"))
    assert ("A request failed" in caplog.text) == (code == "INTERNAL")


def test_a_crash_beside_predict(server, monkeypatch):
    monkeypatch.setattr(server.models, "status", lambda *_: 1 / 0)
    status, text = ask(server, None, "/v1/models/default")
    assert (status, "ZeroDivisionError" in json.loads(text)["error"]) == (500, True)
    assert ask(server, None, "/v1/models/default/versions/" + "9" * 5000)[0] == 400


def test_names_that_strangers_make_up_are_one_series(server):
    for i in range(3):
        assert ask(server, {"instances": [["x"]]}, f"/v1/models/stranger-{i}:predict")[0] == 404
        with (
            Client(f"127.0.0.1:{server.port}", f"stranger-{i}") as client,
            pytest.raises(ServingError, match="NOT_FOUND"),
        ):
            client.recommend(["a"])
    assert counts(server)[("(unknown)", "NOT_FOUND")] == 6
    assert "stranger" not in ask(server, None, "/metrics")[1]


def test_a_long_reason_is_shortened(server):
    """gRPC sends it in a header, and a client refuses long ones."""
    request = predict_pb2.PredictRequest(output_filter=["é" * 100_000])
    request.model_spec.name = "default"
    with (
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        pytest.raises(grpc.RpcError, match="alias not found in signature: éé.*…") as caught,
    ):
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "tensor",
    [
        tensor_pb2.TensorProto(dtype=7, string_val=[b"x" * 10_000]),
        tensor_pb2.TensorProto(dtype=7),
        tensor_pb2.TensorProto(dtype=1, float_val=[1.0]),
        tensor_pb2.TensorProto(dtype=6, int_val=[1]),
    ],
)
def test_values_that_a_message_leaves_out_are_bounded(tensor):
    def shaped(size):
        tensor.ClearField("tensor_shape")
        tensor.tensor_shape.dim.add(size=size)
        return tensor

    assert read_tensor(shaped(1000)).shape == (1000,)
    for size in (2_000_000, 2**62):
        with pytest.raises(ValueError, match="left out of the message, more than are taken"):
            read_tensor(shaped(size))


def test_many_rows_are_answered_in_parts(loaded, monkeypatch):
    rows = 20
    history = np.array([[b"item-%d" % i] for i in range(rows)], object)
    inputs = {"history": history, "exclude": np.full((rows, 1), b"", object), "k": np.arange(rows).astype(np.int32) % 7}
    whole = loaded.run("recommend", inputs)
    monkeypatch.setattr(servable, "MAX_ROWS", 3)
    parts = loaded.run("recommend", inputs)
    assert parts["item_ids"].tolist() == whole["item_ids"].tolist()
    np.testing.assert_allclose(parts["scores"], whole["scores"], rtol=1e-5)
    monkeypatch.setattr(servable, "MAX_MESSAGE_BYTES", 1000)
    with pytest.raises(RequestError, match="ask for fewer rows at a time, or a smaller `k`"):
        loaded.run("recommend", inputs)


def test_a_model_whose_outputs_are_not_rows_gets_them_all(tmp_path, monkeypatch):
    class Total(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def total(self, x):
            return {"total": tf.reduce_sum(x)}

    model = Total()
    tf.saved_model.save(model, str(tmp_path / "1"), signatures={"serving_default": model.total})
    monkeypatch.setattr(servable, "MAX_ROWS", 2)
    answer = Servable("total", tmp_path / "1").run("serving_default", {"x": np.ones(5, np.float32)})
    assert answer["total"] == 5


class Recorder:
    """A model that remembers what it was asked, and answers `k` columns."""

    name = "recorder"

    def __init__(self):
        self.asked = []

    def run(self, signature_name, inputs):
        self.asked.append({name: value.shape for name, value in inputs.items()})
        rows, width = len(inputs["history"]), max(0, int(inputs["k"].max()))
        time.sleep(0.02)
        return {
            "item_ids": np.full((rows, width), b"i", object),
            "scores": np.zeros((rows, width), np.float32),
            "embedding": np.zeros((rows, 50), np.float32),
            "contributions": np.zeros(inputs["history"].shape, np.float32),
        }


def batched(requests, **parameters):
    """`(answers, shapes asked)` of requests `(width, k)` that come at once."""
    parameters = {
        "batch_timeout_micros": 200_000,
        "pad_variable_length_inputs": True,
        "max_batch_size": 64,
    } | parameters
    batcher, model = Batcher(BatchingParameters(**parameters), Metrics()), Recorder()

    def one(request):
        width, k = request
        inputs = {"history": np.full((len(k), width), b"h", object), "k": np.array(k, np.int32)}
        return batcher.run(model, "recommend", inputs)

    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(one, requests))
    batcher.stop()
    return answers, model.asked


def test_only_requests_of_like_widths_share_a_batch():
    requests = [(1, [5]), (3, [10]), (16, [9]), (17, [5]), (30, [16]), (1000, [5]), (600, [5]), (0, [0])]
    answers, asked = batched(requests)
    assert sorted(shapes["history"] for shapes in asked) == [(2, 30), (2, 1000), (4, 16)]
    assert [answer["item_ids"].shape[1] for answer in answers] == [5, 10, 9, 5, 16, 5, 5, 0]
    assert [answer["contributions"].shape[1] for answer in answers] == [width for width, _ in requests]


def test_the_k_of_a_neighbour_widens_no_answer():
    requests = [(5, [5]), (5, [1000]), (5, [700, 3]), (5, [16, -4]), (5, [17]), (5, [-3])]
    answers, asked = batched(requests)
    assert len(asked) == 3
    assert [answer["scores"].shape for answer in answers] == [(1, 5), (1, 1000), (2, 700), (2, 16), (1, 17), (1, 0)]
    assert [answer["item_ids"].shape[1] for answer in answers] == [5, 1000, 700, 16, 17, 0]
    assert {answer["embedding"].shape[1] for answer in answers} == {50}


def test_without_padding_only_equal_widths_and_like_k_share_a_batch():
    _, asked = batched([(5, [5]), (5, [9]), (6, [5]), (5, [500])], pad_variable_length_inputs=False)
    assert sorted(shapes["history"] for shapes in asked) == [(1, 5), (1, 6), (2, 5)]


def test_many_widths_do_not_fill_the_queue():
    """As many rows may wait as the batches that may wait hold."""
    requests = [(2**i, [5]) for i in range(12)]
    assert len(batched(requests, max_enqueued_batches=1)[0]) == 12
    with pytest.raises(RequestError, match="batch scheduling queue .* is full"):
        batched(requests, max_enqueued_batches=1, max_batch_size=4)
