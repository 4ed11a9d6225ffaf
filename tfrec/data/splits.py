"""The leave-last-out split: training part, validation target and test target of each user."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tfrec.data.event_rules import event_weights, is_target
from tfrec.data.prepared import PreparedData
from tfrec.data.vocabulary import FIRST_ITEM_INDEX

MIN_EVENTS = 3
"""Events a user needs to be evaluated: one of history, the validation target, the test target."""

REPEATS = ("exclude", "allow")
"""Whether the items of a user's history may be recommended to the user again."""

HELD_OUT = {"validation": 2, "test": 1}
"""How many of a user's last events are not yet in the history when the target of a split is ranked."""


def keeps_seen(repeats: str) -> bool:
    """Whether a ranking keeps the items of the history.

    >>> keeps_seen("allow"), keeps_seen("exclude")
    (True, False)

    Args:
        repeats: str, one of `REPEATS`.
    Raises:
        ValueError: it is another value; the message gives it.
    """
    if repeats not in REPEATS:
        raise ValueError(f"`repeats` must be one of {', '.join(REPEATS)}. Received: {repeats!r}.")
    return repeats == "allow"


class LeaveLastOut:
    """Holds out the last item of each user as test target and the second last as validation target.

    The rest is the training part. The test history holds all but the last event, so the validation target too. A user with
    fewer than `MIN_EVENTS` events is never evaluated: all of their events are training data, and they are counted in `num_short`.

    With `targets`, only some events are to be found, such as purchases: the last of them is the test target, the second last the
    validation target. A history holds all events before its target, of any kind, and the training part those before the
    validation target. A user with fewer than two targets, or without an event before them, is not evaluated.

    >>> split = LeaveLastOut(PreparedData.from_histories(["abcde", "ab"]))
    >>> split.data.vocabulary.decode(split.targets("validation")), split.num_short
    (['d'], 1)

    Args:
        data: `PreparedData`.
        num_held_out: int, 2; or 0 to train on every event, as for production. Default: 2.
        targets: texts such as `"event_type=purchase,cart"` or `"rating>=3"`, which events are to be found: those for which all
            hold; see `is_target`. Default: all.
    Raises:
        ValueError: a text of `targets` names no column or no value.
    """

    def __init__(self, data: PreparedData, num_held_out: int = 2, targets: Sequence[str] = ()) -> None:
        self.data = data
        self.is_target = is_target(data, targets) if targets else None
        """Bool `(num_events,)`: which events are to be found; None: all."""
        if self.is_target is None:
            is_evaluated = data.lengths >= MIN_EVENTS
            last = data.offsets[1:] - HELD_OUT["test"]
            second = data.offsets[1:] - HELD_OUT["validation"]
        else:
            event = np.flatnonzero(self.is_target)
            before = np.searchsorted(event, data.offsets)  # how many targets come before each user's events
            place = np.append(event, [0, 0])  # a user without targets reads a neighbour's, and is not evaluated
            last, second = place[before[1:] - 1], place[before[1:] - 2]
            is_evaluated = (np.diff(before) >= 2) & (second > data.offsets[:-1])
        self.users = np.flatnonzero(is_evaluated)
        """int64: the users that are evaluated, in row order."""
        self._events = {"test": last[self.users], "validation": second[self.users]}
        self.num_short = int(data.num_users - len(self.users))
        self.train_ends = np.where(is_evaluated & (num_held_out > 0), second, data.offsets[1:])
        """int64 `(num_users,)`: user u trains on events `offsets[u] : train_ends[u]`."""

    def weights(self, rules: Sequence[str] = ()) -> np.ndarray | None:
        """Float32 `(num_events,)`: how much each event counts as a target, 0 where it is none; None where all count 1.

        Args:
            rules: see `event_weights`. Default: none.
        """
        if not rules:
            return None if self.is_target is None else self.is_target.astype(np.float32)
        weight = event_weights(self.data, rules)
        return weight if self.is_target is None else weight * self.is_target

    def train_part(self, max_events: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The training part as flat arrays: `(item_index, offsets)`, as in `PreparedData`.

        Args:
            max_events: int, about how many events are wanted at most: of a larger log, whole histories are taken evenly.
                Default: all.
        """
        starts, lengths = self.data.offsets[:-1], self.train_ends - self.data.offsets[:-1]
        step = 1 if max_events is None else max(1, -(-int(lengths.sum()) // max_events))
        if step > 1:
            starts, lengths = starts[::step], lengths[::step]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        if step > 1:
            event = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
            return self.data.item_index[event], offsets
        held_out = self._held_out()
        if not len(held_out):
            return self.data.item_index, offsets
        kept = np.ones(self.data.num_events, bool)  # one byte an event, beside the four of the result
        kept[held_out] = False
        return self.data.item_index[kept], offsets

    def train_counts(self) -> np.ndarray:
        """int64, shape `(num_items,)`: the events of each item in the training part, in index order."""
        held_out = self.data.item_index[self._held_out()] - FIRST_ITEM_INDEX
        return self.data.item_counts - np.bincount(held_out, minlength=self.data.num_items)

    def _held_out(self) -> np.ndarray:
        """int64: the events that are not in the training part."""
        number = self.data.offsets[1:] - self.train_ends
        return np.arange(number.sum()) + np.repeat(self.train_ends - np.cumsum(number) + number, number)

    def histories(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """`(starts, ends)`, int64 `(num evaluated users,)`: the events that are history when `split` is ranked.

        The target is the event at `ends`.
        """
        if split not in HELD_OUT:
            raise ValueError(f"`split` must be one of {sorted(HELD_OUT)}. Received: {split!r}.")
        return self.data.offsets[self.users], self._events[split]

    def targets(self, split: str) -> np.ndarray:
        """int32 `(num evaluated users,)`: the item index to be found."""
        return self.data.item_index[self.histories(split)[1]]

    def sample(self, number: int, max_length: int) -> PreparedData:
        """The newest events of some evaluated users, as data in memory whose split has the same targets; times in seconds.

        Columns of events and properties of users that a model reads are kept, ids of users are not.

        >>> split = LeaveLastOut(PreparedData.from_histories(["abcde", "cab"]))
        >>> split.data.vocabulary.decode(LeaveLastOut(split.sample(2, max_length=1)).targets("test"))
        ['e', 'b']

        Args:
            number: int, users at most; they are taken evenly.
            max_length: int, items of a history that a model reads; two events more are kept, for the targets.
        """
        data = self.data
        rows = np.linspace(0, len(self.users) - 1, min(number, len(self.users))).astype(np.int64)
        users = self.users[rows]
        starts = np.maximum(data.offsets[users], self._events["validation"][rows] - max_length)
        lengths = self._events["test"][rows] + 1 - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        event = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        properties = data.users.select([feature.name for feature in data.features.get("users", [])]).take(
            pa.array(users)
        )
        row_numbers = pa.array(np.arange(len(users))).cast(pa.string())
        return PreparedData(
            data.vocabulary,
            data.item_index[event],
            data.seconds(event),
            offsets,
            items=data.items,
            users=properties.add_column(0, "user_id", row_numbers) if properties.num_columns else None,
            features=data.features,
            event_columns={name: values[event] for name, values in data.event_columns.items()},
        )

    def num_repeats(self, split: str) -> int:
        """How many targets their user had before: misses, whatever the model, in a ranking that leaves seen items out."""
        item_index, targets = self.data.item_index, self.targets(split)
        return sum(t in item_index[start:end] for t, start, end in zip(targets, *self.histories(split), strict=True))
