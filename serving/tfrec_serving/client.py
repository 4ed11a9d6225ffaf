"""Clients of the recommender contract, for any server that speaks as TensorFlow Serving does; TensorFlow is not needed."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
import numpy as np

from tfrec_serving import channels
from tfrec_serving.connection import (
    Connection,
    Place,
    Waiting,
    asking,
    has_available,
    input_arrays,
    output_arrays,
    read_answer,
)
from tfrec_serving.errors import ServingError
from tfrec_serving.ids import Id
from tfrec_serving.questions import Inputs, Question, Questions, Recommendation
from tfrec_serving.rest_transport import TOO_LATE
from tfrec_serving.security import Pairs, check_metadata
from tfrec_serving.wire import RETRIED

POLL_SECONDS = 0.1
"""Pause between two looks whether a model is available."""
_inherited: list[Any] = []
"""Channels of the parent process: to close them, also by the garbage collector, could end the parent's connections."""


class Client(Connection):
    """Queries a served recommender, over gRPC or REST.

    >>> client = Client("localhost:8500")  # doctest: +SKIP
    >>> client.recommend(["50", "181"], k=2, exclude=["172"])  # doctest: +SKIP
    [Recommendation(item_id='174', score=0.71), Recommendation(item_id='210', score=0.68)]

    Args:
        address: str, `host:port` of gRPC, `http://host:port` of REST, with TLS `grpcs://` or `https://`. Also `[::1]:port`,
            `unix:/path` and other targets of gRPC. Several addresses, with commas, take turns. No proxy is used for addresses
            on this machine or in a private network.
        model_name: str, name of the model on the server. Default: `default`.
        version: int, the version that answers. Default: the newest.
        timeout: float, seconds that a call may take with its retries. A call that finds no server, or an overloaded one, is tried
            four times at most; nothing else is retried. Default: 10.
        label: str, label of the version that answers, such as `canary`. Default: none.
        ca: path of a PEM file or its contents: the authorities that the server's certificate is checked with. Turns on TLS.
            Default: those of gRPC, for `https://` those of the system.
        certificate: path of a PEM file or its contents: the client's own certificate. Default: none.
        key: path of a PEM file or its contents: the private key of `certificate`. Default: none.
        metadata: dict that goes with every call, as headers over REST, such as `{"authorization": "Bearer ..."}`; or a function
            without arguments that returns it, called for each call. Default: none.
    Raises:
        ValueError, TypeError: an argument is wrong, here or in a method. An id is text or a whole number.
        ServingError: of every method, when the server refuses a request or cannot be reached.
    """

    _api = grpc

    def _start(self) -> None:
        self._process: int | None = None
        self._places: list[Place] = []

    def _connected(self) -> list[Place]:
        """The connections, made when first needed, and in a child process again."""
        self._check_open()
        if self._process != os.getpid():
            if self._places:
                _inherited.append(self._places)
            places = self._open_places()
            self._places, self._process = places, os.getpid()  # in this order, for threads
            return places
        return self._places

    def _pairs(self) -> Pairs:
        return self._metadata if self._ask_metadata is None else check_metadata(self._ask_metadata())  # type: ignore[arg-type]

    def recommend(
        self,
        history: Sequence[Id],
        k: int = 10,
        exclude: Sequence[Id] = (),
        timestamps: Sequence[int] | None = None,
        request_time: int | None = None,
        allow: Mapping[str, Sequence[Id]] | None = None,
        deny: Mapping[str, Sequence[Id]] | None = None,
        events: Mapping[str, Sequence[Any]] | None = None,
        context: Mapping[str, Any] | None = None,
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
            events: for a model that reads columns of the log, a value for each item of the history by the name of the column, such
                as `{"event_type": ["view", "cart"]}`: text for categories, numbers for numbers, None where nothing is known. A
                column that is left out is unknown; TensorFlow Serving needs them all.
            context: for a model that reads the context of a request or properties of users, a value by name, such as
                `{"device": "phone"}`.
        """
        return self._ask(
            Questions.recommend(history, k, exclude, timestamps, request_time, allow, deny, events, context)
        )

    def similar_items(self, item_id: Id, k: int = 10) -> list[Recommendation]:
        """The `k` items most similar to one; none for an unknown item."""
        return self._ask(Questions.similar_items(item_id, k))

    def score(
        self,
        history: Sequence[Id],
        candidates: Sequence[Id],
        timestamps: Sequence[int] | None = None,
        request_time: int | None = None,
        events: Mapping[str, Sequence[Any]] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> list[float]:
        """The score of each candidate after `history`; unknown ones get `-inf`. For the rest, see `recommend`."""
        return self._ask(Questions.score(history, candidates, timestamps, request_time, events, context))

    def explain(
        self,
        history: Sequence[Id],
        item_ids: Sequence[Id],
        timestamps: Sequence[int] | None = None,
        request_time: int | None = None,
        events: Mapping[str, Sequence[Any]] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """How far each item of `history` moved the score of each of `item_ids`: the score less the score without it.

        The result is float32 `(len(item_ids), len(history))`, 0 for unknown ids. It costs as much as one score for each item of the
        history. For the rest, see `recommend`.
        """
        return self._ask(Questions.explain(history, item_ids, timestamps, request_time, events, context))

    def embed_history(
        self,
        history: Sequence[Id],
        timestamps: Sequence[int] | None = None,
        request_time: int | None = None,
        events: Mapping[str, Sequence[Any]] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """The query vector of `history`: float32 `(width,)`. For the rest, see `recommend`."""
        return self._ask(Questions.embed_history(history, timestamps, request_time, events, context))

    def embed_items(self, item_ids: Sequence[Id]) -> np.ndarray:
        """The vectors of items: float32 `(len(item_ids), width)`; zeros for unknown ones."""
        return self._ask(Questions.embed_items(item_ids))

    def _ask(self, question: Question) -> Any:
        with asking(question):
            return read_answer(question, self._send(question.signature_name, question.inputs))

    def predict(self, signature_name: str, **inputs: np.ndarray) -> Inputs:
        """Call any signature with arrays by name, also for several rows at a time; return its outputs by name."""
        return self._send(signature_name, input_arrays(inputs))

    def _send(self, signature_name: str, inputs: Inputs) -> Inputs:
        metadata = self._pairs()
        if self._rest is not None:
            self._check_open()
            return self._rest.predict(signature_name, inputs, self._timeout, metadata)
        places, request = self._connected(), self._wire.request(signature_name, inputs)
        refused = ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, TOO_LATE)
        for place, wait, left in self._attempts():
            if wait:
                time.sleep(wait)
            try:
                return output_arrays(places[place].predict(request, timeout=left, metadata=metadata))
            except channels.CALL_ERRORS as error:
                refused = channels.refusal(error)
                if refused.code.name not in RETRIED:
                    break
        raise refused from None

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Wait until the model is available; raise `ServingError` after `timeout` seconds."""
        waiting = Waiting(timeout, len(self._addresses))
        for place in waiting:
            try:
                if self._is_available(place, waiting.left):
                    return
            except ServingError as error:
                waiting.note(error)
            time.sleep(POLL_SECONDS)
        raise waiting.too_late

    def _is_available(self, place: int, left: float) -> bool:
        metadata = self._pairs()
        if self._rest is not None:
            self._check_open()
            return self._rest.is_available(left, metadata)
        status = self._connected()[place].status
        try:
            return has_available(status(self._wire.status_request(), timeout=left, metadata=metadata))
        except channels.CALL_ERRORS as error:
            raise channels.refusal(error) from None

    def close(self) -> None:
        """Close the connection. In a child process, that of the parent stays open."""
        self._is_closed = True
        if self._process == os.getpid():
            for place in self._places:
                place.channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class AsyncClient(Connection):
    """`Client` for asyncio: the same arguments, the same methods, awaited.

    >>> async def ask():
    ...     async with AsyncClient("localhost:8500") as client:
    ...         return await client.recommend(["50", "181"], k=2)
    """

    _api = grpc.aio

    def _start(self) -> None:
        self._process = os.getpid()
        self._loops: dict[asyncio.AbstractEventLoop, list[Place]] = {}  # replaced, never changed: loops run in threads

    def _connected(self) -> list[Place]:
        """The connections of the running loop, made when first needed: a channel of grpc.aio works in one loop only."""
        self._check_open()
        loop = asyncio.get_running_loop()
        if self._process != os.getpid():
            _inherited.append(self._loops)
            self._process, self._loops = os.getpid(), {}
        places = self._loops.get(loop)
        if places is None:
            places = self._open_places()
            self._loops = {other: its for other, its in self._loops.items() if not other.is_closed()} | {loop: places}
        return places

    async def _pairs(self) -> Pairs:
        if self._ask_metadata is None:
            return self._metadata
        given = self._ask_metadata()
        return check_metadata(await given if inspect.isawaitable(given) else given)

    async def recommend(self, history: Sequence[Id], k: int = 10, **others: Any) -> list[Recommendation]:
        """As `Client.recommend`."""
        return await self._ask(Questions.recommend(history, k, **others))

    async def similar_items(self, item_id: Id, k: int = 10) -> list[Recommendation]:
        """As `Client.similar_items`."""
        return await self._ask(Questions.similar_items(item_id, k))

    async def score(self, history: Sequence[Id], candidates: Sequence[Id], **others: Any) -> list[float]:
        """As `Client.score`."""
        return await self._ask(Questions.score(history, candidates, **others))

    async def explain(self, history: Sequence[Id], item_ids: Sequence[Id], **others: Any) -> np.ndarray:
        """As `Client.explain`."""
        return await self._ask(Questions.explain(history, item_ids, **others))

    async def embed_history(self, history: Sequence[Id], **others: Any) -> np.ndarray:
        """As `Client.embed_history`."""
        return await self._ask(Questions.embed_history(history, **others))

    async def embed_items(self, item_ids: Sequence[Id]) -> np.ndarray:
        """As `Client.embed_items`."""
        return await self._ask(Questions.embed_items(item_ids))

    async def _ask(self, question: Question) -> Any:
        with asking(question):
            return read_answer(question, await self._send(question.signature_name, question.inputs))

    async def predict(self, signature_name: str, **inputs: np.ndarray) -> Inputs:
        """As `Client.predict`."""
        return await self._send(signature_name, input_arrays(inputs))

    async def _send(self, signature_name: str, inputs: Inputs) -> Inputs:
        metadata = await self._pairs()
        if self._rest is not None:
            self._check_open()
            return await asyncio.to_thread(self._rest.predict, signature_name, inputs, self._timeout, metadata)
        places, request = self._connected(), self._wire.request(signature_name, inputs)
        refused = ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, TOO_LATE)
        for place, wait, left in self._attempts():
            if wait:
                await asyncio.sleep(wait)
            try:
                return output_arrays(await places[place].predict(request, timeout=left, metadata=metadata))
            except channels.CALL_ERRORS as error:
                refused = channels.refusal(error)
                if refused.code.name not in RETRIED:
                    break
        raise refused from None

    async def wait_until_ready(self, timeout: float = 60.0) -> None:
        """As `Client.wait_until_ready`."""
        waiting = Waiting(timeout, len(self._addresses))
        for place in waiting:
            try:
                if await self._is_available(place, waiting.left):
                    return
            except ServingError as error:
                waiting.note(error)
            await asyncio.sleep(POLL_SECONDS)
        raise waiting.too_late

    async def _is_available(self, place: int, left: float) -> bool:
        metadata = await self._pairs()
        if self._rest is not None:
            self._check_open()
            return await asyncio.to_thread(self._rest.is_available, left, metadata)
        status = self._connected()[place].status
        try:
            return has_available(await status(self._wire.status_request(), timeout=left, metadata=metadata))
        except channels.CALL_ERRORS as error:
            raise channels.refusal(error) from None

    async def close(self) -> None:
        """Close the connections of the running loop; no loop can use the client any more."""
        self._is_closed = True
        if self._process == os.getpid():
            for place in self._loops.get(asyncio.get_running_loop(), []):
                await place.channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_) -> None:
        await self.close()
