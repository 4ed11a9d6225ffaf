"""Versions come and go, several models are served, and no request notices: over real sockets."""

import contextlib
import gc
import json
import shutil
import threading
import time
import urllib.request
import weakref

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from serving_stubs import wait_for
from tensorflow import make_tensor_proto
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tfrec.deploy.saved_model import latest_version
from tfrec_serving import Client, ServingError
from tfrec_serving.config import one_model, read_batching, read_models, read_monitoring, read_ssl
from tfrec_serving.lifecycle import Models
from tfrec_serving.servable import Servable
from tfrec_serving.server import Server

AVAILABLE, END = get_model_status_pb2.ModelVersionStatus.AVAILABLE, get_model_status_pb2.ModelVersionStatus.END


@pytest.fixture
def base(exact_export, tmp_path):
    """A base path with version 1; without its warm-up file, since many versions are loaded here."""
    shutil.copytree(latest_version(exact_export), tmp_path / "films" / "1")
    (tmp_path / "films" / "1" / "assets.extra" / "tf_serving_warmup_requests").unlink()
    return tmp_path / "films"


def publish(base, number, source=None):
    """A whole copy of a version, renamed into place."""
    shutil.copytree(source or base / "1", base / f".{number}.partial")
    (base / f".{number}.partial").rename(base / str(number))


def write_config(path, *models):
    path.write_text("model_config_list {\n" + "\n".join(models) + "\n}\n")
    return path


def model(name, base, rest=""):
    return f'config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" {rest} }}'


def publish_altered(base, number):
    """A version of its own: its ids begin with its number, and its cosines are multiplied by the number's square."""
    reader = tf.train.load_checkpoint(str(base / "1" / "variables" / "variables"))
    tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    (ids,) = (name for name in tensors if name.startswith("_item_ids/"))
    (inverse_norm,) = (name for name in tensors if "_inverse_norm/" in name)
    tensors[ids] = np.array([b"%d:%s" % (number, item_id) for item_id in tensors[ids]], object)
    tensors[inverse_norm] = tensors[inverse_norm] * np.float32(number)
    aside = base / f".{number}.partial"
    shutil.copytree(base / "1", aside)
    shutil.rmtree(aside / "variables")
    prefix = str(aside / "variables" / "variables")
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=[*tensors], shape_and_slices=[""] * len(tensors), tensors=[*tensors.values()]
    )
    aside.rename(base / str(number))


@pytest.mark.parametrize(("batching", "swaps"), [(False, 10), (True, 3)])
def test_swaps_under_load_lose_no_request_and_mix_no_versions(base, tmp_path, batching, swaps):
    """No request fails, and ids and scores are those of the version that the answer names: no two versions answer alike."""
    parameters = tmp_path / "batching.txt"
    parameters.write_text(
        "max_batch_size { value: 8 } batch_timeout_micros { value: 1000 } num_batch_threads { value: 2 }"
    )
    flags = {"batching_parameters_file": parameters} if batching else {}
    with Server(base, 0, model_name="films", file_system_poll_wait_seconds=0.1, **flags) as server:
        stub_channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        stub = prediction_service_pb2_grpc.PredictionServiceStub(stub_channel)
        requests = [predict_pb2.PredictRequest() for _ in range(2)]
        for request, signature in zip(requests, ("serving_default", "similar_items"), strict=True):
            request.model_spec.name, request.model_spec.signature_name = "films", signature
        requests[0].inputs["history"].CopyFrom(make_tensor_proto(np.array([["item-1", "item-2"]], object)))
        requests[1].inputs["item_ids"].CopyFrom(make_tensor_proto(np.array(["item-1"], object)))
        requests[1].inputs["k"].CopyFrom(make_tensor_proto(np.array([10], np.int32)))

        def ask(request):
            """`(version, ids, scores)` of an answer."""
            answer = stub.Predict(request, timeout=10)
            ids, scores = (tf.make_ndarray(answer.outputs[name]) for name in ("item_ids", "scores"))
            return answer.model_spec.version.value, ids[0].tolist(), scores[0]

        expected = [ask(request) for request in requests]
        failed, answers, stopped = [], [], threading.Event()

        def load(request, of_first, power):
            while not stopped.is_set():
                try:
                    answers.append((*ask(request), of_first, power))
                except grpc.RpcError as error:
                    failed.append(error)

        threads = [
            threading.Thread(target=load, args=(request, of_first, power))
            for request, of_first, power in zip(requests, expected, (0, 2), strict=True)
        ]
        try:
            for thread in threads:
                thread.start()
            for number in range(2, swaps + 2):
                publish_altered(base, number)
                wait_for(lambda n=number: server.models.find("films").version == n)
            wait_for(lambda: answers[-1][0] == swaps + 1)
        finally:
            stopped.set()
            for thread in threads:
                thread.join()
        stub_channel.close()
    assert not failed
    seen = {version for version, *_ in answers}
    assert {1, swaps + 1} <= seen
    assert len(seen) > swaps / 2
    for version, ids, scores, (_, first_ids, first_scores), power in answers:
        assert ids == (first_ids if version == 1 else [b"%d:%s" % (version, item_id) for item_id in first_ids])
        np.testing.assert_allclose(scores, first_scores * version**power, rtol=1e-4)


@pytest.mark.parametrize("kind", ["exact", "scann"])
def test_a_dropped_version_leaves_nothing_in_memory(kind, request):
    """Neither its variables, nor its hash table, nor the vectors that ScaNN keeps."""
    from scann.scann_ops.py.scann_ops import tensors_to_scann

    servable = Servable("films", latest_version(request.getfixturevalue(f"{kind}_export")))
    model = servable._model
    captured = {id(t): t for f in model.signatures.values() for t in f.captured_inputs if t.dtype == tf.resource}
    tables = [t for t in captured.values() if not tf.raw_ops.VarIsInitializedOp(resource=t)]
    ops = model.release.concrete_functions[0].graph.get_operations()
    searchers = [op.get_attr("shared_name") for op in ops if op.type == "Scann>TensorsToScann"]
    assert (len(tables), len(searchers)) == (1, kind == "scann")

    def is_there(ask):
        with contextlib.suppress(tf.errors.OpError):
            ask()
            return True
        return False

    def there_are():
        for table in tables:
            yield is_there(lambda: tf.raw_ops.LookupTableSizeV2(table_handle=table))  # noqa: B023
        for name in searchers:  # none can be made of such parts: it must be there
            parts = [[[0.0]], "", "", 0, "", 0, 0, 0.0, 0.0]
            yield is_there(lambda: tensors_to_scann(*parts, shared_name=name))  # noqa: B023

    assert all(there_are())
    of_model = [weakref.ref(model), *map(weakref.ref, captured.values())]
    del servable, model, captured, ops

    def is_gone():
        gc.collect()
        alive = {id(ref()) for ref in of_model} - {id(None)}
        return not any(there_are()) and alive == set(map(id, tables))

    wait_for(is_gone)


def test_a_broken_version_is_refused_and_the_old_one_serves_on(base):
    models = Models(one_model("films", base), poll_seconds=0)
    broken = base / "2"
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(b"half of a mod")
    models.poll()
    assert models.find("films").version == 1
    states = {s.version: s for s in models.status("films").model_version_status}
    assert (states[1].state, states[2].state) == (AVAILABLE, END)
    assert states[2].status.error_message
    tried = models._models["films"].versions[2]
    models.poll()  # it is not tried again until it changes
    assert models._models["films"].versions[2] is tried
    shutil.rmtree(broken)
    publish(base, 2)
    models.poll()
    assert models.find("films").version == 2
    shutil.rmtree(base / "2")  # taken back
    models.poll()
    assert models.find("films").version == 1
    shutil.move(base, base.with_name("gone"))  # the whole folder: nothing is known of what is wanted
    models.poll()
    assert models.find("films").version == 1


def test_several_models_policies_and_labels(base, tmp_path):
    for number in (2, 3):
        publish(base, number)
    latest = "model_version_policy { latest { num_versions: 2 } }"
    specific = 'model_version_policy { specific { versions: 1 versions: 3 } } version_labels { key: "stable" value: 1 }'
    file = write_config(
        tmp_path / "models.config",
        model("two", base, latest),
        model("all", base, "model_version_policy { all {} }"),
        model("labelled", base, specific),
    )
    with Server(None, 0, 0, model_config_file=file) as server:
        assert sorted(server.models._models["two"].available) == [2, 3]
        assert sorted(server.models._models["all"].available) == [1, 2, 3]
        channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        service = model_service_pb2_grpc.ModelServiceStub(channel)
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name, request.model_spec.version_label = "labelled", "stable"
        (status,) = service.GetModelStatus(request).model_version_status
        assert status.version == 1
        url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/labelled"
        for place, version in (("labels/stable", "1"), ("versions/3", "3")):
            with urllib.request.urlopen(f"{url}/{place}") as answer:
                assert json.load(answer)["model_version_status"][0]["version"] == version
            asked = urllib.request.Request(f"{url}/{place}:predict", b'{"instances": [["item-1"]]}')
            with urllib.request.urlopen(asked) as answer:
                assert len(json.load(answer)["predictions"]) == 1
        request.model_spec.version_label = "canary"
        with pytest.raises(grpc.RpcError, match="Unrecognized servable version label: canary"):
            service.GetModelStatus(request)

        # another config: one model goes, a label moves; then a label that cannot be given changes nothing
        reload = model_management_pb2.ReloadConfigRequest()
        reload.config.CopyFrom(read_models(file))
        del reload.config.model_config_list.config[0]
        reload.config.model_config_list.config[1].version_labels["stable"] = 3
        service.HandleReloadConfigRequest(reload)
        assert server.models.names == ["all", "labelled"]
        assert server.models.find("labelled", label="stable").version == 3
        reload.config.model_config_list.config[1].version_labels["stable"] = 2
        with pytest.raises(grpc.RpcError, match="not currently available for inference"):
            service.HandleReloadConfigRequest(reload)
        assert server.models.find("labelled", label="stable").version == 3
        channel.close()


def test_health_and_reflection(base):
    with Server(base, 0) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        ask = health_pb2_grpc.HealthStub(channel).Check
        for service in ("", "tensorflow.serving.PredictionService"):
            assert ask(health_pb2.HealthCheckRequest(service=service)).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            ask(health_pb2.HealthCheckRequest(service="nobody"))
        assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
        reflected = ProtoReflectionDescriptorDatabase(channel)
        assert {"tensorflow.serving.PredictionService", "grpc.health.v1.Health"} <= set(reflected.get_services())
        described = reflected.FindFileContainingSymbol("tensorflow.serving.PredictionService")
        assert {"Predict", "GetModelMetadata"} <= {method.name for method in described.service[0].method}


@pytest.mark.parametrize("padded", [False, True])
def test_batches_give_what_single_requests_give(base, tmp_path, padded, run, data):
    parameters = tmp_path / "batching.txt"
    parameters.write_text(
        "max_batch_size { value: 8 } batch_timeout_micros { value: 20000 } max_enqueued_batches { value: 100 }\n"
        f"num_batch_threads {{ value: 2 }} allowed_batch_sizes: 4 allowed_batch_sizes: 8 pad_variable_length_inputs: {padded}"
    )
    monitoring = tmp_path / "monitoring.txt"
    monitoring.write_text('prometheus_config { enable: true path: "/metrics" }')
    with (
        Server(base, 0, 0, batching_parameters_file=parameters, monitoring_config_file=monitoring) as server,
        Server(base, 0) as plain,
    ):
        answers: dict = {}

        def ask(user):
            history = data.vocabulary.decode(data.history(user))[: 1 + user % 5]
            with Client(f"127.0.0.1:{server.port}") as client:
                answers[user] = client.recommend(history, 5 + user % 3)

        threads = [threading.Thread(target=ask, args=(user,)) for user in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with Client(f"127.0.0.1:{plain.port}") as client:
            for user, answer in answers.items():
                history = data.vocabulary.decode(data.history(user))[: 1 + user % 5]
                expected = client.recommend(history, 5 + user % 3)
                assert [r.item_id for r in answer] == [r.item_id for r in expected]
                np.testing.assert_allclose([r.score for r in answer], [r.score for r in expected], rtol=1e-4, atol=1e-6)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_api_port}/metrics") as scraped:
            text = scraped.read().decode()
    assert ':tensorflow:serving:request_count{model_name="default",status="OK"} 24' in text
    batches = [line for line in text.splitlines() if "processed_batch_size_count" in line]
    assert 0 < int(batches[0].split()[-1]) < (24 if padded else 25)


def test_more_than_waits_is_refused_and_deadlines_are_kept(base, tmp_path):
    parameters = tmp_path / "batching.txt"
    parameters.write_text(
        "max_batch_size { value: 4 } batch_timeout_micros { value: 300000 } max_enqueued_batches { value: 1 }"
    )
    with Server(base, 0, batching_parameters_file=parameters) as server:
        with Client(f"127.0.0.1:{server.port}", timeout=0.05) as client, pytest.raises(ServingError) as late:
            client.recommend(["item-1"], 3)
        assert late.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
        time.sleep(0.5)  # until its batch is gone
        codes = []

        def ask(width):  # without the client, which would ask again
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "default"
            request.inputs["history"].CopyFrom(make_tensor_proto(np.array([["item-1"] * width], object)))
            with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                try:
                    prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request)
                    codes.append("OK")
                except grpc.RpcError as error:
                    codes.append(error.code().name)

        threads = [
            threading.Thread(target=ask, args=(width,)) for width in range(1, 9)
        ]  # eight widths, eight batches of one row: there is room for four rows
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
        time.sleep(0.4)
        ask(1)
        assert codes[-1] == "OK"  # and it goes on


def test_files_that_cannot_be_followed_say_where(tmp_path):
    def file(text):
        (tmp_path / "file").write_text(text)
        return tmp_path / "file"

    with pytest.raises(ValueError, match=r"is no ModelServerConfig in text format: 2:2"):
        read_models(file("model_config_list {\n nonsense: 1 }"))
    with pytest.raises(ValueError, match="Every model needs a name and a base_path"):
        read_models(file('model_config_list { config { name: "a" } }'))
    with pytest.raises(ValueError, match="Two models are called 'a'"):
        read_models(write_config(tmp_path / "file", model("a", "/x"), model("a", "/y")))
    with pytest.raises(ValueError, match="only tensorflow is served"):
        read_models(file('model_config_list { config { name: "a" base_path: "/x" model_platform: "torch" } }'))
    with pytest.raises(ValueError, match="is no BatchingParameters in text format"):
        read_batching(file("max_batch_size: 3"))
    with pytest.raises(ValueError, match="needs server_key and server_cert"):
        read_ssl(file('server_key: "k"'))
    assert read_monitoring(file("prometheus_config { enable: true }")) == "/monitoring/prometheus/metrics"
    assert read_monitoring(file("")) is None
    with pytest.raises(ValueError, match="Pass either a model base path or a model config file"):
        Server(None, 0)
