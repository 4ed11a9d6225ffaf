"""Metrics against their definitions: every order of the tied items, averaged."""

import itertools

import numpy as np
import pytest

from tfrec.evaluation.metrics import Ranking, means, metrics_of_requests


def by_definition(order: list[int], targets: set[int], k: int) -> dict[str, float]:
    hits = [rank for rank, item in enumerate(order, 1) if item in targets]
    first, hits = hits[:1], [rank for rank in hits if rank <= k]
    gain = sum(1 / np.log2(rank + 1) for rank in hits)
    ideal = [1 / np.log2(rank + 1) for rank in range(1, k + 1)]
    precision, recall = len(hits) / k, len(hits) / len(targets)
    return {
        f"hr@{k}": float(bool(hits)),
        f"recall@{k}": recall,
        f"precision@{k}": precision,
        f"f1@{k}": 2 * precision * recall / (precision + recall) if hits else 0.0,
        f"ndcg@{k}": gain / sum(ideal[: len(targets)]),
        f"ndcg_of_k@{k}": gain / sum(ideal),
        f"map@{k}": sum((number / rank) for number, rank in enumerate(hits, 1)) / len(targets),
        f"mrr@{k}": 1 / hits[0] if hits else 0.0,
        "mrr": 1 / first[0] if first else 0.0,
    }


def ranking_of(scores: np.ndarray, targets: list[list[int]], left_out: list[list[int]]) -> Ranking:
    above, tied = [], []
    for row, own, out in zip(scores, targets, left_out, strict=True):
        kept = np.setdiff1d(np.arange(len(row)), out)
        above += [(row[kept] > row[t]).sum() * (t not in out) for t in own]
        tied += [(row[kept] == row[t]).sum() * (t not in out) for t in own]
    offsets = np.cumsum([0, *map(len, targets)])
    return Ranking(np.array(above), np.array(tied), offsets, scores.shape[1], np.zeros((len(targets), 0), np.int32))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_metrics_are_means_over_all_orders_of_tied_items(k):
    rng = np.random.default_rng(k)
    scores = rng.integers(0, 3, (30, 6)).astype(float)
    targets = [rng.choice(6, rng.integers(1, 5), replace=False).tolist() for _ in scores]
    left_out = [rng.choice(6, rng.integers(0, 2), replace=False).tolist() for _ in scores]
    found = metrics_of_requests(ranking_of(scores, targets, left_out), [k])
    for row, (own, out) in enumerate(zip(targets, left_out, strict=True)):
        orders = {
            tuple(sorted(set(range(6)) - set(out), key=lambda i: (-scores[row, i], shuffled[i])))
            for shuffled in itertools.permutations(range(6))
        }
        every = [by_definition(list(order), set(own), k) for order in orders]
        for name, values in found.items():
            assert values[row] == pytest.approx(np.mean([one[name] for one in every])), name


def test_a_request_without_targets_does_not_count():
    ranking = Ranking(np.array([0]), np.array([1]), np.array([0, 0, 1]), 1, np.zeros((2, 0), np.int32))
    found = metrics_of_requests(ranking)
    assert np.isnan(found["hr@5"][0])
    assert set(means(found)) == set(found)
    assert means(found)["ndcg@10"] == 1.0
    assert np.isnan(means(metrics_of_requests(ranking.only(np.array([False]))))["ndcg@10"])
