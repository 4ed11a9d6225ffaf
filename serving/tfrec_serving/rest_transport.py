"""The REST API of a model server by the standard library."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from typing import Any

import grpc

from tfrec_serving.addresses import Address, Turns
from tfrec_serving.errors import ServingError
from tfrec_serving.questions import Inputs
from tfrec_serving.security import Pairs, Tls
from tfrec_serving.wire import HTTP_CODES, RETRIED, Wire, from_json, to_json

CONNECT_SECONDS = 2.0
"""Seconds that one of several addresses may take to connect, before the next is tried."""
MAX_BYTES = 64 << 20
SHOWN = 200
"""Characters of a foreign answer in an error."""
UNREADABLE = (ValueError, KeyError, TypeError, RecursionError, OverflowError)
"""What reading JSON of a foreign server raises."""
TOO_LATE = "The deadline was over before an answer came."


class _QuickConnection(http.client.HTTPConnection):
    """A connection that is made quickly or not at all."""

    def connect(self) -> None:
        left, self.timeout = self.timeout, min(self.timeout or CONNECT_SECONDS, CONNECT_SECONDS)
        super().connect()
        self.timeout = left
        self.sock.settimeout(left)


class _QuickTlsConnection(_QuickConnection, http.client.HTTPSConnection):
    pass


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_QuickConnection, request)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_QuickTlsConnection, request, context=self._context)  # type: ignore[attr-defined]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """No model server redirects; a login page must not be sent the metadata."""

    def redirect_request(self, *_: Any) -> None:
        return None


def open_directly(url: str, timeout: float) -> bytes:
    """What a server on this machine answers, whatever proxy the environment names."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=timeout) as answer:
        return answer.read()


class RestTransport:
    """Asks over REST. Addresses take turns; a code of `RETRIED` is tried up to three times more.

    Args:
        addresses: list of `Address`.
        wire: `Wire`.
        tls: `Tls`, for https.
    """

    def __init__(self, addresses: list[Address], wire: Wire, tls: Tls) -> None:
        self._wire, self._turns = wire, Turns(len(addresses), 4)
        context = tls.context() if addresses[0].scheme == "https" else None
        alone = len(addresses) == 1
        handlers: list[Any] = [urllib.request.HTTPHandler() if alone else _HttpHandler(), _NoRedirects()]
        if context is not None:
            handlers.append((urllib.request.HTTPSHandler if alone else _HttpsHandler)(context=context))
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), *handlers)
        usual = urllib.request.build_opener(*handlers)  # the proxies of the environment
        self._places = [(address.target, direct if address.is_private else usual) for address in addresses]

    def predict(self, signature_name: str, inputs: Inputs, timeout: float, metadata: Pairs) -> Inputs:
        """The outputs of a signature by name."""
        columns = {name: to_json(value) for name, value in inputs.items()}
        body = json.dumps({"signature_name": signature_name, "inputs": columns}).encode()
        answer = self._ask(":predict", body, timeout, metadata, "outputs")
        # a single output stands without its name
        alone = "contributions" if signature_name == "explain" else "scores"
        alone = "embedding" if "embed" in signature_name else alone
        outputs = answer if isinstance(answer, dict) else {alone: answer}
        try:
            return {name: from_json(name, value) for name, value in outputs.items()}
        except UNREADABLE as error:
            raise ServingError(grpc.StatusCode.UNKNOWN, f"The answer cannot be read: {error}") from None

    def is_available(self, timeout: float, metadata: Pairs) -> bool:
        """Whether a version of the model answers."""
        versions = self._ask("", None, timeout, metadata, "model_version_status")
        states = (
            [version.get("state") for version in versions if isinstance(version, dict)]
            if type(versions) is list
            else []
        )
        return "AVAILABLE" in states

    def _ask(self, path: str, body: bytes | None, timeout: float, metadata: Pairs, field: str) -> Any:
        """The field of an answer.

        Raises:
            ServingError: of the last attempt.
        """
        deadline, refused = time.monotonic() + timeout, ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, TOO_LATE)
        for place, wait in self._turns():
            time.sleep(min(wait, max(0.0, deadline - time.monotonic())))
            if deadline <= time.monotonic():
                break
            base, opener = self._places[place]
            headers = {name: value for name, value in metadata if isinstance(value, str)}
            if body is not None:
                headers["content-type"] = "application/json"
            request = urllib.request.Request(base + self._wire.path + path, body, headers)
            try:
                return _open(opener, request, deadline, field)
            except ServingError as error:
                refused = error
                if error.code.name not in RETRIED:
                    break
        raise refused from None


def _open(opener: urllib.request.OpenerDirector, request: urllib.request.Request, deadline: float, field: str) -> Any:
    """Ask once."""
    codes, url = grpc.StatusCode, request.full_url
    try:
        try:
            with opener.open(request, timeout=deadline - time.monotonic()) as answer:
                content = _read(answer, deadline)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error, _read(error, deadline), url) from None
        try:
            return json.loads(content)[field]
        except UNREADABLE:
            raise ServingError(codes.UNKNOWN, _foreign(answer, content, url)) from None
    except TimeoutError:
        raise ServingError(codes.DEADLINE_EXCEEDED, TOO_LATE) from None
    except (OSError, http.client.HTTPException) as error:  # URLError and ssl.SSLError are OSErrors
        reason = getattr(error, "reason", error)
        raise ServingError(codes.UNAVAILABLE, f"{url} cannot be asked: {reason or type(error).__name__}") from None
    except UnicodeError as error:
        raise ServingError(codes.UNAVAILABLE, f"{url} is no name of a host: {error}") from None


def _read(answer: Any, deadline: float) -> bytes:
    """The whole body, in time."""
    parts, size = [], 0
    while part := answer.read1(1 << 20):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > MAX_BYTES:
            raise ServingError(grpc.StatusCode.UNKNOWN, f"The answer has more than {MAX_BYTES} bytes.")
    return b"".join(parts)


def _refusal(error: urllib.error.HTTPError, content: bytes, url: str) -> ServingError:
    """The error of an HTTP status."""
    code = HTTP_CODES.get(error.code, grpc.StatusCode.UNKNOWN)
    try:
        return ServingError(code, str(json.loads(content)["error"]))
    except UNREADABLE:
        return ServingError(code, _foreign(error, content, url))


def _foreign(answer: Any, content: bytes, url: str) -> str:
    """Says who answered where the answer is none of a model server."""
    said = re.sub(r"(?is)<(script|style).*?</\1>|<[^>]*>", " ", content.decode("utf-8", "replace"))
    said = " ".join(said.split())[:SHOWN]
    kind = answer.headers.get_content_type() if answer.headers.get("content-type") else "no content type"
    place = f", and sends to {place}" if (place := answer.headers.get("location")) else ""
    return (
        f"{url} did not answer as a model server: HTTP {answer.status}, {kind}{place}: {said!r}. "
        "Is the address right, or does a proxy or a login page stand before it?"
    )
