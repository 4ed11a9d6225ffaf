"""Each refusal says what is wrong: those that no other file reaches."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import model_pb2
from tensorflow_serving.config import model_server_config_pb2

from tfrec_serving import ServingError, config
from tfrec_serving.batching import Batcher, BatchingParameters
from tfrec_serving.connection import read_answer
from tfrec_serving.grpc_services import find, read_tensor
from tfrec_serving.lifecycle import Models
from tfrec_serving.load import server_process
from tfrec_serving.metrics import Metrics
from tfrec_serving.questions import Questions
from tfrec_serving.rest import parse_request
from tfrec_serving.servable import RequestError


@pytest.fixture(scope="module")
def loaded(exact_export):
    return Models(config.one_model("default", exact_export), 0).find("default")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("custom_model_config {}", r"models.config`: custom_model_config is not supported; use model_config_list"),
        ("model_config_list { config { name: 'a' } }", "Every model needs a name and a base_path"),
        (
            "model_config_list { config { name: 'a' base_path: '/a' model_platform: 'torch' } }",
            "Model 'a' has the platform 'torch'; only tensorflow is served",
        ),
    ],
)
def test_a_config_of_models(tmp_path, text, message):
    (tmp_path / "models.config").write_text(text)
    with pytest.raises(ValueError, match=message):
        config.read_models(tmp_path / "models.config")


def test_a_config_that_asks_clients_for_certificates_without_an_authority(tmp_path):
    (tmp_path / "ssl.config").write_text("server_key: 'k' server_cert: 'c' client_verify: true")
    with pytest.raises(ValueError, match="ssl.config` asks for client_verify, which needs custom_ca"):
        config.read_ssl(tmp_path / "ssl.config")


@pytest.mark.parametrize(
    "sizes", ["allowed_batch_sizes: [4, 2]", "allowed_batch_sizes: [2, 4] max_batch_size { value: 8 }"]
)
def test_batch_sizes_that_do_not_rise(tmp_path, sizes):
    (tmp_path / "batching.config").write_text(sizes)
    with pytest.raises(ValueError, match="allowed_batch_sizes must rise, and end with max_batch_size"):
        BatchingParameters.from_proto(config.read_batching(tmp_path / "batching.config"))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            {"instances": ["a"], "signature_name": "recommend"},
            "Each instance must be an object with: exclude, history, k",
        ),
        ({"instances": [{"history": ["a"]}, ["a"]]}, "Every instance must be an object with the same names"),
        (
            {"instances": [{"history": ["a"]}, {"history": ["a"], "k": 1}]},
            "Every instance must be an object with the same",
        ),
        ({"inputs": [["a"]], "signature_name": "recommend"}, "`inputs` must be an object with: exclude, history, k"),
    ],
)
def test_a_body_of_rest(loaded, request_, message):
    with pytest.raises(RequestError, match=message) as refused:
        parse_request(json.dumps(request_).encode(), loaded)
    assert refused.value.code == "INVALID_ARGUMENT"


def test_a_request_without_a_model_or_a_shape(loaded):
    with pytest.raises(RequestError, match="ModelSpec has no name specified"):
        find(None, model_pb2.ModelSpec())
    tensor = tensor_pb2.TensorProto(dtype=7, string_val=[b"a"])
    tensor.tensor_shape.unknown_rank = True
    with pytest.raises(ValueError, match="its shape is not fully known"):
        read_tensor(tensor)


def test_a_deadline_that_is_over_while_a_request_waits_in_a_batch(loaded):
    batcher = Batcher(BatchingParameters(batch_timeout_micros=10_000_000), Metrics())
    with pytest.raises(RequestError, match="The deadline was over before the answer was there") as late:
        batcher.run(loaded, "embed_items", {"item_ids": np.array([b"a"], object)}, 0.05)
    assert late.value.code == "DEADLINE_EXCEEDED"
    threading.Thread(target=batcher.stop).start()


def test_a_model_that_is_no_recommender():
    with pytest.raises(
        ServingError, match=r"`recommend` of this model does not answer as a recommender's.*\['total'\]"
    ):
        read_answer(Questions.recommend([]), {"total": np.zeros(1)})


def test_a_server_that_does_not_start(tmp_path):
    with (
        pytest.raises(ServingError, match="The server did not start: error: .* has no version folder"),
        server_process(tmp_path),
    ):
        pass


def test_a_model_server_config_that_holds_nothing_serves_nothing():
    models = Models(model_server_config_pb2.ModelServerConfig(), 0)
    with pytest.raises(RequestError, match=r"Servable not found for request: Latest\(default\)"):
        models.find("default")
