"""The one exception of the clients."""

from __future__ import annotations

from typing import Any

import grpc


class ServingError(Exception):
    """The server refused a request or could not be reached.

    >>> try:
    ...     raise ServingError(grpc.StatusCode.UNAVAILABLE, "Nothing answers.")
    ... except ServingError as error:
    ...     print(error.code.name)
    UNAVAILABLE

    Attributes:
        code: `grpc.StatusCode`, over REST the one that the HTTP status stands for.
    """

    def __init__(self, code: grpc.StatusCode, message: str | None) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self._message = message

    def __reduce__(self) -> tuple[Any, ...]:
        # by default pickle passes the text alone, and a pool of processes that cannot read an error waits for ever
        return type(self), (self.code, self._message)
