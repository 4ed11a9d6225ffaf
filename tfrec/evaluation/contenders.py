"""What a model is compared with, through one interface: `contender(split, part)` learns and gives a `Scorer`.

A function of your own, or another model, stands beside the baselines in the same way:

>>> def by_number(split, part):
...     scores = -np.arange(split.data.num_items, dtype=np.float32)
...     return lambda rows: np.tile(scores, (len(rows), 1))
>>> from tfrec.data.splits import LeaveLastOut
>>> from tfrec.evaluation.ranking import rank_targets
>>> data = PreparedData.from_histories(["abcd", "bdac"])
>>> rank_targets(by_number(LeaveLastOut(data), "test"), LeaveLastOut(data), "test").hits(1).tolist()
[1.0, 1.0]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from tfrec.data.encoding import encode_table
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import Split
from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.evaluation.baselines import Bigram, ItemKNN, Popularity
from tfrec.evaluation.content_knn import ContentKNN
from tfrec.evaluation.ranking import Scorer, model_scorer
from tfrec.models.two_tower import TwoTower

Contender = Callable[[Split, str], Scorer]
"""`contender(split, part) -> scorer`: learns from the training part of the split, and scores the requests of the part."""
DAYS = 7
"""How many days `recent-popularity` counts."""


def of_model(model: TwoTower) -> Contender:
    """A trained model as a contender; see `model_scorer`."""
    return partial(model_scorer, model)


def popularity(split: Split, part: str) -> Scorer:
    """See `Popularity`."""
    return _same_for_all(Popularity(split.train_part()[0], split.data.num_items))


def recent_popularity(split: Split, part: str, days: float = DAYS) -> Scorer:
    """`Popularity` of the newest `days` of the training part, with older events as tie-breakers.

    Source: Ji et al. 2020, "A Re-visit of the Popularity Baseline in Recommender Systems". Differs from the source: the days end
    with the training part for all requests, as for a list that is computed once.
    """
    data, is_train = split.data, split.is_train()
    newest = data.timestamp[is_train].max(initial=0) - round(days * 86_400 * data.ticks_per_second)
    recent = Popularity(data.item_index[is_train & (data.timestamp > newest)], data.num_items)
    all_time = split.train_counts()
    recent.counts = recent.counts + all_time / (all_time.max(initial=0) + 1)
    return _same_for_all(recent)


def bigram(split: Split, part: str) -> Scorer:
    """See `Bigram`. An empty history gets the popular items."""
    item_index, offsets = split.train_part()
    popular = Popularity(item_index, split.data.num_items)
    pairs = Bigram(item_index, offsets, popular)
    starts, ends = split.histories(part)
    last = np.append(split.data.item_index, FIRST_ITEM_INDEX)[ends - 1]

    def scores(rows: np.ndarray) -> np.ndarray:
        found = pairs.scores(last[rows])
        found[starts[rows] == ends[rows]] = popular.counts
        return found

    return scores


def item_knn(split: Split, part: str) -> Scorer:
    """See `ItemKNN`."""
    learned = ItemKNN(*split.train_part(), split.data.num_items)
    return of_histories(learned.scores, split.data.item_index, *split.histories(part), 0)


def content_knn(split: Split, part: str) -> Scorer:
    """See `ContentKNN`; the data must have item features."""
    encoded, _ = encode_table(split.data.features["items"], split.data.items)
    return of_histories(ContentKNN(encoded).scores, split.data.item_index, *split.histories(part), FIRST_ITEM_INDEX)


def random(split: Split, part: str) -> Scorer:
    """All items tie: the mean over all orders."""
    return lambda rows: np.zeros((len(rows), split.data.num_items))


BASELINES: dict[str, Contender] = {
    "popularity": popularity,
    "recent-popularity": recent_popularity,
    "bigram": bigram,
    "item-knn": item_knn,
    "content-knn": content_knn,
    "random": random,
}
"""The baselines by the names that `--against` knows."""


def baselines_of(data: PreparedData) -> dict[str, Contender]:
    """The baselines that some data has the columns for; without `random`."""
    left_out = {"random"} | (set() if data.features.get("items") else {"content-knn"})
    left_out |= set() if data.timestamp.any() else {"recent-popularity"}
    return {name: baseline for name, baseline in BASELINES.items() if name not in left_out}


def _same_for_all(learned: Popularity) -> Scorer:
    return lambda rows: learned.scores(len(rows))


def of_histories(learned: Callable, item_index: np.ndarray, starts: np.ndarray, ends: np.ndarray, first: int) -> Scorer:
    """A scorer of `learned(items, offsets)`: histories one after the other, with their items numbered from `first`.

    Events `starts[r] : ends[r]` of `item_index` are the history of request r.
    """

    def scores(rows: np.ndarray) -> np.ndarray:
        histories = [item_index[starts[r] : ends[r]] for r in rows]
        return learned(np.concatenate(histories) - first, np.cumsum([0, *map(len, histories)]))

    return scores
