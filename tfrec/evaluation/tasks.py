"""How well a second head predicts a column of the held-out events, beside simple means."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfrec.data.splits import Split
from tfrec.data.task_columns import has_value, task_feature
from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.models.two_tower import TwoTower

ROWS = 1 << 14
"""Targets that are predicted at a time."""
ITEM_DAMPING, USER_DAMPING = 25.0, 10.0
"""Events with the mean that are added to those of each item and of each user."""


def evaluate_task(model: TwoTower, split: Split, part: str, queries: np.ndarray) -> dict[str, Any]:
    """Predict the column of the head for every target: given the history before it and its item.

    Targets without a known value do not count. The baselines learn from the training part.

    Args:
        model: `TwoTower` with a `task_head`.
        split: `Split`.
        part: `"test"` or `"validation"`.
        queries: float32 array, shape `(requests, width)`; see `embed_histories`.
    Returns:
        `{"column": str, "kind": str, "num_targets": int, "model": metrics, ...}`. Of a number, metrics are `mae` and `rmse`, beside
        `mean of all`, `mean of the item` and `user + item bias`; of a category `accuracy`, beside `most frequent` and `most
        frequent of the item`. NaN without a target.
    Raises:
        ValueError: the data lacks the column, or has it as another kind.
    """
    head = model.task_head
    assert head is not None
    task_feature(split.data, head.column, head.kind)
    asked = split.requests(part)
    truth = np.asarray(split.data.event_columns[head.column][asked.targets])
    known = has_value(truth)
    request = asked.of_targets[known]
    users, items, truth, queries = asked.users[request], split.targets(part)[known], truth[known], queries[request]
    predicted = [
        np.asarray(
            head.predict(queries[first : first + ROWS], model.item_tower.candidates(items[first : first + ROWS]))
        )
        for first in range(0, len(items), ROWS)
    ]
    values = {"model": np.concatenate(predicted) if predicted else truth}
    learned = _training_events(split, head.column)
    values |= (_means if head.kind == "number" else _modes)(*learned, users, items - FIRST_ITEM_INDEX, split)
    measure = _errors if head.kind == "number" else _accuracy
    about = {"column": head.column, "kind": head.kind, "num_targets": len(truth)}
    return about | {name: measure(guess, truth) for name, guess in values.items()}


def _training_events(split: Split, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, item (from 0) and value of each event of the training part that has a value."""
    data = split.data
    lengths, event = split.train_ends - data.offsets[:-1], np.flatnonzero(split.is_train())
    user, values = np.repeat(np.arange(data.num_users), lengths), np.asarray(data.event_columns[column][event])
    known = has_value(values)
    return user[known], data.item_index[event[known]] - FIRST_ITEM_INDEX, values[known]


def _means(user, item, value, users, items, split) -> dict[str, np.ndarray]:
    """The baselines of a number, for `users` and `items`.

    Source of the biases: Koren 2010, "Factor in the Neighbors", section 2.1, with the damping given there.
    """
    value = value.astype(np.float64)
    mean = value.mean() if len(value) else 0.0
    sums, counts = (np.bincount(item, weights, split.data.num_items) for weights in (value - mean, None))
    plain, of_item = sums / np.maximum(counts, 1), sums / (counts + ITEM_DAMPING)
    rest = value - mean - of_item[item]
    sums, counts = (np.bincount(user, weights, split.data.num_users) for weights in (rest, None))
    of_user = sums / (counts + USER_DAMPING)
    return {
        "mean of all": np.full(len(users), mean),
        "mean of the item": mean + plain[items],
        "user + item bias": mean + of_item[items] + of_user[users],
    }


def _modes(user, item, value, users, items, split) -> dict[str, np.ndarray]:
    """The baselines of a category, for `items`; an item without events has the most frequent value of all."""
    number = int(value.max(initial=FIRST_ITEM_INDEX)) + 1
    of_all = int(np.bincount(value, minlength=number).argmax())
    pairs, counts = np.unique(item.astype(np.int64) * number + value, return_counts=True)
    pairs = pairs[np.argsort(counts, kind="stable")]  # of an item, the most frequent comes last and stays
    of_item = np.full(split.data.num_items, of_all)
    of_item[pairs // number] = pairs % number
    return {"most frequent": np.full(len(items), of_all), "most frequent of the item": of_item[items]}


def _errors(guess: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    if not len(truth):
        return {"mae": float("nan"), "rmse": float("nan")}
    error = guess.astype(np.float64) - truth
    return {"mae": float(np.abs(error).mean()), "rmse": float(np.sqrt(np.square(error).mean()))}


def _accuracy(guess: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    return {"accuracy": float((guess == truth).mean()) if len(truth) else float("nan")}
