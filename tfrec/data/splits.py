"""Who learns from what: the leave-last-out split."""

from __future__ import annotations

import numpy as np

from tfrec.data.prepared import PreparedData

MIN_EVENTS = 3
"""Events a user needs to be evaluated: one of history, the validation target, the test target."""

HELD_OUT = {"validation": 2, "test": 1}
"""How many of a user's last events are not yet in the history when the target of a split is ranked."""


class LeaveLastOut:
    """The last item of each user is the test target, the second last the validation target, the rest is for training.

    The test history holds all but the last event (so the validation target too). A user with fewer than
    `MIN_EVENTS` events is never a target: all of their events are training data, and they are counted in `num_short`.

    Args:
        data: the log.
        num_held_out: 2; or 0, to train on every event, as a model for production does.
    """

    def __init__(self, data: PreparedData, num_held_out: int = 2) -> None:
        self.data = data
        is_evaluated = data.lengths >= MIN_EVENTS
        self.users = np.flatnonzero(is_evaluated)
        """int64: the users that are evaluated, in row order."""
        self.num_short = int(data.num_users - len(self.users))
        self.train_ends = data.offsets[1:] - np.where(is_evaluated, num_held_out, 0)
        """int64 `(num_users,)`: user u trains on events `offsets[u] : train_ends[u]`."""

    def train_part(self) -> tuple[np.ndarray, np.ndarray]:
        """The training part as flat arrays: `(item_index, offsets)`, as in `PreparedData`."""
        starts, ends = self.data.offsets[:-1], self.train_ends
        event, offsets = np.arange(self.data.num_events), np.concatenate([[0], np.cumsum(ends - starts)])
        return self.data.item_index[event < np.repeat(ends, self.data.lengths)], offsets

    def histories(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """`(starts, ends)`, int64 `(num evaluated users,)`: the events that are history when `split` is ranked.

        The target is the event at `ends`.
        """
        if split not in HELD_OUT:
            raise ValueError(f"`split` must be one of {sorted(HELD_OUT)}. Received: {split!r}.")
        return self.data.offsets[self.users], self.data.offsets[self.users + 1] - HELD_OUT[split]

    def targets(self, split: str) -> np.ndarray:
        """int32 `(num evaluated users,)`: the item index to be found."""
        return self.data.item_index[self.histories(split)[1]]

    def num_repeats(self, split: str) -> int:
        """How many targets their user had before: seen items are removed from a ranking, so these are always misses."""
        item_index, targets = self.data.item_index, self.targets(split)
        return sum(t in item_index[start:end] for t, start, end in zip(targets, *self.histories(split), strict=True))
