"""The gRPC channels of a client: with or without a proxy, with TLS, after a fork."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import grpc
import grpc.aio

from tfrec_serving.addresses import Address
from tfrec_serving.errors import ServingError
from tfrec_serving.security import Tls
from tfrec_serving.wire import CHANNEL_OPTIONS, SERVICE_CONFIG

RECONNECT_MILLISECONDS = 5_000
"""Longest pause between two attempts to connect; by default it grows to two minutes."""
RESOLVE_MILLISECONDS = 2_000
"""Shortest time between two look-ups of a name whose server is gone; by default half a minute."""
CONNECT_MILLISECONDS = 2_000
"""How long one of several addresses may take to connect, before the next is tried."""
PROBE_SECONDS = 2.0
NOT_AFTER_FORK = (
    "gRPC cannot be used in this process: it was forked from one that had used gRPC already. Fork before the first call, "
    "start processes with the method `spawn` or `forkserver` of multiprocessing, or use a http:// address."
)
CALL_ERRORS = (grpc.RpcError, ValueError, grpc.aio.UsageError)
"""What a call of gRPC raises; the last two where the channel was closed meanwhile."""
HINTS = {
    "HTTP proxy returned": "A proxy of the environment answered: `no_proxy` names the hosts that are reached without it.",
    "Failed parsing HTTP/2": "No gRPC is spoken there: write http:// for REST, grpcs:// for gRPC with TLS.",
    "WRONG_VERSION_NUMBER": "No TLS is spoken there: write grpc:// for gRPC without it.",
}
"""What to do about a refused call, by words of gRPC."""
_works: dict[int, bool] = {}
"""Whether gRPC works, by process: that of the first call, and its forks."""
_has_poller = False
"""Whether grpc.aio has started its thread, which no fork survives: the child would crash or wait for ever."""


def check_process() -> None:
    """Make sure that gRPC works in this process, which may be a fork of one that used it.

    Raises:
        ServingError: it does not.
    """
    process = os.getpid()
    if process not in _works:
        _works[process] = not _works or _works_after_fork()
    if not _works[process]:
        raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, NOT_AFTER_FORK)


def _works_after_fork() -> bool:
    """Whether calls end. In a fork of a process whose threads were inside gRPC they may wait for ever, past any deadline."""
    supported = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "1").lower() in ("1", "true", "yes", "on", "y", "t")
    if not supported or _has_poller:
        return False
    ended = threading.Event()

    def probe() -> None:
        """A call to nobody."""
        with grpc.insecure_channel("ipv4:127.0.0.1:1", [("grpc.enable_http_proxy", 0)]) as channel:
            ask: Any = channel.unary_unary("/none")
            try:
                ask(b"", timeout=PROBE_SECONDS / 2)
            except grpc.RpcError:
                ended.set()  # that it ends is enough

    threading.Thread(target=probe, daemon=True).start()
    return ended.wait(PROBE_SECONDS)


def options_of(address: Address, alone: bool = True) -> list[tuple[str, Any]]:
    """The options of a channel to an address, which is alone or one of several."""
    options = [
        *CHANNEL_OPTIONS,
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MILLISECONDS),
        ("grpc.dns_min_time_between_resolutions_ms", RESOLVE_MILLISECONDS),
    ]
    if not alone:  # the client itself tries the next address
        balancing = {"loadBalancingConfig": SERVICE_CONFIG["loadBalancingConfig"]}
        options = [option for option in options if option[0] != "grpc.service_config"]
        options += [
            ("grpc.service_config", json.dumps(balancing)),
            ("grpc.min_reconnect_backoff_ms", CONNECT_MILLISECONDS),
            ("grpc.dns_ares_query_timeout", CONNECT_MILLISECONDS),
        ]
    return [*options, *connection_options(address)]


def connection_options(address: Address) -> list[tuple[str, Any]]:
    """The options that connecting to an address needs."""
    return [("grpc.enable_http_proxy", 0)] if address.is_private else []


def open_channel(address: Address, tls: Tls, options: list[tuple[str, Any]], api: Any = grpc) -> Any:
    """A channel of `grpc` or of `grpc.aio`.

    Raises:
        ServingError: gRPC does not work in this process.
    """
    global _has_poller
    check_process()
    _has_poller = _has_poller or api is grpc.aio
    if address.scheme == "grpcs" or tls.is_given:
        return api.secure_channel(address.target, tls.credentials(), options)
    return api.insecure_channel(address.target, options)


def refusal(error: Exception) -> ServingError:
    """The error of a call over gRPC, one of `CALL_ERRORS`, with a hint where the cause is usual."""
    if not isinstance(error, grpc.RpcError):
        return ServingError(grpc.StatusCode.FAILED_PRECONDITION, str(error))
    code, details = error.code(), error.details() or ""
    return ServingError(code, details + next((f" {hint}" for sign, hint in HINTS.items() if sign in details), ""))
