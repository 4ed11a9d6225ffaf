"""The embedded model server: TensorFlow Serving's ports, flags and answers, for a desk, a test, or a ScaNN index."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

log = logging.getLogger("tfrec_serving")


class Server:
    """A model served over gRPC and, when asked for, REST.

    Args:
        model_base_path: the folder with the version folders; the newest is loaded.
        port: of gRPC; 0 takes a free one.
        rest_api_port: of REST; None leaves it out, 0 takes a free one.
        model_name: how requests call the model.
        host: the address to listen on.
    Raises:
        ValueError: there is no version folder, or it cannot be loaded.
    """

    def __init__(
        self,
        model_base_path: str | os.PathLike,
        port: int = 8500,
        rest_api_port: int | None = None,
        model_name: str = "default",
        host: str = "127.0.0.1",
    ) -> None:
        from tfrec_serving import grpc_services
        from tfrec_serving.rest import RestServer
        from tfrec_serving.servable import Models, Servable, newest_version

        models = Models([Servable(model_name, newest_version(Path(model_base_path)))])
        self._grpc, self.port = grpc_services.start(models, f"{host}:{port}")
        self._rest = None if rest_api_port is None else RestServer(models)
        self.rest_api_port = (
            None if rest_api_port is None or self._rest is None else self._rest.start(host, rest_api_port)
        )

    def stop(self) -> None:
        """Let running requests finish, then stop."""
        if self._rest is not None:
            self._rest.stop()
        self._grpc.stop(grace=5).wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_) -> None:
        self.stop()


def serve(
    model_base_path: str | os.PathLike,
    port: int = 8500,
    rest_api_port: int | None = None,
    model_name: str = "default",
    host: str = "127.0.0.1",
) -> None:
    """Serve until SIGINT or SIGTERM."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with Server(model_base_path, port, rest_api_port, model_name, host) as server:
        rest = "" if server.rest_api_port is None else f", REST at {host}:{server.rest_api_port}"
        print(
            f"Serving `{model_name}` from {model_base_path}: gRPC at {host}:{server.port}{rest}. Ctrl-C stops.",
            flush=True,
        )
        stopped.wait()


def main() -> None:
    """`tfrec-model-server`: the flags of `tensorflow_model_server` that it understands."""
    parser = argparse.ArgumentParser("tfrec-model-server", description=__doc__)
    parser.add_argument("--port", type=int, default=8500, help="port of gRPC")
    parser.add_argument("--rest_api_port", type=int, default=None, help="port of REST; left out by default")
    parser.add_argument("--model_name", default="default", help="how requests call the model")
    parser.add_argument("--model_base_path", required=True, help="folder with the version folders")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every one")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        serve(given.model_base_path, given.port, given.rest_api_port, given.model_name, given.host)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
