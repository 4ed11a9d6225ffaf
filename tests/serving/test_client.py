"""The clients: two transports, two styles, one set of answers; and what they do when a server is not there."""

import asyncio
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest
from serving_stubs import web_server
from tensorflow import make_ndarray, make_tensor_proto
from tensorflow_serving.apis import predict_pb2

from tfrec_serving import AsyncClient, Client, ServingError, messages
from tfrec_serving.server import Server


@pytest.fixture(scope="module")
def server(exact_export):
    with Server(exact_export, 0, 0) as server:
        yield server


@pytest.fixture(scope="module", params=["grpc", "rest"])
def address(request, server):
    return f"127.0.0.1:{server.port}" if request.param == "grpc" else f"http://127.0.0.1:{server.rest_api_port}"


def test_importing_the_client_imports_no_tensorflow():
    code = "import sys, time; t = time.perf_counter(); import tfrec_serving; print(time.perf_counter() - t); "
    code += "sys.exit('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert float(done.stdout) < 2  # a third of a second on an idle machine; TensorFlow takes several


def test_every_method_over_every_transport_and_style(address, server, run, data):
    history = data.vocabulary.decode(data.history(3))
    expected = run.recommend(history, 5)
    with Client(f"127.0.0.1:{server.port}") as plain, Client(address) as client:
        client.wait_until_ready()
        answer = client.recommend(history, 5)
        assert [r.item_id for r in answer] == expected.item_ids.tolist()
        np.testing.assert_allclose([r.score for r in answer], expected.scores, rtol=1e-4)
        calls = {
            "recommend": (history, 3, ["item-1"]),
            "similar_items": (history[0], 4),
            "score": (history, [history[0], "nobody"]),
            "explain": (history, [history[0], "nobody"]),
            "embed_history": (history,),
            "embed_items": (["item-1", "nobody"],),
        }
        explained = run.explain(history, calls["explain"][1]).contributions
        np.testing.assert_allclose(client.explain(*calls["explain"]), explained, atol=2e-6)
        found = {}
        for name, arguments in calls.items():
            found[name] = getattr(client, name)(*arguments)
            expected_answer = getattr(plain, name)(*arguments)
            if name in ("recommend", "similar_items"):
                assert [r.item_id for r in found[name]] == [r.item_id for r in expected_answer]
            else:
                np.testing.assert_allclose(found[name], expected_answer, rtol=1e-5, atol=1e-7)

    async def ask():
        async with AsyncClient(address) as other:
            first = dict(
                zip(
                    calls,
                    await asyncio.gather(
                        other.recommend(history, 3, exclude=["item-1"]),
                        *(getattr(other, name)(*arguments) for name, arguments in list(calls.items())[1:]),
                    ),
                    strict=True,
                )
            )
            with pytest.raises(ServingError, match="INVALID_ARGUMENT"):
                await other.predict("score", history=np.array([["a"]], object))
            return first

    for name, value in asyncio.run(ask()).items():
        if name in ("recommend", "similar_items"):
            assert value == found[name]
        else:
            np.testing.assert_array_equal(value, found[name])


def test_refusals_have_their_codes(address):
    with Client(address) as client, pytest.raises(ServingError) as refused:
        client.predict("nothing", history=np.array([["a"]], object))
    codes = grpc.StatusCode  # TensorFlow Serving's REST says it otherwise than its gRPC
    assert refused.value.code is (codes.INVALID_ARGUMENT if address.startswith("http") else codes.FAILED_PRECONDITION)
    with Client(address, model_name="other") as client, pytest.raises(ServingError) as refused:
        client.recommend(["a"])
    assert refused.value.code is grpc.StatusCode.NOT_FOUND
    with (
        Client(address, label="canary") as client,
        pytest.raises(ServingError, match="Unrecognized servable version label"),
    ):
        client.recommend(["a"])
    with pytest.raises(ValueError, match="a version or a label, not both"):
        Client(address, version=1, label="canary")


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_addresses_are_asked_in_turn_and_a_dead_one_is_passed_over(server, scheme):
    port = server.rest_api_port if scheme else server.port
    with Client(f"{scheme}127.0.0.1:9,{scheme}127.0.0.1:{port}") as client:
        assert all(len(client.recommend(["item-1"], 2)) == 2 for _ in range(6))


@pytest.mark.parametrize("address", ["127.0.0.1:9", "http://127.0.0.1:9"])
def test_a_server_that_is_not_there_is_asked_again_and_then_unavailable(address):
    begin = time.monotonic()
    with Client(address, timeout=5) as client, pytest.raises(ServingError) as refused:
        client.recommend(["a"])
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "array",
    [
        np.array([["a", "日本\0", ""], ["b", "c", "d"]], object),
        np.zeros((2, 0), object),
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.array([1 << 40, -1], np.int64),
        np.array([1.5, -np.inf], np.float32),
        np.array([[True], [False]]),
        np.array(7, np.int32),
    ],
)
def test_messages_are_byte_for_byte_tensorflows(array):
    ours, theirs = messages.PredictRequest(), predict_pb2.PredictRequest()
    ours.model_spec.name, ours.model_spec.version.value, ours.model_spec.signature_name = "m", 3, "score"
    messages.fill_tensor(ours.inputs.add(key="x").value, array)
    theirs.ParseFromString(ours.SerializeToString())
    assert (theirs.model_spec.name, theirs.model_spec.version.value, theirs.model_spec.signature_name) == (
        "m",
        3,
        "score",
    )
    got = make_ndarray(theirs.inputs["x"])
    assert got.shape == array.shape
    as_bytes = lambda values: [v.encode() if isinstance(v, str) else v for v in values.reshape(-1).tolist()]  # noqa: E731
    assert as_bytes(got) == as_bytes(array)
    answer = predict_pb2.PredictResponse()
    answer.outputs["y"].CopyFrom(make_tensor_proto(array))
    back = messages.PredictResponse.FromString(answer.SerializeToString())
    read = messages.read_tensor(back.outputs[0].value)
    assert read.shape == array.shape
    assert as_bytes(read) == as_bytes(array)


def test_a_dtype_that_no_signature_takes_is_refused():
    with pytest.raises(TypeError, match="dtype complex128, which no signature takes"):
        messages.fill_tensor(messages.PredictRequest().inputs.add(key="x").value, np.zeros(1, complex))


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (200, b"[" * 100_000),
        (400, b"[" * 100_000),
        (200, b'{"outputs": {"item_ids": [["a"]], "scores": [[1%s]]}}' % (b"0" * 400)),
        (200, b'{"model_version_status": 5, "outputs": [[1], [2, 3]]}'),
        (200, b'{"model_version_status": [5], "outputs": "x"}'),
    ],
    ids=["deep", "a deep error", "a number too large", "no list", "no states"],
)
def test_an_answer_that_no_model_server_gives(status, content):
    with web_server(status, content, "application/json") as server:
        client = Client(f"http://127.0.0.1:{server.server_port}", timeout=5)
        for ask in (
            lambda: client.recommend(["a"]),
            lambda: client.score(["a"], ["b"]),
            lambda: client.wait_until_ready(0.2),
        ):
            with pytest.raises(ServingError):
                ask()


def test_an_answer_whose_shape_asks_for_gigabytes():
    tensor = messages.PredictResponse().outputs.add(key="scores").value
    tensor.dtype = 1
    tensor.float_val.append(1.0)
    for size in (2**20, 2**20 + 2, 2**62):
        del tensor.tensor_shape.dim[:]
        tensor.tensor_shape.dim.add(size=size)
        if size == 2**20:
            assert messages.read_tensor(tensor).shape == (size,)
        else:
            with pytest.raises(ValueError, match="values that are not there"):
                messages.read_tensor(tensor)


@pytest.mark.parametrize("timeout", [0, -1, None, "5", float("nan"), float("inf"), 1e12])
@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_timeout_that_is_none(scheme, timeout):
    with pytest.raises(
        ValueError, match=r"`timeout` is a number of seconds above 0, and 1,000,000 at most. Received: "
    ):
        Client(f"{scheme}127.0.0.1:1", timeout=timeout)


def test_times_go_with_their_items(address):
    with Client(address) as client:
        with pytest.raises(
            ValueError, match=r"`timestamps` has a number for each item: shape \(2,\). Received: shape \(1,\)"
        ):
            client.recommend(["a", "b"], timestamps=[1])
        with pytest.raises(ValueError, match="`request_time` goes with `timestamps`"):
            client.score(["a"], ["b"], request_time=1)


def test_one_text_as_an_input(address):
    with Client(address) as client, pytest.raises(ServingError, match=r"must have shape \[-1, -1\].*Received: \[\]"):
        client.predict("serving_default", history="a")
