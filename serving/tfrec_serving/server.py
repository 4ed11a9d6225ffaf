"""The embedded model server: TensorFlow Serving's ports, flags and answers, for a desk, a test, or a ScaNN index."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfrec_serving.flags import make_parser, parse

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# oneDNN keeps a kernel for every shape, in every thread: memory would grow with each new number of rows and width; no speed is lost
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

log = logging.getLogger("tfrec_serving")


class JsonFormatter(logging.Formatter):
    """Writes a log record as a line of JSON: `time`, `level`, `message`, and where they apply `model`, `version`, `error`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname, "message": record.getMessage()}
        line |= {name: getattr(record, name) for name in ("model", "version") if hasattr(record, name)}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class Server:
    """Models served over gRPC and, when asked for, REST.

    Args:
        model_base_path: path of the folder with the version folders; None with `model_config_file`.
        port: int, port of gRPC; 0 takes a free one, None leaves TCP out.
        rest_api_port: int, port of REST; None leaves REST out, 0 takes a free port.
        model_name: str, name of the model in requests.
        host: str, address to listen on.
        model_config_file: path of a `ModelServerConfig` in text format, for several models, version policies and labels.
        model_config_file_poll_wait_seconds: float, seconds between two looks at that file; 0 never looks again.
        allow_version_labels_for_unavailable_models: bool, whether a label may name a version that is not there yet.
        file_system_poll_wait_seconds: float, seconds between two looks for new versions; 0 or less never looks again.
        batching_parameters_file: path that turns batching on; "" takes the default parameters.
        monitoring_config_file: path that turns on the metrics of Prometheus, over REST.
        ssl_config_file: path of key, certificate and CA for gRPC.
        grpc_socket_path: path of a Unix socket on which gRPC listens too; "" for none.
        grpc_max_threads: int, requests that are answered at a time.
        grpc_channel_arguments: pairs of name and value, further options of gRPC.
        max_concurrent_requests: int, limit of gRPC requests and of REST requests; further ones get RESOURCE_EXHAUSTED.
        max_request_rows: int, rows of a request at most; more are refused with INVALID_ARGUMENT. 0: any number. A full batch of
            `batching_parameters_file` is never refused. Default: 4,096.
        allow_reload_config: bool, whether a request may change which models are served, where `host` is not loopback.
        rest_api_timeout_in_ms: int, milliseconds that a REST call may take; 0: any.
        rest_api_enable_cors_support: bool, whether pages of other origins may call REST.
    Raises:
        ValueError: a number is out of its range, a file cannot be read, a model has no version that can be loaded, or a label
            names a missing version.
        OSError: a port is taken. Nothing is left running.
    """

    def __init__(
        self,
        model_base_path: str | os.PathLike | None = None,
        port: int | None = 8500,
        rest_api_port: int | None = None,
        model_name: str = "default",
        host: str = "127.0.0.1",
        *,
        model_config_file: str | os.PathLike | None = None,
        model_config_file_poll_wait_seconds: float = 0.0,
        allow_version_labels_for_unavailable_models: bool = False,
        file_system_poll_wait_seconds: float = 1.0,
        batching_parameters_file: str | os.PathLike | None = None,
        monitoring_config_file: str | os.PathLike | None = None,
        ssl_config_file: str | os.PathLike | None = None,
        grpc_socket_path: str = "",
        grpc_max_threads: int = 8,
        grpc_channel_arguments: Sequence[tuple[str, Any]] = (),
        max_concurrent_requests: int = 256,
        max_request_rows: int = 4096,
        allow_reload_config: bool = False,
        rest_api_timeout_in_ms: int = 30_000,
        rest_api_enable_cors_support: bool = False,
    ) -> None:
        from tfrec_serving import config, grpc_services
        from tfrec_serving.batching import Batcher, BatchingParameters
        from tfrec_serving.lifecycle import Models
        from tfrec_serving.predictor import Predictor
        from tfrec_serving.rest import RestServer
        from tfrec_serving.servable import RequestError

        if (model_base_path is None) == (model_config_file is None):
            raise ValueError("Pass either a model base path or a model config file.")
        for name, value, least, most in (
            ("port", port or 0, 0, 65_535),  # gRPC would take a free one without a word
            ("rest_api_port", rest_api_port or 0, 0, 65_535),
            ("grpc_max_threads", grpc_max_threads, 1, math.inf),
            ("max_concurrent_requests", max_concurrent_requests, 1, math.inf),
            ("max_request_rows", max_request_rows, 0, math.inf),
            ("file_system_poll_wait_seconds", file_system_poll_wait_seconds, -math.inf, threading.TIMEOUT_MAX),
            (
                "model_config_file_poll_wait_seconds",
                model_config_file_poll_wait_seconds,
                -math.inf,
                threading.TIMEOUT_MAX,
            ),
        ):
            if not least <= value <= most:  # nor NaN
                raise ValueError(f"`{name}` must be between {least:,} and {most:,}. Received: {value}.")
        models_config = (
            config.read_models(model_config_file)
            if model_config_file is not None
            else config.one_model(model_name, str(model_base_path))
        )
        ssl_config = None if ssl_config_file is None else config.read_ssl(ssl_config_file)
        metrics_path = None if monitoring_config_file is None else config.read_monitoring(monitoring_config_file)
        batching = None
        if batching_parameters_file is not None:
            given = str(batching_parameters_file) and config.read_batching(batching_parameters_file)
            batching = BatchingParameters.from_proto(given) if given else BatchingParameters()
        self.port, self.rest_api_port = None, None
        with contextlib.ExitStack() as running:  # what was started is stopped where a later step fails
            try:
                self.models = Models(
                    models_config, file_system_poll_wait_seconds, allow_version_labels_for_unavailable_models
                )
            except RequestError as error:
                raise ValueError(
                    f"{error}. Mend the label, or pass --allow_version_labels_for_unavailable_models."
                ) from None
            running.callback(self.models.stop)
            if problem := self.models.problem:
                raise ValueError(problem)
            batcher = None if batching is None else Batcher(batching, self.models.metrics)
            if batcher is not None:
                running.callback(batcher.stop)
            predictor = Predictor(self.models, batcher, max_request_rows)
            if rest_api_port is not None:
                self._rest = RestServer(
                    predictor,
                    metrics_path,
                    max_concurrent_requests,
                    timeout_seconds=rest_api_timeout_in_ms / 1000,
                    has_cors=rest_api_enable_cors_support,
                )
                running.callback(self._rest.stop)
                self.rest_api_port = self._rest.start(host, rest_api_port)
            addresses = [] if port is None else [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
            addresses += [f"unix:{grpc_socket_path}"] if grpc_socket_path else []
            grpc_server, ports = grpc_services.start(
                predictor,
                addresses,
                ssl_config=ssl_config,
                num_threads=grpc_max_threads,
                max_concurrent_requests=max_concurrent_requests,
                allow_reload=allow_reload_config or is_loopback(host),
                channel_arguments=grpc_channel_arguments,
            )
            running.callback(lambda: grpc_server.stop(grace=5).wait())
            self.port = None if port is None else ports[0]
            if model_config_file is not None and model_config_file_poll_wait_seconds > 0:
                follow = ConfigFile(model_config_file, self.models)
                self.models.every(model_config_file_poll_wait_seconds, follow, f"follow `{model_config_file}`")
            self._running = running.pop_all()

    def stop(self) -> None:
        """Let running requests finish, then stop."""
        self._running.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_) -> None:
        self.stop()


class ConfigFile:
    """Follows a model config file: each call has the models follow it, where it has changed since the last one."""

    def __init__(self, path: str | os.PathLike, models: Any) -> None:
        self.path, self.models = Path(path), models
        self._content = self.path.read_bytes()

    def __call__(self) -> None:
        from tfrec_serving import config

        content = self.path.read_bytes()
        if content != self._content:
            self._content = content  # what is wrong is said once
            self.models.reload(config.read_models(self.path))
            log.info("Followed the change of `%s`", self.path)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.2", "::1", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(
    model_base_path: str | os.PathLike | None = None,
    port: int | None = 8500,
    host: str = "127.0.0.1",
    *,
    tensorflow_intra_op_parallelism: int = 1,
    tensorflow_inter_op_parallelism: int = 0,
    **options: Any,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        tensorflow_intra_op_parallelism: threads that share one op. Several requests at a time use the cores better than one op
            on all of them; catalogues of millions, ranked exactly, may want more.
        tensorflow_inter_op_parallelism: ops that run at a time, of all requests; 0: a core is left to the network.
    The other arguments are those of `Server`.
    """
    import tensorflow as tf

    threads = tensorflow_inter_op_parallelism or max(1, len(os.sched_getaffinity(0)) - 1)
    with contextlib.suppress(RuntimeError):  # a process that has used TensorFlow before keeps the threads it has
        tf.config.threading.set_intra_op_parallelism_threads(tensorflow_intra_op_parallelism)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with Server(model_base_path, port, host=host, **options) as server:
        rest = "" if server.rest_api_port is None else f", REST at {host}:{server.rest_api_port}"
        names = ", ".join(f"`{name}`" for name in server.models.names)
        source = options.get("model_config_file") or model_base_path
        where = f"{host}:{server.port}" if server.port else options["grpc_socket_path"]
        print(f"Serving {names} from {source}: gRPC at {where}{rest}. Ctrl-C stops.", flush=True)
        stopped.wait()


def main() -> None:
    """Run `tfrec-model-server`, with the flags of `tensorflow_model_server`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    given = parse(make_parser(__doc__))
    if given.pop("log_format") == "json":
        logging.getLogger().handlers[0].setFormatter(JsonFormatter())
    try:
        serve(**given)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
