"""How long a caller over gRPC may hold a thread without saying anything.

gRPC's own server gives a call a thread before its message has arrived, and waits for it without end.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc

MESSAGE_SECONDS = 30.0
"""Seconds within which the message of a call must arrive."""
CROWDED_SECONDS = 2.0
"""The same where every thread waits for a message: the others cannot be answered."""
STREAM_SECONDS = 30.0
"""Seconds that a stream of requests may take: reflection has the only ones."""


class SlowCalls(grpc.GenericRpcHandler):
    """Hangs up on calls whose message does not arrive, and on streams without an end.

    Services are added to it in place of the server, to which it is then added. It is no interceptor: those cost every call, also a
    refused one, as much again.

    Args:
        num_threads: int, threads of the server.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._services: list[grpc.GenericRpcHandler] = []
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        self._reading: dict[grpc.ServicerContext, float] = {}
        self._streaming: dict[grpc.ServicerContext, float] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Add a service, as generated code does."""
        self._services += handlers

    def add_registered_method_handlers(self, *_: Any) -> None:
        """Nothing: the same handlers come as generic ones."""

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        """The handler of a method, within the limits; None for an unknown method."""
        method = handler_call_details.method
        if method not in self._handlers:
            found = (handler for s in self._services if (handler := s.service(handler_call_details)) is not None)
            if (handler := next(found, None)) is None:  # not stored: strangers make up names
                return None
            self._handlers[method] = self._limited(handler)
        return self._handlers[method]

    def hang_up(self) -> None:
        """End the calls whose time is over."""
        now = time.monotonic()
        reading = list(self._reading.items())
        longest = CROWDED_SECONDS if len(reading) >= self._num_threads else MESSAGE_SECONDS
        late = [context for context, begin in reading if now - begin > longest]
        late += [context for context, begin in list(self._streaming.items()) if now - begin > STREAM_SECONDS]
        for context in late:
            context.cancel()  # type: ignore[attr-defined]

    def _limited(self, handler: Any) -> grpc.RpcMethodHandler:
        """A handler that gets its requests as a stream, which alone can be waited for with a `context` at hand."""
        behavior = handler.unary_unary or handler.unary_stream or handler.stream_stream

        @functools.wraps(behavior)  # with what gRPC notes at a function: its threads, and whether it blocks
        def read_and_answer(requests: Any, context: grpc.ServicerContext, *more: Any) -> Any:
            with _since(self._reading, context):
                request = next(requests, None)
            if request is None:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The call has no message.")
            return behavior(request, context, *more)

        @functools.wraps(behavior)
        def stream(requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with _since(self._streaming, context):
                yield from behavior(requests, context)

        codecs = handler.request_deserializer, handler.response_serializer
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, *codecs)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(read_and_answer, *codecs)
        return grpc.stream_unary_rpc_method_handler(read_and_answer, *codecs)


@contextlib.contextmanager
def _since(calls: dict[grpc.ServicerContext, float], context: grpc.ServicerContext) -> Iterator[None]:
    calls[context] = time.monotonic()
    try:
        yield
    finally:
        del calls[context]
