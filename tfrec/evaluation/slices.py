"""Parts of an evaluation: users or targets of one kind, such as short histories, unpopular items or a category."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from tfrec.data.encoding import encode_table
from tfrec.data.features import Feature, fit_feature
from tfrec.data.splits import Split
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, PAD_INDEX

MAX_SLICES = 20
"""Values of a column that get a slice: the most frequent."""
QUARTILES = (0.25, 0.5, 0.75)
HISTORY, POPULARITY = "history length", "popularity"
"""Ways to slice that need no column."""


def slices(split: Split, part: str, by: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """The slices of an evaluation.

    >>> from tfrec.data.prepared import PreparedData
    >>> from tfrec.data.splits import LeaveLastOut
    >>> split = LeaveLastOut(PreparedData.from_histories(["abc", "abcde"]))
    >>> [(label, kept.tolist()) for label, whose, kept in slices(split, "test", "history length")]
    [('2 events', [True, False]), ('4 events', [False, True])]

    Args:
        split: `Split`.
        part: str, `"validation"` or `"test"`.
        by: str, `"history length"`: by quartiles; new users, without a history, are a slice of their own. `"popularity"`: tenths of
            the catalogue by training events of the target, those with a target. Or a column of the items or of the users: a slice
            for each of the most frequent values, or for the quartiles of a number or a date.
    Yields:
        `(label, whose, is_kept)`: text; `"users"` or `"targets"`; bool array, shape `(requests,)` or `(targets,)`.
    Raises:
        ValueError: there is no such column, or it has no values to slice by.
    """
    data, asked = split.data, split.requests(part)
    targets = split.targets(part) - FIRST_ITEM_INDEX
    if by == HISTORY:
        lengths = asked.ends - asked.starts
        if (lengths == 0).any():
            yield "new users", "users", lengths == 0
        for label, kept in _by_quartile(np.where(lengths > 0, lengths, np.nan).astype(float)):
            yield f"{label} events", "users", kept
    elif by == POPULARITY:
        tenth = tenths(split)[targets]
        for number in range(10):
            label = "most popular tenth" if number == 0 else f"tenth {number + 1}"
            if (kept := tenth == number).any():
                yield label, "targets", kept
    elif by in data.users.column_names[1:]:
        for label, kept in _by_column(_feature(split, "users", by), data.users, asked.users):
            yield label, "users", kept
    elif by in data.items.column_names[1:]:
        for label, kept in _by_column(_feature(split, "items", by), data.items, targets):
            yield label, "targets", kept
    else:
        known = [HISTORY, POPULARITY, *data.users.column_names[1:], *data.items.column_names[1:]]
        raise ValueError(f"There is no column {by!r} to slice by. Known: {', '.join(known)}.")


def tenths(split: Split) -> np.ndarray:
    """int64 `(num_items,)`: the tenth of the catalogue of each item, by its training events; 0 has the most popular.

    >>> from tfrec.data.prepared import PreparedData
    >>> from tfrec.data.splits import LeaveLastOut
    >>> tenths(LeaveLastOut(PreparedData.from_histories(["aab", "aba"]))).tolist()
    [0, 5]
    """
    counts = split.train_counts()
    place = np.empty(len(counts), np.int64)
    place[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return place * 10 // len(counts)


def _feature(split: Split, whose: str, name: str) -> Feature:
    """The feature of a column, or what one reads it as."""
    known = [feature for feature in split.data.features.get(whose, []) if feature.name == name]
    if known:
        return known[0]
    column = getattr(split.data, whose)[name]
    kind = "number" if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) else "category"
    return fit_feature(name, "multi" if pa.types.is_list(column.type) else kind, column)


def _by_column(feature: Feature, table: pa.Table, rows: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The slices of the given rows of a table by one of its columns."""
    if feature.kind not in ("category", "multi", "number", "date"):
        raise ValueError(f"Column {feature.name!r} is {feature.kind}: slices are by categories, numbers and dates.")
    encoded = encode_table([feature], table)[0][feature.name][rows]
    if feature.kind in ("number", "date"):
        yield from _by_quartile(encoded, _day if feature.kind == "date" else "{:g}".format)
        if (is_missing := np.isnan(encoded)).any():
            yield "missing", is_missing
        return
    encoded = encoded.reshape(len(rows), -1)
    counts = np.bincount(encoded[encoded >= FIRST_ITEM_INDEX], minlength=FIRST_ITEM_INDEX)
    is_missing = (encoded == PAD_INDEX).all(axis=1)
    is_other = ~is_missing
    for value in np.argsort(-counts, kind="stable")[:MAX_SLICES]:
        if counts[value]:
            has_it = (encoded == value).any(axis=1)
            is_other &= ~has_it
            yield feature.values[value - FIRST_ITEM_INDEX], has_it
    for label, kept in (("others", is_other), ("missing", is_missing)):
        if kept.any():
            yield label, kept


def _day(number: float) -> str:
    """The date of a number of days since 1970."""
    return str(np.datetime64(round(number), "D"))


def _by_quartile(values: np.ndarray, text: Callable[[float], str] = "{:g}".format) -> Iterator[tuple[str, np.ndarray]]:
    """Four slices of about equal size, with the smallest and the largest value of each; fewer where values are equal."""
    known = values[np.isfinite(values)]
    borders = np.unique(np.quantile(known, QUARTILES, method="lower")) if len(known) else known
    place = np.searchsorted(borders, values)  # NaN comes last
    for number in range(len(borders) + 1):
        kept = (place == number) & np.isfinite(values)
        if kept.any():
            low, high = text(float(values[kept].min())), text(float(values[kept].max()))
            yield low if low == high else f"{low} to {high}", kept
