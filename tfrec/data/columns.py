"""Guesses which column of a log is the user, the item and the time: by its name, a time also by its content."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from tfrec.data.times import share_of_times

COMMON_NAMES = {
    "user": (
        *("user_id", "user", "userid", "customer_id", "customer", "session_id", "sessionid", "visitorid", "visitor_id"),
        *("reviewerid", "uid", "username", "account_id"),
    ),
    "item": (
        *("item_id", "item", "itemid", "movieid", "movie_id", "product_id", "productid", "parent_asin", "asin"),
        *("article_id", "sku", "iid"),
    ),
    "time": (
        *("timestamp", "time", "unixreviewtime", "event_time", "datetime", "date_time", "created_at", "ts", "date"),
        *("event_date", "eventdate", "t_dat"),
    ),
    "title": ("title", "name", "item_name", "product_name", "movie_title"),
}
"""Names of columns in public logs, most specific first, compared in lower case."""
EVENT = "event:"
"""Begins the role of a column of the log that was named to be read along; the rest is its name."""
SHOWN = 10
"""Columns that are left out by name in a note."""
EVENT_TYPES = ("event", "event_type", "eventtype", "event_name", "behavior", "behavior_type", "action", "action_type")
"""Names of columns that tell what kind of event a row is."""


def choose_columns(
    names: Sequence[str],
    told: Mapping[str, str | None],
    where: str,
    notes: list[str],
    samples: Sequence[pa.Table] = (),
) -> dict[str, str | None]:
    """Choose the columns of the user, the item and the time: as told, else by common names, a time also by content.

    >>> notes = []
    >>> choose_columns(["customer", "sku"], {}, "the frame", notes)
    {'user': 'customer', 'item': 'sku', 'time': None}
    >>> notes[0]
    "user column: 'customer' (guessed; --user sets it)"

    Args:
        names: the columns there are; an empty name is no column.
        told: column names by role: `user`, `item` and `time`, which are guessed where none is named; `tie`; and roles that begin
            with `EVENT`.
        where: how errors name the log.
        notes: a list that each guess is added to, for a person to read.
        samples: some rows of each of some files, to find a column of times in. Default: none.
    Returns:
        dict, column name by role; `time` may be None.
    Raises:
        ValueError: a named column is missing, no column looks like the user or the item, or two have the name of one.
    """
    chosen: dict[str, str | None] = {}
    lower = {name.strip().lower(): name for name in reversed(names)}

    def share(name: str) -> float:  # one part may lack the times that others have
        return max((share_of_times(s[name]) for s in samples if s.column_names.count(name) == 1), default=0.0)

    for role in ("user", "item", "time"):
        name = _named(names, told, role, where)
        guesses = [lower[n] for n in COMMON_NAMES[role] if n in lower]
        guess, how = next(iter(guesses), None), "guessed"
        if role == "time" and name is None:
            # `date` and `time` side by side: the hour alone is no time
            guess = next((g for g in guesses if share(g) >= 0.5), guess)
            of_times = [n for n in names if n and n not in chosen.values() and share(n) == 1] if guess is None else []
            if len(of_times) == 1:
                guess, how = of_times[0], "guessed: its values are times"
            elif of_times:
                notes.append(f"several columns hold times: {', '.join(of_times)} (--time names the one to use)")
        chosen[role] = name or guess
        if chosen[role] is None and role != "time":
            raise ValueError(
                f"{where}: no column looks like the {role} id. Its columns: {', '.join(names)}. Name it "
                f"with --{role}; name the columns of a file without a header line with --columns."
            )
        if name is None and guess is not None:
            notes.append(f"{role} column: {guess!r} ({how}; --{role} sets it)")
    for role in (role for role in told if role == "tie" or role.startswith(EVENT)):
        if told[role]:
            chosen[role] = _named(names, told, role, where)
    twice = first_twin(name for name in names if name in chosen.values())
    if twice is not None:
        raise ValueError(f"{where}: two columns have the name {twice!r}. Rename one of them.")
    kind = next((lower[n] for n in EVENT_TYPES if n in lower and lower[n] not in chosen.values()), None)
    if kind is not None:
        notes.append(f"column {kind!r} looks like the type of the event: rows of every type are read alike")
    others = [name for name in names if name and name not in chosen.values()]
    if others:
        shown = ", ".join(map(repr, others[:SHOWN])) + (f" and {len(others) - SHOWN} more" * (len(others) > SHOWN))
        notes.append(f"columns left out: {shown} (--event-feature and --context take some)")
    return chosen


def first_twin(names: Iterable[str]) -> str | None:
    """The first name that two columns have, or None.

    >>> first_twin(["user", "item", "item"])
    'item'
    """
    return next((name for name, number in collections.Counter(names).items() if number > 1), None)


def _named(names: Sequence[str], told: Mapping[str, str | None], role: str, where: str) -> str | None:
    """The column that was named for a role; raises where there is none."""
    name = told.get(role)
    if name is not None and name not in names:
        option = "--tie-break" if role == "tie" else f"--{role}"
        option = "--event-feature or --context" if role.startswith(EVENT) else option
        raise ValueError(f"{where} has no column {name!r} ({option}). Its columns: {', '.join(names)}.")
    return name
