"""Clients of the recommender contract, for any server that speaks as TensorFlow Serving does; TensorFlow is not needed."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import grpc
import grpc.aio
import numpy as np

from tfrec_serving import messages

T = TypeVar("T")
Inputs = dict[str, np.ndarray]
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


class Recommendation(NamedTuple):
    """One item of an answer."""

    item_id: str
    score: float


class ServingError(Exception):
    """The server refused a request or could not be reached.

    Attributes:
        code: the gRPC status code.
    """

    def __init__(self, code: grpc.StatusCode, message: str | None) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code


# --- what is asked: signature, inputs, and how the answer is read ------------------------------------------------------


class Question(NamedTuple):
    """A request: a signature, its inputs, and what its outputs are read as."""

    signature_name: str
    inputs: Inputs
    read: Callable[[Inputs], Any]


def _ids(values: Sequence) -> np.ndarray:
    """Ids as an object array of UTF-8 strings; an empty row stays a row: `[[]]` has shape (1, 0)."""
    array = np.array(values, dtype=object)
    return np.frompyfunc(str.encode, 1, 1)(array) if array.size else array


def _query(history: Sequence[str], timestamps: Sequence[int] | None, request_time: int | None) -> Inputs:
    """What stands for a history in a request; the times are left out for a model that reads none."""
    if timestamps is None:
        return {"history": _ids([history])}
    asked = int(time.time()) if request_time is None else request_time
    times = {"timestamps": np.array([timestamps], np.int64), "request_time": np.array([asked], np.int64)}
    return {"history": _ids([history])} | times


def _values(wanted: Mapping[str, Sequence[str]]) -> np.ndarray:
    """`{"genres": ["Comedy"]}` as a request names it: `genres=Comedy`."""
    return _ids([[f"{name}={value}" for name, values in wanted.items() for value in values]])


def _recommendations(answer: Inputs) -> list[Recommendation]:
    pairs = zip(answer["item_ids"][0], answer["scores"][0], strict=True)
    return [Recommendation(item_id.decode(), float(score)) for item_id, score in pairs if item_id]


class Questions:
    """The questions that both clients ask; `timestamps` and `request_time` are for a model that reads times."""

    @staticmethod
    def recommend(
        history: Sequence[str],
        k: int = 10,
        exclude: Sequence[str] = (),
        timestamps: Sequence[int] | None = None,
        request_time: int | None = None,
        allow: Mapping[str, Sequence[str]] | None = None,
        deny: Mapping[str, Sequence[str]] | None = None,
    ) -> Question:
        inputs = _query(history, timestamps, request_time) | {"exclude": _ids([exclude]), "k": np.array([k], np.int32)}
        if not (allow or deny):
            return Question("recommend", inputs, _recommendations)
        wanted = {"allow": _values(allow or {}), "deny": _values(deny or {})}
        return Question("recommend_filtered", inputs | wanted, _recommendations)

    @staticmethod
    def similar_items(item_id: str, k: int = 10) -> Question:
        return Question("similar_items", {"item_ids": _ids([item_id]), "k": np.array([k], np.int32)}, _recommendations)

    @staticmethod
    def score(
        history: Sequence[str],
        candidates: Sequence[str],
        timestamps: Sequence[int] | None = None,
        request_time: int | None = None,
    ) -> Question:
        inputs = _query(history, timestamps, request_time) | {"candidates": _ids([candidates])}
        return Question("score", inputs, lambda answer: answer["scores"][0].tolist())

    @staticmethod
    def embed_history(
        history: Sequence[str], timestamps: Sequence[int] | None = None, request_time: int | None = None
    ) -> Question:
        return Question(
            "embed_history", _query(history, timestamps, request_time), lambda answer: answer["embedding"][0]
        )

    @staticmethod
    def embed_items(item_ids: Sequence[str]) -> Question:
        return Question("embed_items", {"item_ids": _ids(item_ids)}, lambda answer: answer["embedding"])


# --- how it travels ----------------------------------------------------------------------------------------------------


def _target(addresses: str) -> str:
    """A gRPC target: several addresses, with commas, become one that is asked in turn."""
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


class _Wire:
    """Requests and answers as messages and as JSON, for one model."""

    def __init__(self, model_name: str, version: int | None, label: str | None) -> None:
        if version is not None and label is not None:
            raise ValueError("Pass a version or a label, not both.")
        self.model_name, self.version, self.label = model_name, version, label

    def fill(self, spec: Any, signature_name: str = "") -> None:
        spec.name, spec.signature_name = self.model_name, signature_name
        if self.version is not None:
            spec.version.value = self.version
        if self.label is not None:
            spec.version_label = self.label

    def request(self, signature_name: str, inputs: Inputs) -> Any:
        request = messages.PredictRequest()
        self.fill(request.model_spec, signature_name)
        for name, value in inputs.items():
            messages.fill_tensor(request.inputs.add(key=name).value, value)
        return request

    def status_request(self) -> Any:
        request = messages.GetModelStatusRequest()
        self.fill(request.model_spec)
        return request

    @property
    def path(self) -> str:
        """Of REST."""
        version = "" if self.version is None else f"/versions/{self.version}"
        label = "" if self.label is None else f"/labels/{urllib.parse.quote(self.label, safe='')}"
        return f"/v1/models/{urllib.parse.quote(self.model_name, safe='')}{version}{label}"


def _read(response: Any) -> Inputs:
    return {entry.key: messages.read_tensor(entry.value) for entry in response.outputs}


def _method(channel: Any, path: str, request: Any, response: Any) -> Any:
    return channel.unary_unary(
        path, request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )


class _Rest:
    """The REST API, by the standard library; addresses are asked in turn, retried codes up to three times more."""

    def __init__(self, addresses: str, wire: _Wire) -> None:
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
    return _ids(value) if name == "item_ids" else np.array(value, np.float32)


class _Connection:
    """What both clients open; the arguments are those of `Client`."""

    _open_channel: Callable[..., Any]

    def __init__(
        self,
        address: str,
        model_name: str = "default",
        version: int | None = None,
        timeout: float = 10.0,
        label: str | None = None,
    ) -> None:
        self._wire, self._timeout = _Wire(model_name, version, label), timeout
        self._rest: _Rest | None = None
        self._channel: Any = None
        if address.startswith(("http://", "https://")):
            self._rest = _Rest(address, self._wire)
        else:
            self._channel = self._open_channel(_target(address), CHANNEL_OPTIONS)
            self._predict = _method(self._channel, PREDICT, messages.PredictRequest, messages.PredictResponse)


class Client(_Connection):
    """Queries a served recommender, over gRPC or REST.

    >>> client = Client("localhost:8500")  # doctest: +SKIP
    >>> client.recommend(["50", "181"], k=2, exclude=["172"])  # doctest: +SKIP
    [Recommendation(item_id='174', score=0.71), Recommendation(item_id='210', score=0.68)]

    Args:
        address: `host:port` of gRPC, or `http://host:port` of REST; several, with commas, are asked in turn.
        model_name: what the server calls the model.
        version, label: a version or the label of one; without either, the newest.
        timeout: seconds that a call may take, with its retries. A server that cannot be reached or is overloaded is asked up
            to four times; nothing else is retried.
    Every method raises `ServingError`.
    """

    _open_channel = staticmethod(grpc.insecure_channel)

    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        exclude: Sequence[str] = (),
        timestamps: Sequence[int] | None = None,
        request_time: int | None = None,
        allow: Mapping[str, Sequence[str]] | None = None,
        deny: Mapping[str, Sequence[str]] | None = None,
    ) -> list[Recommendation]:
        """The `k` best items after `history` (item ids, oldest first); nothing of the history or of `exclude`.

        Where the export has a filter, `allow={"genres": ["Comedy"]}` asks for items with one of the values of each attribute
        named, `deny` for items with none of them. A model that reads times also takes when each item was, and when this is
        asked (now, by default), in seconds since 1970. So do `score` and `embed_history`.
        """
        return self._ask(Questions.recommend(history, k, exclude, timestamps, request_time, allow, deny))

    def similar_items(self, item_id: str, k: int = 10) -> list[Recommendation]:
        """The `k` items most similar to one; none for an unknown item."""
        return self._ask(Questions.similar_items(item_id, k))

    def score(
        self,
        history: Sequence[str],
        candidates: Sequence[str],
        timestamps: Sequence[int] | None = None,
        request_time: int | None = None,
    ) -> list[float]:
        """The score of each candidate after `history`; unknown ones get `-inf`."""
        return self._ask(Questions.score(history, candidates, timestamps, request_time))

    def embed_history(
        self, history: Sequence[str], timestamps: Sequence[int] | None = None, request_time: int | None = None
    ) -> np.ndarray:
        """The query vector of `history`: float32 `(width,)`."""
        return self._ask(Questions.embed_history(history, timestamps, request_time))

    def embed_items(self, item_ids: Sequence[str]) -> np.ndarray:
        """The vectors of items: float32 `(len(item_ids), width)`; zeros for unknown ones."""
        return self._ask(Questions.embed_items(item_ids))

    def _ask(self, question: Question) -> Any:
        return question.read(self.predict(question.signature_name, **question.inputs))

    def predict(self, signature_name: str, **inputs: np.ndarray) -> Inputs:
        """Call any signature with arrays; what the methods above are made of, and the way to send batches."""
        if self._rest is not None:
            return self._rest.predict(signature_name, inputs, self._timeout)
        try:
            return _read(self._predict(self._wire.request(signature_name, inputs), timeout=self._timeout))
        except grpc.RpcError as error:
            raise ServingError(error.code(), error.details()) from None

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Return when the server answers and the model is available; raise `ServingError` when `timeout` seconds are over."""
        deadline = time.monotonic() + timeout
        while not self._is_available(deadline):
            if time.monotonic() > deadline:
                raise ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "The model was not available in time.")
            time.sleep(0.1)

    def _is_available(self, deadline: float) -> bool:
        left = max(0.0, deadline - time.monotonic())
        if self._rest is not None:
            try:
                return self._rest.is_available(left)
            except ServingError as error:
                if error.code is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return False
        ask = _method(self._channel, STATUS, messages.GetModelStatusRequest, messages.GetModelStatusResponse)
        try:
            versions = ask(self._wire.status_request(), timeout=left, wait_for_ready=True).model_version_status
        except grpc.RpcError as error:
            raise ServingError(error.code(), error.details()) from None
        return any(version.state == messages.AVAILABLE for version in versions)

    def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class AsyncClient(_Connection):
    """`Client` for asyncio: the same arguments, the same methods, awaited.

    >>> async def ask():
    ...     async with AsyncClient("localhost:8500") as client:
    ...         return await client.recommend(["50", "181"], k=2)
    """

    _open_channel = staticmethod(grpc.aio.insecure_channel)

    async def recommend(self, history: Sequence[str], k: int = 10, **others: Any) -> list[Recommendation]:
        """As `Client.recommend`."""
        return await self._ask(Questions.recommend(history, k, **others))

    async def similar_items(self, item_id: str, k: int = 10) -> list[Recommendation]:
        """As `Client.similar_items`."""
        return await self._ask(Questions.similar_items(item_id, k))

    async def score(self, history: Sequence[str], candidates: Sequence[str], **others: Any) -> list[float]:
        """As `Client.score`."""
        return await self._ask(Questions.score(history, candidates, **others))

    async def embed_history(self, history: Sequence[str], **others: Any) -> np.ndarray:
        """As `Client.embed_history`."""
        return await self._ask(Questions.embed_history(history, **others))

    async def embed_items(self, item_ids: Sequence[str]) -> np.ndarray:
        """As `Client.embed_items`."""
        return await self._ask(Questions.embed_items(item_ids))

    async def _ask(self, question: Question) -> Any:
        return question.read(await self.predict(question.signature_name, **question.inputs))

    async def predict(self, signature_name: str, **inputs: np.ndarray) -> Inputs:
        """As `Client.predict`."""
        if self._rest is not None:
            return await asyncio.to_thread(self._rest.predict, signature_name, inputs, self._timeout)
        try:
            return _read(await self._predict(self._wire.request(signature_name, inputs), timeout=self._timeout))
        except grpc.RpcError as error:
            raise ServingError(error.code(), error.details()) from None

    async def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_) -> None:
        await self.close()
