"""One request does not tax its neighbours, and two writers do not lose each other's work."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from tfrec.data.prepared import PreparedData
from tfrec.deploy.litert import load, run_edge, to_litert
from tfrec.deploy.saved_model import _publish
from tfrec.deploy.serving_model import ServingModel, build_serving_model
from tfrec.files import replace_folder, scratch, write_whole
from tfrec.index import KINDS, build_index
from tfrec.index.answers import Answers, to_seconds
from tfrec.index.exact import SPARE
from tfrec.index.filters import ItemFilter, wanted_of
from tfrec.models.item_tower import ItemTower
from tfrec.models.sequence_tower import SequenceTower
from tfrec.models.two_tower import TwoTower
from tfrec.training.run import Run

# --- filters -----------------------------------------------------------------------------------------------------------


def test_an_item_with_a_thousand_tags_widens_no_other():
    rng = np.random.default_rng(0)
    tags = [[f"t{t}" for t in rng.integers(0, 50, rng.integers(0, 4))] for _ in range(20_000)]
    tags[7] = [f"t{t}" for t in range(1000)]
    item_filter = ItemFilter({"tag": tags, "shelf": [n % 3 for n in range(20_000)]})
    assert sum(v.numpy().nbytes for v in item_filter.variables) < 500_000  # a table as wide as item 7 had 80 MB
    allow = [["tag=t3", "tag=t999", "shelf=1"], ["", "", ""], ["shelf=0", "shelf=2", "tag=t4"], ["tag=none", "", ""]]
    deny = [["tag=t5", "nothing=1"], ["shelf=2", "tag=t7"], ["", ""], ["", ""]]
    items = rng.integers(0, 20_000, (4, 500)).astype(np.int32)
    items[:, 0] = 7
    found = item_filter.allows(tf.constant(items), tf.constant(allow), tf.constant(deny)).numpy()

    def passes(item: int, row: int) -> bool:
        own = {"tag": set(tags[item]), "shelf": {str(item % 3)}}
        has = lambda wanted: any(w.partition("=")[2] in own.get(w.partition("=")[0], ()) for w in wanted)  # noqa: E731
        asked = {name: [w for w in allow[row] if w.startswith(f"{name}=")] for name in own}
        return all(has(wanted) for wanted in asked.values() if wanted) and not has(deny[row])

    np.testing.assert_array_equal(found, [[passes(i, row) for i in items[row]] for row in range(4)])
    assert found.any(axis=1).tolist() == [True, True, True, False]


def test_time_and_memory_follow_the_values_that_a_request_names():
    """A table of items x tags x values would take 2 GB here."""
    item_filter = ItemFilter({"tag": [[str(n % 997), str(n % 991)] for n in range(100_000)]})
    allow = tf.constant([[f"tag={n}" for n in range(10_000)]])
    found = item_filter.allows(tf.range(100_000)[tf.newaxis], allow, tf.constant([["tag=5"]])).numpy()[0]
    assert found.sum() == sum(5 not in (n % 997, n % 991) for n in range(100_000))


def test_values_of_a_request_are_those_of_the_items():
    years = ItemFilter({"year": [1999.0, float("nan"), 2000.0]})  # pandas makes floats of whole numbers with a gap
    asked = tf.constant([wanted_of({"year": [1999]}), wanted_of({"year": 2000.0})])
    found = years.allows(tf.range(3)[tf.newaxis], asked, tf.constant([[""], [""]]))
    np.testing.assert_array_equal(found, [[True, False, False], [False, False, True]])
    assert wanted_of({"genre": "Comedy"}) == ["genre=Comedy"]


# --- exclusions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_exclusion_counts_once_and_a_long_list_is_paid_by_its_row(kind, monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6000, 16)).astype(np.float32)
    index = build_index(kind, vectors)
    asked = []
    candidates = index.candidates
    monkeypatch.setattr(index, "candidates", lambda q, number: asked.append(int(number)) or candidates(q, number))
    queries = rng.normal(size=(3, 16)).astype(np.float32)
    best = np.argsort(-queries @ vectors.T, axis=1)
    excluded = np.full((3, 4000), -1, np.int32)
    excluded[0] = best[0, 0]  # the same item 4,000 times
    excluded[1, :3] = best[1, :3]
    scores, items = index.query(tf.constant(queries[:2]), 5, tf.constant(excluded[:2]))
    np.testing.assert_array_equal(items[0], best[0, 1:6])
    assert kind == "exact" or asked == [5 + 3]
    excluded[2] = best[2, :4000]
    scores, items = index.query(tf.constant(queries), 5, tf.constant(excluded))
    np.testing.assert_array_equal(items[2], best[2, 4000:4005])
    np.testing.assert_allclose(scores[2], np.sort(queries[2] @ vectors.T)[::-1][4000:4005], rtol=1e-5)
    assert kind == "exact" or asked[1] == 5 + SPARE


# --- k -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> tuple[TwoTower, PreparedData]:
    data = PreparedData.from_histories(["abcdefgh", "hgfedcba", "acegbdfh"])
    model = TwoTower(ItemTower(data.num_items, 8), SequenceTower(6, num_heads=1, time_bias=True))
    model.build()
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:  # at the start, times change nothing
        variable.assign(rng.normal(size=variable.shape))
    return model, data


def test_k_has_a_limit(small):
    model, data = small
    # a model that reads times takes them beside the history
    answers = Answers(model, data.item_counts)
    serving = ServingModel(answers, data.vocabulary, k=2, max_k=3)
    exclude, k = tf.zeros((2, 0), tf.string), tf.constant([2_000_000, 1])
    times = (tf.zeros((2, 1), tf.int64), tf.zeros((2,), tf.int64))
    answer = serving.recommend(tf.constant([["a"], ["b"]]), *times, exclude, k)
    assert answer["item_ids"].shape == (2, 3)
    assert [sum(i != b"" for i in row) for row in answer["item_ids"].numpy()] == [3, 1]
    assert serving.similar_items(tf.constant(["a"]), tf.constant([100]))["item_ids"].shape == (1, 3)
    assert ServingModel(answers, data.vocabulary).max_k == 2**31 - 1


def test_a_limit_below_k_is_refused(run):
    with pytest.raises(ValueError, match="`max_k` must be at least `k`. Received: k=10, max_k=3"):
        build_serving_model(run, "exact", max_k=3)


# --- times -------------------------------------------------------------------------------------------------------------


def test_times_of_any_unit_mean_the_same(small):
    model, data = small
    answers = Answers(model, data.item_counts)
    history = [np.array([2, 5, 3], np.int32)]
    seconds, request = np.array([1_700_000_000, 1_700_050_000, 1_700_060_000]), 1_700_100_000
    expected = answers.recommend(history, 3, timestamps=[seconds], request_times=[request])
    for unit in (10**3, 10**6, 10**9):
        found = answers.recommend(history, 3, timestamps=[seconds * unit + 7], request_times=[request * unit + 7])
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
    assert not np.array_equal(
        answers.recommend(history, 3, timestamps=[seconds + 10**6], request_times=[0])[1], expected[1]
    )
    assert to_seconds(tf.constant([10**11, 0, -5], tf.int64)).numpy().tolist() == [10**11, 0, -5]


# --- LiteRT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("histories", [["aaaa", "aaa"], ["abab", "bab"]])
@pytest.mark.parametrize("index", ["exact", "partitioned"])
def test_a_file_answers_who_has_seen_everything(tmp_path, histories, index):
    data = PreparedData.from_histories(histories)
    model = TwoTower(ItemTower(data.num_items, 8), SequenceTower(5, num_heads=1))
    model.build()
    run = Run.from_model(model, data, tmp_path / "run")
    report = to_litert(run, tmp_path / "lite" / "model.tflite", index=index)
    assert (report.max_difference, report.same_items, report.num_histories) == (0.0, 1.0, 2)
    edge = load(report.path)
    items, scores = run_edge(edge, data.history(0))
    assert not items.any()
    assert (scores < -1e38).all()
    items, _ = run_edge(edge, np.array([], np.int32))
    assert sorted(items.tolist()) == list(range(2, 2 + data.num_items))
    assert run.recommend(list(histories[0])).item_ids.tolist() == [""] * data.num_items


# --- files -------------------------------------------------------------------------------------------------------------


def test_exports_at_the_same_time_get_versions_of_their_own(tmp_path):
    folders = [tmp_path / f".{number}.partial" for number in range(12)]
    for folder in folders:
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    with ThreadPoolExecutor(12) as pool:
        versions = list(pool.map(lambda folder: _publish(folder, tmp_path, None), folders))
    assert sorted(int(version.name) for version in versions) == list(range(1, 13))
    assert sorted((version / "name").read_text() for version in versions) == sorted(f.name for f in folders)


def test_a_change_to_a_version_that_is_no_longer_the_newest_is_refused(tmp_path):
    for name in ("1", "2", ".new"):
        (tmp_path / name).mkdir()
    with pytest.raises(
        ValueError, match=r"2` was written while `.*1` was changed, and would be undone. Run the command again"
    ):
        _publish(tmp_path / ".new", tmp_path, tmp_path / "1")
    assert _publish(tmp_path / ".new", tmp_path, tmp_path / "2").name == "3"


def test_scratch_names_are_nobody_elses(tmp_path):
    assert len({scratch(tmp_path / "a") for _ in range(1000)}) == 1000
    with pytest.raises(ZeroDivisionError):
        write_whole(tmp_path / "file.txt", lambda path: path.write_text("half") and 1 / 0)
    write_whole(tmp_path / "file.txt", lambda path: path.write_text("whole"))
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "which").read_text() == "new"
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "none", tmp_path / "old")
    assert sorted(os.listdir(tmp_path)) == ["file.txt", "old"]
    assert (tmp_path / "old" / "which").read_text() == "new"
