"""Full-catalogue rankings of held-out targets.

The whole catalogue is ranked, without sampled negatives. All users with at least three events count. A target that ties with
other items gets the mean of the metric over its possible ranks. `repeats` decides about the items of the user's history.
`"exclude"`: they are left out of the ranking, and a target among them counts as a miss. `"allow"`: they are ranked like others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfrec.data.batches import PackedBatches
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut, keeps_seen
from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.evaluation.baselines import Bigram, ItemKNN, Popularity
from tfrec.evaluation.metrics import ranking_metrics
from tfrec.evaluation.tasks import evaluate_task
from tfrec.models.two_tower import TwoTower
from tfrec.progress import track

CHUNK_BYTES = 64 << 20
"""About the size of one chunk of scores, which bounds the memory of an evaluation for any catalogue."""

Scorer = Callable[[np.ndarray], np.ndarray]
"""`scorer(rows) -> scores`: int64 `(b,)`, rows among the evaluated users, to float `(b, num_items)`, a new array."""


def rank_targets(scorer: Scorer, split: LeaveLastOut, part: str, repeats: str = "exclude") -> dict[str, float]:
    """Rank every target of `part` (`"validation"` or `"test"`); see `rank`."""
    targets = split.targets(part) - FIRST_ITEM_INDEX
    return rank(scorer, split.data.item_index, *split.histories(part), targets, split.data.num_items, part, repeats)


def rank(
    scorer: Scorer,
    item_index: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    targets: np.ndarray,
    num_items: int,
    name: str,
    repeats: str = "exclude",
) -> dict[str, float]:
    """Rank targets among all items, or among those that their user has not seen.

    Args:
        scorer: see `Scorer`.
        item_index: int array, shape `(events,)`, item indexes.
        starts, ends: int arrays, shape `(b,)`, the events of `item_index` that are the history of each target.
        targets: int array, shape `(b,)`, items numbered from 0.
        num_items: int, items that a scorer scores.
        name: str, for the progress bar.
        repeats: str, `"exclude"` or `"allow"`; see above. Default: `"exclude"`.
    Returns:
        The metrics of `ranking_metrics` by name; with `"allow"` also `repeat_share@10`.
    """
    is_kept = keeps_seen(repeats)
    num_above, num_tied = np.zeros((2, len(targets)), np.int64)
    is_repeat = np.zeros(len(targets), bool)
    chunk = max(1, CHUNK_BYTES // (4 * num_items))
    for first in track(range(0, len(targets), chunk), f"Ranking {name}"):
        rows = np.arange(first, min(first + chunk, len(targets)))
        scores = scorer(rows)
        seen = np.concatenate([item_index[starts[r] : ends[r]] for r in rows]) - FIRST_ITEM_INDEX
        row_of_seen = np.repeat(rows - first, ends[rows] - starts[rows])
        if is_kept:
            is_repeat[rows] = np.bincount(row_of_seen, seen == targets[rows][row_of_seen], len(rows)) > 0
        else:
            scores[row_of_seen, seen] = -np.inf
        own = scores[rows - first, targets[rows]][:, None]
        num_above[rows] = (scores > own).sum(axis=1)
        num_tied[rows] = np.where(np.isneginf(own[:, 0]), 0, (scores == own).sum(axis=1))
    return ranking_metrics(num_above, num_tied, num_items, is_repeat if is_kept else None)


def embed(
    model: TwoTower,
    item_index: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    timestamp: np.ndarray | None = None,
    ticks_per_second: int = 1,
    batch_positions: int = 4096,
    features: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Embed histories: the query after events `starts[i] : ends[i]` of each.

    Args:
        model: `TwoTower`.
        item_index: int32 array, shape `(events,)`.
        starts, ends: int64 arrays, shape `(histories,)`.
        timestamp: int64 array, shape `(events,)`, for a model that reads times; the request is at the time of event
            `ends[i]`. Default: no times.
        ticks_per_second: int, the resolution of `timestamp`. Default: 1.
        batch_positions: int, about how many positions a batch has. Default: 4,096.
        features: dict, the columns for a model that reads them, see `PreparedData.model_inputs`; the context is that of event
            `ends[i]`. Default: none.
    Returns:
        Float32 array, shape `(histories, width)`; zeros for an empty history.
    """
    tower = model.sequence_tower
    batches = PackedBatches(
        item_index,
        starts,
        ends,
        max_length=tower.max_length,
        batch_positions=batch_positions,
        has_targets=False,
        timestamp=timestamp if tower.reads_times else None,
        ticks_per_second=ticks_per_second,
        is_packed=tower.supports_packing,
        **(features if features and tower.reads_features else {}),
    )
    queries = np.zeros((len(starts), model.item_tower.width), np.float32)
    for members, newest, inputs, _ in batches.with_members():
        found = np.asarray(model.predict_on_batch(inputs)).reshape(-1, queries.shape[1])
        # a packed row has a query at each position, a row of one history has one
        queries[members] = found[newest] if batches.is_packed else found[: len(members)]
    return queries


def embed_histories(model: TwoTower, split: LeaveLastOut, part: str, users: int | None = None) -> np.ndarray:
    """Embed the histories of all evaluated users, or of the first `users`: float32 array, shape `(users, width)`."""
    starts, ends = (array[:users] for array in split.histories(part))
    data = split.data
    features = data.model_inputs(split.users[:users])
    return embed(model, data.item_index, starts, ends, data.timestamp, data.ticks_per_second, features=features)


def model_scorer(model: TwoTower, split: LeaveLastOut, part: str) -> Scorer:
    """A scorer of dot products: the users' queries with the catalogue."""
    queries, items = embed_histories(model, split, part), np.asarray(model.item_tower.catalogue()).T
    return lambda rows: queries[rows] @ items


def evaluate_model(model: TwoTower, split: LeaveLastOut, part: str, repeats: str = "exclude") -> dict[str, float]:
    """Rank the targets of `part` by a model; see `rank_targets`."""
    return rank_targets(model_scorer(model, split, part), split, part, repeats)


def evaluate_baselines(split: LeaveLastOut, part: str, repeats: str = "exclude") -> dict[str, dict[str, float]]:
    """Rank the targets of `part` by popularity, the bigram table and item-KNN, which learn from the training part."""
    item_index, offsets = split.train_part()
    popularity = Popularity(item_index, split.data.num_items)
    bigram = Bigram(item_index, offsets, popularity)
    knn = ItemKNN(item_index, offsets, split.data.num_items)
    starts, ends = split.histories(part)
    last = split.data.item_index[ends - 1]

    def knn_scores(rows):
        histories = [split.data.item_index[starts[r] : ends[r]] for r in rows]
        return knn.scores(np.concatenate(histories), np.cumsum([0, *map(len, histories)]))

    return {
        "popularity": rank_targets(lambda rows: popularity.scores(len(rows)), split, part, repeats),
        "bigram": rank_targets(lambda rows: bigram.scores(last[rows]), split, part, repeats),
        "item-knn": rank_targets(knn_scores, split, part, repeats),
    }


def evaluate(
    data: PreparedData,
    part: str = "test",
    model: TwoTower | None = None,
    *,
    repeats: str = "exclude",
    targets: Sequence[str] = (),
) -> dict:
    """Rank the held-out targets by a model and by the baselines; the figures of `tfrec evaluate`.

    >>> data = PreparedData.from_histories([["a", "b", "c"], ["b", "c", "a"]])
    >>> evaluate(data)["num_users"]
    2

    Args:
        data: `PreparedData`, whose leave-last-out split is evaluated.
        part: `"test"` or `"validation"`. Default: `"test"`.
        model: `TwoTower`, trained. Default: the baselines alone.
        repeats: str, `"exclude"` leaves the items of the history out of the ranking, `"allow"` ranks them too; `Run.repeats` is
            the choice that a run was trained with. Default: `"exclude"`.
        targets: texts, which events are to be found; see `LeaveLastOut`. `Run.targets` are those of a run. Default: all.
    Returns:
        `{"model": metrics, "popularity": metrics, "bigram": metrics, "num_users": int, ...}`, where metrics are
        `hr@5 hr@10 hr@20 ndcg@5 ndcg@10 ndcg@20 mrr`. With `repeats="allow"` also `repeat_share@10`, the share of the hits of
        `hr@10` whose target stands in its own history; `num_repeat_targets` counts such targets. With a model that has a
        `task_head` also `task`; see `evaluate_task`.
    Raises:
        ValueError: no user has the three events that it takes, or `repeats` or `targets` hold another value.
    """
    split = LeaveLastOut(data, targets=targets)
    if not len(split.users):
        needed = f"2 events {' and '.join(targets)} after another one" if targets else "3 events"
        raise ValueError(f"No user has {needed} (one of history, a validation and a test target): nothing to evaluate.")
    result = {} if model is None else {"model": evaluate_model(model, split, part, repeats)}
    counts: dict[str, Any] = {
        "num_users": len(split.users),
        "num_short_users": split.num_short,
        "num_repeat_targets": split.num_repeats(part),
    }
    counts |= {"targets": list(targets)} if targets else {}
    if model is not None and model.task_head is not None:
        counts["task"] = evaluate_task(model, split, part, embed_histories(model, split, part))
    return result | evaluate_baselines(split, part, repeats) | {"split": part, "repeats": repeats} | counts
