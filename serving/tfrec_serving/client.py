"""A client of the recommender contract, for any server that speaks TensorFlow Serving's gRPC."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the protos import TensorFlow, which greets on standard error

import grpc
import numpy as np
from tensorflow import make_ndarray, make_tensor_proto
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)


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


class Client:
    """Queries a served recommender over gRPC.

    >>> client = Client("localhost:8500")  # doctest: +SKIP
    >>> client.recommend(["50", "181"], k=2, exclude=["172"])  # doctest: +SKIP
    [Recommendation(item_id='174', score=7.1), Recommendation(item_id='210', score=6.8)]

    Args:
        address: `host:port`.
        model_name: what the server calls the model.
        version: a version, or None for the newest.
        timeout: seconds that a call may take.
    Every method raises `ServingError`.
    """

    def __init__(
        self, address: str, model_name: str = "default", version: int | None = None, timeout: float = 10.0
    ) -> None:
        self._channel = grpc.insecure_channel(address)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._spec = model_pb2.ModelSpec(name=model_name)
        if version is not None:
            self._spec.version.value = version
        self._timeout = timeout

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
        named, `deny` for items with none of them.

        A model that reads times also takes when each item was, and when this is asked (now, by default), in seconds since
        1970. So do `score` and `embed_history`.
        """
        query = _query(history, timestamps, request_time)
        query |= {"exclude": _ids([exclude]), "k": _int32([k])}
        if not (allow or deny):
            return _recommendations(self.predict("recommend", **query))
        wanted = {"allow": _values(allow or {}), "deny": _values(deny or {})}
        return _recommendations(self.predict("recommend_filtered", **query, **wanted))

    def similar_items(self, item_id: str, k: int = 10) -> list[Recommendation]:
        """The `k` items most similar to one; none for an unknown item."""
        return _recommendations(self.predict("similar_items", item_ids=_ids([item_id]), k=_int32([k])))

    def score(
        self,
        history: Sequence[str],
        candidates: Sequence[str],
        timestamps: Sequence[int] | None = None,
        request_time: int | None = None,
    ) -> list[float]:
        """The score of each candidate after `history`; unknown ones get `-inf`."""
        query = _query(history, timestamps, request_time)
        return self.predict("score", **query, candidates=_ids([candidates]))["scores"][0].tolist()

    def embed_history(
        self, history: Sequence[str], timestamps: Sequence[int] | None = None, request_time: int | None = None
    ) -> np.ndarray:
        """The query vector of `history`: float32 `(width,)`."""
        return self.predict("embed_history", **_query(history, timestamps, request_time))["embedding"][0]

    def embed_items(self, item_ids: Sequence[str]) -> np.ndarray:
        """The vectors of items: float32 `(len(item_ids), width)`; zeros for unknown ones."""
        return self.predict("embed_items", item_ids=_ids(item_ids))["embedding"]

    def predict(self, signature_name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Call any signature with arrays; what the methods above are made of, and the way to send batches."""
        request = predict_pb2.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature_name
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(make_tensor_proto(value))
        try:
            answer = self._stub.Predict(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise ServingError(error.code(), error.details()) from None
        return {name: make_ndarray(value) for name, value in answer.outputs.items()}

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Return when the server answers and the model is available; raise `ServingError` when `timeout` seconds are over."""
        stub = model_service_pb2_grpc.ModelServiceStub(self._channel)
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self._spec)
        try:
            stub.GetModelStatus(request, timeout=timeout, wait_for_ready=True)
        except grpc.RpcError as error:
            raise ServingError(error.code(), error.details()) from None

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _ids(values: Sequence) -> np.ndarray:
    """Ids as an array of UTF-8 strings; an empty row stays a row: `[[]]` has shape (1, 0)."""
    return np.array(np.char.encode(np.array(values, dtype=np.str_), "utf-8"), dtype=object)


def _values(wanted: Mapping[str, Sequence[str]]) -> np.ndarray:
    """`{"genres": ["Comedy"]}` as a request names it: `genres=Comedy`."""
    return _ids([[f"{name}={value}" for name, values in wanted.items() for value in values]])


def _query(history: Sequence[str], timestamps: Sequence[int] | None, request_time: int | None) -> dict[str, np.ndarray]:
    """What stands for a history in a request; the times are left out for a model that reads none."""
    if timestamps is None:
        return {"history": _ids([history])}
    asked = int(time.time()) if request_time is None else request_time
    times = {"timestamps": np.array([timestamps], np.int64), "request_time": np.array([asked], np.int64)}
    return {"history": _ids([history])} | times


def _int32(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int32)


def _recommendations(answer: dict[str, np.ndarray]) -> list[Recommendation]:
    pairs = zip(answer["item_ids"][0], answer["scores"][0], strict=True)
    return [Recommendation(item_id.decode(), float(score)) for item_id, score in pairs if item_id]
