"""How new items are recommended: items that training never saw, ranked by what they are among the whole catalogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tfrec.data.cold_items import ColdItems
from tfrec.data.encoding import encode_table
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut, Requests
from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.evaluation.baselines import Popularity
from tfrec.evaluation.contenders import of_histories
from tfrec.evaluation.content_knn import ContentKNN
from tfrec.evaluation.metrics import means, metrics_of_requests
from tfrec.evaluation.ranking import Scorer, embed, embed_histories, rank
from tfrec.models.new_items import content_features, content_vectors, new_item_row, vectors_of
from tfrec.models.two_tower import TwoTower


class Targets(NamedTuple):
    """Histories of known items and the item that comes after each, numbered from 0 as by `ColdItems.catalogue`."""

    starts: np.ndarray
    ends: np.ndarray
    items: np.ndarray

    def requests(self) -> Requests:
        """One target each."""
        place = np.arange(len(self.items) + 1)
        return Requests(place[:-1], self.starts, self.ends, place[:-1], place)


def evaluate_cold_items(
    cold: ColdItems,
    part: str = "test",
    model: TwoTower | None = None,
    boost: float = 0.0,
    repeats: str = "exclude",
) -> dict[str, Any]:
    """Rank known and held-out items together, by a model that has seen no held-out item and by baselines.

    `warm` are the targets of the leave-last-out split of the known items, `cold` those of `ColdItems`, `all` both; the rules of
    `ColdItems` hold for both. Every item is ranked, known or held out. As each ranking has one target, recall@k is HR@k.

    Args:
        cold: `ColdItems`.
        part: `"test"` or `"validation"`, for the warm targets. Default: `"test"`.
        model: `TwoTower` that was trained on `cold.known`, with content of its item features; a model without content, or whose
            content reads other features, knows nothing of new items, and scores them 0. Default: the baselines alone.
        boost: float, see `new_item_row`. Default: 0.
        repeats: str, `"exclude"` or `"allow"`; see `rank`. Default: `"exclude"`.
    Returns:
        `{"model": {"warm": metrics, "cold": metrics, "all": metrics}, "content-knn": ..., "popularity in category": ...,
        "random": ..., "num_warm": int, "num_cold": int, "num_cold_items": int}`; for metrics, see `metrics_of_requests`.
    Raises:
        ValueError: the data has no item features, or no user has a cold target.
    """
    if not cold.data.features.get("items"):
        raise ValueError(
            "New items are ranked by their features, and the data has none: prepare it with `--items FILE`."
        )
    split, known = LeaveLastOut(cold.known, targets=cold.rules), cold.known
    groups = {
        "warm": Targets(*split.histories(part), split.targets(part) - FIRST_ITEM_INDEX),
        "cold": Targets(*cold.histories, cold.target_items),
    }
    if not len(groups["cold"].items):
        raise ValueError("No user has an event of a held-out item after one of a known item: raise the share.")
    encoded, _ = encode_table(known.features["items"], cold.catalogue)
    contenders: dict[str, Callable[[Targets], Scorer]] = {}
    if model is not None:
        contenders["model"] = _model(cold, model, encoded, boost, split, part)
    contenders |= {
        "content-knn": _content_knn(cold, encoded),
        "popularity in category": _popular_in_category(cold, encoded, split),
        "random": lambda _: (
            lambda rows: np.zeros((len(rows), cold.data.num_items))
        ),  # all tie: the mean over all orders
    }
    result: dict[str, Any] = {}
    for name, scorer_of in contenders.items():
        found = {}
        for group, targets in groups.items():
            asked, title = (scorer_of(targets), known.item_index, targets.requests(), targets.items), f"{group} items"
            found[group] = means(metrics_of_requests(rank(*asked, cold.data.num_items, title, repeats)))
        number = {group: len(targets.items) for group, targets in groups.items()}
        both = {
            metric: sum(number[g] * found[g][metric] for g in number) / sum(number.values()) for metric in found["warm"]
        }
        result[name] = found | {"all": both}
    counts = {"num_warm": len(groups["warm"].items), "num_cold": len(groups["cold"].items)}
    return result | counts | {"num_cold_items": int(cold.is_cold.sum()), "part": part}


def _model(
    cold: ColdItems, model: TwoTower, encoded: Mapping[str, np.ndarray], boost: float, split: LeaveLastOut, part: str
) -> Callable[[Targets], Scorer]:
    tower, known = model.item_tower, cold.known
    new = np.zeros((len(cold.items), tower.width), np.float32)
    if content_features(tower, known.features["items"]):
        row = new_item_row(tower, embed_histories(model, split, "validation"), boost)
        new = content_vectors(tower, {name: values[known.num_items :] for name, values in encoded.items()}, row)
    rows = np.concatenate([vectors_of(tower)[FIRST_ITEM_INDEX:], new])
    items = np.asarray(tower.as_candidates(rows)).T

    def scorer_of(targets: Targets) -> Scorer:
        if targets.items.max(initial=0) < known.num_items:  # the events at `ends` are those to be found
            return scorer(embed_histories(model, split, part))
        return scorer(_embed_requests(model, cold.requests(model.sequence_tower.max_length)))

    def scorer(queries: np.ndarray) -> Scorer:
        return lambda chosen: queries[chosen] @ items

    return scorer_of


def _embed_requests(model: TwoTower, data: PreparedData) -> np.ndarray:
    """The queries before the last event of each user."""
    features = data.model_inputs(np.arange(data.num_users))
    starts, ends = data.offsets[:-1], data.offsets[1:] - 1
    return embed(model, data.item_index, starts, ends, data.timestamp, data.ticks_per_second, features=features)


def _content_knn(cold: ColdItems, encoded: Mapping[str, np.ndarray]) -> Callable[[Targets], Scorer]:
    neighbours, item_index = ContentKNN(encoded), cold.known.item_index
    return lambda targets: of_histories(neighbours.scores, item_index, targets.starts, targets.ends, FIRST_ITEM_INDEX)


def _popular_in_category(
    cold: ColdItems, encoded: Mapping[str, np.ndarray], split: LeaveLastOut
) -> Callable[[Targets], Scorer]:
    """The popular items of the value that most items of the history have; without categories, the popular items."""
    item_index, _ = split.train_part()
    counts = Popularity(item_index, cold.data.num_items).counts
    categories = [values.reshape(len(values), -1) for values in encoded.values() if values.dtype.kind == "i"]
    values = categories[0] if categories else np.zeros((cold.data.num_items, 1), np.int32)

    def scorer_of(targets: Targets) -> Scorer:
        def scores(rows: np.ndarray) -> np.ndarray:
            found = np.tile(counts.astype(np.float64), (len(rows), 1))
            for score, r in zip(found, rows, strict=True):
                own = values[cold.known.item_index[targets.starts[r] : targets.ends[r]] - FIRST_ITEM_INDEX]
                best = np.bincount(own[own > 0], minlength=1).argmax()
                score += (values == best).any(axis=1) * (counts.max() + 1)
            return found

        return scores

    return scorer_of
