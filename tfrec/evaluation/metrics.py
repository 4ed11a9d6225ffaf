"""Metrics of rankings: how high the targets of each request stand.

A target that ties with other items earns the mean of the metric over all orders of the tied items. A target that is left out of its
ranking is a miss. Means are over all requests. A request may have several targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

CUTOFFS = (5, 10, 20)


@dataclass(frozen=True)
class Ranking:
    """Where the targets of requests stand among all items.

    Attributes:
        num_above: int64 array, shape `(targets,)`, items with a higher score than the target.
        num_tied: int64 array, shape `(targets,)`, items with the score of the target, itself included; 0 marks a target that is
            left out of the ranking.
        offsets: int64 array, shape `(requests + 1,)`: where the targets of each request begin.
        num_items: int, size of the catalogue.
        items: int32 array, shape `(requests, K)`, the first items of each ranking, numbered from 0; -1 where none is left. Items
            that tie stand in the order of their numbers.
    """

    num_above: np.ndarray
    num_tied: np.ndarray
    offsets: np.ndarray
    num_items: int
    items: np.ndarray

    @cached_property
    def num_targets(self) -> np.ndarray:
        """int64, shape `(requests,)`."""
        return np.diff(self.offsets)

    def hits(self, k: int) -> np.ndarray:
        """Float64, shape `(targets,)`: the probability of each target to stand among the first `k`."""
        return self._mean(np.minimum(np.arange(k + 1), k))

    def share_of(self, is_kind: np.ndarray, k: int) -> float:
        """The share of some targets, those of a bool array, among the hits up to `k`; 0 where nothing hit."""
        hits = self.hits(k)
        return float(hits[is_kind].sum() / max(hits.sum(), 1e-12))

    def only(self, is_kept: np.ndarray) -> Ranking:
        """The requests with fewer targets, those of the bool array `is_kept`; the others are items like all."""
        offsets = np.concatenate([[0], np.cumsum(is_kept)])[self.offsets]
        return Ranking(self.num_above[is_kept], self.num_tied[is_kept], offsets, self.num_items, self.items)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Float64, shape `(requests,)`: the sum of the values of each request's targets."""
        return np.bincount(self._request, values, len(self.num_targets))

    @cached_property
    def _request(self) -> np.ndarray:
        """int64, shape `(targets,)`: the request of each target."""
        return np.repeat(np.arange(len(self.num_targets)), self.num_targets)

    def _mean(self, total: np.ndarray) -> np.ndarray:
        """The mean gain of each target over its possible ranks, given the sum of the gains up to each rank, from rank 0."""
        last = len(total) - 1
        earned = total[np.minimum(self.num_above + self.num_tied, last)] - total[np.minimum(self.num_above, last)]
        return earned / np.maximum(self.num_tied, 1)

    @cached_property
    def _groups(self) -> tuple[np.ndarray, ...]:
        """Targets that tie with each other: `(order, group of each, first of each group, targets above each group)`."""
        request = self._request
        order = np.lexsort((self.num_above, request))
        order = order[self.num_tied[order] > 0]
        key = np.stack([request[order], self.num_above[order]])
        is_first = np.append(True, (key[:, 1:] != key[:, :-1]).any(axis=0))[: len(order)]
        first = np.flatnonzero(is_first)
        above = first - np.searchsorted(request[order], request[order][first])
        return order, np.cumsum(is_first) - 1, first, above


def metrics_of_requests(ranking: Ranking, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, np.ndarray]:
    """The metrics of each request.

    With T targets, of which h are among the first k, and relevance 1 at the rank of each target:

    | metric | value | source |
    |---|---|---|
    | `hr@k` | 1 if h > 0, else 0 | |
    | `recall@k` | h / T | |
    | `precision@k` | h / k | |
    | `f1@k` | 2 h / (k + T), the harmonic mean of precision and recall | van Rijsbergen 1979 |
    | `ndcg@k` | sum of 1 / log2(rank + 1) over hits, divided by what min(k, T) hits at the top earn | Jarvelin & Kekalainen 2002 |
    | `ndcg_of_k@k` | the same sum, divided by what k hits earn | |
    | `map@k` | sum over hits of (targets at this rank or above) / rank, divided by T | Buckley & Voorhees 2000 |
    | `mrr@k`, `mrr` | 1 / rank of the first hit, 0 without one; `mrr` has no cut-off | Voorhees 1999 |

    >>> one = Ranking(np.array([1]), np.array([1]), np.array([0, 1]), 100, np.zeros((1, 0), np.int32))
    >>> found = metrics_of_requests(one)
    >>> [round(float(found[name][0]), 4) for name in ("hr@5", "ndcg@5", "mrr")]
    [1.0, 0.6309, 0.5]

    Args:
        ranking: `Ranking`.
        cutoffs: ints > 0, the k. Default: 5, 10, 20.
    Returns:
        By metric float64 arrays, shape `(requests,)`. NaN for a request without targets.
    """
    number = np.where(ranking.num_targets > 0, ranking.num_targets, np.nan)
    result: dict[str, np.ndarray] = {}
    for k in cutoffs:
        rank = np.arange(1, k + 1)
        of_rank = np.concatenate([[0], np.cumsum(1 / np.log2(rank + 1))])
        hits, gain = ranking.sums(ranking.hits(k)), ranking.sums(ranking._mean(of_rank))
        result[f"hr@{k}"] = _of_first(ranking, k, _any_hit)
        result[f"recall@{k}"] = hits / number
        result[f"precision@{k}"] = hits / k
        result[f"f1@{k}"] = 2 * hits / (k + number)
        result[f"ndcg@{k}"] = gain / of_rank[np.clip(ranking.num_targets, 1, k)]
        result[f"ndcg_of_k@{k}"] = gain / of_rank[k]
        result[f"map@{k}"] = _average_precision(ranking, k) / number
        result[f"mrr@{k}"] = _of_first(ranking, k, _reciprocal)
    result["mrr"] = _of_first(ranking, ranking.num_items, _reciprocal)
    return {name: np.where(np.isnan(number), np.nan, values) for name, values in result.items()}


def means(values: dict[str, np.ndarray]) -> dict[str, float]:
    """The mean of each metric over the requests with targets; NaN where there is none."""
    return {name: float(np.nanmean(v)) if np.isfinite(v).any() else float("nan") for name, v in values.items()}


def _of_first(ranking: Ranking, k: int, gain) -> np.ndarray:
    """What the highest target of each request earns: `gain(num_above, num_tied, targets that tie, k)`, 0 without one."""
    order, group, first, above = ranking._groups
    size = np.bincount(group, minlength=len(first))
    highest = above == 0
    target, size = order[first[highest]], size[highest]
    found = np.zeros(len(ranking.num_targets))
    found[ranking._request[target]] = gain(ranking.num_above[target], ranking.num_tied[target], size, k)
    return found


def _any_hit(above, tied, size, k):
    """The probability that one of `size` targets among `tied` items gets one of the places up to k."""
    places = np.clip(k - above, 0, tied)
    miss = np.ones(len(above))
    for j in range(int(size.max(initial=0))):
        miss *= np.where(j < size, np.maximum(tied - places - j, 0) / np.maximum(tied - j, 1), 1)
    return 1 - miss


def _reciprocal(above, tied, size, k):
    """The mean of 1 / rank of the first of `size` targets among `tied` items, of ranks up to k."""
    total = np.concatenate([[0], np.cumsum(1 / np.arange(1, k + 1))])
    found = (total[np.minimum(above + tied, k)] - total[np.minimum(above, k)]) / tied
    for i in np.flatnonzero((size > 1) & (above < k)):
        place = np.arange(min(tied[i] - size[i] + 1, k - above[i]))
        later = np.cumprod((tied[i] - size[i] - place) / (tied[i] - place))  # no target up to this place
        found[i] = (np.append(1, later[:-1]) - later) @ (1 / (above[i] + 1 + place))
    return found


def _average_precision(ranking: Ranking, k: int) -> np.ndarray:
    """The sum of the precisions at the ranks of the targets up to k.

    Of targets that tie, each other one stands above with a probability that grows with the rank.
    """
    order, group, first, above = ranking._groups
    size = np.bincount(group, minlength=len(first))
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, k + 1))])
    of_rank, of_place = ranking._mean(harmonic)[order], ranking.hits(k)[order]
    share = (size[group] - 1) / np.maximum(ranking.num_tied[order] - 1, 1)
    earned = np.zeros(len(ranking.num_above))
    earned[order] = (1 + above[group] - share * (ranking.num_above[order] + 1)) * of_rank + share * of_place
    return ranking.sums(earned)
