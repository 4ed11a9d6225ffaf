"""The embedded server, over real sockets, as TensorFlow Serving answers."""

import json
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
import tensorflow as tf
from reference import recommend
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from tfrec_serving import Client, Recommendation, ServingError
from tfrec_serving.server import Server


@pytest.fixture(scope="module")
def server(scann_export):
    with Server(scann_export, port=0, rest_api_port=0, model_name="films") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with Client(f"127.0.0.1:{server.port}", model_name="films") as client:
        client.wait_until_ready()
        yield client


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


def test_a_thousand_histories_over_grpc_get_the_ids_of_python(exact_export, run, data, same_but_for_ties):
    rows = [data.history(u)[: 1 + u % 19] for u in range(1000)]
    expected, scores = recommend(run.model, rows, 10, data.item_counts)
    with Server(exact_export, port=0) as server, Client(f"127.0.0.1:{server.port}") as client:
        answered = [[r.item_id for r in client.recommend(data.vocabulary.decode(row))] for row in rows]
    same_but_for_ties(answered, [run.vocabulary.decode(row) for row in expected], scores)


def test_the_methods_of_the_client(client, run, data):
    history = data.vocabulary.decode(data.history(0))
    answer = client.recommend(history, k=3)
    assert len(answer) == 3
    assert isinstance(answer[0], Recommendation)
    assert client.recommend(history, k=2, exclude=[answer[0].item_id])[0] == answer[1]
    assert len(client.recommend([], k=4)) == 4
    assert client.score(history, [answer[0].item_id, "nobody"]) == pytest.approx([answer[0].score, -np.inf], rel=1e-4)
    assert client.similar_items("nobody") == []
    assert len(client.similar_items(answer[0].item_id, k=6)) == 6
    query, vectors = client.embed_history(history), client.embed_items([answer[0].item_id, "nobody"])
    assert float(query @ vectors[0]) == pytest.approx(answer[0].score, rel=1e-4)
    assert vectors.shape == (2, run.config.width)


def test_ids_with_trailing_nul_and_unicode_are_sent_as_they_are(client):
    assert client.score(["a\0", "日本"], ["\0"]) == [-np.inf]


@pytest.mark.parametrize(
    ("call", "code", "message"),
    [
        (lambda c: c.predict("nothing"), "FAILED_PRECONDITION", 'Serving signature key "nothing" not found'),
        (
            lambda c: c.predict("recommend", k=np.array([1], np.int32)),
            "INVALID_ARGUMENT",
            "required: {exclude,history}",
        ),
        (
            lambda c: c.predict("serving_default", history=np.array([[b"a"]], object), x=np.zeros(1)),
            "INVALID_ARGUMENT",
            "Sent extra: {x}",
        ),
        (
            lambda c: c.predict("similar_items", item_ids=np.array([b"a"], object), k=np.array([1.5])),
            "INVALID_ARGUMENT",
            'input "k" must be int32. Received: float64',
        ),
        (
            lambda c: c.predict("serving_default", history=np.array([b"a"], object)),
            "INVALID_ARGUMENT",
            r'input "history" must have shape \[-1, -1\]',
        ),
        (
            lambda c: c.predict(
                "similar_items", item_ids=np.array([b"a", b"b"], object), k=np.array([1, 1, 1], np.int32)
            ),
            "INVALID_ARGUMENT",
            "All inputs must have the same number of rows. Received: item_ids 2, k 3",
        ),
    ],
)
def test_wrong_requests_name_the_input(client, call, code, message):
    with pytest.raises(ServingError, match=message) as caught:
        call(client)
    assert caught.value.code == grpc.StatusCode[code]


@pytest.mark.parametrize(
    ("name", "version", "wanted"), [("none", None, r"Latest\(none\)"), ("films", 9, r"Specific\(films, 9\)")]
)
def test_an_unknown_model_or_version_is_not_found(server, name, version, wanted):
    with Client(f"127.0.0.1:{server.port}", name, version) as client:
        with pytest.raises(ServingError, match=f"NOT_FOUND: Servable not found for request: {wanted}"):
            client.recommend(["a"])
        with pytest.raises(ServingError, match="NOT_FOUND"):
            client.wait_until_ready(1)


def test_a_server_that_is_not_there_is_unavailable():
    with Client("127.0.0.1:9", timeout=2) as client, pytest.raises(ServingError, match="UNAVAILABLE"):
        client.recommend(["a"])


def test_output_filter(channel):
    from tensorflow_serving.apis import predict_pb2

    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = predict_pb2.PredictRequest(output_filter=["scores"])
    request.model_spec.name = "films"
    request.inputs["history"].CopyFrom(tf.make_tensor_proto([["item-1"]]))
    answer = stub.Predict(request)
    assert list(answer.outputs) == ["scores"]
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("films", 1)
    assert answer.model_spec.signature_name == "serving_default"
    request.output_filter[:] = ["nothing"]
    with pytest.raises(grpc.RpcError, match="output tensor alias not found in signature: nothing"):
        stub.Predict(request)
    request.inputs["history"].tensor_content = b"broken"
    with pytest.raises(grpc.RpcError, match="an input is no tensor"):
        stub.Predict(request)


def test_metadata(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "films"
    definitions = get_model_metadata_pb2.SignatureDefMap()
    assert stub.GetModelMetadata(request).metadata["signature_def"].Unpack(definitions)
    names = {"serving_default", "recommend", "similar_items", "score", "explain", "embed_history", "embed_items"}
    assert set(definitions.signature_def) == names | {"__saved_model_init_op"}
    assert set(definitions.signature_def["recommend"].inputs) == {"history", "exclude", "k"}
    for fields, message in ((["colour"], "Metadata field colour is not supported"), ([], "must specify at least one")):
        request.metadata_field[:] = fields
        with pytest.raises(grpc.RpcError, match=message):
            stub.GetModelMetadata(request)


def test_status(channel):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "films"
    (status,) = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request).model_version_status
    assert (status.version, status.state) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)


def rest(server, path, body=None):
    """`(HTTP status, JSON)`."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{server.rest_api_port}/v1/models/films{path}", data=data)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_rest_rows_and_columns_agree_with_grpc(server, client):
    grpc_answer = client.recommend(["item-1", "item-2"], k=3)
    row = {"history": ["item-1", "item-2"], "exclude": [], "k": 3}
    status, rows = rest(server, ":predict", {"signature_name": "recommend", "instances": [row, row]})
    assert status == 200
    assert rows["predictions"][1]["item_ids"] == [r.item_id for r in grpc_answer]
    np.testing.assert_allclose(rows["predictions"][1]["scores"], [r.score for r in grpc_answer], rtol=1e-6)
    columns = {name: [value] for name, value in row.items()}
    _, answer = rest(server, "/versions/1:predict", {"signature_name": "recommend", "inputs": columns})
    assert answer["outputs"]["item_ids"] == [rows["predictions"][0]["item_ids"]]


def test_rest_single_input_and_output_stand_without_names(server, client):
    _, answer = rest(server, ":predict", {"instances": [["item-1"], ["item-2"]]})
    assert [set(row) for row in answer["predictions"]] == [{"item_ids", "scores"}] * 2
    _, answer = rest(server, ":predict", {"signature_name": "embed_history", "instances": [{"history": ["item-1"]}]})
    np.testing.assert_allclose(answer["predictions"][0], client.embed_history(["item-1"]), rtol=1e-6)


def test_a_batch_without_rows_gets_an_answer_without_rows(server, client):
    assert rest(server, ":predict", {"inputs": {"history": []}}) == (200, {"outputs": {"item_ids": [], "scores": []}})
    answer = client.predict("serving_default", history=np.zeros((0, 3), object))
    assert answer["item_ids"].shape == (0, 10)


def test_rest_base64(server):
    _, plain = rest(server, ":predict", {"instances": [["item-1"]]})
    _, coded = rest(server, ":predict", {"instances": [[{"b64": "aXRlbS0x"}]]})
    assert plain == coded


def test_rest_status_and_metadata(server):
    assert rest(server, "")[1] == {
        "model_version_status": [
            {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    metadata = rest(server, "/metadata")[1]
    assert metadata["model_spec"]["name"] == "films"
    assert "recommend" in metadata["metadata"]["signature_def"]["signature_def"]


@pytest.mark.parametrize(
    ("path", "body", "code", "message"),
    [
        (":predict", b"{", 400, "JSON Parse error"),
        (":predict", [1], 400, "either `instances` or `inputs`"),
        (":predict", {"instances": []}, 400, "at least one row"),
        (
            ":predict",
            {"instances": [["a"], ["b", "c"]]},
            400,
            'input "history" is no tensor of string: rows of different lengths',
        ),
        (":predict", {"instances": [[1]]}, 400, 'input "history" must hold strings. Received: 1'),
        (":predict", {"instances": [[{"b64": "?"}]]}, 400, "not base64"),
        (":predict", {"signature_name": 3, "instances": [1]}, 400, "`signature_name` must be a string"),
        (":predict", {"signature_name": "no", "instances": [1]}, 400, 'Serving signature name: \\"no\\" not found in'),
        (
            ":predict",
            {"signature_name": "similar_items", "inputs": {"item_ids": ["a"], "k": [1.5]}},
            400,
            'input "k" is no tensor of int32',
        ),
        (
            ":predict",
            {"signature_name": "similar_items", "inputs": {"item_ids": ["a"], "k": ["x"]}},
            400,
            'input "k" is no tensor of int32',
        ),
        (
            ":predict",
            {"signature_name": "recommend", "inputs": {"history": [["a"]]}},
            400,
            "Missing but required: {exclude,k}",
        ),
        (
            ":predict",
            {"signature_name": "recommend", "instances": [["a"]]},
            400,
            "must be an object with: exclude, history, k",
        ),
        (":predict", {"signature_name": "recommend", "instances": [{"k": 1}, {"x": 1}]}, 400, "the same names"),
        (":predict", {"inputs": {"history": [["a"]], "x": [{"y": 1}]}}, 400, "Sent extra: {x}"),
        (":nothing", {}, 400, "Malformed request: POST /v1/models/films:nothing"),
        ("/versions/7", None, 404, "Could not find version 7 of model films"),
    ],
)
def test_rest_errors_are_json_and_name_what_is_wrong(server, path, body, code, message):
    status, answer = rest(server, path, body)
    assert status == code
    assert message.replace("\\", "") in answer["error"]


def test_what_cannot_be_served_says_why(tmp_path, exact_export):
    import shutil

    with pytest.raises(ValueError, match="has no version folder"):
        Server(tmp_path, port=0)
    shutil.copytree(exact_export / "1", tmp_path / "1")
    manifest = json.loads((tmp_path / "1" / "tfrec_manifest.json").read_text())
    (tmp_path / "1" / "tfrec_manifest.json").write_text(json.dumps(manifest | {"custom_ops": ["Scann"]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "scann.scann_ops.py.scann_ops", None)
        with pytest.raises(
            ValueError, match="needs the ops of Scann: pip install scann. Or export with `--index exact`"
        ):
            Server(tmp_path, port=0)
