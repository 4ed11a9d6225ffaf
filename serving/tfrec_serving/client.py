"""Clients of the recommender contract, for any server that speaks as TensorFlow Serving does; TensorFlow is not needed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
import numpy as np

from tfrec_serving import messages
from tfrec_serving.errors import ServingError
from tfrec_serving.questions import Inputs, Question, Questions, Recommendation
from tfrec_serving.wire import CHANNEL_OPTIONS, PREDICT, STATUS, RestTransport, Wire, read_response, target, unary


class _Connection:
    """The connection of both clients; for the arguments, see `Client`."""

    _open_channel: Callable[..., Any]

    def __init__(
        self,
        address: str,
        model_name: str = "default",
        version: int | None = None,
        timeout: float = 10.0,
        label: str | None = None,
    ) -> None:
        self._wire, self._timeout = Wire(model_name, version, label), timeout
        self._rest: RestTransport | None = None
        self._channel: Any = None
        if address.startswith(("http://", "https://")):
            self._rest = RestTransport(address, self._wire)
        else:
            self._channel = self._open_channel(target(address), CHANNEL_OPTIONS)
            self._predict = unary(self._channel, PREDICT, messages.PredictRequest, messages.PredictResponse)


class Client(_Connection):
    """Queries a served recommender, over gRPC or REST.

    >>> client = Client("localhost:8500")  # doctest: +SKIP
    >>> client.recommend(["50", "181"], k=2, exclude=["172"])  # doctest: +SKIP
    [Recommendation(item_id='174', score=0.71), Recommendation(item_id='210', score=0.68)]

    Args:
        address: str, `host:port` of gRPC or `http://host:port` of REST. Several addresses, with commas, take turns.
        model_name: str, name of the model on the server. Default: `default`.
        version: int, the version that answers. Default: the newest.
        timeout: float, seconds that a call may take with its retries. A call that finds no server, or an overloaded one, is tried
            four times at most; nothing else is retried. Default: 10.
        label: str, label of the version that answers, such as `canary`. Default: none.
    Raises:
        ServingError: of every method, when the server refuses a request or cannot be reached.
        TypeError: an id is not text.
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
        """Recommend the `k` best items after a history.

        Args:
            history: item ids, oldest first.
            k: int. Default: 10.
            exclude: item ids that are not recommended, besides those of the history. Default: none.
            timestamps: for a model that reads times, the second (since 1970) of each item. Default: no times.
            request_time: for such a model, the second of the request. Default: now.
            allow: dict, values by attribute, such as `{"genres": ["Comedy"]}`: only items that have one of them. Needs an export
                with a filter. Default: all items.
            deny: dict, values by attribute: no item that has one of them. Default: none.
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
        """Call any signature with arrays by name, also for several rows at a time; return its outputs by name."""
        if self._rest is not None:
            return self._rest.predict(signature_name, inputs, self._timeout)
        try:
            return read_response(self._predict(self._wire.request(signature_name, inputs), timeout=self._timeout))
        except grpc.RpcError as error:
            raise ServingError(error.code(), error.details()) from None

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Wait until the model is available; raise `ServingError` after `timeout` seconds."""
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
        ask = unary(self._channel, STATUS, messages.GetModelStatusRequest, messages.GetModelStatusResponse)
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
            return read_response(await self._predict(self._wire.request(signature_name, inputs), timeout=self._timeout))
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
