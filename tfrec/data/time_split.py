"""The split by time: what came later is held out, for all users at once."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence

import numpy as np

from tfrec.data.arrays import ranges
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut, Requests, Split

SPLITS = ("last", "time")
"""The ways to split a log: `LeaveLastOut` and `TimeSplit`."""
SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
"""Units of a span of time."""


class TimeSplit(Split):
    """Holds out the newest events of the log, whoever did them: as a model meets them that was trained at that time.

    The test part is what happened since a moment, the validation part the time before it, the training part what came before both.
    The targets of a user are the items of all events in the part, each once, so there may be several. The history holds the user's
    events before the part; it is empty for a new user. The request is made at the user's first event in the part: with its time and
    its context.

    Source: the global temporal split of Meng et al. 2020, "Exploring Data Splitting Strategies for the Evaluation of Recommendation
    Models". Differs from the source: users and items that are new in the part are kept and counted.

    >>> data = PreparedData.from_histories(["abc", "bd"])
    >>> data.timestamp[:] = [1, 5, 9, 6, 8]
    >>> split = TimeSplit(data, test=0.4, validation=0.2)
    >>> [data.vocabulary.decode(split.targets(part)) for part in ("validation", "test")]
    [['b'], ['c', 'd']]

    Args:
        data: `PreparedData` with times.
        test: what is held out for the test: the span `"7d"` (units `m`, `h`, `d`, `w`) up to the last event; or all since a date or
            time in UTC such as `"2024-05-01"`; or a float in (0, 1), the share of the events.
        validation: the same, for the time before the test. Default: as `test`, where that is a span or a share.
        num_held_out: int, 2; or 0 to train on every event, as for production. Default: 2.
        targets: texts, which events are to be found; see `LeaveLastOut`. Default: all.
    Attributes:
        num_new_users: dict, by part: users in it without a history. They count.
        starts: dict, by part: the tick at which it starts; see `PreparedData.timestamp`.
    Raises:
        ValueError: the data has no times, `test` or `validation` cannot be read, or nothing is left to train on.
    """

    def __init__(
        self,
        data: PreparedData,
        test: str | float,
        validation: str | float | None = None,
        num_held_out: int = 2,
        targets: Sequence[str] = (),
    ) -> None:
        super().__init__(data, targets)
        if not data.num_events or not data.timestamp.any():
            raise ValueError("The log has no times, and a split by time needs them: prepare it with `--time COLUMN`.")
        check_parts("time", test, validation)
        end = int(data.timestamp.max()) + 1
        self.starts = {"test": _start(data, test, end, 0)}
        held_out = int((data.timestamp >= self.starts["test"]).sum())
        self.starts["validation"] = _start(data, validation or test, self.starts["test"], held_out)
        if not self.starts["validation"] < self.starts["test"] < end:
            raise ValueError(
                f"The validation must start before the test, and the test before the last event. Received: {validation or test} "
                f"and {test}."
            )
        if not (data.timestamp < self.starts["validation"]).any():
            raise ValueError(
                f"The test of {test} and the validation of {validation or test} leave nothing to train on."
            )
        first = {part: self._events_before(start) for part, start in self.starts.items()} | {"end": data.offsets[1:]}
        self.train_ends = first["validation"] if num_held_out else data.offsets[1:]
        self._requests = {
            "validation": self._between(first["validation"], first["test"]),
            "test": self._between(first["test"], first["end"]),
        }
        self.num_new_users = {part: int((a.starts == a.ends).sum()) for part, a in self._requests.items()}

    def describe(self) -> str:
        test, validation = (
            datetime.datetime.fromtimestamp(self.starts[part] / self.data.ticks_per_second, datetime.UTC)
            for part in ("test", "validation")
        )
        return f"by time: validation since {validation:%Y-%m-%d %H:%M}, test since {test:%Y-%m-%d %H:%M} (UTC)"

    def _events_before(self, tick: int) -> np.ndarray:
        """int64 `(num_users,)`: the first event of each user at `tick` or after it."""
        event = np.flatnonzero(self.data.timestamp >= tick)  # of a user the newest, since histories are in order
        later = np.searchsorted(event, self.data.offsets)
        return self.data.offsets[1:] - np.diff(later)

    def _between(self, first: np.ndarray, last: np.ndarray) -> Requests:
        """The requests whose targets are events `first : last` of each user."""
        number = last - first
        event = ranges(first, number)
        user = np.repeat(np.arange(len(number)), number)
        if self.is_target is not None:
            is_target = self.is_target[event]
            event, user = event[is_target], user[is_target]
        _, distinct = np.unique(user << 32 | self.data.item_index[event], return_index=True)
        event, user = event[np.sort(distinct)], user[np.sort(distinct)]
        users, number = np.unique(user, return_counts=True)
        return Requests(users, self.data.offsets[users], first[users], event, np.concatenate([[0], np.cumsum(number)]))

    def _sampled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        asked = self._requests["test"]
        known = asked.ends > asked.starts
        return asked.users[known], asked.ends[known] - 1, asked.ends[known]


def make_split(
    data: PreparedData,
    kind: str = "last",
    test: str | float = "",
    validation: str | float = "",
    targets: Sequence[str] = (),
    num_held_out: int = 2,
) -> Split:
    """The split of some settings: `"last"` is `LeaveLastOut`, `"time"` is `TimeSplit`.

    >>> make_split(PreparedData.from_histories(["abc"])).targets("test")
    array([4], dtype=int32)

    Raises:
        ValueError: see `check_parts` and `TimeSplit`.
    """
    check_parts(kind, test, validation)
    if kind == "last":
        return LeaveLastOut(data, num_held_out, targets)
    return TimeSplit(data, test, validation, num_held_out, targets)


def check_parts(kind: str, test: str | float | None, validation: str | float | None) -> None:
    """Raise unless `test` and `validation` are what the split `kind` needs.

    Raises:
        ValueError: there is no such split, a part is missing or cannot be read, or the split has no such parts.
    """
    if kind not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}. Received: {kind!r}.")
    if kind == "last":
        if test or validation:
            raise ValueError("`test` and `validation` are for `split=time`: set it too.")
        return
    if not test:
        raise ValueError("`split=time` needs `test`: a span such as 7d, a date or a share of the events.")
    if is_date(test) and not validation:
        raise ValueError(f"The test starts at {test}: set `validation` too, to a date before it or a span such as 7d.")
    if validation:
        is_date(validation)  # refuses another text here


def is_date(text: str | float) -> bool:
    """Whether the start of a part is written as a date; else it is a span or a share.

    >>> is_date("2024-05-01"), is_date("7d"), is_date(0.1)
    (True, False, False)

    Raises:
        ValueError: it is none of them.
    """
    if re.fullmatch(r"\d+(\.\d+)?[mhdw]", str(text)):
        return False
    try:
        if 0 < float(text) < 1:
            return False
    except ValueError:
        try:
            return bool(datetime.datetime.fromisoformat(str(text)))
        except ValueError:
            pass
    raise ValueError(
        f"A part of a split is a span such as 7d (units m, h, d, w), a date such as 2024-05-01 or a share in (0, 1). Received: "
        f"{text!r}."
    )


def _start(data: PreparedData, text: str | float, end: int, held_out: int) -> int:
    """The tick at which a part starts that goes up to the tick `end`, after which `held_out` events come."""
    if is_date(text):
        moment = datetime.datetime.fromisoformat(str(text))
        moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
        return round(moment.timestamp() * data.ticks_per_second)
    if str(text)[-1] in SECONDS:
        return end - round(float(str(text)[:-1]) * SECONDS[str(text)[-1]] * data.ticks_per_second)
    place = max(data.num_events - held_out - max(1, round(float(text) * data.num_events)), 0)
    return int(np.partition(data.timestamp, place)[place])
