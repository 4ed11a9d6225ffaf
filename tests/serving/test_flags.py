"""The server as operators start it: flags, ports, version folders, labels, configs that change, threads that are busy."""

import json
import logging
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from serving_stubs import free_port, wait_for
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

from tfrec.deploy.saved_model import latest_version
from tfrec_serving import Client
from tfrec_serving.config import one_model
from tfrec_serving.flags import WITHOUT_EFFECT, make_parser, parse
from tfrec_serving.lifecycle import Models, version_folders
from tfrec_serving.servable import Servable
from tfrec_serving.server import Server

HELP = """
port grpc_socket_path rest_api_port rest_api_num_threads rest_api_timeout_in_ms rest_api_enable_cors_support enable_batching
allow_version_labels_for_unavailable_models batching_parameters_file enable_per_model_batching_parameters model_config_file
model_config_file_poll_wait_seconds model_name model_base_path num_load_threads num_unload_threads max_num_load_retries
load_retry_interval_micros file_system_poll_wait_seconds flush_filesystem_caches tensorflow_session_parallelism
tensorflow_session_config_file tensorflow_intra_op_parallelism tensorflow_inter_op_parallelism use_alts_credentials
ssl_config_file platform_config_file per_process_gpu_memory_fraction saved_model_tags grpc_channel_arguments grpc_max_threads
enable_model_warmup num_request_iterations_for_warmup version monitoring_config_file remove_unused_fields_from_bundle_metagraph
prefer_tflite_model num_tflite_pools num_tflite_interpreters_per_pool enable_signature_method_name_check
xla_cpu_compilation_enabled xla_gpu_compilation_enabled enable_profiler thread_pool_factory_config_file mixed_precision
skip_initialize_tpu enable_grpc_healthcheck_service enable_serialization_as_tensor_content
"""
"""The flags in `tensorflow_model_server --help`, 2.20."""
OF_TENSORFLOW_SERVING = frozenset(HELP.split())


@pytest.fixture
def base(exact_export, tmp_path):
    """A base path with one version, as Kubernetes would mount it: a link to a folder."""
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "0001").symlink_to(latest_version(exact_export).resolve())
    return tmp_path / "films"


@pytest.fixture
def servables(monkeypatch):
    """Versions that load at once."""
    monkeypatch.setattr(Servable, "__init__", lambda self, name, folder: setattr(self, "folder", folder))


def make(base, *names):
    for name in names:
        (base / name).mkdir(parents=True)
    return base


# --- flags -------------------------------------------------------------------------------------------------------------


def test_every_flag_of_tensorflow_serving_is_known(caplog):
    known = {option.lstrip("-") for action in make_parser("")._actions for option in action.option_strings}
    assert len(OF_TENSORFLOW_SERVING) == 48
    assert known >= OF_TENSORFLOW_SERVING
    assert set(WITHOUT_EFFECT) <= OF_TENSORFLOW_SERVING
    flags = [f"--{name}=1" for name in WITHOUT_EFFECT]
    with caplog.at_level(logging.WARNING):
        given = parse(
            make_parser(""), ["--model_base_path=/models/films", "--rest_api_port=0", "--enable_profiler", *flags]
        )
    assert [record.message.split()[0].lstrip("-") for record in caplog.records] == list(WITHOUT_EFFECT)
    assert "--num_load_threads has no effect: versions are loaded one after the other." in caplog.messages
    assert not set(WITHOUT_EFFECT) & set(given)
    assert (given["rest_api_port"], given["port"], given["batching_parameters_file"]) == (None, 8500, None)
    given = parse(make_parser(""), ["--model_config_file=/c", "--model_base_path=/x", "--enable_batching"])
    assert (given["model_config_file"], given["model_base_path"], given["batching_parameters_file"]) == ("/c", None, "")
    assert "--model_base_path and --model_name have no effect beside --model_config_file." in caplog.messages
    given = parse(
        make_parser(""), ["--model_base_path=/x", "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,a=b"]
    )
    assert given["grpc_channel_arguments"] == [("grpc.max_connection_age_ms", 2000), ("a", "b")]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "pass --model_base_path or --model_config_file"),
        (["--model_base_path=/x", "--use_alts_credentials"], "calls would not be encrypted: use --ssl_config_file"),
        (
            ["--model_base_path=/x", "--batching_parameters_file=/b"],
            "--batching_parameters_file needs --enable_batching",
        ),
        (["--model_base_path=/x", "--port=0"], "--port=0 turns gRPC off: pass a port, or --grpc_socket_path"),
        (["--model_base_path=/x", "--port=85", "--rest_api_port=85"], "--rest_api_port must not be that of gRPC"),
        (["--model_base_path=/x", "--grpc_channel_arguments=a"], "each must be name=value"),
        (["--model_base_path=/x", "--model_base=/y"], "unrecognized arguments: --model_base=/y"),
        (["--model_base_path=/x", "--enable_batching=perhaps"], "true or false, not 'perhaps'"),
    ],
)
def test_flags_that_cannot_be_followed_say_why(flags, message, capsys):
    with pytest.raises(SystemExit):
        parse(make_parser(""), flags)
    assert message in capsys.readouterr().err


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit):
        parse(make_parser(""), ["--version"])
    assert capsys.readouterr().out.startswith("tfrec-model-server ")


# --- folders and labels ------------------------------------------------------------------------------------------------


def test_version_folders_are_numbers_however_they_are_written(tmp_path, caplog):
    base = make(tmp_path, "0001", "7", "007", "12", "²", "1a", "-3", ".9", "9" * 30)
    (base / "13").write_text("no folder")
    assert version_folders(base) == {1: base / "0001", 7: base / "7", 12: base / "12"}
    assert f"Ignored `{base / '007'}`: `7` is the same version" in caplog.text


def test_a_version_with_leading_zeros_is_served(base):
    with Server(base, 0) as server, Client(f"127.0.0.1:{server.port}") as client:
        assert server.models.find("default").version == 1
        assert len(client.recommend([], 3)) == 3


def labelled(base, label, version):
    config = one_model("films", base)
    config.model_config_list.config[0].version_labels[label] = version
    return config


def test_a_label_that_names_a_missing_version_at_the_start(tmp_path, servables):
    base = make(tmp_path / "films", "1")
    file = tmp_path / "models.config"
    file.write_text(str(labelled(base, "canary", 2)))
    with pytest.raises(
        ValueError, match="label canary to version 2 of model films.*--allow_version_labels_for_unavailable"
    ):
        Server(None, 0, model_config_file=file)
    models = Models(labelled(base, "canary", 2), 0, allow_labels_without_version=True)
    make(base, "2")
    models.poll()
    assert models.find("films", label="canary").folder == base / "2"


@pytest.mark.parametrize("seconds", [0, -1])
def test_no_polling_looks_once(tmp_path, servables, seconds):
    base = make(tmp_path / "films", "1")
    before = threading.active_count()
    models = Models(one_model("films", base), seconds)
    assert threading.active_count() == before  # -1 was a loop without a pause
    make(base, "2")
    time.sleep(0.05)
    assert models.find("films").folder == base / "1"
    models.stop()


def test_the_config_file_is_followed(tmp_path, exact_export, caplog):
    base = latest_version(exact_export).parent
    file = tmp_path / "models.config"
    file.write_text(str(one_model("a", base)))
    with Server(None, 0, model_config_file=file, model_config_file_poll_wait_seconds=0.05) as server:
        file.write_text(str(one_model("b", base)))
        wait_for(lambda: server.models.names == ["b"])
        file.write_text("nonsense {")
        wait_for(lambda: "is no ModelServerConfig in text format" in caplog.text)
        assert server.models.names == ["b"]
        file.write_text(str(one_model("c", base)))
        wait_for(lambda: server.models.names == ["c"])
        assert caplog.text.count("is no ModelServerConfig") == 1


# --- ports -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", ["gRPC", "REST"])
def test_a_taken_port_leaves_nothing_running(base, tmp_path, taken):
    batching = tmp_path / "batching.txt"
    batching.write_text("num_batch_threads { value: 3 }")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port, free = other.getsockname()[1], free_port()
        before = set(threading.enumerate())
        with pytest.raises(OSError, match=f"{taken} cannot listen at 127.0.0.1:{port}: "):
            Server(base, *((port, free) if taken == "gRPC" else (free, port)), batching_parameters_file=batching)
        # the threads of health are of the process, not of a server
        wait_for(lambda: not [t for t in set(threading.enumerate()) - before if not t.name.startswith("health")], 10)
    with socket.socket() as s:
        s.bind(("127.0.0.1", free))  # nobody listens
    with Server(base, free) as server:
        assert server.port == free


def test_a_taken_port_ends_the_command(base):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        command = [sys.executable, "-c", "from tfrec_serving.server import main; main()", f"--model_base_path={base}"]
        done = subprocess.run(
            [*command, f"--port={other.getsockname()[1]}"], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2
    assert "error: gRPC cannot listen at 127.0.0.1:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_unix_socket(base, tmp_path):
    path = tmp_path / "grpc.sock"
    with Server(base, None, grpc_socket_path=str(path)) as server, Client(f"unix:{path}") as client:
        assert server.port is None
        assert len(client.recommend([], 3)) == 3


# --- who may ask what --------------------------------------------------------------------------------------------------


def test_configs_are_taken_from_requests_on_loopback_alone(base):
    request = model_management_pb2.ReloadConfigRequest()
    request.config.CopyFrom(one_model("other", base))
    for options, is_taken in (
        ({}, True),
        ({"host": "0.0.0.0"}, False),
        ({"host": "0.0.0.0", "allow_reload_config": True}, True),
    ):
        with Server(base, 0, **options) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            service = model_service_pb2_grpc.ModelServiceStub(channel)
            if is_taken:
                service.HandleReloadConfigRequest(request)
                assert server.models.names == ["other"]
            else:
                with pytest.raises(grpc.RpcError, match="Start it with --allow_reload_config") as refused:
                    service.HandleReloadConfigRequest(request)
                assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
                assert server.models.names == ["default"]


def test_health_is_answered_while_every_thread_is_busy(base, monkeypatch):
    is_free = threading.Event()
    with Server(base, 0, grpc_max_threads=2) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        run = Servable.run
        monkeypatch.setattr(Servable, "run", lambda self, *a, **k: is_free.wait(30) and run(self, *a, **k))
        with Client(f"127.0.0.1:{server.port}") as client:
            busy = [threading.Thread(target=client.recommend, args=([], 3)) for _ in range(6)]
            for thread in busy:
                thread.start()
            time.sleep(0.3)
            began = time.monotonic()
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert "tensorflow.serving.PredictionService" in ProtoReflectionDescriptorDatabase(channel).get_services()
            assert time.monotonic() - began < 2
            is_free.set()
            for thread in busy:
                thread.join()


# --- REST --------------------------------------------------------------------------------------------------------------


def ask(url, body=b'{"instances": [[]], "signature_name": "serving_default"}', method="POST", **headers):
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_cors(base):
    for has_cors in (True, False):
        with Server(base, 0, 0, rest_api_enable_cors_support=has_cors) as server:
            url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/default"
            for method, place, expected in (("GET", "", 200), ("POST", ":nothing", 400)):
                status, headers, _ = ask(url + place, None if method == "GET" else b"{}", method)
                assert status == expected
                assert headers.get("Access-Control-Allow-Origin") == ("*" if has_cors else None)
            status, headers, _ = ask(url + ":predict", None, "OPTIONS", Origin="https://shop.example")
            assert (status, headers.get("Access-Control-Allow-Methods")) == (
                (200, "POST, GET") if has_cors else (400, None)
            )
            if has_cors:
                assert ask(url + ":predict", None, "OPTIONS")[0] == 400


def test_a_rest_call_has_a_time_limit(base, monkeypatch):
    with Server(base, 0, 0, rest_api_timeout_in_ms=200) as server:
        url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/default:predict"
        assert ask(url)[0] == 200
        run = Servable.run
        monkeypatch.setattr(Servable, "run", lambda self, *a, **k: time.sleep(1) or run(self, *a, **k))
        began = time.monotonic()
        status, _, body = ask(url)
        assert time.monotonic() - began < 0.9
        assert (status, json.loads(body)) == (504, {"error": "The request was not answered within 0.2 seconds."})
