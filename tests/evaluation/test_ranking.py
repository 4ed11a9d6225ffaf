"""Metrics against a reference written differently, and against the published figures of real files."""

import numpy as np
import pytest
from reference import recommend

from tfrec.data.datasets import prepare_dataset
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.evaluation.baselines import Bigram, ItemKNN, Popularity
from tfrec.evaluation.judgement import evaluate, judge
from tfrec.evaluation.metrics import means, metrics_of_requests
from tfrec.evaluation.ranking import rank_targets


def reference(scores, seen, target, repeats) -> dict[str, float]:
    """By the definition, one user at a time: every order of the tied items, averaged."""
    candidates = [i for i in range(len(scores)) if i not in seen or repeats == "allow"]
    if target not in candidates:
        return {"hr@10": 0.0, "ndcg@10": 0.0, "mrr": 0.0}
    above = sum(scores[i] > scores[target] for i in candidates)
    tied = sum(scores[i] == scores[target] for i in candidates)
    ranks = [above + t for t in range(1, tied + 1)]
    return {
        "hr@10": np.mean([r <= 10 for r in ranks]),
        "ndcg@10": np.mean([1 / np.log2(r + 1) if r <= 10 else 0 for r in ranks]),
        "mrr": np.mean([1 / r for r in ranks]),
    }


@pytest.mark.parametrize("repeats", ["exclude", "allow"])
def test_ranking_agrees_with_the_reference_ties_included(repeats):
    rng = np.random.default_rng(0)
    data = PreparedData.from_histories([[f"i{i}" for i in rng.integers(0, 40, rng.integers(3, 12))] for _ in range(60)])
    split = LeaveLastOut(data)
    scores = rng.integers(0, 6, size=(len(split.users), data.num_items)).astype(float)
    for part in ("validation", "test"):
        judged = judge(split, {"ours": lambda *_: lambda rows: scores[rows].copy()}, part, repeats=repeats)
        got = judged.metrics("ours")
        starts, ends = split.histories(part)
        seen = [set(data.item_index[a:b] - 2) for a, b in zip(starts, ends, strict=True)]
        targets = data.item_index[ends] - 2
        expected = [reference(scores[r], seen[r], targets[r], repeats) for r in range(len(ends))]
        for name in ("hr@10", "ndcg@10", "mrr"):
            assert got[name] == pytest.approx(np.mean([e[name] for e in expected]))
        is_repeat = [target in own for target, own in zip(targets, seen, strict=True)]
        assert 0 < sum(is_repeat) == judged.counts()["num_repeat_targets"]
        if repeats == "allow":
            hits = np.array([e["hr@10"] for e in expected])
            assert got["repeat_share@10"] == pytest.approx(hits[is_repeat].sum() / hits.sum())
        else:
            assert "repeat_share@10" not in got


def test_small_chunks_change_nothing(monkeypatch, data):
    split = LeaveLastOut(data)
    scores = np.random.default_rng(0).normal(size=(len(split.users), data.num_items))
    whole = rank_targets(lambda rows: scores[rows].copy(), split, "test", top=5)
    monkeypatch.setattr("tfrec.evaluation.ranking.CHUNK_BYTES", 7 * 4 * data.num_items)
    parts = rank_targets(lambda rows: scores[rows].copy(), split, "test", top=5)
    for name in ("num_above", "num_tied", "items"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_a_catalogue_of_one_item_has_one_rank():
    split = LeaveLastOut(PreparedData.from_histories(["aaa"]))
    ranking = rank_targets(lambda rows: np.zeros((len(rows), 1)), split, "test", "allow")
    assert means(metrics_of_requests(ranking))["ndcg@10"] == 1.0


def test_the_share_of_repeats_among_no_hits_is_0():
    data = PreparedData.from_histories(["abca"])
    last = np.array([[1.0, 0.0, 0.0]])
    judged = judge(LeaveLastOut(data), {"a": lambda *_: lambda rows: -last[rows]}, repeats="allow", cutoffs=[1])
    assert judged.metrics("a")["hr@1"] == judged.metrics("a")["repeat_share@1"] == 0.0
    with pytest.raises(ValueError, match="`repeats` must be one of exclude, allow. Received: 'yes'"):
        evaluate(data, repeats="yes")
    with pytest.raises(ValueError, match="Cut-offs are whole numbers from 1. Received: .0.."):
        evaluate(data, cutoffs=[0])


def test_allowed_repeats_count_for_the_baselines_too():
    """Everyone comes back to the first item: popularity finds it where repeats are allowed, and cannot otherwise."""
    data = PreparedData.from_histories([["a", f"b{u}", "a", f"c{u}", "a"] for u in range(20)])
    excluded, allowed = evaluate(data), evaluate(data, repeats="allow")
    assert (excluded["repeats"], allowed["repeats"]) == ("exclude", "allow")
    assert excluded["num_repeat_targets"] == allowed["num_repeat_targets"] == 20
    for name in ("popularity", "bigram"):
        assert (excluded[name]["hr@10"], allowed[name]["hr@10"]) == (0.0, 1.0)
        assert allowed[name]["repeat_share@10"] == 1.0


def test_a_log_without_targets_is_an_error():
    with pytest.raises(ValueError, match="No user has 3 events"):
        evaluate(PreparedData.from_histories([["a", "b"]]))


def test_bigram_counts_pairs_inside_a_user_and_breaks_ties_by_popularity():
    #                        a  b  a  c | b  a | d  (the pair c -> b crosses users and does not count)
    item_index = np.array([2, 3, 2, 4, 3, 2, 5])
    popularity = Popularity(item_index, 5)
    assert popularity.counts.tolist() == [3, 2, 1, 1, 0]
    scores = Bigram(item_index, np.array([0, 4, 6, 7]), popularity).scores(np.array([2, 3, 4]))
    assert np.floor(scores).tolist() == [[0, 1, 1, 0, 0], [2, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert np.argsort(-scores[0], kind="stable").tolist() == [1, 2, 0, 3, 4]
    assert scores[2, 2] == scores[2, 3] > scores[2, 4]


def test_item_knn_sums_cosines_of_the_nearest():
    # users:                 a b | a b c | c (twice)
    item_index, offsets = np.array([2, 3, 2, 3, 4, 4, 4]), np.array([0, 2, 5, 7])
    scores = ItemKNN(item_index, offsets, 4).scores(np.array([2, 2, 3, 4]), np.array([0, 2, 4]))
    np.testing.assert_allclose(scores, [[0, 1, 0.5, 0], [1.5, 0.5, 0.5, 0]], rtol=1e-6)
    nearest = ItemKNN(item_index, offsets, 4, num_neighbours=1).scores(np.array([2]), np.array([0, 1]))
    np.testing.assert_allclose(nearest, [[0, 1, 0, 0]], rtol=1e-6)


def test_an_empty_user_in_the_middle_joins_no_pair():
    popularity = Popularity(np.array([2, 3]), 2)
    assert np.floor(Bigram(np.array([2, 3]), np.array([0, 1, 1, 2]), popularity).scores(np.array([2]))).sum() == 0


@pytest.mark.parametrize(
    ("name", "counts", "popularity", "bigram"),
    [
        ("movielens-1m", (6040, 3416, 999_611), (0.0369, 0.0180), (0.2144, 0.1259)),
        ("amazon-beauty", (22_363, 12_101, 198_502), (0.0115, 0.0054), (0.0668, 0.0439)),
        ("movielens-100k", (943, 1682, 100_000), (0.0848, 0.0441), (0.1448, 0.0768)),
    ],
)
def test_baselines_have_their_known_figures_on_public_files(public_data, tmp_path, name, counts, popularity, bigram):
    manifest = prepare_dataset(name, tmp_path / "data").manifest
    assert (manifest["num_users"], manifest["num_items"], manifest["num_events"]) == counts
    assert manifest["num_refused"] == 0
    result = evaluate(PreparedData.open(tmp_path / "data"))
    for metrics, expected in ((result["popularity"], popularity), (result["bigram"], bigram)):
        assert (metrics["hr@10"], metrics["ndcg@10"]) == pytest.approx(expected, abs=5e-4)


def test_the_result_has_the_keys_that_are_promised(run, data):
    result = evaluate(data, "validation", run.model)
    assert {"hr@5", "recall@10", "precision@20", "f1@5", "ndcg@10", "map@5", "mrr", "coverage@10"} <= set(
        result["model"]
    )
    assert result["num_users"] == 2000
    assert result["num_short_users"] == result["num_repeat_targets"] == result["num_new_users"] == 0
    assert result["model"]["ndcg@10"] == pytest.approx(run.metrics["validation"]["ndcg@10"])


def test_the_model_nearly_reaches_the_bayes_optimal_hit_rate_and_does_not_exceed_it(run, data):
    """Two items back decide: attention finds it, a bigram cannot. The bound is the expected rate; its sampling error here is
    sqrt(p (1 - p) / 2000) = .011."""
    result = evaluate(data, "test", run.model)
    bound = data.manifest["bayes_optimal"]["hr@10"]
    assert 0.93 * bound < result["model"]["hr@10"] < bound + 3 * 0.011
    assert result["model"]["hr@10"] > 2 * result["popularity"]["hr@10"]
    assert result["model"]["hr@10"] > 2 * result["bigram"]["hr@10"]


def test_recommend_leaves_out_the_history_and_answers_an_empty_one(run, data):
    history = data.history(0)
    items, scores = recommend(run.model, [history, np.array([], int), np.array([0, 1])], 10, data.item_counts)
    assert not set(items[0]) & set(history.tolist())
    assert (np.diff(scores[0]) <= 0).all()
    popular = np.argsort(-data.item_counts, kind="stable")[:10] + 2
    np.testing.assert_array_equal(items[1], popular)
    np.testing.assert_array_equal(items[2], popular)
    everything = np.arange(2, data.num_items + 2)
    items, scores = recommend(run.model, [everything], 10, data.item_counts)
    assert not items.any()
    assert np.isneginf(scores).all()
