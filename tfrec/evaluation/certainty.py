"""How sure a mean over requests is, and whether one contender is better than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

CELLS = 1 << 23
"""Weights that are drawn at a time."""
LEVEL = 0.95
"""The level of intervals."""


def resampled_means(values: Sequence[np.ndarray], num_resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """The means of resamples of requests, all metrics in one pass.

    Each request weighs Poisson(1) in a resample, which for many requests is drawing with replacement, and needs no request twice.
    Source: Chamandy et al. 2012, "Estimating Uncertainty for Massive Data Streams". Differs from the source: none known.

    >>> means = resampled_means([np.random.default_rng(0).normal(size=400)])
    >>> means.shape, bool(0.04 < means.std() < 0.06)  # 1 / sqrt(400)
    ((1000, 1), True)

    Args:
        values: float arrays, shape `(requests,)`, one for each metric.
        num_resamples: int. Default: 1,000.
        seed: int. Default: 0.
    Returns:
        Float64 array, shape `(num_resamples, metrics)`; of few requests it has fewer rows, since some resamples draw none.
    """
    rng = np.random.default_rng(seed)
    sums, weights = np.zeros((num_resamples, len(values))), np.zeros((num_resamples, 1))
    step = max(1, CELLS // num_resamples)
    for first in range(0, len(values[0]), step):
        part = np.stack([own[first : first + step].astype(np.float32) for own in values], axis=1)
        weight = rng.poisson(1, (num_resamples, len(part))).astype(np.float32)
        sums += weight @ part
        weights += weight.sum(axis=1, keepdims=True)
    drawn = weights[:, 0] > 0
    return sums[drawn] / weights[drawn]


def interval(means: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled means."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_p_value(first: np.ndarray, second: np.ndarray) -> float:
    """The two-sided p-value of the paired t-test: how likely chance makes a difference as large. 1 without a difference.

    Source: Smucker, Allan & Carterette 2007, "A Comparison of Statistical Significance Tests for Information Retrieval Evaluation".
    Differs from the source: it is never below the chance that all requests favour one side, 2 ^ (1 - requests). Two requests that
    differ alike have no deviation, and the t-test would be certain.

    >>> rng = np.random.default_rng(0)
    >>> values = rng.normal(size=1000)
    >>> paired_p_value(values + 0.1, values + rng.normal(size=1000) / 10) < 0.001
    True
    """
    difference = first - second
    number, mean = len(difference), difference.mean()
    if number < 2 or not mean:
        return 1.0
    error = difference.std(ddof=1) / np.sqrt(number)  # 0 where all differ alike, which scipy's test warns of
    p_value = float(2 * scipy.stats.t.sf(abs(mean) / max(error, 1e-12), number - 1))
    return max(p_value, 0.5 ** (number - 1))


def corrected(p_values: Mapping[str, float]) -> dict[str, float]:
    """P-values of several comparisons, so that the chance of one false alarm among all stays what it was for one.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".

    >>> corrected({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    found, largest = {}, 0.0
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p))
        found[name] = largest
    return found


def difference_in_words(name: str, other: str, metric: str, found: dict[str, float]) -> str:
    """One sentence about a difference.

    >>> difference_in_words("model", "bigram", "ndcg@10", {"low": 0.004, "high": 0.011, "p_value": 0.002})
    'model is better than bigram by 0.0040 to 0.0110 NDCG@10 (p = 0.002).'
    """
    low, high, p = found["low"], found["high"], found["p_value"]
    chance = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    if p >= 1 - LEVEL:
        return f"No difference of {name} and {other} is found: {low:+.4f} to {high:+.4f} {metric.upper()} ({chance})."
    better, (low, high) = ("better", (low, high)) if low + high > 0 else ("worse", (-high, -low))
    return f"{name} is {better} than {other} by {low:.4f} to {high:.4f} {metric.upper()} ({chance})."
