"""The configuration files of `tensorflow_model_server`, in its text formats.

Models come as `ModelServerConfig`, whose proto is public. Those of batching, monitoring and TLS are not in the public package:
their messages are built here, with TensorFlow Serving's field names and numbers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2  # noqa: F401
from tensorflow_serving.config import model_server_config_pb2

_INT64, _BOOL, _STRING, _MESSAGE = 3, 8, 9, 11
_MESSAGES: dict[str, list[tuple[str, int, int, str | None, bool]]] = {
    # name, number, type, message, is repeated
    "BatchingParameters": [
        ("max_batch_size", 1, _MESSAGE, ".google.protobuf.Int64Value", False),
        ("batch_timeout_micros", 2, _MESSAGE, ".google.protobuf.Int64Value", False),
        ("max_enqueued_batches", 3, _MESSAGE, ".google.protobuf.Int64Value", False),
        ("num_batch_threads", 4, _MESSAGE, ".google.protobuf.Int64Value", False),
        ("thread_pool_name", 5, _MESSAGE, ".google.protobuf.StringValue", False),
        ("allowed_batch_sizes", 6, _INT64, None, True),
        ("pad_variable_length_inputs", 7, _BOOL, None, False),
    ],
    "PrometheusConfig": [("enable", 1, _BOOL, None, False), ("path", 2, _STRING, None, False)],
    "MonitoringConfig": [("prometheus_config", 1, _MESSAGE, ".tfrec_serving.PrometheusConfig", False)],
    "SSLConfig": [
        ("server_key", 1, _STRING, None, False),
        ("server_cert", 2, _STRING, None, False),
        ("custom_ca", 3, _STRING, None, False),
        ("client_verify", 4, _BOOL, None, False),
    ],
}


def _build() -> dict[str, Any]:
    """The message classes, by name."""
    file = descriptor_pb2.FileDescriptorProto(
        name="tfrec_serving/config.proto", package="tfrec_serving", syntax="proto3"
    )
    file.dependency.append("google/protobuf/wrappers.proto")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, of, is_repeated in fields:
            added = message.field.add(name=field, number=number, type=kind, label=3 if is_repeated else 1)  # type: ignore[arg-type]
            if of:
                added.type_name = of
    pool = descriptor_pool.Default()
    pool.Add(file)
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tfrec_serving.{n}")) for n in _MESSAGES}


_CLASSES = _build()


def _read(path: str | os.PathLike, message):
    try:
        return text_format.Parse(Path(path).read_text(encoding="utf-8"), message)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ValueError(f"`{path}` is no {type(message).__name__} in text format: {error}") from None


def read_models(path: str | os.PathLike) -> model_server_config_pb2.ModelServerConfig:
    """A `--model_config_file`.

    Raises:
        ValueError: it cannot be parsed (the message names line and column), or a model lacks a name or a path.
    """
    config = _read(path, model_server_config_pb2.ModelServerConfig())
    try:
        check_models(config)
    except ValueError as error:
        raise ValueError(f"`{path}`: {error}") from None
    return config


def check_models(config: model_server_config_pb2.ModelServerConfig) -> None:
    """Raise `ValueError` for a config that a server cannot follow."""
    names = [model.name for model in config.model_config_list.config]
    if config.HasField("custom_model_config"):
        raise ValueError("custom_model_config is not supported; use model_config_list.")
    for model in config.model_config_list.config:
        if not model.name or not model.base_path:
            raise ValueError("Every model needs a name and a base_path.")
        if names.count(model.name) > 1:
            raise ValueError(f"Two models are called {model.name!r}.")
        if model.model_platform not in ("", "tensorflow"):
            raise ValueError(
                f"Model {model.name!r} has the platform {model.model_platform!r}; only tensorflow is served."
            )


def one_model(name: str, base_path: str | os.PathLike) -> model_server_config_pb2.ModelServerConfig:
    """The config of `--model_name` and `--model_base_path`."""
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(name=name, base_path=str(base_path), model_platform="tensorflow")
    return config


def read_batching(path: str | os.PathLike):
    """A `--batching_parameters_file`."""
    return _read(path, _CLASSES["BatchingParameters"]())


def read_monitoring(path: str | os.PathLike) -> str | None:
    """The path of metrics that a `--monitoring_config_file` enables, or None."""
    config = _read(path, _CLASSES["MonitoringConfig"]()).prometheus_config
    return (config.path or "/monitoring/prometheus/metrics") if config.enable else None


def read_ssl(path: str | os.PathLike):
    """An `--ssl_config_file`: key, certificate and CA in PEM."""
    config = _read(path, _CLASSES["SSLConfig"]())
    if not (config.server_key and config.server_cert):
        raise ValueError(f"`{path}` needs server_key and server_cert.")
    if config.client_verify and not config.custom_ca:
        raise ValueError(f"`{path}` asks for client_verify, which needs custom_ca.")
    return config
