"""How requests travel: as messages over gRPC, as JSON over REST."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

import grpc
import numpy as np

from tfrec_serving import messages
from tfrec_serving.ids import text_array
from tfrec_serving.questions import Inputs

PREDICT = "/tensorflow.serving.PredictionService/Predict"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
FURTHEST = np.finfo(np.float32).max
RETRIED = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
"""Codes after which the same request may succeed on another attempt."""
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": RETRIED,
            },
        }
    ],
}
HTTP_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    407: grpc.StatusCode.UNAUTHENTICATED,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


CHANNEL_OPTIONS = [("grpc.service_config", json.dumps(SERVICE_CONFIG)), ("grpc.max_receive_message_length", 64 << 20)]


class Wire:
    """Makes the requests for one model.

    Args:
        model_name: str.
        version: int, the version that is asked. Default: the server's choice.
        label: str, the label of the version that is asked, such as `canary`. Default: none.
    Raises:
        ValueError: both a version and a label are given.
    """

    def __init__(self, model_name: str, version: int | None = None, label: str | None = None) -> None:
        if version is not None and label is not None:
            raise ValueError("Pass a version or a label, not both.")
        self.model_name, self.version, self.label = model_name, version, label

    def fill(self, spec: Any, signature_name: str = "") -> None:
        """Fill in a `ModelSpec`."""
        spec.name, spec.signature_name = self.model_name, signature_name
        if self.version is not None:
            spec.version.value = self.version
        if self.label is not None:
            spec.version_label = self.label

    def request(self, signature_name: str, inputs: Inputs) -> Any:
        """A `PredictRequest`."""
        request = messages.PredictRequest()
        self.fill(request.model_spec, signature_name)
        for name, value in inputs.items():
            messages.fill_tensor(request.inputs.add(key=name).value, value)
        return request

    def status_request(self) -> Any:
        """A `GetModelStatusRequest`."""
        request = messages.GetModelStatusRequest()
        self.fill(request.model_spec)
        return request

    @property
    def path(self) -> str:
        """The path of the model in the REST API."""
        version = "" if self.version is None else f"/versions/{self.version}"
        label = "" if self.label is None else f"/labels/{urllib.parse.quote(self.label, safe='')}"
        return f"/v1/models/{urllib.parse.quote(self.model_name, safe='')}{version}{label}"


def read_response(response: Any) -> Inputs:
    """The arrays of a `PredictResponse` by name."""
    return {entry.key: messages.read_tensor(entry.value) for entry in response.outputs}


def unary(channel: Any, path: str, request: Any, response: Any) -> Any:
    """A method of a gRPC service as a function."""
    return channel.unary_unary(
        path, request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )


def to_json(value: np.ndarray) -> Any:
    if value.dtype != object:
        return value.tolist()
    text = np.frompyfunc(lambda v: v if isinstance(v, str) else v.decode(), 1, 1)
    return np.asarray(text(value), object).tolist() if value.size else value.tolist()


def from_json(name: str, value: Any) -> np.ndarray:
    """The array of an output.

    JSON has no infinity: our server sends the finite float32 furthest from 0 instead, and null for NaN. TensorFlow Serving sends
    `-Infinity` and `NaN`, which `json.loads` takes.
    """
    first = value
    while isinstance(first, list) and first:
        first = first[0]
    if name == "item_ids" or (name != "scores" and isinstance(first, str)):
        return text_array(value)
    array = np.array(value, np.float32)
    array[array == FURTHEST] = np.inf
    array[array == -FURTHEST] = -np.inf
    return array
