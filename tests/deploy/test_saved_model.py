"""The SavedModel is the contract: it is loaded in a fresh process that knows nothing of tfrec."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import tensorflow as tf
from reference import recommend

import tfrec
from tfrec.data.prepared import PreparedData
from tfrec.deploy.check import check, ops_of
from tfrec.deploy.saved_model import MANIFEST, export, latest_version, refresh
from tfrec.deploy.serving_model import build_serving_model
from tfrec.training.run import Run
from tfrec_serving import Client
from tfrec_serving.server import Server

GOLDEN = Path(__file__).parent / "golden" / "signatures.json"
FRESH = """
import json, sys
import tensorflow as tf
{imports}
assert not any(name.split(".")[0] in ("tfrec", "tfrec_serving", "tensorflow_recommenders") for name in sys.modules)
functions = tf.saved_model.load(sys.argv[1]).signatures
history = tf.constant(json.loads(sys.argv[2]))
item_ids = functions["serving_default"](history=history)["item_ids"].numpy()
print("ANSWER", json.dumps([[i.decode() for i in row] for row in item_ids]))
"""


@pytest.fixture(scope="module")
def served(exact_export):
    """The signatures of the reloaded exact export."""
    return tf.saved_model.load(str(latest_version(exact_export))).signatures


@pytest.fixture(scope="module")
def histories(data) -> list[list[str]]:
    """1,000 histories, cut to different lengths."""
    return [data.vocabulary.decode(data.history(u))[: 1 + u % 19] for u in range(1000)]


def padded(histories) -> np.ndarray:
    """Rows with padding on the right, where nobody expects it."""
    rows = np.full((len(histories), max(map(len, histories), default=0)), "", object)
    for row, history in enumerate(histories):
        rows[row, : len(history)] = history
    return rows


def in_python(run: Run, histories, k, repeats="exclude"):
    given = [run.vocabulary.encode(h) for h in histories]
    items, scores = recommend(run.model, given, k, run.items["num_events"], repeats=repeats)
    return [run.vocabulary.decode(row) for row in items], scores


def call(served, name, **inputs):
    dtypes = {"k": tf.int32}
    answer = served[name](**{key: tf.constant(value, dtypes.get(key, tf.string)) for key, value in inputs.items()})
    return {key: value.numpy() for key, value in answer.items()}


def ids(answer) -> list[list[str]]:
    return [[i.decode() for i in row] for row in answer["item_ids"]]


@pytest.mark.parametrize(("kind", "imports"), [("exact", ""), ("scann", "import scann")])
def test_a_fresh_process_answers_as_python_does(request, run, histories, kind, imports):
    folder = latest_version(request.getfixturevalue(f"{kind}_export"))
    some = histories[:50]
    done = subprocess.run(
        [sys.executable, "-c", FRESH.format(imports=imports), str(folder), json.dumps(padded(some).tolist())],
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert lines, done.stderr
    answer = json.loads(lines[0].removeprefix("ANSWER"))
    expected, _ = in_python(run, some, 10)
    assert np.mean([a == b for a, b in zip(answer, expected, strict=True)]) >= (1.0 if kind == "exact" else 0.95)


def test_a_thousand_histories_get_the_same_ids_and_scores_as_in_python(run, served, histories, same_but_for_ties):
    answer = call(served, "serving_default", history=padded(histories))
    expected, scores = in_python(run, histories, 10)
    same_but_for_ties(ids(answer), expected, scores)
    np.testing.assert_allclose(answer["scores"], scores, rtol=1e-4, atol=1e-4)


def test_the_signatures_are_the_golden_ones(exact_export, scann_export):
    """What clients rely on. A change here is a change of the contract: it needs a reason, and the client."""
    golden = json.loads(GOLDEN.read_text())
    for folder in (exact_export, scann_export):
        manifest = json.loads((latest_version(folder) / MANIFEST).read_text())
        assert manifest["signatures"] == golden


def test_the_manifest_says_what_a_server_needs(exact_export, scann_export, run):
    exact, scann = (json.loads((latest_version(f) / MANIFEST).read_text()) for f in (exact_export, scann_export))
    assert (exact["custom_ops"], scann["custom_ops"]) == ([], ["Scann"])
    assert exact["index"]["recall@10"] == 1.0
    assert scann["index"]["recall@10"] >= 0.99
    assert scann["run"] == str(run.folder.resolve())
    assert exact["num_items"] == 200


def test_no_request_copies_a_table(exact_export, scann_export):
    """A variable that a ResourceGather touched is copied whole by each later read."""
    for folder in (exact_export, scann_export):
        assert "ResourceGather" not in ops_of(latest_version(folder))


def test_the_item_vectors_are_stored_once(exact_export, scann_export):
    """Though histories read them at their own length, and ScaNN keeps them too."""
    for folder in (exact_export, scann_export):
        variables = tf.train.load_checkpoint(str(latest_version(folder) / "variables" / "variables"))
        shapes = list(variables.get_variable_to_shape_map().values())
        assert shapes.count([200, 32]) + shapes.count([202, 32]) == 1


def test_an_exact_export_has_stock_ops_only(exact_export, scann_export):
    assert not {op for op in ops_of(latest_version(exact_export)) if "Scann" in op or "PyFunc" in op}
    assert {op for op in ops_of(latest_version(scann_export)) if "Scann" in op}


def test_neither_the_history_nor_the_excluded_come_back_yet_k_items_do(served, histories, run):
    history = histories[18]
    best = ids(call(served, "serving_default", history=[history]))[0]
    answer = call(served, "recommend", history=[history], exclude=[best[:4]], k=[10])
    assert ids(answer)[0][:6] == best[4:]
    assert len(set(ids(answer)[0])) == 10
    assert not set(ids(answer)[0]) & {*history, *best[:4], ""}
    # everything but two items excluded: those two come back, in order of score
    others = [i for i in run.vocabulary.item_ids if i not in best[3:5]]
    answer = call(served, "recommend", history=[history], exclude=[others], k=[10])
    assert ids(answer)[0] == best[3:5] + [""] * 8
    assert np.isneginf(answer["scores"][0, 2:]).all()


def test_k_is_of_each_row(served, histories):
    rows = padded([histories[5]] * 4)
    answer = call(served, "recommend", history=rows, exclude=np.zeros((4, 0), object), k=[3, 5, 0, -2])
    assert answer["item_ids"].shape == (4, 5)
    assert [sum(map(bool, row)) for row in ids(answer)] == [3, 5, 0, 0]
    assert ids(answer)[0][:3] == ids(answer)[1][:3]


def test_k_beyond_the_catalogue_gives_all_of_it(served, histories):
    history = histories[10]
    answer = call(served, "recommend", history=[history], exclude=[[""]], k=[2**31 - 1])
    assert answer["item_ids"].shape == (1, 200)
    assert sum(map(bool, ids(answer)[0])) == 200 - len(set(history))


def test_unknown_ids_are_as_if_they_were_not_there(served, histories):
    history = histories[12]
    strewn = ["nobody", *history[:3], "", "日本", *history[3:], "🛸"]
    a, b = (call(served, "serving_default", history=[h]) for h in (history, strewn))
    assert ids(a) == ids(b)
    np.testing.assert_allclose(a["scores"], b["scores"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("history", [[], [""], ["nobody", "knows"]], ids=["empty", "padding", "unknown"])
def test_a_history_with_nothing_known_gets_the_popular_items(served, run, history):
    answer = call(served, "recommend", history=np.array([history], object).reshape(1, -1), exclude=[[""]], k=[5])
    counts = np.array(run.items["num_events"])
    order = np.argsort(-counts, kind="stable")[:5]
    assert ids(answer)[0] == [run.vocabulary.item_ids[i] for i in order]
    np.testing.assert_allclose(answer["scores"][0], counts[order] / counts.sum(), rtol=1e-5)
    # ... without the excluded ones
    answer = call(served, "recommend", history=[[""]], exclude=[[run.vocabulary.item_ids[order[0]]]], k=[4])
    assert ids(answer)[0] == [run.vocabulary.item_ids[i] for i in order[1:]]
    assert not call(served, "embed_history", history=[[""]])["embedding"].any()


def test_a_batch_mixes_new_users_and_others(served, histories):
    alone = [ids(call(served, "serving_default", history=[h]))[0] for h in (histories[7], [""], histories[18])]
    assert ids(call(served, "serving_default", history=padded([histories[7], [], histories[18]]))) == alone


def test_only_the_newest_items_of_a_long_history_count_but_all_are_left_out(served, run, histories):
    long = run.vocabulary.item_ids[:100] + histories[18]
    newest = long[-run.config.max_length :]
    a, b = (call(served, "embed_history", history=[h])["embedding"] for h in (long, newest))
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert not set(ids(call(served, "serving_default", history=[long]))[0]) & set(long)


def test_a_history_of_100_000_items_is_answered(served, run):
    long = np.resize(np.array(run.vocabulary.item_ids[:150], object), 100_000)
    answer = ids(call(served, "serving_default", history=[long]))[0]
    assert len(set(answer)) == 10
    assert not set(answer) & set(long)


def test_score_agrees_with_recommend(served, histories):
    answer = call(served, "serving_default", history=[histories[18]])
    candidates = [*ids(answer)[0], "nobody", ""]
    scores = call(served, "score", history=[histories[18]], candidates=[candidates])["scores"][0]
    np.testing.assert_allclose(scores[:10], answer["scores"][0], rtol=1e-4)
    assert np.isneginf(scores[10:]).all()


def to_all(version, histories, folder, **asked):
    """The items of `recommend_all` for each history."""
    data = PreparedData.from_histories(histories)
    tfrec.recommend_all(version, data, folder / "recs.parquet", overwrite=True, **asked)
    return np.array(pyarrow.parquet.read_table(folder / "recs.parquet")["item_id"]).reshape(len(histories), 10).tolist()


@pytest.mark.parametrize("kind", ["exact", "partitioned", "scann"])
def test_an_export_may_allow_repeats_and_a_request_leave_them_out(run, histories, tmp_path, same_but_for_ties, kind):
    """The reference's answers with repeats; `recommend_new` and a listed `exclude` answer as an export without them."""
    version = export(run, tmp_path / "e", index=kind, repeats="allow", filters=["genres"])
    manifest = json.loads((version / MANIFEST).read_text())
    golden = json.loads(GOLDEN.read_text())
    assert manifest["repeats"] == "allow"
    assert manifest["signatures"].pop("recommend_filtered")["outputs"] == golden["recommend"]["outputs"]
    assert manifest["signatures"] == golden | {"recommend_new": golden["recommend"]}
    assert check(version).warmup_requests == 4 * 9
    served = tf.saved_model.load(str(version)).signatures
    some = [*histories[:40], [], ["nobody"]]
    asked = {"history": padded(some), "exclude": np.zeros((42, 0), object), "k": [10] * 42}
    expected, scores = in_python(run, some, 10, "allow")
    assert any(set(row) & set(history) for row, history in zip(expected, some, strict=True))
    for answer in (call(served, "serving_default", history=asked["history"]), call(served, "recommend", **asked)):
        same_but_for_ties(ids(answer), expected, scores)
    filtered = call(served, "recommend_filtered", **asked, allow=[[""]] * 42, deny=[[""]] * 42)
    same_but_for_ties(ids(filtered), expected, scores)
    same_but_for_ties(to_all(version, some, tmp_path), expected, scores)
    expected, scores = in_python(run, some, 10)
    same_but_for_ties(to_all(version, some, tmp_path, repeats="exclude"), expected, scores)
    same_but_for_ties(ids(call(served, "recommend_new", **asked)), expected, scores)
    same_but_for_ties(ids(call(served, "recommend", **asked | {"exclude": padded(some)})), expected, scores)
    everything = run.vocabulary.item_ids
    answer = call(served, "serving_default", history=[everything])
    assert len(set(ids(answer)[0]) & set(everything)) == 10
    assert not any(ids(call(served, "recommend_new", history=[everything], exclude=[[""]], k=[3]))[0])


def test_a_refresh_keeps_the_choice_of_repeats(run, histories, tmp_path):
    export(run, tmp_path / "e", index="exact", repeats="allow")
    version = refresh(tmp_path / "e", remove_items=[run.vocabulary.item_ids[0]])
    assert json.loads((version / MANIFEST).read_text())["repeats"] == "allow"
    with Server(tmp_path / "e", 0) as server, Client(f"127.0.0.1:{server.port}") as client:
        history = histories[18]
        kept = [r.item_id for r in client.recommend(history, 200)]
        asked = {"history": [history], "exclude": [[""]], "k": np.array([200], np.int32)}
        new = [i.decode() for i in client.predict("recommend_new", **asked)["item_ids"][0] if i]
    assert len(kept) == 199
    assert new == [i for i in kept if i not in history]
    with pytest.raises(ValueError, match="`repeats` must be one of exclude, allow. Received: 'some'"):
        export(run, tmp_path / "e", index="exact", repeats="some")


def test_similar_items_are_the_nearest_by_cosine(served, run):
    vectors = np.array(run.model.item_tower.catalogue())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = [i for i in np.argsort(-vectors @ vectors[3]) if i != 3][:4]
    answer = call(served, "similar_items", item_ids=[run.vocabulary.item_ids[3], "nobody"], k=[4, 4])
    assert ids(answer) == [[run.vocabulary.item_ids[i] for i in order], [""] * 4]
    np.testing.assert_allclose(answer["scores"][0], (vectors @ vectors[3])[order], rtol=1e-4)


def test_embeddings_are_those_of_the_towers(served, run, histories):
    vectors = call(served, "embed_items", item_ids=[run.vocabulary.item_ids[9], "nobody"])["embedding"]
    np.testing.assert_allclose(vectors[0], run.model.item_tower.catalogue()[9], rtol=1e-6)
    assert not vectors[1].any()
    query = call(served, "embed_history", history=[histories[18]])["embedding"]
    score = call(served, "score", history=[histories[18]], candidates=[[run.vocabulary.item_ids[9]]])["scores"]
    assert float(query[0] @ vectors[0]) == pytest.approx(float(score[0, 0]), rel=1e-4)


def test_scann_recommends_what_exact_does(run, histories):
    exact, scann = (build_serving_model(run, kind) for kind in ("exact", "scann"))
    rows = tf.constant(padded(histories[:200]))
    a, b = (ids({"item_ids": m.serving_default(rows)["item_ids"].numpy()}) for m in (exact, scann))
    assert np.mean([len(set(x) & set(y)) / 10 for x, y in zip(a, b, strict=True)]) >= 0.99


def test_the_next_export_is_the_next_version_and_none_is_seen_half_written(run, tmp_path, monkeypatch):
    assert export(run, tmp_path / "e", index="exact").name == "1"
    assert export(run, tmp_path / "e", index="exact").name == "2"
    assert latest_version(tmp_path / "e").name == "2"
    monkeypatch.setattr("tfrec.deploy.saved_model.write_warmup", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export(run, tmp_path / "e", index="exact")
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == ["1", "2"]


def test_wrong_arguments(run, tmp_path):
    with pytest.raises(ValueError, match="`k` must be at least 1. Received: 0"):
        build_serving_model(run, k=0)
    with pytest.raises(ValueError, match="is not an export"):
        latest_version(tmp_path)


def test_ids_of_any_unicode_and_a_catalogue_of_one_item(tmp_path):
    odd = 'line\nbreak, "quote" 日本 👩‍🚀'
    (tmp_path / "log.jsonl").write_text(
        "\n".join(json.dumps({"user": "u", "item": odd}) for _ in range(5)), encoding="utf-8"
    )
    data = tfrec.prepare(tmp_path / "log.jsonl")
    config = tfrec.Config(epochs=1, width=8, num_blocks=1, max_length=8)
    run = tfrec.train(config, data, tmp_path / "run")
    for kind in ("exact", "scann"):
        export(run, tmp_path / kind, index=kind)
        served = tf.saved_model.load(str(latest_version(tmp_path / kind))).signatures
        assert ids(call(served, "serving_default", history=[[""]])) == [[odd]]
        assert ids(call(served, "serving_default", history=[[odd]])) == [[""]]
        assert ids(call(served, "recommend", history=[["x"]], exclude=[[""]], k=[3])) == [[odd]]
