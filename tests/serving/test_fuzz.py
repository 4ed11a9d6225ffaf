"""Requests of every kind: whatever comes in, it is answered or refused with a reason; nothing else gets out."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import predict_pb2

from tfrec_serving.grpc_services import PredictionService
from tfrec_serving.lifecycle import Models
from tfrec_serving.predictor import Predictor
from tfrec_serving.rest import format_answer, parse_request
from tfrec_serving.servable import RequestError

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
SIGNATURES = ["serving_default", "recommend", "similar_items", "score", "explain", "embed_history", "embed_items"]
INPUTS = ["history", "exclude", "k", "item_ids", "candidates"]
bounded = settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)  # fmt: skip

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5),
    st.builds(lambda text: {"b64": text}, st.text(max_size=5)),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)
ids = st.lists(st.text(max_size=4), min_size=1, max_size=4)
rows = st.fixed_dictionaries(
    {},
    optional={
        "history": ids | values,
        "exclude": ids | values,
        "k": st.integers(-3, 300) | values,
        "item_ids": ids | values,
        "candidates": ids | values,
    },
)
bodies = st.one_of(
    st.binary(max_size=60),
    values.map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda signature, kind, value: json.dumps({"signature_name": signature, kind: value}).encode(),
        st.sampled_from(SIGNATURES) | scalars,
        st.sampled_from(["instances", "inputs"]),
        rows | st.lists(rows, max_size=3) | values,
    ),
)


@pytest.fixture(scope="module")
def predictor(exact_export):
    from tfrec_serving.config import one_model

    models = Models(one_model("default", str(exact_export)), poll_seconds=0)
    yield Predictor(models)
    models.stop()


@bounded
@given(body=bodies)
def test_rest_bodies(predictor, body):
    servable = predictor.models.find("default")
    try:
        signature_name, inputs, is_row = parse_request(body, servable)
        answer = format_answer(predictor.predict(servable, signature_name, inputs), is_row)
    except RequestError:
        return
    json.dumps(answer, allow_nan=False)


shapes = st.lists(st.integers(-2, 3) | st.integers(-(2**62), 2**62), max_size=4)
numbers = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6)


@st.composite
def tensors(draw) -> tensor_pb2.TensorProto:
    """Right ones, nearly right ones, and any."""
    tensor = tensor_pb2.TensorProto(dtype=draw(st.sampled_from([7, 3, 1]) | st.integers(0, 130)))
    for size in draw(st.sampled_from([[1, 2], [1], [2]]) | shapes):
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_shape.unknown_rank = draw(st.sampled_from([False] * 9 + [True]))
    tensor.string_val.extend(draw(st.lists(st.binary(max_size=4), max_size=4)))
    tensor.int_val.extend(draw(numbers))
    tensor.float_val.extend(draw(st.lists(st.floats(width=32), max_size=3)))
    tensor.tensor_content = draw(st.sampled_from([b""] * 5) | st.binary(max_size=16))
    return tensor


class Context:
    """What a handler sees of a call."""

    def time_remaining(self):
        return None

    def abort(self, code, message):
        raise ConnectionAbortedError(f"{code}: {message}")


@bounded
@given(
    signature=st.sampled_from(SIGNATURES) | st.text(max_size=5),
    inputs=st.dictionaries(st.sampled_from(INPUTS) | st.text(max_size=3), tensors(), max_size=4),
    outputs=st.lists(st.sampled_from(["scores", "item_ids", "x"]), max_size=2),
)
def test_predict_requests(predictor, signature, inputs, outputs):
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name, request.model_spec.signature_name = "default", signature
    for name, tensor in inputs.items():
        request.inputs[name].CopyFrom(tensor)
    try:
        answer = PredictionService(predictor).Predict(request, Context())
    except ConnectionAbortedError:  # with the code of a `RequestError`
        return
    assert answer.SerializeToString()


@bounded
@given(
    signature=st.sampled_from(SIGNATURES),
    history=st.lists(st.binary(max_size=6), max_size=12),
    others=st.lists(st.binary(max_size=6), max_size=6),
    k=st.integers(-(2**31), 2**31 - 1),
)
def test_any_ids_and_any_k_are_answered(predictor, signature, history, others, k):
    """Well-formed requests: NUL, invalid UTF-8, the empty id, no id at all, k of any size."""
    ids = lambda found, rank: np.array(found, object).reshape((1, -1) if rank == 2 else -1)  # noqa: E731
    servable = predictor.models.find("default")
    every = {
        "history": ids(history, 2), "exclude": ids(others, 2), "candidates": ids(others, 2), "k": np.array([k], np.int32),
        "item_ids": ids(history[:1] or [b""], 1),
    }  # fmt: skip
    inputs = {name: every[name] for name in servable.signature(signature).inputs}
    outputs = predictor.predict(servable, signature, inputs)
    assert all(len(value) == 1 for value in outputs.values())
    assert not any(np.isnan(value).any() for value in outputs.values() if value.dtype == np.float32)


def test_a_server_with_little_memory_survives_random_requests(exact_export):
    """A share of `benchmarks/fuzz.py`, which asks 10,000: over sockets, with a memory limit on the server's process."""
    report = runpy.run_path(str(FUZZ))["fuzz"](exact_export, 400, 1)
    assert report.faults == []
    assert report.codes.total() == 400
    assert {"REST HTTP 200", "REST HTTP 400", "REST HTTP 404", "gRPC OK", "gRPC INVALID_ARGUMENT"} < set(report.codes)
