"""What every server of an export must do, TensorFlow Serving and ours alike. `conftest.py` says how to name one.

Nothing here knows the catalogue: item ids are those that the server itself recommends.
"""

from __future__ import annotations

import base64
import gzip
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf

SIGNATURES = {
    "serving_default": ({"history"}, {"item_ids", "scores"}),
    "recommend": ({"history", "exclude", "k"}, {"item_ids", "scores"}),
    "similar_items": ({"item_ids", "k"}, {"item_ids", "scores"}),
    "score": ({"history", "candidates"}, {"scores"}),
    "explain": ({"history", "item_ids"}, {"contributions"}),
    "embed_history": ({"history"}, {"embedding"}),
    "embed_items": ({"item_ids"}, {"embedding"}),
}


def refused(call, *codes: str) -> str:
    """The message of a call that ends with one of the codes."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code().name in codes, caught.value
    return caught.value.details()


# --- the model, as a server tells of it


def test_status_is_available(target):
    (version, *_) = target.status().model_version_status
    assert version.version >= 1
    assert (version.state, version.status.error_code) == (30, 0)
    assert target.status(version=version.version).model_version_status[0].version == version.version


def test_metadata_names_the_signatures(target):
    answer = target.metadata("signature_def")
    assert answer.model_spec.name == target.model
    assert answer.model_spec.version.value == target.status().model_version_status[0].version
    for name, (inputs, outputs) in SIGNATURES.items():
        definition = target.signatures[name]
        assert set(definition.inputs) >= inputs
        assert set(definition.inputs) == inputs or "history" in inputs  # beside which times and features stand
        assert set(definition.outputs) == outputs
        assert definition.method_name == "tensorflow/serving/predict"
    history = target.signatures["recommend"].inputs["history"]
    assert history.dtype == tf.string.as_datatype_enum
    assert [d.size for d in history.tensor_shape.dim] == [-1, -1]


# --- answers


def test_recommends_what_is_not_in_the_history(target):
    history = target.items[:3]
    answer = target.predict(history=[history])
    items = [i.decode() for i in answer["item_ids"][0] if i]
    assert items
    assert not set(items) & set(history)
    assert len(set(items)) == len(items)
    scores = answer["scores"][0][: len(items)]
    assert scores.dtype == np.float32
    assert (np.diff(scores) <= 0).all()


def test_an_answer_says_who_gave_it(target):
    for name in ("", "serving_default", "recommend"):
        others = {"exclude": [[b""]], "k": [1]} if name == "recommend" else {}
        spec = target.send(target.request(name, history=[target.items[:2]], **others)).model_spec
        assert (spec.name, spec.signature_name) == (target.model, name or "serving_default")
        assert spec.version.value == target.status().model_version_status[0].version


def test_values_stand_in_the_fields_of_their_dtype(target):
    """Not in `tensor_content`: what clients read is `float_val` and `string_val`."""
    answer = target.send(target.request("recommend", history=[target.items[:2]], exclude=[[b""]], k=[4]))
    assert len(answer.outputs["scores"].float_val) == len(answer.outputs["item_ids"].string_val) == 4
    assert [d.size for d in answer.outputs["scores"].tensor_shape.dim] == [1, 4]


def test_each_row_has_its_own_k(target):
    rows = [[target.items[0]], [target.items[1]], [target.items[2]]]
    answer = target.predict("recommend", history=rows, exclude=[[b""]] * 3, k=[5, 2, 0])
    assert [sum(i != b"" for i in row) for row in answer["item_ids"]] == [5, 2, 0]
    assert np.isneginf(answer["scores"][1, 2:]).all()


def test_exclusions_leave_k_others(target):
    full = target.predict("recommend", history=[target.items[:2]], exclude=[[b""]], k=[6])["item_ids"][0]
    rest = target.predict("recommend", history=[target.items[:2]], exclude=[full[:3].tolist()], k=[3])["item_ids"][0]
    assert rest.tolist() == full[3:].tolist()


def test_a_batch_is_its_rows(target):
    histories = [target.items[i : i + 4] for i in range(6)]
    together = target.predict(history=histories)
    for i, history in enumerate(histories):
        alone = target.predict(history=[history])
        assert alone["item_ids"][0].tolist() == together["item_ids"][i].tolist()
        np.testing.assert_allclose(alone["scores"][0], together["scores"][i], rtol=1e-4)


def test_padding_and_unknown_ids_change_nothing(target):
    history = target.items[:3]
    expected = target.predict(history=[history])["scores"]
    for same in ([b"", *history], [*history, b""], [b"no such item", *history], [*history, b"\x00\xff\xfe"]):
        rows = [item.encode() if isinstance(item, str) else item for item in same]
        np.testing.assert_allclose(target.predict(history=[rows])["scores"], expected, rtol=1e-4)


def test_nobody_gets_the_popular_items(target):
    for history in ([[b""]], [[b"no such item"]], np.zeros((1, 0), "S1").astype(object)):
        answer = target.predict("recommend", history=np.asarray(history, object), exclude=[[b""]], k=[5])
        assert [i.decode() for i in answer["item_ids"][0]] == target.items[:5]


def test_scores_and_embeddings_agree(target):
    history, candidates = [target.items[:3]], target.items[3:7]
    scores = target.predict("score", history=history, candidates=[[*candidates, "no such item"]])["scores"][0]
    query = target.predict("embed_history", history=history)["embedding"][0]
    vectors = target.predict("embed_items", item_ids=candidates)["embedding"]
    np.testing.assert_allclose(scores[:-1], vectors @ query, rtol=1e-3, atol=1e-4)
    assert np.isneginf(scores[-1])


def test_contributions_are_the_scores_less_those_of_shorter_histories(target):
    history, items = [item.encode() for item in target.items[:4]], target.items[4:6]
    given = [*history[:2], b"", b"no such item", *history[2:]]
    rows = [given, *([*given[:place], *given[place + 1 :], b""] for place in range(6))]
    whole, *shorter = target.predict("score", history=rows, candidates=[items] * 7)["scores"]
    expected = np.stack([whole - less for less in shorter], axis=1)
    answer = target.predict("explain", history=[given] * 3, item_ids=[*items, "no such item"])["contributions"]
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, [*expected, np.zeros(6)], atol=1e-4)
    assert not answer[:, 2:4].any()
    # the score of nobody is the share of a popular item, which is on another scale
    alone = target.predict("score", history=[history[:1]], candidates=[items[:1]])["scores"]
    only = target.predict("explain", history=[[b"", history[0]]], item_ids=items[:1])["contributions"]
    np.testing.assert_allclose(only, [[0.0, alone[0, 0]]], atol=1e-4)
    nobody = target.predict("explain", history=[[b"", b"no such item"]], item_ids=items[:1])["contributions"]
    assert not nobody.any()


def test_similar_items_are_others(target):
    answer = target.predict("similar_items", item_ids=[target.items[0], "no such item"], k=[3, 3])
    assert target.items[0].encode() not in answer["item_ids"][0]
    assert (answer["item_ids"][0] != b"").all()
    assert (answer["item_ids"][1] == b"").all()


def test_a_long_history_is_answered(target):
    long = (target.items[:5] * 1000)[:5000]
    assert target.predict(history=[long])["item_ids"].shape[0] == 1


def test_many_at_once_get_their_own_answers(target):
    histories = [target.items[i % 10 : i % 10 + 3] for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda h: target.predict(history=[h])["item_ids"][0].tolist(), histories))
    assert all(answers[i] == answers[i % 10] for i in range(40))


def test_output_filter(target):
    request = target.request(history=[target.items[:2]])
    request.output_filter.append("scores")
    assert list(target.send(request).outputs) == ["scores"]
    request.output_filter[0] = "nothing"
    assert "output tensor alias not found in signature: nothing" in refused(
        lambda: target.send(request), "INVALID_ARGUMENT"
    )
    request.output_filter[:] = ["scores", "scores"]
    assert "duplicate output tensor alias: scores" in refused(lambda: target.send(request), "INVALID_ARGUMENT")


def test_a_version_can_be_asked_for(target):
    request = target.request(history=[target.items[:2]])
    request.model_spec.version.value = target.status().model_version_status[0].version
    assert target.send(request).model_spec.version.value == request.model_spec.version.value


# --- refusals


def test_unknown_models_versions_and_labels(target):
    request = target.request(history=[target.items[:2]])
    request.model_spec.version.value = 987654
    wanted = f"Servable not found for request: Specific({target.model}, 987654)"
    assert wanted in refused(lambda: target.send(request), "NOT_FOUND")
    request.model_spec.version_label = "no-such-label"
    assert "Unrecognized servable version label: no-such-label" in refused(
        lambda: target.send(request), "INVALID_ARGUMENT"
    )
    request.model_spec.ClearField("version_choice")
    request.model_spec.name = "no-such-model"
    wanted = "Servable not found for request: Latest(no-such-model)"
    assert wanted in refused(lambda: target.send(request), "NOT_FOUND")
    request.model_spec.name = ""
    refused(lambda: target.send(request), "INVALID_ARGUMENT")
    request.ClearField("model_spec")
    assert "Missing ModelSpec" in refused(lambda: target.send(request), "INVALID_ARGUMENT")
    assert "no-such-model" in refused(lambda: target.status("no-such-model"), "NOT_FOUND")
    refused(lambda: target.status(version=987654), "NOT_FOUND")
    refused(lambda: target.metadata("signature_def", name="no-such-model"), "NOT_FOUND")


def test_metadata_fields(target):
    assert "Metadata field nothing is not supported" in refused(lambda: target.metadata("nothing"), "INVALID_ARGUMENT")
    refused(target.metadata, "INVALID_ARGUMENT")


def test_unknown_signature(target):
    message = refused(lambda: target.predict("no-such-signature", history=[["a"]]), "FAILED_PRECONDITION")
    assert 'Serving signature key "no-such-signature" not found' in message


@pytest.mark.parametrize("signature", SIGNATURES)
def test_missing_and_unknown_inputs(target, signature):
    request = target.request(signature)
    message = refused(lambda: target.send(request), "INVALID_ARGUMENT")
    assert "input size does not match signature: 0!=" in message
    for name in target.signatures[signature].inputs:
        assert name in message.partition("Missing but required:")[2]
        request.inputs[name].CopyFrom(tf.make_tensor_proto([[b"a"]]))
    request.inputs["surplus"].CopyFrom(tf.make_tensor_proto([1]))
    assert "Sent extra: {surplus}" in refused(lambda: target.send(request), "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("signature", "name"),
    [(signature, name) for signature, (inputs, _) in SIGNATURES.items() for name in sorted(inputs)],
)
def test_wrong_dtypes_on_every_input(target, signature, name):
    good = {"history": [target.items[:2]], "exclude": [[b""]], "candidates": [target.items[:2]], "k": [1]}
    good["item_ids"] = target.items[:1]
    inputs = {one: good[one] for one in SIGNATURES[signature][0]}
    inputs[name] = np.zeros(np.shape(good[name]), np.float64)
    request = target.request(signature, **{one: value for one, value in inputs.items() if one != name})
    request.inputs[name].CopyFrom(tf.make_tensor_proto(inputs[name]))
    refused(lambda: target.send(request), "INVALID_ARGUMENT")
    assert target.predict(history=[target.items[:2]])  # it goes on


@pytest.mark.parametrize("shape", [(), (2,), (1, 2, 1)])
def test_wrong_ranks_are_refused(target, shape):
    history = np.full(shape, target.items[0].encode(), object)
    request = target.request("recommend", exclude=[[b""]], k=[1])
    request.inputs["history"].CopyFrom(tf.make_tensor_proto(history))
    refused(lambda: target.send(request), "INVALID_ARGUMENT")
    assert target.predict(history=[target.items[:2]])


def test_a_tensor_that_is_none_is_refused(target):
    request = target.request(history=[target.items[:2]])
    request.inputs["history"].ClearField("string_val")
    request.inputs["history"].tensor_content = b"\xff" * 7
    refused(lambda: target.send(request), "INVALID_ARGUMENT")


def test_bytes_that_are_no_message_are_refused(target):
    call = target.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    refused(lambda: call(b"\xff" * 100, 60), "INTERNAL", "INVALID_ARGUMENT", "UNKNOWN")
    unknown = target.channel.unary_unary("/tensorflow.serving.PredictionService/Nothing")
    refused(lambda: unknown(b"", 60), "UNIMPLEMENTED")


def test_a_deadline_is_kept(target):
    request = target.request(history=[(target.items * 1000)[:20000]] * 8)
    refused(lambda: target.send(request, timeout=0.001), "DEADLINE_EXCEEDED")


# --- REST


def test_rest_rows_and_columns_agree(target):
    path = f"/v1/models/{target.model}:predict"
    text = np.frompyfunc(lambda value: value.decode() if isinstance(value, bytes) else value, 1, 1)
    row = {
        name: text(values[0]).tolist() if values.ndim > 1 else text(values)[0]
        for name, values in target.further("recommend", (1, 2)).items()
    }
    row |= {"history": target.items[:2], "exclude": [""], "k": 3}
    status, by_row = target.rest(path, {"signature_name": "recommend", "instances": [row, row]})
    assert status == 200
    columns = {name: [value, value] for name, value in row.items()}
    status, by_column = target.rest(path, {"signature_name": "recommend", "inputs": columns})
    assert status == 200
    expected = target.predict("recommend", history=[target.items[:2]], exclude=[[b""]], k=[3])
    items = [i.decode() for i in expected["item_ids"][0]]
    assert [one["item_ids"] for one in by_row["predictions"]] == by_column["outputs"]["item_ids"] == [items, items]
    np.testing.assert_allclose(by_column["outputs"]["scores"][0], expected["scores"][0], rtol=1e-4)


def test_rest_single_input_and_output_stand_alone(target):
    path = f"/v1/models/{target.model}:predict"
    status, answer = target.rest(path, {"signature_name": "embed_items", "instances": target.items[:2]})
    assert status == 200
    assert len(answer["predictions"]) == 2
    encoded = [{"b64": base64.b64encode(target.items[0].encode()).decode()}]
    status, same = target.rest(path, {"signature_name": "embed_items", "inputs": encoded})
    assert status == 200
    np.testing.assert_allclose(same["outputs"][0], answer["predictions"][0], rtol=1e-5)


def test_rest_status_metadata_and_versions(target):
    version = target.status().model_version_status[0].version
    for path in (f"/v1/models/{target.model}", f"/v1/models/{target.model}/versions/{version}"):
        status, answer = target.rest(path)
        assert status == 200
        assert answer["model_version_status"][0]["version"] == str(version)
        assert answer["model_version_status"][0]["state"] == "AVAILABLE"
        status, answer = target.rest(f"{path}/metadata")
        assert status == 200
        definitions = answer["metadata"]["signature_def"]["signature_def"]
        assert set(definitions) >= set(SIGNATURES)
        assert definitions["recommend"]["inputs"]["k"]["dtype"] == "DT_INT32"


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "message"),
    [
        ("POST", ":predict", b"{", 400, "JSON Parse error"),
        ("POST", ":predict", b"", 400, ""),
        ("POST", ":predict", {"instances": []}, 400, ""),
        ("POST", ":predict", {"signature_name": "nothing", "instances": [["a"]]}, 400, "nothing"),
        ("POST", ":predict", {"signature_name": "recommend", "inputs": {"history": [["a"]]}}, 400, ""),
        ("POST", ":nothing", {}, 400, "Malformed request: POST"),
        ("GET", ":predict", None, 400, "Malformed request: GET"),
        ("POST", "/versions/987654:predict", {"instances": [["a"]]}, 404, "987654"),
        ("GET", "/versions/987654", None, 404, "987654"),
    ],
)
def test_rest_errors_are_json(target, method, path, body, code, message):
    status, answer = target.rest(f"/v1/models/{target.model}{path}", body, method)
    assert status == code
    assert message in answer["error"]


def test_rest_unknown_model(target):
    status, answer = target.rest("/v1/models/no-such-model:predict", {"instances": [["a"]]})
    assert status == 404
    assert "no-such-model" in answer["error"]
    assert target.rest("/v1/models/no-such-model")[0] == 404


def test_rest_gzip(target):
    if not target.rest_url:
        pytest.skip("no REST")
    request = urllib.request.Request(f"{target.rest_url}/v1/models/{target.model}/metadata")
    request.add_header("Accept-Encoding", "gzip")
    with urllib.request.urlopen(request, timeout=60) as answer:
        body = answer.read()
        text = gzip.decompress(body) if answer.headers["Content-Encoding"] == "gzip" else body
    assert "recommend" in json.loads(text)["metadata"]["signature_def"]["signature_def"]


# --- what TensorFlow Serving lacks


def test_health_and_reflection_of_ours(target, is_ours):
    if not is_ours:
        pytest.skip("TensorFlow Serving has neither")
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    state = health_pb2_grpc.HealthStub(target.channel).Check(health_pb2.HealthCheckRequest(), 60)
    assert state.status == health_pb2.HealthCheckResponse.SERVING
    assert "tensorflow.serving.PredictionService" in ProtoReflectionDescriptorDatabase(target.channel).get_services()
