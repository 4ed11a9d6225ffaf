"""Guesses which column of a log is the user, the item and the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

COMMON_NAMES = {
    "user": ("user_id", "user", "userid", "customer_id", "customer", "session_id", "visitorid", "reviewerid", "uid"),
    "item": ("item_id", "item", "itemid", "movieid", "movie_id", "product_id", "asin", "article_id", "sku", "iid"),
    "time": ("timestamp", "time", "unixreviewtime", "event_time", "datetime", "created_at", "date", "ts"),
    "title": ("title", "name", "item_name", "product_name", "movie_title"),
}
"""Names of columns in public logs, most specific first, compared in lower case."""


def choose_columns(
    names: Sequence[str], told: Mapping[str, str | None], where: str, notes: list[str]
) -> dict[str, str | None]:
    """Choose the columns of the user, the item and the time: as told, else by common names.

    >>> notes = []
    >>> choose_columns(["customer", "sku"], {}, "the frame", notes)
    {'user': 'customer', 'item': 'sku', 'time': None}
    >>> notes[0]
    "user column: 'customer' (guessed; --user sets it)"

    Args:
        names: the columns there are.
        told: column names by role, `user`, `item` and `time`; a role without one is guessed.
        where: how errors name the log.
        notes: a list that each guess is added to, for a person to read.
    Returns:
        dict, column name by role; `time` may be None.
    Raises:
        ValueError: a named column is missing, or no column looks like the user or the item.
    """
    chosen: dict[str, str | None] = {}
    lower = {name.strip().lower(): name for name in reversed(names)}
    for role in ("user", "item", "time"):
        name = told.get(role)
        if name is not None and name not in names:
            raise ValueError(f"{where} has no column {name!r} (--{role}). Its columns: {', '.join(names)}.")
        guess = next((lower[n] for n in COMMON_NAMES[role] if n in lower), None)
        chosen[role] = name or guess
        if chosen[role] is None and role != "time":
            raise ValueError(
                f"{where}: no column looks like the {role} id. Its columns: {', '.join(names)}. Name it "
                f"with --{role}; name the columns of a file without a header line with --columns."
            )
        if name is None:
            notes.append(
                f"{role} column: {guess!r} (guessed; --{role} sets it)"
                if guess
                else "no time column: events keep the order of the file (--time names one)"
            )
    return chosen


def quote(name: str) -> str:
    """A column name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'
