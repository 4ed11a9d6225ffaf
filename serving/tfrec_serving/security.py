"""What a client shows to a server and asks of it: certificates, and the metadata of each call."""

from __future__ import annotations

import contextlib
import os
import re
import ssl
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import grpc

Pem = str | os.PathLike | bytes
"""The path of a PEM file, or its contents."""
Pairs = tuple[tuple[str, str | bytes], ...]
Metadata = Mapping[str, str | bytes] | Callable[[], Mapping[str, str | bytes] | Awaitable[Mapping[str, str | bytes]]]
"""Names and values that go with a call, or a function that is asked for them before each call."""


class Tls(NamedTuple):
    """The certificates of a client.

    Attributes:
        ca: bytes, PEM of the authorities that a server's certificate is checked with; None takes the usual ones.
        certificate: bytes, PEM of the client's own certificate, or None.
        key: bytes, PEM of its private key, or None.
    """

    ca: bytes | None
    certificate: bytes | None
    key: bytes | None

    @property
    def is_given(self) -> bool:
        """Whether the user named a certificate."""
        return self.ca is not None or self.certificate is not None

    def credentials(self) -> grpc.ChannelCredentials:
        """The credentials of a gRPC channel."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)

    def context(self) -> ssl.SSLContext:
        """The same for `urllib`.

        Raises:
            ValueError: OpenSSL cannot read them, or the key is not the certificate's.
        """
        name, encrypted = "`ca`", "the key has a password; give one without"
        try:
            context = ssl.create_default_context(cadata=self.ca.decode() if self.ca else None)
            name = "`certificate` and `key`"
            if self.certificate is not None and self.key is not None:
                with tempfile.TemporaryDirectory() as folder:  # OpenSSL reads a chain from files only
                    paths = [os.path.join(folder, part) for part in ("certificate", "key")]
                    for path, content in zip(paths, (self.certificate, self.key), strict=True):
                        with open(path, "wb", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
                            file.write(content)
                    if b"ENCRYPTED" in self.key:
                        raise ValueError(encrypted)
                    context.load_cert_chain(*paths)
        except ValueError as error:  # ssl.SSLError is an OSError, but UnicodeDecodeError a ValueError
            raise ValueError(f"{name} cannot be used: {error}.") from None
        except OSError as error:
            raise ValueError(f"{name} cannot be used: {error}. PEM is expected.") from None
        return context


def read_tls(ca: Pem | None, certificate: Pem | None, key: Pem | None) -> Tls:
    """The certificates that a user named, read and checked.

    Raises:
        ValueError: a file cannot be read, is no PEM, or one of certificate and key is missing.
    """
    if (certificate is None) != (key is None):
        raise ValueError(f"`certificate` and `key` go together. Received only `{'key' if key else 'certificate'}`.")
    tls = Tls(_pem(ca, "ca"), _pem(certificate, "certificate"), _pem(key, "key"))
    if tls.is_given:
        tls.context()  # gRPC would only say that the server is unavailable
    return tls


def _pem(value: Pem | None, name: str) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str) and "-----BEGIN" in value:
        return value.encode()
    with contextlib.suppress(TypeError):
        try:
            with open(os.fspath(value), "rb") as file:
                return file.read()
        except OSError as error:
            raise ValueError(f"`{name}` cannot be read: {error}.") from None
    raise TypeError(f"`{name}` is the path of a PEM file, or its contents. Received: {value!r}.")


def check_metadata(metadata: Mapping[str, str | bytes]) -> Pairs:
    """Names and values in the form of gRPC: names in small letters.

    Raises:
        TypeError, ValueError: a name or a value may not be sent; the message holds no value, which may be a secret.
    """
    if not isinstance(metadata, Mapping):
        raise TypeError(f"`metadata` is a dict, or a function that returns one. Received: {type(metadata).__name__}.")
    pairs = []
    for name, value in metadata.items():
        if not isinstance(name, str) or not re.fullmatch(r"[0-9a-z_.-]+", name.lower()) or name.lower()[:5] == "grpc-":
            raise ValueError(f"A name in `metadata` has letters, digits, - _ and . only. Received: {name!r}.")
        name = name.lower()
        if not isinstance(value, bytes if name.endswith("-bin") else str):
            kind = "bytes" if name.endswith("-bin") else "text"
            raise TypeError(f"`metadata[{name!r}]` must be {kind}. Received: {type(value).__name__}.")
        if isinstance(value, str) and not re.fullmatch(r"[ -~]*", value):
            raise ValueError(f"`metadata[{name!r}]` has a character that is not printable ASCII, such as a line break.")
        pairs.append((name, value))
    return tuple(pairs)
