"""How requests travel: as messages over gRPC, as JSON over REST."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import grpc
import numpy as np

from tfrec_serving import messages
from tfrec_serving.errors import ServingError
from tfrec_serving.questions import Inputs, text_ids

PREDICT = "/tensorflow.serving.PredictionService/Predict"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
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
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def target(addresses: str) -> str:
    """The gRPC target of an address, or of several with commas, which take turns."""
    if "," not in addresses:
        return addresses
    found = []
    for address in addresses.split(","):
        host, _, port = address.strip().rpartition(":")
        found += [
            f"{info[4][0]}:{port}" for info in socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[:1]
        ]
    return "ipv4:" + ",".join(found)


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


class RestTransport:
    """The REST API by the standard library. Addresses take turns; a code of `RETRIED` is tried up to three times more."""

    def __init__(self, addresses: str, wire: Wire) -> None:
        self._bases, self._wire, self._turn = [a.strip().rstrip("/") for a in addresses.split(",")], wire, 0

    def predict(self, signature_name: str, inputs: Inputs, timeout: float) -> Inputs:
        columns = {name: _to_json(value) for name, value in inputs.items()}
        answer = self._ask(":predict", {"signature_name": signature_name, "inputs": columns}, timeout)["outputs"]
        # a single output stands without its name
        outputs = (
            answer if isinstance(answer, dict) else {"embedding" if "embed" in signature_name else "scores": answer}
        )
        return {name: _from_json(name, value) for name, value in outputs.items()}

    def is_available(self, timeout: float) -> bool:
        return any(v["state"] == "AVAILABLE" for v in self._ask("", None, timeout)["model_version_status"])

    def _ask(self, path: str, body: dict | None, timeout: float) -> Any:
        deadline, wait = time.monotonic() + timeout, 0.05
        for attempt in range(4):
            base, self._turn = self._bases[self._turn % len(self._bases)], self._turn + 1
            data = None if body is None else json.dumps(body).encode()
            left = deadline - time.monotonic()
            if left <= 0:
                raise ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "The deadline was over before an answer came.")
            try:
                with urllib.request.urlopen(
                    urllib.request.Request(base + self._wire.path + path, data), timeout=left
                ) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                code = HTTP_CODES.get(error.code, grpc.StatusCode.UNKNOWN)
                refused = ServingError(code, json.loads(error.read() or b"{}").get("error"))
            except TimeoutError:
                refused = ServingError(
                    grpc.StatusCode.DEADLINE_EXCEEDED, "The deadline was over before an answer came."
                )
            except (urllib.error.URLError, ConnectionError) as error:
                refused = ServingError(grpc.StatusCode.UNAVAILABLE, str(error))
            if refused.code.name not in RETRIED or attempt == 3:
                raise refused from None
            time.sleep(min(wait, max(0.0, deadline - time.monotonic())))
            wait = min(1.0, 2 * wait)
        raise AssertionError


def _to_json(value: np.ndarray) -> Any:
    if value.dtype != object:
        return value.tolist()
    text = np.frompyfunc(lambda v: v if isinstance(v, str) else v.decode(), 1, 1)
    return text(value).tolist() if value.size else value.tolist()


def _from_json(name: str, value: Any) -> np.ndarray:
    return text_ids(value) if name == "item_ids" else np.array(value, np.float32)
