"""The contract page and the operator's files keep their word: its requests are replayed, its files are read."""

import json
import logging
import re
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from tfrec_serving.batching import BatchingParameters
from tfrec_serving.config import read_batching, read_models, read_monitoring, read_ssl
from tfrec_serving.flags import make_parser
from tfrec_serving.server import JsonFormatter, Server

SERVING = Path(__file__).parents[2] / "serving"
PAGE = (SERVING / "README.md").read_text(encoding="utf-8")
METRIC = re.compile(r":tensorflow[\w:]+")
BLOCKS = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]


def described(value, width):
    """An answer as the page describes it."""
    if isinstance(value, dict):
        return {name: described(one, width) for name, one in value.items()}
    array = np.array(value)
    sizes = ["width" if size == width else str(size) for size in array.shape]
    return f"{'string' if array.dtype.kind == 'U' else 'float'} {' x '.join(sizes)}"


def test_every_signature_of_the_page_answers_as_described(exact_export, run):
    with Server(exact_export, 0, 0) as server:
        for request, expected in zip(BLOCKS[::2], BLOCKS[1::2], strict=True):
            url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/default:predict"
            with urllib.request.urlopen(urllib.request.Request(url, json.dumps(request).encode())) as answer:
                assert described(json.load(answer), run.config.width) == expected, request
    shown = {block.get("signature_name", "serving_default") for block in BLOCKS[::2]}
    assert shown == {
        "serving_default",
        "recommend",
        "similar_items",
        "score",
        "explain",
        "embed_history",
        "embed_items",
    }


def test_the_operators_files_are_read():
    (model,) = read_models(SERVING / "config" / "models.config").model_config_list.config
    assert model.base_path == "/models/default"
    batching = BatchingParameters.from_proto(read_batching(SERVING / "config" / "batching.config"))
    assert batching.pad_variable_length_inputs
    assert batching.allowed_batch_sizes[-1] == batching.max_batch_size == 64
    assert read_monitoring(SERVING / "config" / "monitoring.config") == "/monitoring/prometheus/metrics"
    known = {option.lstrip("-") for action in make_parser("")._actions for option in action.option_strings}
    compose = (SERVING / "compose.yaml").read_text()
    assert set(re.findall(r"--(\w+)=", compose)) <= known
    assert set(re.findall(r"--(\w+)=", (SERVING / "k8s" / "recommender.yaml").read_text())) <= known


def test_the_dashboard_asks_for_metrics_that_there_are(exact_export, tmp_path):
    text = (SERVING / "grafana.json").read_text(encoding="utf-8")
    asked = {
        name for panel in json.loads(text)["panels"] for t in panel["targets"] for name in METRIC.findall(t["expr"])
    }
    flags = {
        "monitoring_config_file": SERVING / "config" / "monitoring.config",
        "batching_parameters_file": SERVING / "config" / "batching.config",
    }
    with Server(exact_export, 0, 0, **flags) as server:
        url = f"http://127.0.0.1:{server.rest_api_port}"
        body = json.dumps({"instances": [["a"]]}).encode()
        urllib.request.urlopen(urllib.request.Request(f"{url}/v1/models/default:predict", body)).close()
        with urllib.request.urlopen(f"{url}/monitoring/prometheus/metrics") as answer:
            given = set(re.findall(r"^(:[\w:]+)", answer.read().decode(), re.MULTILINE))
    assert asked
    assert asked <= given


def test_the_images_run_nothing_but_the_script_that_make_runs():
    root = SERVING.parent
    runs = re.findall(r"^RUN (.*)$", (root / "Dockerfile").read_text(), re.MULTILINE)
    assert runs == ["sh serving/docker/install.sh /opt/tfrec python3 ."]
    assert "sh serving/docker/install.sh .venv" in (root / "Makefile").read_text()
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", (root / "Dockerfile").read_text(), re.MULTILINE)
    assert all((root / name).exists() for line in copied for name in line.split() if "$" not in name)


def test_a_log_line_is_json():
    record = logging.LogRecord(
        "tfrec_serving", logging.INFO, __file__, 1, "Serving version %d of %s", (3, "films"), None
    )
    record.model, record.version = "films", 3
    line = json.loads(JsonFormatter().format(record))
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "INFO", "message": "Serving version 3 of films", "model": "films", "version": 3}


def test_tls_and_mutual_tls(exact_export, tmp_path):
    """With a key and a certificate made by openssl; without the client's own, a server that asks for it hangs up."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    pem = {"server_key": key.read_text(), "server_cert": certificate.read_text(), "custom_ca": certificate.read_text()}
    for verifies in (False, True):
        file = tmp_path / "ssl.config"
        file.write_text(
            "\n".join(f"{n}: {json.dumps(v)}" for n, v in pem.items()) + f"\nclient_verify: {str(verifies).lower()}"
        )
        assert read_ssl(file).client_verify is verifies
        with Server(exact_export, 0, ssl_config_file=file) as server:
            own = (key.read_bytes(), certificate.read_bytes())
            for has_own in (True, False):
                credentials = grpc.ssl_channel_credentials(certificate.read_bytes(), *(own if has_own else ()))
                with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
                    ask = health_pb2_grpc.HealthStub(channel).Check
                    if has_own or not verifies:
                        assert ask(health_pb2.HealthCheckRequest(), timeout=10).status
                    else:
                        with pytest.raises(grpc.RpcError):
                            ask(health_pb2.HealthCheckRequest(), timeout=10)
