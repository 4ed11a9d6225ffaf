"""The embedded model server: TensorFlow Serving's ports, flags and answers, for a desk, a test, or a ScaNN index."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import logging
import os
import signal
import sys
import threading
from typing import Any

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
        port: int, port of gRPC; 0 takes a free one.
        rest_api_port: int, port of REST; None leaves REST out, 0 takes a free port.
        model_name: str, name of the model in requests.
        host: str, address to listen on.
        model_config_file: path of a `ModelServerConfig` in text format, for several models, version policies and labels.
        file_system_poll_wait_seconds: float, seconds between two looks for new versions; 0 never looks.
        batching_parameters_file: path that turns batching on; "" takes the default parameters.
        monitoring_config_file: path that turns on the metrics of Prometheus, over REST.
        ssl_config_file: path of key, certificate and CA for gRPC.
        grpc_max_threads: int, requests that are answered at a time.
        max_concurrent_requests: int, limit of gRPC requests and of REST requests; further ones get RESOURCE_EXHAUSTED.
    Raises:
        ValueError: a file cannot be read, or a model has no version that can be loaded.
    """

    def __init__(
        self,
        model_base_path: str | os.PathLike | None = None,
        port: int = 8500,
        rest_api_port: int | None = None,
        model_name: str = "default",
        host: str = "127.0.0.1",
        *,
        model_config_file: str | os.PathLike | None = None,
        file_system_poll_wait_seconds: float = 1.0,
        batching_parameters_file: str | os.PathLike | None = None,
        monitoring_config_file: str | os.PathLike | None = None,
        ssl_config_file: str | os.PathLike | None = None,
        grpc_max_threads: int = 8,
        max_concurrent_requests: int = 256,
    ) -> None:
        from tfrec_serving import config, grpc_services
        from tfrec_serving.batching import Batcher, BatchingParameters
        from tfrec_serving.lifecycle import Models
        from tfrec_serving.predictor import Predictor
        from tfrec_serving.rest import RestServer

        if (model_base_path is None) == (model_config_file is None):
            raise ValueError("Pass either a model base path or a model config file.")
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

        self.models = Models(models_config, file_system_poll_wait_seconds)
        if problem := self.models.problem:
            self.models.stop()
            raise ValueError(problem)
        self._batcher = None if batching is None else Batcher(batching, self.models.metrics)
        predictor = Predictor(self.models, self._batcher)
        self._grpc, self.port = grpc_services.start(
            predictor,
            f"{host}:{port}",
            ssl_config=ssl_config,
            num_threads=grpc_max_threads,
            max_concurrent_requests=max_concurrent_requests,
        )
        self._rest, self.rest_api_port = None, None
        if rest_api_port is not None:
            self._rest = RestServer(predictor, metrics_path, max_concurrent_requests)
            self.rest_api_port = self._rest.start(host, rest_api_port)

    def stop(self) -> None:
        """Let running requests finish, then stop."""
        if self._rest is not None:
            self._rest.stop()
        self._grpc.stop(grace=5).wait()
        if self._batcher is not None:
            self._batcher.stop()
        self.models.stop()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_) -> None:
        self.stop()


def serve(
    model_base_path: str | os.PathLike | None = None,
    port: int = 8500,
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
        print(f"Serving {names} from {source}: gRPC at {host}:{server.port}{rest}. Ctrl-C stops.", flush=True)
        stopped.wait()


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"true or false, not {text!r}")
    return text.lower() in ("true", "1")


def main() -> None:
    """Run `tfrec-model-server`, with flags of `tensorflow_model_server`."""
    parser = argparse.ArgumentParser("tfrec-model-server", description=__doc__)
    add = parser.add_argument
    add("--port", type=int, default=8500, help="port of gRPC")
    add("--rest_api_port", type=int, default=None, help="port of REST; left out by default")
    add("--model_name", default="default", help="name of the model in requests")
    add("--model_base_path", default=None, help="folder with the version folders")
    add("--model_config_file", default=None, help="ModelServerConfig in text format, instead of name and path")
    add(
        "--file_system_poll_wait_seconds",
        type=float,
        default=1.0,
        help="seconds between looks for new versions; 0: never",
    )
    add("--enable_batching", type=_flag, nargs="?", const=True, default=False, help="answer requests together")
    add("--batching_parameters_file", default="", help="BatchingParameters in text format; with --enable_batching")
    add("--monitoring_config_file", default=None, help="MonitoringConfig in text format")
    add("--ssl_config_file", default=None, help="SSLConfig in text format, for gRPC")
    add("--grpc_max_threads", type=int, default=8, help="requests that are answered at a time")
    add("--tensorflow_intra_op_parallelism", type=int, default=1, help="threads that share one op")
    add("--tensorflow_inter_op_parallelism", type=int, default=0, help="ops that run at a time; 0: cores less one")
    add("--max_concurrent_requests", type=int, default=256, help="limit, beyond which requests are refused (ours)")
    add("--log_format", choices=("text", "json"), default="text", help="format of the log on standard error (ours)")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every one (ours)")
    given = vars(parser.parse_args())
    if (given["model_base_path"] is None) == (given["model_config_file"] is None):
        parser.error("pass either --model_base_path or --model_config_file")
    if not given.pop("enable_batching"):
        given["batching_parameters_file"] = None
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if given.pop("log_format") == "json":
        logging.getLogger().handlers[0].setFormatter(JsonFormatter())
    try:
        serve(**given)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
