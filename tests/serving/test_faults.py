"""What goes wrong in production: damaged folders, garbage, slow and vanishing clients, a full disk, a killed server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2
from typer.testing import CliRunner

from tfrec.cli.main import app
from tfrec.deploy.saved_model import latest_version
from tfrec_serving import Client
from tfrec_serving.load import load_test, recommend_requests, server_process
from tfrec_serving.server import Server


@pytest.fixture(scope="module")
def server(exact_export):
    with Server(exact_export, 0, 0) as server:
        yield server


@pytest.fixture
def still_answers(server, data):
    """After the test, the server answers."""
    yield
    with Client(f"127.0.0.1:{server.port}", timeout=10) as client:
        assert len(client.recommend(data.vocabulary.item_ids[:2])) == 10
    assert rest(server, '{"instances": [["x"]]}')[0] == 200


def rest(server, body):
    url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/default:predict"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body.encode()), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=10)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda v: os.truncate(v / "saved_model.pb", 1000), "is damaged: export again"),
        (lambda v: os.truncate(v / "variables" / "variables.data-00000-of-00001", 5000), "1` cannot be loaded"),
        (lambda v: (v / "variables" / "variables.index").unlink(), "1` cannot be loaded"),
        (lambda v: (v / "saved_model.pb").unlink(), "has no saved_model.pb"),
        (lambda v: os.truncate(v / "assets.extra" / "tf_serving_warmup_requests", 300), "warm-up"),
        (lambda v: (v / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"no records" * 9), "warm-up"),
        (lambda v: (v / "tfrec_manifest.json").write_text("{"), "tfrec_manifest.json` is damaged"),
    ],
    ids=["model cut", "variables cut", "index missing", "no model", "warm-up cut", "warm-up garbage", "manifest cut"],
)
def test_a_damaged_version_is_refused_with_a_reason(exact_export, tmp_path, damage, message):
    shutil.copytree(latest_version(exact_export), tmp_path / "1")
    damage(tmp_path / "1")
    with pytest.raises(ValueError, match=message):
        Server(tmp_path, 0)


def test_a_warm_up_request_without_a_signature_means_the_default(exact_export, tmp_path):
    shutil.copytree(latest_version(exact_export), tmp_path / "1")
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = "default"
    request.inputs["history"].CopyFrom(tf.make_tensor_proto([["a"]]))
    with tf.io.TFRecordWriter(str(tmp_path / "1" / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        writer.write(log.SerializeToString())
    Server(tmp_path, 0).stop()


def test_a_run_without_its_vocabulary(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run" / "vocabulary.json").unlink()
    with pytest.raises(ValueError, match="vocabulary.json"):
        type(run).open(tmp_path / "run")


def test_a_disk_that_is_full_leaves_what_was_there(run, tmp_path):
    """A file may have 20 kB here; the export ends with one sentence and leaves no version behind."""
    (tmp_path / "export" / "1").mkdir(parents=True)
    export = [
        sys.executable,
        "-m",
        "tfrec.cli.main",
        "export",
        str(run.folder),
        "--out",
        str(tmp_path / "export"),
        "--index",
        "exact",
    ]
    # by a shell: a function between fork and exec may meet locks of gRPC's threads
    done = subprocess.run(["sh", "-c", 'ulimit -f 40; exec "$@"', "sh", *export], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["1"]


@pytest.mark.usefixtures("still_answers")
@pytest.mark.parametrize("port", ["port", "rest_api_port"])
def test_ten_megabytes_of_garbage(server, port):
    with connect(getattr(server, port)) as connection:
        try:
            for _ in range(10):
                connection.sendall(os.urandom(1 << 20))
        except OSError:
            return  # hung up, as it may


@pytest.mark.usefixtures("still_answers")
def test_slow_clients_hold_nobody_up(server, data):
    """Connections that say a little and then nothing: as many as there are threads and more."""
    head = b"POST /v1/models/default:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    slow = [connect(server.rest_api_port) for _ in range(40)] + [connect(server.port) for _ in range(40)]
    for i, connection in enumerate(slow):
        connection.sendall(head[: 20 + i * 5] if i < 40 else b"PRI * HTTP/2.0\r\n")
    begin = time.monotonic()
    assert rest(server, '{"instances": [["x"]]}')[0] == 200
    with Client(f"127.0.0.1:{server.port}") as client:
        assert client.recommend(data.vocabulary.item_ids[:2])
    assert time.monotonic() - begin < 5
    for connection in slow:
        connection.close()


@pytest.mark.usefixtures("still_answers")
def test_clients_that_vanish(server, data):
    body = b'{"instances": [["x"]]}'
    head = f"POST /v1/models/default:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(100):
        with connect(server.rest_api_port) as connection:
            connection.sendall(head + body)
    request = recommend_requests(data.vocabulary.item_ids, 20, number=1)
    report = load_test(f"127.0.0.1:{server.port}", request, rate=300, seconds=1, timeout=0.002)
    assert set(report.errors) <= {"DEADLINE_EXCEEDED", "CANCELLED"}


@pytest.mark.usefixtures("still_answers")
def test_a_history_of_100_000_items(server, run, data):
    """It is answered as its newest items are; as many unknown ones before them change nothing."""
    history = data.vocabulary.item_ids[:2] * 50_000
    newest = history[-run.config.max_length :]
    answers = []
    for address in (f"127.0.0.1:{server.port}", f"http://127.0.0.1:{server.rest_api_port}"):
        with Client(address) as client:
            for asked in (newest, history, ["nobody"] * 100_000 + newest):
                answers.append([r.item_id for r in client.recommend(asked)])
    assert len(answers[0]) == 10
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.usefixtures("still_answers")
def test_a_message_beyond_the_limit_is_refused(server):
    status, answer = rest(server, '{"instances": [["' + "x" * (65 << 20) + '"]]}')
    assert status == 413
    assert "error" in answer


@pytest.mark.usefixtures("still_answers")
def test_ids_with_nul_and_half_surrogates_over_rest(server):
    assert rest(server, '{"instances": [["\\u0000", "a\\u0000", "\\ud800"]]}')[0] == 200


def test_too_much_is_refused_and_a_killed_server_starts_again(exact_export, data):
    requests = recommend_requests(data.vocabulary.item_ids, 20)
    with server_process(exact_export, "--max_concurrent_requests=8", "--grpc_max_threads=2") as server:
        load = load_test(server.address, requests, rate=4000, seconds=1.5)
        assert set(load.errors) == {"RESOURCE_EXHAUSTED"}
        assert len(load.milliseconds) > 50
        after = load_test(server.address, requests, clients=1, seconds=0.5)
        assert not after.errors
        assert after.milliseconds[0] < 1000
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    with server_process(exact_export, "--log_format=json") as server, Client(server.address) as client:
        assert client.recommend(data.vocabulary.item_ids[:2])
        load = [
            "bench",
            "serve",
            str(exact_export),
            "--address",
            server.address,
            "--seconds",
            "0.3",
            "--clients",
            "2",
            "--json",
        ]
        figures = json.loads(CliRunner().invoke(app, load).output)
        assert figures["answers_per_second"] > 1
        assert 0 < figures["p50_ms"] <= figures["p99_ms"]
        assert figures["errors"] == {}
