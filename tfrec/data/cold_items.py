"""Items that are held out with all their events, to measure how new items are recommended."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
import pyarrow as pa

from tfrec.data.arrays import ranges
from tfrec.data.event_rules import is_target
from tfrec.data.features import fit_again
from tfrec.data.prepared import PreparedData
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, Vocabulary


@dataclasses.dataclass(frozen=True)
class ColdItems:
    """A share of the catalogue that is held out with all its events, as if it came tomorrow.

    The held-out items are drawn uniformly. The last event of a user with one of them is the user's cold target. Its history is what
    the user did before, without held-out items; a target without such a history does not count. With `rules`, only the events for
    which they hold may be targets.

    >>> data = PreparedData.from_histories(["abcd", "badc", "cb"])
    >>> cold = ColdItems(data, share=0.25, seed=0)
    >>> cold.item_ids, cold.known.num_items, len(cold.targets)
    (['d'], 3, 2)

    Args:
        data: `PreparedData`, with the items that are held out.
        share: float in (0, 1), of the catalogue.
        seed: int, of the draw. Default: 0.
        rules: texts, which events may be targets; see `is_target`. Default: all.
    Attributes:
        known: `PreparedData` without the held-out items and their events, of the same users.
    """

    data: PreparedData
    share: float
    seed: int = 0
    rules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"The share of cold items must be in (0, 1). Received: {self.share}.")

    @cached_property
    def is_cold(self) -> np.ndarray:
        """Bool, shape `(data.num_items,)`: which items are held out."""
        number = min(max(1, round(self.share * self.data.num_items)), self.data.num_items - 1)
        drawn = np.random.default_rng(self.seed).choice(self.data.num_items, number, replace=False)
        is_cold = np.zeros(self.data.num_items, bool)
        is_cold[drawn] = True
        return is_cold

    @cached_property
    def known(self) -> PreparedData:
        data = self.data
        kept = ~self._is_event_cold
        items = data.items.filter(pa.array(~self.is_cold))
        return dataclasses.replace(
            data,
            vocabulary=Vocabulary(items["item_id"].to_pylist()),
            item_index=self._new_index[data.item_index[kept]],
            timestamp=data.timestamp[kept],
            event_columns={name: values[kept] for name, values in data.event_columns.items()},
            offsets=self._known_before[data.offsets],
            items=items,
            features=data.features | {"items": [fit_again(f, items) for f in data.features.get("items", [])]},
        )

    @cached_property
    def items(self) -> pa.Table:
        """The held-out items with their properties."""
        return self.data.items.filter(pa.array(self.is_cold))

    @property
    def item_ids(self) -> list[str]:
        return self.items["item_id"].to_pylist()

    @cached_property
    def targets(self) -> np.ndarray:
        """int64, shape `(users with a cold target,)`: the event of `data` that is to be found."""
        event = np.flatnonzero(self._is_event_cold & is_target(self.data, self.rules))
        user = np.searchsorted(self.data.offsets, event, "right") - 1
        last = event[np.append(user[1:] != user[:-1], True)[: len(event)]]
        starts, ends = self._histories(last)
        return last[ends > starts]

    @cached_property
    def histories(self) -> tuple[np.ndarray, np.ndarray]:
        """`(starts, ends)`, int64: the events of `known` before each of `targets`."""
        return self._histories(self.targets)

    def requests(self, max_length: int) -> PreparedData:
        """A history for each of `targets`: the newest known events before it, then the target itself, numbered as by `catalogue`.

        Args:
            max_length: int, the events before the target.
        """
        data = self.data
        ends, lengths = self.histories[1], np.minimum(self.histories[1] - self.histories[0], max_length)
        offsets = np.concatenate([[0], np.cumsum(lengths + 1)]).astype(np.int64)
        place = ranges(ends - lengths, lengths + 1)
        known = np.append(np.flatnonzero(~self._is_event_cold), 0)  # one more, for a target after the last known event
        event = known[place]
        event[offsets[1:] - 1] = self.targets
        user = np.searchsorted(data.offsets, self.targets, "right") - 1
        return dataclasses.replace(
            self.known,
            item_index=self._new_index[data.item_index[event]],
            timestamp=data.timestamp[event],
            event_columns={name: values[event] for name, values in data.event_columns.items()},
            offsets=offsets,
            users=data.users.take(pa.array(user)),
        )

    @cached_property
    def target_items(self) -> np.ndarray:
        """int64: the item of each of `targets`, numbered from 0 as by `catalogue`."""
        return self._new_index[self.data.item_index[self.targets]] - FIRST_ITEM_INDEX

    @property
    def catalogue(self) -> pa.Table:
        """All items with their properties: the known ones, then the held-out ones."""
        return pa.concat_tables([self.known.items, self.items])

    def _histories(self, event: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        user = np.searchsorted(self.data.offsets, event, "right") - 1
        return self._known_before[self.data.offsets[user]], self._known_before[event]

    @cached_property
    def _is_event_cold(self) -> np.ndarray:
        return np.concatenate([np.zeros(FIRST_ITEM_INDEX, bool), self.is_cold])[self.data.item_index]

    @cached_property
    def _known_before(self) -> np.ndarray:
        """int64, shape `(events + 1,)`: how many events before each one are of known items."""
        return np.concatenate([[0], np.cumsum(~self._is_event_cold)]).astype(np.int64)

    @cached_property
    def _new_index(self) -> np.ndarray:
        """int32: the item index in `catalogue` of each item index of `data`."""
        order = np.argsort(self.is_cold, kind="stable")
        new = np.arange(FIRST_ITEM_INDEX + len(order), dtype=np.int32)
        new[FIRST_ITEM_INDEX + order] = np.arange(FIRST_ITEM_INDEX, FIRST_ITEM_INDEX + len(order))
        return new
