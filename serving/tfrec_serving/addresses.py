"""Addresses of servers: how they are written, and which of them no proxy may stand before."""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

GRPC_PORT = 8500
"""The port of gRPC where an address names none: TensorFlow Serving's."""
GRPC_TARGET = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds|passthrough):", re.IGNORECASE)
"""Addresses in a form of gRPC's own, which go to gRPC as they are."""
PRIVATE = [
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "0.0.0.0/32",
        "::1/128", "fc00::/7", "fe80::/10", "::/128",
    )
]  # fmt: skip
EXAMPLES = "Write host:port, [::1]:port, grpcs://host:port, http://host:port, https://host:port or unix:/path."


@dataclass(frozen=True)
class Address:
    """One address of a server.

    Attributes:
        scheme: str, `grpc`, `grpcs`, `http` or `https`; "" where an address of gRPC says nothing about TLS.
        target: str, what gRPC or `urllib` connects to.
        is_private: bool, whether the server is on this machine or in a private network, where no proxy leads.
    """

    scheme: str
    target: str
    is_private: bool

    @property
    def is_rest(self) -> bool:
        """Whether the server is asked over REST."""
        return self.scheme.startswith("http")


def read_addresses(text: str) -> list[Address]:
    """One address, or several with commas.

    Raises:
        TypeError, ValueError: the text is no address; the message says how one is written.
    """
    if not isinstance(text, str):
        raise TypeError(f"`address` is text. Received: {text!r}. {EXAMPLES}")
    own_list = text.startswith(("ipv4:", "ipv6:"))  # gRPC's own lists
    found = [_read(part.strip()) for part in ([text] if own_list else text.split(","))]
    if len(schemes := {address.scheme for address in found}) > 1:
        named = " and ".join(sorted(scheme or "none" for scheme in schemes))
        raise ValueError(f"Several addresses need the same scheme. Received: {text!r}, with {named}.")
    return found


def is_private(host: str) -> bool:
    """Whether a host is on this machine or in a private network: localhost, a name without a dot, a private IP address.

    >>> is_private("localhost"), is_private("10.1.2.3"), is_private("recommender"), is_private("example.com")
    (True, True, True, False)
    """
    host = host.strip("[]").partition("%")[0].rstrip(".").lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(".localhost")
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network for network in PRIVATE)


def _read(text: str) -> Address:
    if GRPC_TARGET.match(text):
        return Address("", text, _is_private_target(text))
    wrong = f"`{text}` is no address of a server{{}}. {EXAMPLES}"
    scheme, separator, rest = text.rpartition("://") if "://" in text else ("", "", text)
    scheme = scheme.lower()
    if scheme not in ("", "grpc", "grpcs", "http", "https"):
        raise ValueError(wrong.format(f": the scheme {scheme}:// is unknown"))
    if not separator and rest.count(":") > 1 and not rest.startswith("["):
        rest = f"[{rest}]"  # an IPv6 address without a port
    try:
        parts = urlsplit(f"{scheme or 'grpc'}://{rest}")
        host, port = parts.hostname or "", parts.port
        if ":" in host:
            ipaddress.IPv6Address(host)
    except ValueError as error:
        raise ValueError(wrong.format(f": {error}")) from None
    if not host or re.search(r"[\s\"<>\\^`{|}]|\][^:/]", rest):
        raise ValueError(wrong.format(": it has no host" if not host else ": a character is not allowed"))
    if parts.username is not None or parts.query or parts.fragment or (parts.path.strip("/") and scheme[:4] != "http"):
        raise ValueError(wrong.format(": only a host and a port are read; a token goes into `metadata`"))
    private = is_private(host)
    if scheme.startswith("http"):
        return Address(scheme, f"{scheme}://{rest.rstrip('/')}", private)
    port = port or (443 if scheme == "grpcs" else GRPC_PORT)
    return Address(scheme, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", private)


def _is_private_target(text: str) -> bool:
    """Whether every host of an address in gRPC's own form is private."""
    scheme, _, rest = text.partition(":")
    if scheme.lower() in ("unix", "unix-abstract", "vsock"):
        return True
    if scheme.lower() not in ("dns", "ipv4", "ipv6"):
        return False
    ends = rest.rpartition("/")[2].split(",")
    return all(
        is_private(re.sub(r"(?<=[\]\w.]):\d+$", "", end) if end.count(":") < 2 or end.startswith("[") else end)
        for end in ends
    )


class Turns:
    """Several addresses take turns, and one that fails is followed by the next.

    Args:
        number: int, number of addresses.
        attempts: int, times that one call is tried at most. Every address is tried once.
    """

    def __init__(self, number: int, attempts: int) -> None:
        self._number, self._attempts, self._calls = number, max(number, attempts), itertools.count()

    def __call__(self) -> Iterator[tuple[int, float]]:
        """For each attempt of a call: which address, and how many seconds to wait before."""
        first = next(self._calls)
        for attempt in range(self._attempts):
            rounds = attempt - self._number  # every address once without a wait
            yield (first + attempt) % self._number, 0.0 if rounds < 0 else min(1.0, 0.05 * 2**rounds)
