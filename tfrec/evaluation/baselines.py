"""Baselines that a model must beat: popularity, the bigram table, and nearest neighbours of items."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from tfrec.data.arrays import bincount
from tfrec.data.vocabulary import FIRST_ITEM_INDEX


class Popularity:
    """Ranks items by how often they occur.

    Args:
        item_index: int `(events,)`, the events to learn from.
        num_items: int: size of the catalogue.
    """

    def __init__(self, item_index: np.ndarray, num_items: int) -> None:
        self.counts = bincount(np.asarray(item_index), FIRST_ITEM_INDEX + num_items)[FIRST_ITEM_INDEX:]

    def scores(self, num_rows: int) -> np.ndarray:
        """Float64 `(num_rows, num_items)`: the same row for everyone."""
        return np.tile(self.counts.astype(float), (num_rows, 1))


class Bigram:
    """Ranks items by how often they came right after the last item of the history; popularity breaks ties.

    Args:
        item_index: int `(events,)`, histories one after the other.
        offsets: int `(users + 1,)`: where each begins.
        popularity: `Popularity` of the same events.
    """

    def __init__(self, item_index: np.ndarray, offsets: np.ndarray, popularity: Popularity) -> None:
        self.popularity, self.num_items = popularity, len(popularity.counts)
        items = np.asarray(item_index, np.int64) - FIRST_ITEM_INDEX
        is_pair = np.ones(max(len(items) - 1, 0), bool)  # event i and i + 1 are of one user
        borders = offsets[1:-1][(offsets[1:-1] > 0) & (offsets[1:-1] < len(items))]
        is_pair[borders - 1] = False
        pairs, self._count = np.unique((items[:-1] * self.num_items + items[1:])[is_pair], return_counts=True)
        previous, self._next = np.divmod(pairs, self.num_items)
        self._begin = np.searchsorted(previous, np.arange(self.num_items + 1))

    def scores(self, last_item_index: np.ndarray) -> np.ndarray:
        """Float64 `(rows, num_items)`, given the last item of each history."""
        scores = self.popularity.scores(len(last_item_index)) / (self.popularity.counts.max() + 1)  # below 1: ties only
        for row, item in enumerate(last_item_index - FIRST_ITEM_INDEX):
            own = slice(self._begin[item], self._begin[item + 1])
            scores[row, self._next[own]] += self._count[own]
        return scores


class ItemKNN:
    """Ranks items by how much the users of the history's items share with theirs: the sum of cosine similarities.

    Source: Deshpande & Karypis 2004, "Item-Based Top-N Recommendation Algorithms". Differs from the source: none known.

    Args:
        item_index: int `(events,)`, histories one after the other.
        offsets: int `(users + 1,)`: where each begins.
        num_items: int: size of the catalogue.
        num_neighbours: int > 0: the most similar items that each item keeps.
    """

    CHUNK = 1024  # items that are compared with all others at a time

    def __init__(self, item_index: np.ndarray, offsets: np.ndarray, num_items: int, num_neighbours: int = 100) -> None:
        self.num_items = num_items
        users = self._users_by_item(item_index, offsets)
        norm = np.sqrt(np.maximum(np.asarray(users.sum(axis=0)).ravel(), 1))
        users = (users @ scipy.sparse.diags_array(1 / norm)).tocsc()
        parts = []
        for first in range(0, num_items, self.CHUNK):
            part = (users[:, first : first + self.CHUNK].T @ users).tocsr()
            row = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
            part.data[part.indices == row + first] = 0  # an item is no neighbour of itself
            order = np.argsort(2 * row - part.data.astype(np.float64), kind="stable")  # a cosine is at most 1
            is_kept = np.empty(len(order), bool)
            is_kept[order] = np.arange(len(order)) - part.indptr[row[order]] < num_neighbours
            part.data[~is_kept] = 0
            part.eliminate_zeros()
            parts.append(part)
        self._similarity = scipy.sparse.vstack(parts, format="csr")

    def _users_by_item(self, item_index: np.ndarray, offsets: np.ndarray) -> scipy.sparse.csr_array:
        """Float32 `(histories, num_items)`: 1 where a history holds an item."""
        rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        columns = np.asarray(item_index) - FIRST_ITEM_INDEX
        shape = (len(offsets) - 1, self.num_items)
        users = scipy.sparse.csr_array((np.ones(len(columns), np.float32), (rows, columns)), shape=shape)
        users.data[:] = 1  # a repeat counts once
        return users

    def scores(self, item_index: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Float32 `(histories, num_items)`, given histories one after the other."""
        return (self._users_by_item(item_index, offsets) @ self._similarity).toarray()
