"""Metrics of a ranking with one target."""

from __future__ import annotations

import numpy as np

CUTOFFS = (5, 10, 20)


def gains(num_items: int) -> dict[str, np.ndarray]:
    """The gain of each rank in each metric: float64 arrays, shape `(num_items,)`, rank 1 first.

    `hr@k`: 1 up to rank k. `ndcg@k`: `1 / log2(rank + 1)` up to rank k (one target, so the ideal is 1). `mrr`: `1 / rank`.
    """
    rank = np.arange(1, num_items + 1)
    return (
        {f"hr@{k}": (rank <= k).astype(float) for k in CUTOFFS}
        | {f"ndcg@{k}": np.where(rank <= k, 1 / np.log2(rank + 1), 0) for k in CUTOFFS}
        | {"mrr": 1 / rank}
    )


def ranking_metrics(
    num_above: np.ndarray, num_tied: np.ndarray, num_items: int, is_repeat: np.ndarray | None = None
) -> dict[str, float]:
    """The mean of each metric over users.

    Ties: a target gets the mean of the metric over its possible ranks. Denominator: all users. A miss earns 0.

    >>> alone = ranking_metrics(np.array([1]), np.array([1]), num_items=100)
    >>> alone["hr@5"], round(alone["ndcg@5"], 4), alone["mrr"]
    (1.0, 0.6309, 0.5)
    >>> ranking_metrics(np.array([4]), np.array([2]), num_items=100)["hr@5"]  # rank 5 or 6
    0.5

    Args:
        num_above: int array, shape `(num_users,)`, items with a higher score than the target.
        num_tied: int array, shape `(num_users,)`, items with the score of the target, itself included; 0 marks a target that is
            left out of the ranking, a miss.
        num_items: int, size of the catalogue.
        is_repeat: bool array, shape `(num_users,)`, whether the target stands in its own history. `repeat_share@10` is then the
            share of such targets among the hits of `hr@10`, 0 where nothing hit. Default: not asked.
    """
    result = {}
    for name, gain in gains(num_items).items():
        total = np.concatenate([[0], np.cumsum(gain)])
        earned = total[num_above + num_tied] - total[num_above]
        earned /= np.maximum(num_tied, 1)
        result[name] = float(np.mean(earned)) if len(num_above) else float("nan")
        if name == "hr@10" and is_repeat is not None:
            share = float(earned[is_repeat].sum() / max(earned.sum(), 1e-12))
    return result if is_repeat is None else result | {"repeat_share@10": share}
