"""Full-catalogue rankings of held-out targets.

The whole catalogue is ranked, without sampled negatives. `repeats` decides about the items of the user's history. `"exclude"`: they
are left out of the ranking, and a target among them counts as a miss. `"allow"`: they are ranked like others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tfrec.data.batches import PackedBatches
from tfrec.data.splits import Requests, Split, keeps_seen
from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.evaluation.metrics import Ranking, means, metrics_of_requests
from tfrec.models.two_tower import TwoTower
from tfrec.progress import track

CHUNK_BYTES = 64 << 20
"""About the size of one chunk of scores, which bounds the memory of an evaluation for any catalogue."""

Scorer = Callable[[np.ndarray], np.ndarray]
"""`scorer(rows) -> scores`: int64 `(b,)`, numbers of requests, to float `(b, num_items)`, a new array."""


def rank_targets(scorer: Scorer, split: Split, part: str, repeats: str = "exclude", top: int = 0) -> Ranking:
    """Rank every target of `part`, `"validation"` or `"test"`; see `rank`."""
    targets = split.targets(part) - FIRST_ITEM_INDEX
    return rank(scorer, split.data.item_index, split.requests(part), targets, split.data.num_items, part, repeats, top)


def rank(
    scorer: Scorer,
    item_index: np.ndarray,
    requests: Requests,
    targets: np.ndarray,
    num_items: int,
    name: str,
    repeats: str = "exclude",
    top: int = 0,
) -> Ranking:
    """Rank targets among all items, or among those that their user has not seen.

    Args:
        scorer: see `Scorer`.
        item_index: int array, shape `(events,)`, item indexes.
        requests: `Requests`, which of these events are the history of each request, and how many targets it has.
        targets: int array, shape `(targets,)`, items numbered from 0.
        num_items: int, items that a scorer scores.
        name: str, for the progress bar.
        repeats: str, `"exclude"` or `"allow"`; see above. Default: `"exclude"`.
        top: int, how many of the first items of each ranking are kept. Default: 0.
    """
    is_kept = keeps_seen(repeats)
    starts, ends, offsets = requests.starts, requests.ends, requests.offsets
    num_above, num_tied = np.zeros((2, len(targets)), np.int64)
    items = np.full((len(starts), min(top, num_items)), -1, np.int32)
    chunk = max(1, CHUNK_BYTES // (4 * num_items))
    for first in track(range(0, len(starts), chunk), f"Ranking {name}"):
        rows = np.arange(first, min(first + chunk, len(starts)))
        scores = scorer(rows)
        if not is_kept:
            seen = np.concatenate([item_index[starts[r] : ends[r]] for r in rows]) - FIRST_ITEM_INDEX
            scores[np.repeat(rows - first, ends[rows] - starts[rows]), seen] = -np.inf
        number = np.diff(offsets[first : first + len(rows) + 1])
        row_of_target = np.repeat(rows - first, number)
        for begin in range(0, len(row_of_target), chunk):  # a request may have many targets
            of_row = row_of_target[begin : begin + chunk]
            own = slice(offsets[first] + begin, offsets[first] + begin + len(of_row))
            theirs = scores if len(of_row) == len(rows) and (number == 1).all() else scores[of_row]
            score = scores[of_row, targets[own]][:, None]
            num_above[own] = np.count_nonzero(theirs > score, axis=1)
            num_tied[own] = np.where(np.isneginf(score[:, 0]), 0, np.count_nonzero(theirs == score, axis=1))
        if top:
            best, found = (np.asarray(x) for x in keras.ops.top_k(scores, items.shape[1]))
            items[rows] = np.where(np.isneginf(best), -1, found)
    return Ranking(num_above, num_tied, offsets, num_items, items)


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


def embed_histories(model: TwoTower, split: Split, part: str, users: int | None = None) -> np.ndarray:
    """Embed the histories of all requests of a part, or of the first `users`: float32 array, shape `(requests, width)`."""
    asked = split.requests(part)
    data, features = split.data, split.data.model_inputs(asked.users[:users])
    histories = asked.starts[:users], asked.ends[:users]
    return embed(model, data.item_index, *histories, data.timestamp, data.ticks_per_second, features=features)


def model_scorer(model: TwoTower, split: Split, part: str) -> Scorer:
    """A scorer of dot products: the users' queries with the catalogue. An empty history gets the popular items, as when served."""
    queries, items = embed_histories(model, split, part), np.asarray(model.item_tower.catalogue()).T
    starts, ends = split.histories(part)
    popular = split.train_counts().astype(np.float32)

    def scores(rows: np.ndarray) -> np.ndarray:
        found = queries[rows] @ items
        found[starts[rows] == ends[rows]] = popular
        return found

    return scores


def evaluate_model(model: TwoTower, split: Split, part: str, repeats: str = "exclude") -> dict[str, float]:
    """The mean metrics of a model over the requests of `part`, and the share of repeats where they are allowed."""
    ranking = rank_targets(model_scorer(model, split, part), split, part, repeats)
    found = means(metrics_of_requests(ranking))
    return found | ({"repeat_share@10": ranking.share_of(split.is_repeat(part), 10)} if keeps_seen(repeats) else {})
