"""What lists of recommendations are like: popular, novel, diverse, and how much of the catalogue they show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse

from tfrec.data.encoding import encode_table
from tfrec.data.features import first_category
from tfrec.data.splits import Split
from tfrec.data.vocabulary import FIRST_ITEM_INDEX

ROWS = 1 << 12
"""Lists whose vectors are read at a time."""


@dataclass(frozen=True)
class Catalogue:
    """What `list_metrics` knows about the items.

    Attributes:
        counts: int64 array, shape `(num_items,)`, events of each item in the training part.
        num_users_of: int64 array of that shape, users of each item in the training part.
        num_users: int, users with an event in the training part.
        vectors: dict, by name float32 arrays, also sparse ones, shape `(num_items, D)`: what items are like. A row of zeros is like
            nothing.
    """

    counts: np.ndarray
    num_users_of: np.ndarray
    num_users: int
    vectors: Mapping[str, np.ndarray | scipy.sparse.csr_array] = field(default_factory=dict)

    @classmethod
    def of(cls, split: Split, vectors: np.ndarray | None = None) -> Catalogue:
        """What the training part and the item features tell.

        Args:
            split: `Split`.
            vectors: float32 array, shape `(num_items, D)`, item vectors of a model, for `diversity@k`. Default: none.
        """
        data = split.data
        item_index, offsets = split.train_part()
        user = np.repeat(np.arange(data.num_users), np.diff(offsets))
        pairs = np.sort(user.astype(np.int64) * data.num_items + item_index - FIRST_ITEM_INDEX)
        pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]]  # np.unique takes ten times as long
        num_users_of = np.bincount(pairs % data.num_items, minlength=data.num_items)
        known = {} if vectors is None else {"diversity": vectors}
        if category := first_category(data.features.get("items", [])):
            values = encode_table([category], data.items)[0][category.name].reshape(data.num_items, -1)
            row, place = np.nonzero(values >= FIRST_ITEM_INDEX)
            cells, shape = (
                (np.ones(len(row), np.float32), (row, values[row, place])),
                (data.num_items, values.max(initial=1) + 1),
            )
            matrix = scipy.sparse.csr_array(cells, shape=shape)
            known["category_diversity"] = (matrix > 0).astype(np.float32)  # an item may have a value twice
        return cls(split.train_counts(), num_users_of, int((np.diff(offsets) > 0).sum()), known)


def list_metrics(
    items: np.ndarray, is_hit: np.ndarray, catalogue: Catalogue, cutoffs: Sequence[int]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The metrics of lists: those of each list, and those of all lists together.

    | metric of a list | value | source |
    |---|---|---|
    | `popularity@k` | mean number of training events of its items | Yin et al. 2012 |
    | `novelty@k` | mean self-information `-log2(users of the item / users)`; no user counts as one | Zhou et al. 2010 |
    | `serendipity@k` | sum over hits of max(p(rank) - p(popularity rank), 0) / k, p(r) = (N + 1 - r) / N | Ge et al. 2010 |
    | `diversity@k` | mean over pairs of items of 1 - cosine of their vectors | Ziegler et al. 2005 |
    | `category_diversity@k` | the same of the values that items have in the first column of categories | Ziegler et al. 2005 |

    Equally popular items share a popularity rank; for an item without events p is 0.

    | metric of all lists | value | source |
    |---|---|---|
    | `coverage@k` | share of the catalogue in some list | Ge et al. 2010 |
    | `gini@k` | Gini index of how often items are in a list: 0 equally often, 1 always the same | Shani & Gunawardana 2011 |

    Args:
        items: int array, shape `(lists, K)`, best first, numbered from 0; -1 where none is left.
        is_hit: bool array of that shape, which of them are targets.
        catalogue: `Catalogue`.
        cutoffs: ints > 0; a list that is shorter counts with the items that it has.
    Returns:
        `(of_lists, of_all)`: by metric float64 arrays, shape `(lists,)`; by metric floats.
    """
    is_item, number = items >= 0, len(catalogue.counts)
    novelty = -np.log2(np.maximum(catalogue.num_users_of, 1) / max(catalogue.num_users, 1))
    levels = np.unique(catalogue.counts[catalogue.counts > 0])[::-1]  # the most popular has rank 1
    rank = np.searchsorted(-levels, -catalogue.counts) + 1
    chance = np.where(catalogue.counts > 0, (number + 1 - rank) / number, 0)
    own_chance = (number - np.arange(items.shape[1])) / number
    surprise = np.maximum(own_chance - chance[items], 0) * (is_hit & is_item)
    of_lists: dict[str, np.ndarray] = {}
    of_all: dict[str, float] = {}
    for k in cutoffs:
        here, own = is_item[:, :k], items[:, :k]
        size = np.maximum(here.sum(axis=1), 1)
        of_lists[f"popularity@{k}"] = (catalogue.counts[own] * here).sum(axis=1) / size
        of_lists[f"novelty@{k}"] = (novelty[own] * here).sum(axis=1) / size
        of_lists[f"serendipity@{k}"] = surprise[:, :k].sum(axis=1) / k
        shown = np.sort(np.bincount(own[here], minlength=number))
        of_all[f"coverage@{k}"] = float((shown > 0).mean())
        weight = 2 * np.arange(1, number + 1) - number - 1
        of_all[f"gini@{k}"] = float(weight @ shown / (number * max(shown.sum(), 1)))
    for name, vectors in catalogue.vectors.items():
        of_lists |= {f"{name}@{k}": _diversity(items[:, :k], vectors) for k in cutoffs}
    return of_lists, of_all


def _diversity(items: np.ndarray, vectors: Any) -> np.ndarray:
    """The mean of 1 - cosine over the pairs of each list; 0 for a list of one item.

    The square of the sum of unit vectors is the sum over all pairs of their cosines: no pair is looked at.
    """
    found = np.zeros(len(items))
    norm = np.sqrt(np.asarray((vectors * vectors).sum(axis=1)).ravel())
    is_like = (norm > 0).astype(np.float32)
    inverse = scipy.sparse.diags_array(is_like / np.maximum(norm, 1e-12))
    for first in range(0, len(items), ROWS):
        own = items[first : first + ROWS]
        row, place = np.nonzero(own >= 0)
        cells, shape = (np.ones(len(row), np.float32), (row, own[row, place])), (len(own), len(norm))
        lists = scipy.sparse.csr_array(cells, shape=shape)
        total = lists @ inverse @ vectors  # the sum of the unit vectors of each list
        number = np.diff(lists.indptr)
        of_pairs = np.asarray((total * total).sum(axis=1)).ravel() - lists @ is_like
        found[first : first + ROWS] = 1 - of_pairs / np.maximum(number * (number - 1), 1)
        found[first : first + ROWS][number < 2] = 0
    return found
