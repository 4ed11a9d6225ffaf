"""Splits of a log: a training part, and what is held out for validation and test."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tfrec.data.arrays import STEP, ranges
from tfrec.data.event_rules import event_weights, is_target
from tfrec.data.prepared import PreparedData
from tfrec.data.vocabulary import FIRST_ITEM_INDEX

MIN_EVENTS = 3
"""Events a user needs to be evaluated: one of history, the validation target, the test target."""

REPEATS = ("exclude", "allow")
"""Whether the items of a user's history may be recommended to the user again."""

PARTS = ("test", "validation")
"""What is held out."""


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


class Requests(NamedTuple):
    """What a part of a split asks: a history of each user, and the events that are to be found after it.

    Attributes:
        users: int64 array, shape `(requests,)`, the user of each, in row order.
        starts, ends: int64 arrays of that shape: events `starts[r] : ends[r]` are the history. The request is made at the event
            `ends[r]`: with its time and context.
        targets: int64 array, shape `(targets,)`, the events to be found, request by request.
        offsets: int64 array, shape `(requests + 1,)`: where the targets of each request begin.
    """

    users: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    targets: np.ndarray
    offsets: np.ndarray

    @property
    def of_targets(self) -> np.ndarray:
        """int64, shape `(targets,)`: the number of the request of each target."""
        return np.repeat(np.arange(len(self.users)), np.diff(self.offsets))


class Split:
    """What the splits of a log share: the training part of each user, and the requests of validation and test.

    Args:
        data: `PreparedData`.
        targets: texts, which events are to be found; see `is_target`.
    Attributes:
        train_ends: int64 array, shape `(num_users,)`: user u trains on events `offsets[u] : train_ends[u]`.
        is_target: bool array, shape `(num_events,)`: which events are to be found. None: all.
    """

    train_ends: np.ndarray

    def __init__(self, data: PreparedData, targets: Sequence[str] = ()) -> None:
        self.data, self.rules = data, tuple(targets)
        self.is_target = is_target(data, targets) if targets else None
        self._requests: dict[str, Requests] = {}

    def describe(self) -> str:
        """The split in a few words."""
        raise NotImplementedError

    def requests(self, part: str) -> Requests:
        """What is asked in a part, `"validation"` or `"test"`.

        Raises:
            ValueError: `part` is another text.
        """
        if part not in PARTS:
            raise ValueError(f"`part` must be one of {', '.join(PARTS)}. Received: {part!r}.")
        return self._requests[part]

    def histories(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """`(starts, ends)` of `requests`."""
        return self.requests(part)[1:3]

    def targets(self, part: str) -> np.ndarray:
        """int32 `(targets,)`: the item indexes to be found."""
        return self.data.item_index[self.requests(part).targets]

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
            return self.data.item_index[ranges(starts, lengths)], offsets
        if offsets[-1] == self.data.num_events:
            return self.data.item_index, offsets
        return self.data.item_index[self.is_train()], offsets

    def is_train(self) -> np.ndarray:
        """Bool `(num_events,)`: the events of the training part. One byte an event, where their numbers would take eight."""
        kept = np.ones(self.data.num_events, bool)
        kept[self._held_out()] = False
        return kept

    def train_counts(self) -> np.ndarray:
        """int64, shape `(num_items,)`: the events of each item in the training part, in index order."""
        held_out = self.data.item_index[self._held_out()] - FIRST_ITEM_INDEX
        return self.data.item_counts - np.bincount(held_out, minlength=self.data.num_items)

    def _held_out(self) -> np.ndarray:
        """int64: the events that are not in the training part."""
        return ranges(self.train_ends, self.data.offsets[1:] - self.train_ends)

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
        users, before, last = self._sampled()
        rows = np.linspace(0, len(users) - 1, min(number, len(users))).astype(np.int64)
        users = users[rows]
        starts = np.maximum(data.offsets[users], before[rows] - max_length)
        lengths = last[rows] + 1 - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        event = ranges(starts, lengths)
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

    def _sampled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What `sample` takes from: users, the event after each history to be kept, and the last event of each."""
        raise NotImplementedError

    def is_repeat(self, part: str) -> np.ndarray:
        """Bool `(targets,)`: targets that their user had before. A ranking that leaves seen items out misses them."""
        asked, targets = self.requests(part), self.targets(part)
        found = np.zeros(len(targets), bool)
        chunks = np.searchsorted(np.cumsum(asked.ends - asked.starts), np.arange(STEP, len(self.data.item_index), STEP))
        for a, b in itertools.pairwise([0, *np.unique(chunks), len(asked.users)]):
            lengths, numbers = asked.ends[a:b] - asked.starts[a:b], np.diff(asked.offsets[a : b + 1])
            event = ranges(asked.starts[a:b], lengths)
            own = slice(asked.offsets[a], asked.offsets[b])
            seen, wanted = (
                np.repeat(np.arange(b - a), number) << 32 | items
                for number, items in ((lengths, self.data.item_index[event]), (numbers, targets[own]))
            )
            seen = np.append(np.sort(seen), -1)  # np.isin takes ten times as long
            found[own] = seen[np.searchsorted(seen[:-1], wanted)] == wanted
        return found


class LeaveLastOut(Split):
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
        super().__init__(data, targets)
        if self.is_target is None:
            is_evaluated = data.lengths >= MIN_EVENTS
            last, second = data.offsets[1:] - 1, data.offsets[1:] - 2
        else:
            event = np.flatnonzero(self.is_target)
            before = np.searchsorted(event, data.offsets)  # how many targets come before each user's events
            place = np.append(event, [0, 0])  # a user without targets reads a neighbour's, and is not evaluated
            last, second = place[before[1:] - 1], place[before[1:] - 2]
            is_evaluated = (np.diff(before) >= 2) & (second > data.offsets[:-1])
        self.users = np.flatnonzero(is_evaluated)
        """int64: the users that are evaluated, in row order."""
        self.num_short = int(data.num_users - len(self.users))
        self.train_ends = np.where(is_evaluated & (num_held_out > 0), second, data.offsets[1:])
        starts, offsets = data.offsets[self.users], np.arange(len(self.users) + 1)
        for part, event in (("test", last[self.users]), ("validation", second[self.users])):
            self._requests[part] = Requests(self.users, starts, event, event, offsets)

    def describe(self) -> str:
        return "leave last out"

    def _sampled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.users, self.histories("validation")[1], self.histories("test")[1]
