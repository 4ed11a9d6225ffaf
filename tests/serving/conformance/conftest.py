"""The server that the conformance tests talk to: any, by its address, or our own, with a plain model and one with features.

TFREC_SERVER=host:port        gRPC of a running server that holds an export of tfrec; without it our own is started
TFREC_REST_SERVER=host:port   its REST API; without it port 8501 of the same host, where that answers
TFREC_MODEL=name              what the model is called there; without it "default" or "model"
"""

from __future__ import annotations

import contextlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tfrec.deploy.saved_model import export
from tfrec.training.config import Config
from tfrec.training.fit import train

TIMEOUT = 60.0
DTYPES = {"k": tf.int32}
OWN = {"history", "exclude", "k", "candidates", "item_ids", "allow", "deny"}
"""Inputs that every model has. A model that reads times or features has further ones beside `history`."""
NONE = {tf.string: b"", tf.float32: np.nan, tf.int64: 0}
"""The values that say nothing."""


@dataclass
class Target:
    """A server and the model it holds.

    Attributes:
        channel: to its gRPC.
        rest_url: of its REST API; "" where it has none.
        model: its name.
        signatures: of the model, as `GetModelMetadata` says.
        items: ids of its catalogue, the most popular first.
    """

    channel: grpc.Channel
    rest_url: str
    model: str
    signatures: dict[str, Any] = field(default_factory=dict)
    items: list[str] = field(default_factory=list)

    def request(self, signature_name: str = "", **inputs: Any) -> predict_pb2.PredictRequest:
        """A request, with what a model that reads times or features wants besides."""
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self.model, signature_name
        if "history" in inputs:
            inputs = self.further(signature_name, np.shape(inputs["history"])) | inputs
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value, DTYPES.get(name)))
        return request

    def further(self, signature_name: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """The inputs beside `OWN`, which say nothing, for histories of a shape."""
        wanted = self.signatures.get(signature_name or "serving_default")
        found = {}
        for name, info in wanted.inputs.items() if wanted is not None else ():
            if name not in OWN:
                dtype = tf.dtypes.as_dtype(info.dtype)
                rank = len(info.tensor_shape.dim)
                found[name] = np.full(shape[:rank], NONE[dtype], object if dtype == tf.string else dtype.as_numpy_dtype)
        return found

    def send(self, request: predict_pb2.PredictRequest, timeout: float = TIMEOUT) -> predict_pb2.PredictResponse:
        return prediction_service_pb2_grpc.PredictionServiceStub(self.channel).Predict(request, timeout)

    def predict(self, signature_name: str = "", **inputs: Any) -> dict[str, np.ndarray]:
        answer = self.send(self.request(signature_name, **inputs))
        return {name: tf.make_ndarray(value) for name, value in answer.outputs.items()}

    def metadata(self, *fields: str, name: str | None = None) -> get_model_metadata_pb2.GetModelMetadataResponse:
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
        request.model_spec.name = self.model if name is None else name
        return prediction_service_pb2_grpc.PredictionServiceStub(self.channel).GetModelMetadata(request, TIMEOUT)

    def status(self, name: str | None = None, version: int | None = None):
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.model if name is None else name
        if version is not None:
            request.model_spec.version.value = version
        return model_service_pb2_grpc.ModelServiceStub(self.channel).GetModelStatus(request, TIMEOUT)

    def rest(self, path: str, body: Any = None, method: str | None = None) -> tuple[int, Any]:
        """Status code and JSON of a REST call; a body that is no bytes is sent as JSON."""
        if not self.rest_url:
            pytest.skip("the server has no REST API that is known: set TFREC_REST_SERVER")
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.rest_url + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def learn(self) -> None:
        """Find the model by its name, its signatures, and some of its items: what it recommends to nobody in particular."""
        for name in [self.model] if self.model else ["default", "model"]:
            with contextlib.suppress(grpc.RpcError):
                packed = self.metadata("signature_def", name=name).metadata["signature_def"]
                break
        else:
            raise RuntimeError(f"The server holds no model called {self.model or '`default` or `model`'}.")
        self.model = name
        definitions = get_model_metadata_pb2.SignatureDefMap()
        assert packed.Unpack(definitions)
        self.signatures = dict(definitions.signature_def)
        answer = self.predict("recommend", history=[[b""]], exclude=[[b""]], k=[20])
        self.items = [item.decode() for item in answer["item_ids"][0] if item]


@pytest.fixture(scope="session")
def is_ours() -> bool:
    """Whether the server is ours: what TensorFlow Serving lacks is tested on it alone."""
    return "TFREC_SERVER" not in os.environ


@pytest.fixture(scope="session")
def features_export(device_data, tmp_path_factory):
    """An export of a model that reads features of events, of requests and of users."""
    folder = tmp_path_factory.mktemp("features")
    config = Config(max_length=16, width=16, num_blocks=1, epochs=1)
    export(train(config, device_data, folder / "run"), folder / "export", index="exact")
    return folder / "export"


@pytest.fixture(scope="session", params=["exact_export", "features_export"])
def target(request) -> Iterator[Target]:
    with contextlib.ExitStack() as stack:
        address, rest = os.environ.get("TFREC_SERVER"), os.environ.get("TFREC_REST_SERVER", "")
        if address is None:
            from tfrec_serving.server import Server

            server = stack.enter_context(Server(request.getfixturevalue(request.param), 0, 0))
            address, rest = f"127.0.0.1:{server.port}", f"127.0.0.1:{server.rest_api_port}"
        elif request.param != "exact_export":
            pytest.skip("the server that was named has a model of its own")
        channel = stack.enter_context(grpc.insecure_channel(address))
        grpc.channel_ready_future(channel).result(TIMEOUT)
        found = Target(channel, "", os.environ.get("TFREC_MODEL", ""))
        found.learn()
        url = f"http://{rest or address.rpartition(':')[0] + ':8501'}"
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/v1/models/{found.model}", timeout=5).close()
            found.rest_url = url
        if rest and not found.rest_url:
            raise RuntimeError(f"Nothing answers at the REST address {rest}.")
        yield found
