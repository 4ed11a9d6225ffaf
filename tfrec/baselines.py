"""What a model must beat: popularity and the bigram table."""

from __future__ import annotations

import numpy as np

from tfrec.vocabulary import FIRST_ITEM_INDEX


class Popularity:
    """Ranks items by how often they occur.

    Args:
        item_index: int `(events,)`, the events to learn from.
        num_items: int: size of the catalogue.
    """

    def __init__(self, item_index: np.ndarray, num_items: int) -> None:
        self.counts = np.bincount(np.asarray(item_index) - FIRST_ITEM_INDEX, minlength=num_items)

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
