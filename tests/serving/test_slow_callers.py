"""What slow callers hold up, and how much one request may ask for: rows, time, threads, room for bodies."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving_stubs import wait_for

from tfrec_serving import Client, ServingError, grpc_limits, rest, servable
from tfrec_serving.batching import Batcher, BatchingParameters
from tfrec_serving.grpc_services import SERVICES, Health
from tfrec_serving.metrics import Metrics
from tfrec_serving.predictor import Predictor
from tfrec_serving.servable import RequestError, Servable
from tfrec_serving.server import Server

MOST = 5
PREDICT = "/tensorflow.serving.PredictionService/Predict"
HEAD = b"POST /v1/models/default:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{"
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture(scope="module")
def server(exact_export):
    with Server(exact_export, 0, 0, max_concurrent_requests=MOST, grpc_max_threads=2) as server:
        yield server


@pytest.fixture
def rest_server(server):
    """The part of the server that has the places of REST."""
    return server._rest


@pytest.fixture
def release(monkeypatch):
    """Model calls wait until this is set."""
    may_go, run = threading.Event(), Servable.run
    monkeypatch.setattr(Servable, "run", lambda self, *a: may_go.wait(20) and run(self, *a))
    yield may_go
    may_go.set()


def ask(server, body, headers=()):
    """`(HTTP status, error)`."""
    url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/default:predict"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, json.dumps(body).encode(), dict(headers)), timeout=30
        ) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["error"]


@contextlib.contextmanager
def slow_bodies(server, number, sent=HEAD):
    """Connections that begin a body and say no more."""
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.rest_api_port))).sendall(sent)
        yield


@contextlib.contextmanager
def silent_calls(channel, number, path=PREDICT):
    """Calls whose message never comes; `(futures, stop)`."""
    stop = threading.Event()

    def nothing():
        stop.wait(20)
        yield from ()

    calls = [channel.stream_unary(path).future(nothing()) for _ in range(number)]
    try:
        yield calls
    finally:
        stop.set()
        for call in calls:
            call.cancel()


# --- REST --------------------------------------------------------------------------------------------------------------


def test_bodies_that_arrive_slowly_take_no_place(server, rest_server):
    with slow_bodies(server, 4 * MOST):
        wait_for(lambda: rest_server._held == 4 * MOST)
        for _ in range(2 * MOST):
            assert ask(server, {"instances": [["x"]]}) == (200, "")
    wait_for(lambda: rest_server._held == 0)


def test_the_limit_holds_before_bodies_are_read(server, rest_server, release):
    with ThreadPoolExecutor(MOST) as pool:
        answers = [pool.submit(ask, server, {"instances": [["x"]]}) for _ in range(MOST)]
        wait_for(lambda: rest_server._under_way == MOST)
        with socket.create_connection(("127.0.0.1", server.rest_api_port)) as late:  # refused before its body is there
            late.sendall(HEAD)
            assert late.recv(1000).startswith(b"HTTP/1.1 429")
        release.set()
        assert [answer.result() for answer in answers] == [(200, "")] * MOST
    wait_for(lambda: rest_server._under_way == 0)


def test_a_place_may_be_gone_when_the_body_is_there(server, rest_server, release):
    body = json.dumps({"instances": [["x"]]}).encode()
    with (
        ThreadPoolExecutor(MOST) as pool,
        socket.create_connection(("127.0.0.1", server.rest_api_port)) as slow,
    ):
        slow.sendall(HEAD[:-1].replace(b"1000000", b"%d" % len(body)) + body[:1])
        wait_for(lambda: rest_server._held == 1)
        answers = [pool.submit(ask, server, {"instances": [["x"]]}) for _ in range(MOST)]
        wait_for(lambda: rest_server._under_way == MOST)
        slow.sendall(body[1:])
        assert slow.recv(1000).startswith(b"HTTP/1.1 429")
        release.set()
        assert [answer.result() for answer in answers] == [(200, "")] * MOST


def test_large_bodies_leave_room_for_small_ones(server, rest_server, monkeypatch):
    monkeypatch.setattr(rest, "MAX_BODIES_BYTES", 200_000)
    monkeypatch.setattr(rest, "SMALL_BODY_BYTES", 1000)
    with slow_bodies(server, 1, HEAD + b" " * 149_000):
        wait_for(lambda: rest_server._held == 149_001)
        status, error = ask(server, {"instances": [["x" * 20_000]]})
        assert (status, error) == (429, "The bodies of all requests are too large together.")
        assert ask(server, {"instances": [["x" * 500]]}) == (200, "")


def test_a_body_that_is_too_slow(server, monkeypatch):
    monkeypatch.setattr(rest, "BODY_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", server.rest_api_port)) as connection:
        connection.sendall(HEAD)
        answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 504")
    assert b"The request did not arrive within 0.1 seconds" in answer


def test_a_thread_that_is_late_keeps_its_place(server, rest_server, release, monkeypatch):
    monkeypatch.setattr(rest_server, "_timeout_seconds", 0.1)
    body = {"instances": [["x"]]}
    for _ in range(MOST):
        assert ask(server, body)[0] == 504
    assert rest_server._under_way == MOST  # their threads still work
    assert ask(server, body) == (429, "Concurrent request limit exceeded!")
    release.set()
    wait_for(lambda: rest_server._under_way == 0)
    assert rest_server._held == 0
    monkeypatch.setattr(rest_server, "_timeout_seconds", 30)
    assert ask(server, body)[0] == 200


def test_nobody_works_for_a_call_that_is_over(server, monkeypatch):
    loaded = server.models.find("default")
    monkeypatch.setattr(servable, "MAX_ROWS", 1)
    asked, call = [], Servable._call
    monkeypatch.setattr(Servable, "_call", lambda self, *a: asked.append(time.sleep(0.05)) or call(self, *a))
    with pytest.raises(RequestError, match="The deadline was over before all rows were answered") as late:
        loaded.run("serving_default", {"history": np.full((100, 1), b"x", object)}, 0.2)
    assert late.value.code == "DEADLINE_EXCEEDED"
    assert 1 < len(asked) < 10
    with pytest.raises(RequestError, match="deadline was over before the model was asked"):
        Predictor(server.models).predict(loaded, "serving_default", {}, timeout=0)


# --- rows --------------------------------------------------------------------------------------------------------------


def test_the_rows_of_a_request_are_bounded(exact_export):
    with Server(exact_export, 0, 0, max_request_rows=5) as server:
        assert ask(server, {"instances": [["x"]] * 5}) == (200, "")
        status, error = ask(server, {"instances": [["x"]] * 6})
        assert (status, error) == (
            400, "A request may have 5 rows. Received: 6. Send fewer at a time, or start the server with a higher "
            "--max_request_rows."
        )  # fmt: skip
        with (
            Client(f"127.0.0.1:{server.port}") as client,
            pytest.raises(ServingError, match="INVALID_ARGUMENT: A request may"),
        ):
            client.predict("embed_items", item_ids=["x"] * 6)


def test_a_full_batch_is_never_too_many_rows(server):
    loaded = server.models.find("default")
    batcher = Batcher(BatchingParameters(max_batch_size=8), Metrics())
    for limit, most in ((5, 8), (9, 9), (0, 10_000)):
        predictor = Predictor(server.models, batcher, limit)
        inputs = {"item_ids": np.full(most, b"x", object)}
        assert len(predictor.predict(loaded, "embed_items", inputs)["embedding"]) == most
        if limit:
            with pytest.raises(RequestError, match=f"A request may have {most} rows. Received: {most + 1}"):
                predictor.predict(loaded, "embed_items", {"item_ids": np.full(most + 1, b"x", object)})
    batcher.stop()


@pytest.mark.parametrize(
    ("signature", "inputs", "received"),
    [
        ("recommend", {"history": [["a"]], "exclude": [[""]], "k": [1, 2]}, "exclude 1, history 1, k 2"),
        ("recommend", {"history": [["a"]] * 2, "exclude": [[""]], "k": [1, 2]}, "exclude 1, history 2, k 2"),
        ("similar_items", {"item_ids": ["a", "b"], "k": [3]}, "item_ids 2, k 1"),
        ("score", {"history": [["a"]], "candidates": [["b"]] * 3}, "candidates 3, history 1"),
    ],
)
def test_every_input_has_a_row_for_each_request(server, signature, inputs, received):
    status, error = ask(server, {"signature_name": signature, "inputs": inputs})
    assert (status, error) == (400, f"All inputs must have the same number of rows. Received: {received}.")


# --- gRPC --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


def is_healthy(channel):
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    return answer.status == SERVING


def test_calls_without_a_message_end_when_they_hold_every_thread(server, channel, monkeypatch):
    monkeypatch.setattr(grpc_limits, "CROWDED_SECONDS", 0.2)
    with silent_calls(channel, 2) as calls, Client(f"127.0.0.1:{server.port}", timeout=10) as client:
        assert len(client.recommend([], 3)) == 3  # waited for ever
        assert [call.code() for call in calls] == [grpc.StatusCode.CANCELLED] * 2


def test_one_call_without_a_message_has_its_time(channel, monkeypatch):
    monkeypatch.setattr(grpc_limits, "CROWDED_SECONDS", 0.0)
    with silent_calls(channel, 1) as calls:
        time.sleep(0.8)
        assert not calls[0].done()
        monkeypatch.setattr(grpc_limits, "MESSAGE_SECONDS", 0.5)
        assert calls[0].code() is grpc.StatusCode.CANCELLED


def test_a_call_that_ends_without_a_message(channel):
    with pytest.raises(grpc.RpcError, match="The call has no message") as refused:
        channel.stream_unary(PREDICT)(iter(()), timeout=10)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(PREDICT + "s")(b"", timeout=10)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_open_streams_of_reflection_hold_up_no_health(channel, monkeypatch):
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    monkeypatch.setattr(grpc_limits, "CROWDED_SECONDS", 60)
    with silent_calls(channel, 4, path) as calls:  # as many as reflection has threads
        time.sleep(0.2)
        assert is_healthy(channel)
        monkeypatch.setattr(grpc_limits, "STREAM_SECONDS", 0.0)
        assert [call.code() for call in calls] == [grpc.StatusCode.CANCELLED] * 4


def test_who_watches_hears_of_changes_alone(server):
    class Models:
        is_ready = True

    heard, watcher = {}, Health(Models())
    for service in SERVICES:
        context = type("Context", (), {"add_callback": lambda self, end, service=service: heard[service].append(end)})()
        heard[service] = []
        watcher.Watch(health_pb2.HealthCheckRequest(service=service), context, heard[service].append)
    watcher.refresh()
    Models.is_ready = False
    watcher.refresh()
    for said in heard.values():
        assert [answer.status for answer in said if hasattr(answer, "status")] == [SERVING, SERVING + 1]


def test_names_that_strangers_watch_are_forgotten():
    ends, watcher = [], Health(type("Models", (), {"is_ready": True}))
    context = type("Context", (), {"add_callback": lambda self, end: ends.append(end)})()
    for i in range(5):
        watcher.Watch(health_pb2.HealthCheckRequest(service=f"stranger-{i}"), context, lambda _: None)
        ends.pop()()
    assert len(watcher._send_response_callbacks) == 1


# --- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 65_536), ("rest_api_port", -2), ("grpc_max_threads", 0), ("max_concurrent_requests", 0),
        ("max_request_rows", -1), ("file_system_poll_wait_seconds", float("nan")),
        ("model_config_file_poll_wait_seconds", float("inf")),
    ],
)  # fmt: skip
def test_numbers_out_of_range(exact_export, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be between .* and .*. Received: {value}."):
        Server(exact_export, **{"port": 0, name: value})
