"""Contenders side by side: lists, certainty, slices, and targets that cannot be hit."""

import json

import numpy as np
import pyarrow as pa
import pytest

from tfrec.data.features import Feature, fit_feature
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.data.time_split import TimeSplit
from tfrec.evaluation.certainty import corrected, interval, paired_p_value, resampled_means
from tfrec.evaluation.contenders import BASELINES, baselines_of
from tfrec.evaluation.judgement import evaluate, judge
from tfrec.evaluation.lists import Catalogue, list_metrics
from tfrec.evaluation.metrics import means, metrics_of_requests
from tfrec.evaluation.slices import slices


@pytest.fixture(scope="module")
def log():
    """80 users, 25 items with a genre and a price, times, and ages of the users."""
    rng = np.random.default_rng(0)
    data = PreparedData.from_histories(
        [[f"i{i}" for i in rng.permutation(25)[: rng.integers(3, 9)]] for _ in range(80)]
    )
    data.timestamp[:] = 1_700_000_000 + np.sort(rng.integers(0, 50 * 86_400, data.num_events))
    genres = [
        [str(g) for g in rng.choice(list("abc"), rng.integers(0, 3), replace=False)] for _ in range(data.num_items)
    ]
    items = data.items.append_column("genres", pa.array(genres)).append_column("price", pa.array(rng.random(25)))
    users = data.users.append_column("age", pa.array(["young", "old"] * 40)).append_column("mail", pa.array(["x"] * 80))
    features = {"items": [fit_feature("genres", "multi", items["genres"])]}
    return PreparedData(
        data.vocabulary, data.item_index, data.timestamp, data.offsets, items=items, users=users, features=features
    )


@pytest.fixture(scope="module")
def judged(log):
    return judge(LeaveLastOut(log), baselines_of(log), cutoffs=[1, 10])


def test_every_baseline_stands_beside_the_others(judged, log):
    assert judged.names == ["popularity", "recent-popularity", "bigram", "item-knn", "content-knn"]
    assert {*BASELINES} - {*judged.names} == {"random"}
    assert baselines_of(PreparedData.from_histories(["abc"])).keys() == {"popularity", "bigram", "item-knn"}


def test_random_is_the_mean_over_all_orders(log):
    split = LeaveLastOut(log)
    found = judge(split, {"random": BASELINES["random"]}, cutoffs=[5]).metrics("random")
    starts, ends = split.histories("test")
    assert found["hr@5"] == pytest.approx(np.mean(5 / (log.num_items - (ends - starts))))


def test_lists_against_their_definitions(judged, log):
    split, k = LeaveLastOut(log), 10
    counts, vectors = split.train_counts(), np.random.default_rng(2).normal(size=(log.num_items, 4))
    catalogue = Catalogue.of(split, vectors)
    ranking = judged.rankings["bigram"]
    targets = split.targets("test") - 2
    items = np.where(np.random.default_rng(3).random(ranking.items.shape) < 0.1, -1, ranking.items)
    of_lists, of_all = list_metrics(items, items == targets[:, None], catalogue, [k])
    item_index, offsets = split.train_part()
    owners = [{u for u in range(80) if i + 2 in item_index[offsets[u] : offsets[u + 1]]} for i in range(25)]
    levels = sorted({*counts} - {0}, reverse=True)
    genres = [set(g) for g in log.items["genres"].to_pylist()]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row in range(0, 80, 7):
        own = [i for i in items[row] if i >= 0]
        assert of_lists["popularity@10"][row] == pytest.approx(np.mean(counts[own]))
        assert of_lists["novelty@10"][row] == pytest.approx(
            np.mean([-np.log2(max(len(owners[i]), 1) / 80) for i in own])
        )
        pairs = [(a, b) for a in own for b in own if a != b]
        assert of_lists["diversity@10"][row] == pytest.approx(np.mean([1 - unit[a] @ unit[b] for a, b in pairs]))
        likeness = [len(genres[a] & genres[b]) / max(1e-9, (len(genres[a]) * len(genres[b])) ** 0.5) for a, b in pairs]
        assert of_lists["category_diversity@10"][row] == pytest.approx(1 - np.mean(likeness), abs=1e-6)
        surprise = [
            max((25 - rank) / 25 - (26 - (levels.index(counts[i]) + 1)) / 25 * (counts[i] > 0), 0)
            for rank, i in enumerate(items[row])
            if i == targets[row]
        ]
        assert of_lists["serendipity@10"][row] == pytest.approx(sum(surprise) / k)
    shown = np.bincount(items[items >= 0], minlength=25)
    assert of_all["coverage@10"] == np.mean(shown > 0)
    assert of_all["gini@10"] == pytest.approx(np.abs(shown[:, None] - shown).sum() / (2 * 25 * shown.sum()))
    one, _ = list_metrics(items[:, :1], items[:, :1] < 0, catalogue, [1])
    assert not one["diversity@1"].any()


def test_a_difference_of_a_hundredth_is_found_and_chance_is_not():
    """100 pairs of runs whose users differ by chance alone, and 100 with one hundredth more."""
    rng = np.random.default_rng(0)
    quality = rng.beta(0.3, 1.2, 6000)
    alarms, found = 0, 0
    for _ in range(100):
        first, second = (np.clip(quality + rng.normal(0, 0.15, 6000), 0, 1) for _ in range(2))
        alarms += paired_p_value(first, second) < 0.05
        found += paired_p_value(first + 0.01, second) < 0.05
    assert alarms <= 10
    assert found >= 90


def test_intervals_hold_the_truth_and_pairs_make_them_narrow():
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(100):
        low, high = interval(resampled_means([rng.exponential(size=300)], 400, seed)[:, 0])
        held += low < 1 < high
    assert 88 <= held <= 100
    values = rng.normal(size=500)
    both = resampled_means([values, values + 0.1 + rng.normal(0, 0.01, 500)])
    low, high = interval(both[:, 1] - both[:, 0])
    assert 0.098 < low < 0.1 < high < 0.102


def test_few_requests_make_nothing_sure():
    for number in (1, 2, 3):
        values = np.full(number, 0.5)
        assert interval(resampled_means([values])[:, 0]) == (0.5, 0.5)  # a resample may draw no request
        assert paired_p_value(values, np.zeros(number)) == 0.5 ** (number - 1)


def test_small_pieces_of_a_resample_give_the_same_kind_of_means(monkeypatch):
    values = np.random.default_rng(0).normal(3, 1, (2, 1000))
    monkeypatch.setattr("tfrec.evaluation.certainty.CELLS", 1000 * 64)
    found = resampled_means(values)
    np.testing.assert_allclose(found.mean(axis=0), values.mean(axis=1), atol=0.005)
    np.testing.assert_allclose(found.std(axis=0), 1 / np.sqrt(1000), rtol=0.1)


def test_holm_never_reorders():
    p_values = {f"c{i}": p for i, p in enumerate(np.random.default_rng(0).random(20) ** 3)}
    found = corrected(p_values)
    order = sorted(p_values, key=p_values.get)
    assert [found[name] for name in order] == sorted(found.values())
    assert all(p_values[name] <= found[name] <= 1 for name in p_values)
    assert paired_p_value(np.ones(3), np.ones(3)) == 1.0


def test_differences_are_those_of_the_means(judged):
    for other, found in judged.differences("ndcg@10").items():
        expected = judged.metrics("popularity")["ndcg@10"] - judged.metrics(other)["ndcg@10"]
        assert found["difference"] == pytest.approx(expected)
        assert found["low"] <= expected <= found["high"]
        assert found["p_value"] >= judged.difference("popularity", other, "ndcg@10")["p_value"]


def test_slices_of_users_divide_them(judged, log):
    for column in ("history length", "age"):
        found = judged.by(column)
        assert sum(one["num_requests"] for one in found) == 80
        total = sum(one["num_requests"] * one["bigram"]["ndcg@10"] for one in found) / 80
        assert total == pytest.approx(judged.metrics("bigram")["ndcg@10"])
    assert {one["slice"] for one in judged.by("age")} == {"young", "old"}


def test_slices_of_targets_divide_them(judged, log):
    for column in ("popularity", "price"):
        found = judged.by(column)
        assert sum(one["num_targets"] for one in found) == 80
        total = sum(one["num_targets"] * one["bigram"]["ndcg@10"] for one in found) / 80
        assert total == pytest.approx(judged.metrics("bigram")["ndcg@10"])
    genres = {one["slice"]: one["num_targets"] for one in judged.by("genres")}
    targets = LeaveLastOut(log).targets("test") - 2
    own = [log.items["genres"].to_pylist()[t] for t in targets]
    assert genres == {g: sum(g in o for o in own) for g in "abc"} | {"missing": sum(not o for o in own)}
    with pytest.raises(
        ValueError, match="There is no column 'colour' to slice by. Known: history length, popularity, age"
    ):
        judged.by("colour")


def test_slices_without_a_target_are_left_out_and_cutoffs_count_once():
    found = evaluate(PreparedData.from_histories(["abc", "abc"]), cutoffs=[5, 5, 1], by=["popularity"])
    assert [(one["slice"], one["num_targets"]) for one in found["slices"]["popularity"]] == [("tenth 7", 2)]
    assert found["cutoffs"] == [5, 1]
    json.dumps(found, allow_nan=False)


def test_slices_of_dates_are_named_by_dates(log):
    days = pa.array(["2024-01-01"] * 20 + ["2025-06-30"] * 4 + [None]).cast(pa.date32())
    items = log.items.append_column("released", days)
    released = fit_feature("released", "date", items["released"])
    data = PreparedData(
        log.vocabulary, log.item_index, log.timestamp, log.offsets, items=items, features={"items": [released]}
    )
    labels = {label for label, _, _ in slices(LeaveLastOut(data), "test", "released")}
    assert labels == {"2024-01-01", "2025-06-30", "missing"}


def test_names_of_figures_are_no_contenders(log, monkeypatch):
    popular = BASELINES["popularity"]
    with pytest.raises(ValueError, match="A contender cannot be called 'slices', which is a figure of the result"):
        evaluate(log, against={"slices": popular})
    with pytest.raises(ValueError, match="`against` has a contender 'model' beside `model`"):
        evaluate(log, model=object(), against={"model": popular})
    monkeypatch.setattr("tfrec.evaluation.judgement.rank_targets", None)  # nothing is ranked before the error
    with pytest.raises(ValueError, match="There is no column 'colour' to slice by"):
        evaluate(log, by=["colour"])


def test_rare_values_are_one_slice(log):
    makers = pa.array([f"m{i}" for i in range(24)] + [None])
    items = log.items.append_column("maker", makers)
    maker = Feature("maker", "category", values=tuple(f"m{i}" for i in range(24)))
    data = PreparedData(
        log.vocabulary, log.item_index, log.timestamp, log.offsets, items=items, features={"items": [maker]}
    )
    found = {label: kept for label, _, kept in slices(LeaveLastOut(data), "test", "maker")}
    assert len(found) == 22
    assert (sum(kept.astype(int) for kept in found.values()) == 1).all()
    assert found["others"].any()


def test_a_text_is_nothing_to_slice_by(log):
    text = fit_feature("title", "text", pa.chunked_array([["a b c"] * 25]))
    items = log.items.append_column("title", pa.array(["a b c"] * 25))
    data = PreparedData(
        log.vocabulary, log.item_index, log.timestamp, log.offsets, items=items, features={"items": [text]}
    )
    with pytest.raises(ValueError, match="Column 'title' is text: slices are by categories, numbers and dates"):
        evaluate(data, by=["title"])


def test_several_targets_and_new_users_by_time():
    """User 2 is new in the test; item d is new in it."""
    data = PreparedData.from_histories(["abcd", "bacb", "ab"])
    data.timestamp[:] = [1, 2, 8, 9, 1, 4, 8, 9, 8, 9]
    split = TimeSplit(data, test=0.6, validation=0.1)
    judged = judge(split, baselines_of(data), cutoffs=[2])
    counts = judged.counts()
    assert (counts["num_users"], counts["num_targets"], counts["num_new_users"]) == (3, 6, 1)
    assert (counts["num_unseen_targets"], counts["num_repeat_targets"]) == (3, 1)
    # popularity knows b b a; user 0 gets c d, which tie; user 1 gets c d too, user 2 b a
    assert judged.values["popularity"]["recall@2"].tolist() == [1.0, 0.5, 1.0]
    assert judged.values["popularity"]["hr@2"].tolist() == [1.0, 1.0, 1.0]
    assert judged.by("history length")[0]["slice"] == "new users"


def test_a_part_of_targets_is_ranked_among_all_items(judged):
    ranking = judged.rankings["popularity"]
    kept = np.arange(80) % 2 == 0
    found = metrics_of_requests(ranking.only(kept), [10])["ndcg@10"]
    np.testing.assert_array_equal(found[kept], judged.values["popularity"]["ndcg@10"][kept])
    assert np.isnan(found[~kept]).all()
    assert means({"x": found})["x"] == pytest.approx(judged.values["popularity"]["ndcg@10"][kept].mean())


def test_a_split_without_requests_is_an_error(log):
    data = PreparedData.from_histories(["abc", "b"])
    data.timestamp[:] = [1, 2, 3, 9]
    kind = np.array([1, 1, 1, 0], np.float32)
    own = {"features": {"events": [Feature("kind", "number")]}, "event_columns": {"kind": kind}}
    data = PreparedData(data.vocabulary, data.item_index, data.timestamp, data.offsets, **own)
    split = TimeSplit(data, test=0.2, validation=0.2, targets=["kind>=1"])
    with pytest.raises(ValueError, match="No user has an event to be found in the test part: choose other times"):
        judge(split, baselines_of(data))
