"""Guesses which column of a log is the user, the item and the time: by its name, a time also by its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from tfrec.data.times import looks_like_times

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
EVENT_TYPES = ("event", "event_type", "eventtype", "event_name", "behavior", "behavior_type", "action", "action_type")
"""Names of columns that tell what kind of event a row is."""
SAMPLE_ROWS = 1000
"""Rows of a file that a guess by content looks at."""


def choose_columns(
    names: Sequence[str],
    told: Mapping[str, str | None],
    where: str,
    notes: list[str],
    sample: pa.Table | None = None,
) -> dict[str, str | None]:
    """Choose the columns of the user, the item and the time: as told, else by common names, a time also by content.

    >>> notes = []
    >>> choose_columns(["customer", "sku"], {}, "the frame", notes)
    {'user': 'customer', 'item': 'sku', 'time': None}
    >>> notes[0]
    "user column: 'customer' (guessed; --user sets it)"

    Args:
        names: the columns there are.
        told: column names by role, `user`, `item`, `time` and perhaps `tie`; a role without one is guessed, but for `tie`.
        where: how errors name the log.
        notes: a list that each guess is added to, for a person to read.
        sample: the first rows, to find a column of times in. Default: none.
    Returns:
        dict, column name by role; `time` may be None.
    Raises:
        ValueError: a named column is missing, or no column looks like the user or the item.
    """
    chosen: dict[str, str | None] = {}
    lower = {name.strip().lower(): name for name in reversed(names)}
    for role in ("user", "item", "time"):
        name = _named(names, told, role, where)
        guess = next((lower[n] for n in COMMON_NAMES[role] if n in lower), None)
        how = "guessed"
        if role == "time" and guess is None and name is None and sample is not None:
            of_times = [n for n in names if n not in chosen.values() and looks_like_times(sample[n])]
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
        if name is None:
            notes.append(
                f"{role} column: {guess!r} ({how}; --{role} sets it)"
                if guess
                else "no time column: events keep the order of the file (--time names one)"
            )
    if told.get("tie"):
        chosen["tie"] = _named(names, told, "tie", where)
    kind = next((lower[n] for n in EVENT_TYPES if n in lower and lower[n] not in chosen.values()), None)
    if kind is not None:
        notes.append(f"column {kind!r} looks like the type of the event: rows of every type are read alike")
    return chosen


def _named(names: Sequence[str], told: Mapping[str, str | None], role: str, where: str) -> str | None:
    """The column that was named for a role."""
    name = told.get(role)
    if name is not None and name not in names:
        option = "--tie-break" if role == "tie" else f"--{role}"
        raise ValueError(f"{where} has no column {name!r} ({option}). Its columns: {', '.join(names)}.")
    return name
