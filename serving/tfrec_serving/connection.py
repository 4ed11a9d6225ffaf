"""The connection that both clients share: addresses, arguments, attempts, and the errors of answers."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import grpc
import grpc.aio
import numpy as np

from tfrec_serving import channels, messages
from tfrec_serving.addresses import Turns, read_addresses
from tfrec_serving.errors import ServingError
from tfrec_serving.ids import text_array
from tfrec_serving.questions import Inputs, Question
from tfrec_serving.rest_transport import RestTransport
from tfrec_serving.security import Metadata, Pairs, Pem, check_metadata, read_tls
from tfrec_serving.wire import PREDICT, RETRIED, STATUS, Wire, read_response, unary

STATUS_SECONDS = 5.0
"""How long one look may take whether a model is available."""
MAX_TIMEOUT = 1_000_000
"""Seconds. gRPC takes far more for a time that is over, and a socket does not take it at all."""
UNREADABLE = (KeyError, IndexError, TypeError, ValueError, AttributeError)


class Place(NamedTuple):
    """A server that is connected over gRPC."""

    channel: Any
    predict: Any
    status: Any


class Connection:
    """The connection of both clients; for the arguments, see `Client`."""

    _api: Any
    """`grpc` or `grpc.aio`."""

    def __init__(
        self,
        address: str,
        model_name: str = "default",
        version: int | None = None,
        timeout: float = 10.0,
        label: str | None = None,
        *,
        ca: Pem | None = None,
        certificate: Pem | None = None,
        key: Pem | None = None,
        metadata: Metadata | None = None,
    ) -> None:
        if not isinstance(timeout, int | float) or not 0 < timeout <= MAX_TIMEOUT:
            raise ValueError(
                f"`timeout` is a number of seconds above 0, and {MAX_TIMEOUT:,} at most. Received: {timeout!r}."
            )
        self._wire, self._timeout, self._is_closed = Wire(model_name, version, label), timeout, False
        self._addresses, self._tls = read_addresses(address), read_tls(ca, certificate, key)
        scheme = self._addresses[0].scheme
        if self._tls.is_given and scheme in ("http", "grpc"):
            raise ValueError(f"{scheme}:// has no certificates. Received {address!r}: write {scheme}s://.")
        self._metadata: Pairs = () if metadata is None or callable(metadata) else check_metadata(metadata)
        self._ask_metadata = metadata if callable(metadata) else None
        self._rest: RestTransport | None = None
        if self._addresses[0].is_rest:
            self._rest = RestTransport(self._addresses, self._wire, self._tls)
        self._turns = Turns(len(self._addresses), 4)
        self._start()

    def _start(self) -> None:
        """Make the attributes that only one of the clients has."""

    def _open_places(self) -> list[Place]:
        """Connect to every address."""
        places, alone = [], len(self._addresses) == 1
        for address in self._addresses:
            channel = channels.open_channel(address, self._tls, channels.options_of(address, alone), self._api)
            predict = unary(channel, PREDICT, messages.PredictRequest, messages.PredictResponse)
            status = unary(channel, STATUS, messages.GetModelStatusRequest, messages.GetModelStatusResponse)
            places.append(Place(channel, predict, status))
        return places

    def _check_open(self) -> None:
        if self._is_closed:
            raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, "The client is closed: make another one.")

    def _attempts(self) -> Iterable[tuple[int, float, float]]:
        """For each attempt of a call: the address, the seconds to wait before, and the seconds that are left after."""
        if len(self._addresses) == 1:  # gRPC itself tries again
            return ((0, 0.0, self._timeout),)
        return self._attempts_in_turn()

    def _attempts_in_turn(self) -> Iterator[tuple[int, float, float]]:
        deadline = time.monotonic() + self._timeout
        for place, wait in self._turns():
            left = deadline - time.monotonic() - wait
            if left > 0:
                yield place, wait, left


class Waiting:
    """Looks at the addresses in turn until the time is over."""

    def __init__(self, seconds: float, number: int) -> None:
        self._deadline, self._number, self._last = time.monotonic() + seconds, number, ""

    def __iter__(self) -> Iterator[int]:
        for look in itertools.count():
            if look and time.monotonic() > self._deadline:
                return
            yield look % self._number

    @property
    def left(self) -> float:
        """Seconds that the next look may take."""
        return min(STATUS_SECONDS, max(0.01, self._deadline - time.monotonic()))

    def note(self, error: ServingError) -> None:
        """Go on after an error that time may mend; raise others."""
        if error.code.name not in (*RETRIED, "DEADLINE_EXCEEDED"):
            raise error
        if error.code.name in RETRIED or not self._last:  # a reason says more than the end of the time
            self._last = f" {error}"

    @property
    def too_late(self) -> ServingError:
        """The error when the time is over."""
        message = f"The model was not available in time.{self._last}"
        return ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, message)


def input_arrays(inputs: Mapping[str, Any]) -> Inputs:
    """Inputs of a signature as arrays; text, and objects, as bytes."""
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    return {name: text_array(array) if array.dtype.kind in "OSU" else array for name, array in arrays.items()}


def output_arrays(response: Any) -> Inputs:
    """The outputs of a `PredictResponse` by name; `grpc.aio` gives None for bytes that are none."""
    if response is None:
        raise ServingError(grpc.StatusCode.INTERNAL, "The answer is no message of TensorFlow Serving.")
    try:
        return read_response(response)
    except UNREADABLE as error:
        raise ServingError(grpc.StatusCode.UNKNOWN, f"The answer cannot be read: {error!r}") from None


def read_answer(question: Question, outputs: Inputs) -> Any:
    """The result of a question.

    Raises:
        ServingError: the outputs are not those of a recommender.
    """
    try:
        return question.read(outputs)
    except UNREADABLE as error:
        raise ServingError(
            grpc.StatusCode.UNKNOWN,
            f"`{question.signature_name}` of this model does not answer as a recommender's: {error!r}, "
            f"in the outputs {sorted(outputs)}.",
        ) from None


@contextlib.contextmanager
def asking(question: Question) -> Iterator[None]:
    """Around a call: says what to do where the model lacks the signature of a question.

    Raises:
        ServingError: of the call, perhaps in other words.
    """
    try:
        yield
    except ServingError as error:
        if question.lacking and f'"{question.signature_name}" not found' in str(error):
            message = f"The model has no signature `{question.signature_name}`: {question.lacking}"
            raise ServingError(error.code, message) from None
        raise


def has_available(response: Any) -> bool:
    """Whether a `GetModelStatusResponse` has a version that answers."""
    return any(version.state == messages.AVAILABLE for version in response.model_version_status)
