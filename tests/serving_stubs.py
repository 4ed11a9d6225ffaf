"""Servers that a client meets: a recommender without a model, a proxy, a name server."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from tfrec_serving import messages

LOGIN = b"<html><head><style>p{}</style><title>Login</title></head><body><p>Please sign in</p></body></html>"


def answer_of(name: str) -> bytes:
    """An answer of `recommend` with one item."""
    answer = messages.PredictResponse()
    messages.fill_tensor(answer.outputs.add(key="item_ids").value, np.array([[name]], object))
    messages.fill_tensor(answer.outputs.add(key="scores").value, np.ones((1, 1), np.float32))
    return answer.SerializeToString()


@dataclass
class Stub:
    """A recommender that recommends its own name, and remembers the metadata of the calls."""

    port: int
    metadata: list[dict[str, Any]] = field(default_factory=list)


@contextlib.contextmanager
def recommender(name: str = "a", address: str = "127.0.0.1:0", credentials: Any = None, answer: bytes | None = None):
    """A stub over gRPC; `answer` is sent in the place of a recommendation."""
    status = messages.GetModelStatusResponse()
    status.model_version_status.add(version=1, state=messages.AVAILABLE)
    stub = Stub(0)

    def handler(reply: bytes) -> Any:
        def handle(_: bytes, context: grpc.ServicerContext) -> bytes:
            stub.metadata.append(dict(context.invocation_metadata()))
            return reply

        return grpc.unary_unary_rpc_method_handler(handle)

    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    for service, method, reply in (
        ("PredictionService", "Predict", answer_of(name) if answer is None else answer),
        ("ModelService", "GetModelStatus", status.SerializeToString()),
    ):
        handlers = {method: handler(reply)}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(f"tensorflow.serving.{service}", handlers),)
        )
    if credentials is None:
        stub.port = server.add_insecure_port(address)
    else:
        stub.port = server.add_secure_port(address, credentials)
    server.start()
    try:
        yield stub
    finally:
        server.stop(None).wait()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers everything with what the server holds; a CONNECT opens a tunnel where the server has one."""

    protocol_version = "HTTP/1.1"

    def reply(self) -> None:
        server: Any = self.server
        self.rfile.read(int(self.headers.get("content-length", 0)))
        server.seen.append((f"{self.command} {self.path}", dict(self.headers)))
        if self.command == "CONNECT" and server.tunnel:
            self.send_response(200)
            self.end_headers()
            with socket.create_connection(("127.0.0.1", server.tunnel)) as other:
                back = threading.Thread(target=_copy, args=(other, self.connection), daemon=True)
                back.start()
                _copy(self.connection, other)
            return
        self.send_response(server.status)
        self.send_header("content-type", server.kind)
        self.send_header("content-length", str(len(server.content)))
        if server.place:
            self.send_header("location", server.place)
        self.end_headers()
        self.wfile.write(server.content)
        self.close_connection = True

    do_GET = do_POST = do_CONNECT = do_PRI = reply  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing."""


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(1 << 16):
            target.sendall(part)
        target.shutdown(socket.SHUT_WR)


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self, host: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), _Handler)

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are no error."""


@contextlib.contextmanager
def web_server(
    status: int = 403, content: bytes = LOGIN, kind: str = "text/html; charset=utf-8", place: str = "", tunnel: int = 0,
    context: Any = None, host: str = "127.0.0.1",
) -> Iterator[Any]:  # fmt: skip
    """A web server or proxy; `seen` holds the requests that reached it."""
    server: Any = _Server(host)
    server.status, server.content, server.kind, server.place, server.tunnel = status, content, kind, place, tunnel
    server.seen = []
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def rest_answer(name: str = "a") -> bytes:
    """An answer of `recommend` over REST."""
    return json.dumps({"outputs": {"item_ids": [[name]], "scores": [[1.0]]}}).encode()


@contextlib.contextmanager
def name_server(addresses: dict[str, str]) -> Iterator[int]:
    """A DNS server on a free port; `addresses` may change meanwhile."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    query, client = udp.recvfrom(512)
                    labels, at = [], 12
                    while size := query[at]:
                        labels.append(query[at + 1 : at + 1 + size].decode())
                        at += 1 + size
                    question, kind = query[12 : at + 5], int.from_bytes(query[at + 1 : at + 3], "big")
                    found = addresses.get(".".join(labels).lower()) if kind == 1 else None  # A, not AAAA
                    record = b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\x04" + socket.inet_aton(found) if found else b""
                    known = ".".join(labels).lower() in addresses
                    flags = b"\x81\x80" if known else b"\x81\x83"
                    header = query[:2] + flags + b"\0\x01" + (b"\0\x01" if record else b"\0\0") + b"\0\0\0\0"
                    udp.sendto(header + question + record, client)

        threading.Thread(target=serve, daemon=True).start()
        yield udp.getsockname()[1]


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate for this machine that signs itself: `(certificate, key)`."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    return certificate, key


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> None:
    """Wait until a condition holds; fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
