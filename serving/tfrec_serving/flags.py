"""The flags of `tensorflow_model_server` 2.20: each is used, accepted with a warning, or refused in a sentence."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import logging
from typing import Any

log = logging.getLogger("tfrec_serving")

WITHOUT_EFFECT = {
    "rest_api_num_threads": "REST runs on an event loop",
    "enable_per_model_batching_parameters": "--batching_parameters_file holds for every model",
    "num_load_threads": "versions are loaded one after the other",
    "num_unload_threads": "a version is unloaded when its last request ends",
    "max_num_load_retries": "a version that failed is tried again when its files change",
    "load_retry_interval_micros": "a version that failed is tried again when its files change",
    "flush_filesystem_caches": "the system's cache is left alone",
    "tensorflow_session_parallelism": "use --tensorflow_intra_op_parallelism and --tensorflow_inter_op_parallelism",
    "tensorflow_session_config_file": "use --tensorflow_intra_op_parallelism and --tensorflow_inter_op_parallelism",
    "platform_config_file": "only TensorFlow models are served",
    "per_process_gpu_memory_fraction": "TensorFlow takes the memory that it needs",
    "saved_model_tags": "the tag is `serve`",
    "enable_model_warmup": "a warm-up file is always used",
    "num_request_iterations_for_warmup": "a warm-up request is sent once",
    "remove_unused_fields_from_bundle_metagraph": "nothing is removed",
    "prefer_tflite_model": "the SavedModel is served",
    "num_tflite_pools": "the SavedModel is served",
    "num_tflite_interpreters_per_pool": "the SavedModel is served",
    "enable_signature_method_name_check": "only Predict is answered",
    "xla_cpu_compilation_enabled": "XLA is always on",
    "xla_gpu_compilation_enabled": "XLA is always on",
    "enable_profiler": "there is no profiler service",
    "thread_pool_factory_config_file": "TensorFlow's own threads are used",
    "mixed_precision": "models run as they were exported",
    "skip_initialize_tpu": "there is no TPU",
    "enable_grpc_healthcheck_service": "the health service is always on",
    "enable_serialization_as_tensor_content": "answers have the form that clients read best",
}
"""Flags that change nothing here, and why."""


def _version() -> str:
    """The version of the distribution that the server came with."""
    for name in ("tfrec-towers", "tfrec-serving-client"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "of a source tree"


def flag(text: str) -> bool:
    """The value of a boolean flag."""
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"true or false, not {text!r}")
    return text.lower() in ("true", "1")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of `tfrec-model-server`."""
    parser = argparse.ArgumentParser("tfrec-model-server", description=description, allow_abbrev=False)
    add = parser.add_argument
    is_on: dict[str, Any] = {"type": flag, "nargs": "?", "const": True, "default": False}
    add("--port", type=int, default=8500, help="port of gRPC; below 0: a free one (ours)")
    add("--grpc_socket_path", default="", help="Unix socket on which gRPC listens too")
    add(
        "--rest_api_port", type=int, default=0, help="port of REST; 0, the default: no REST; below 0: a free one (ours)"
    )
    add("--rest_api_timeout_in_ms", type=int, default=30_000, help="milliseconds that a REST call may take; 0: any")
    add("--rest_api_enable_cors_support", "--enable_cors_support", **is_on, help="let pages of other origins call REST")
    add("--model_name", default="default", help="name of the model in requests")
    add("--model_base_path", default=None, help="folder with the version folders")
    add("--model_config_file", default=None, help="ModelServerConfig in text format, instead of name and path")
    add(
        "--model_config_file_poll_wait_seconds",
        type=float,
        default=0.0,
        help="seconds between looks at that file; 0: never again",
    )
    add(
        "--allow_version_labels_for_unavailable_models",
        **is_on,
        help="a label may name a version that is not there yet",
    )
    add(
        "--file_system_poll_wait_seconds",
        type=float,
        default=1.0,
        help="seconds between looks for new versions; 0 or less: only at the start",
    )
    add("--enable_batching", **is_on, help="answer requests together")
    add("--batching_parameters_file", default="", help="BatchingParameters in text format; with --enable_batching")
    add("--monitoring_config_file", default=None, help="MonitoringConfig in text format")
    add("--ssl_config_file", default=None, help="SSLConfig in text format, for gRPC")
    add("--grpc_max_threads", type=int, default=8, help="requests that are answered at a time")
    add("--grpc_channel_arguments", default="", help="options of gRPC: name=value, with commas between")
    add("--tensorflow_intra_op_parallelism", type=int, default=1, help="threads that share one op")
    add("--tensorflow_inter_op_parallelism", type=int, default=0, help="ops that run at a time; 0: cores less one")
    add("--use_alts_credentials", **is_on, help="refused: use --ssl_config_file")
    add("--version", action="version", version=f"tfrec-model-server {_version()}")
    add("--max_concurrent_requests", type=int, default=256, help="limit, beyond which requests are refused (ours)")
    add("--max_request_rows", type=int, default=4096, help="rows of a request at most; 0: any number (ours)")
    add("--allow_reload_config", **is_on, help="take HandleReloadConfigRequest on other addresses than loopback (ours)")
    add("--log_format", choices=("text", "json"), default="text", help="format of the log on standard error (ours)")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every one (ours)")
    for name in WITHOUT_EFFECT:
        add(f"--{name}", nargs="?", const="true", default=None, help=argparse.SUPPRESS)
    return parser


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> dict[str, Any]:
    """The flags as arguments of `serve`, without those that have no effect, which are logged."""
    given = vars(parser.parse_args(arguments))
    for name, reason in WITHOUT_EFFECT.items():
        if given.pop(name) is not None:
            log.warning("--%s has no effect: %s.", name, reason)
    if given.pop("use_alts_credentials"):
        parser.error(
            "--use_alts_credentials is not supported, and without it calls would not be encrypted: use --ssl_config_file"
        )
    if given["model_base_path"] is None and given["model_config_file"] is None:
        parser.error("pass --model_base_path or --model_config_file")
    if given["model_config_file"] is not None and given["model_base_path"] is not None:
        log.warning("--model_base_path and --model_name have no effect beside --model_config_file.")
        given["model_base_path"] = None
    if not given.pop("enable_batching"):
        if given["batching_parameters_file"]:
            parser.error("--batching_parameters_file needs --enable_batching")
        given["batching_parameters_file"] = None
    if given["port"] == 0 and not given["grpc_socket_path"]:
        parser.error("--port=0 turns gRPC off: pass a port, or --grpc_socket_path")
    if given["rest_api_port"] > 0 and given["rest_api_port"] == given["port"]:
        parser.error("--rest_api_port must not be that of gRPC, --port")
    pairs = [pair.partition("=") for pair in given.pop("grpc_channel_arguments").split(",") if pair]
    if any(not separator for _, separator, _ in pairs):
        parser.error("--grpc_channel_arguments: each must be name=value")
    arguments_ = [(name, int(value) if value.lstrip("-").isdigit() else value) for name, _, value in pairs]
    given["grpc_channel_arguments"] = arguments_
    for name in ("port", "rest_api_port"):
        given[name] = None if given[name] == 0 else max(given[name], 0)
    return given
