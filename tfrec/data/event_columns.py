"""Columns of a log that describe its events: how they are named, what is learned of them, and how they are stored.

A column is read at the positions of a history (`events`), of the event that a request asks for (`context`), or both. It is stored
once, as a number for each event: int32 for a category, float32 for a number; see `tfrec.data.features`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfrec.data.arrays import ArrayWriter, pieces
from tfrec.data.events import Events
from tfrec.data.features import MAX_VALUES, Feature, fit_number, input_name, least_rows, twin_input
from tfrec.data.kinds import FEW, ID_NAMES, NONE, TOLD, YEARS, fit_table, meant, plain_name
from tfrec.data.raw_columns import LARGEST
from tfrec.data.rows import NUMBER, REFUSED
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, OOV_INDEX, PAD_INDEX

EVENT_KINDS = ("category", "number")
"""The kinds of columns of events, and of properties of users."""
BROKEN = 0.01
"""Share of the values of a column of numbers up to which others are errors, and their rows refused."""
RESERVED = (
    *("history", "exclude", "k", "allow", "deny", "candidates", "item_ids", "timestamps", "request_time"),
    "request_",
)
"""Inputs of a served model; the last is the beginning of some."""


@dataclass(frozen=True)
class EventColumn:
    """A column of a log that was named to be read.

    Attributes:
        name: str.
        kind: str, one of `EVENT_KINDS`, or `auto`: told from the values.
        uses: tuple of str, `events`, `context` or both.
    """

    name: str
    kind: str
    uses: tuple[str, ...]


def event_columns(
    event_features: Mapping[str, str] | Sequence[str] | None, context: Mapping[str, str] | Sequence[str] | None
) -> list[EventColumn]:
    """The columns that are to be read, each once.

    >>> event_columns({"price": "number"}, ["device", "price"])[0]
    EventColumn(name='price', kind='number', uses=('events', 'context'))

    Args:
        event_features, context: names, or dicts with the kind of each.
    Raises:
        ValueError: there is no such kind, a column has two, or a name is that of another input of a served model.
    """
    found: dict[str, EventColumn] = {}
    for use, argument, named in (("events", "event_features", event_features), ("context", "context", context)):
        if isinstance(named, str):
            raise ValueError(f"`{argument}` must be a list of names or a dict of kinds. Received: {named!r}.")
        kinds = dict(named) if isinstance(named, Mapping) else dict.fromkeys(named or (), TOLD)
        for name, kind in kinds.items():
            if kind not in (*EVENT_KINDS, TOLD):
                raise ValueError(
                    f"`{argument}`: {kind!r} is no kind for column {name!r}.{meant(kind, EVENT_KINDS)} The kinds of a column of "
                    f"the log: {', '.join(EVENT_KINDS)}; {TOLD} tells it from the values."
                )
            before = found.get(name, EventColumn(name, TOLD, ()))
            if TOLD not in (kind, before.kind) and kind != before.kind:
                raise ValueError(
                    f"`{argument}`: column {name!r} is named as {before.kind} and as {kind}: leave one out."
                )
            found[name] = EventColumn(name, before.kind if kind == TOLD else kind, (*before.uses, use))
    check_names(found)
    return list(found.values())


def check_names(names: Iterable[str]) -> None:
    """Raise for names of columns that would be the same input of a served model as another; see `input_name`."""
    names = list(names)
    for name in names:
        given = input_name(name).lower()
        if given in RESERVED or given.startswith(RESERVED[-1]):
            raise ValueError(
                f"Column {name!r} cannot be a feature: a served model has an input of that name. Rename the column, or leave it "
                f"out; names that are taken: {', '.join(RESERVED[:-1])}, and those that begin with {RESERVED[-1]}."
            )
    if twins := twin_input(names):
        raise ValueError(
            f"Two features have the name {input_name(twins[1])!r}: column {twins[0]!r} and column {twins[1]!r}, of events, their "
            f"context or users. Rename one of them."
        )


def encode_events(
    columns: Sequence[EventColumn],
    codes: Sequence[np.ndarray],
    values: Mapping[str, pa.Array],
    kept: np.ndarray | None,
    folder: Path | None,
) -> tuple[dict[str, np.ndarray], dict[str, list[Feature]], dict[str, dict[str, Any]]]:
    """Learn the columns of events and encode them.

    Args:
        columns: what was named.
        codes: int32 arrays, shape `(events,)`, one for each column: which of its values an event has, -1 where it is missing.
        values: the distinct values of each column by its name, text.
        kept: bool, shape `(events,)`, the events that stay; None: all.
        folder: Path, where the arrays are written; None: in memory.
    Returns:
        `(arrays, features, report)`: arrays by name; lists of `Feature` by use; for the manifest, see `fit_table`.
    """
    arrays, report = {}, {}
    features: dict[str, list[Feature]] = {}
    for number, (column, code) in enumerate(zip(columns, codes, strict=True)):
        counts = np.zeros(len(values[column.name]) + 1, np.int64)
        for part in pieces(len(code)):
            here = code[part] if kept is None else code[part][kept[part]]
            counts += np.bincount(here + 1, minlength=len(counts))
        feature, numbers, entry = _learn(column, values[column.name], counts)
        writer = ArrayWriter(folder, f"event_{number}", numbers.dtype.type)
        for part in pieces(len(code)):
            writer.append(numbers[(code[part] if kept is None else code[part][kept[part]]) + 1])
        arrays[column.name] = writer.finish()
        report[column.name] = entry | {"uses": list(column.uses)}
        for use in column.uses:
            features.setdefault(use, []).append(feature)
    return arrays, features, report


def settle_values(events: Events, columns: Sequence[EventColumn]) -> pa.Table:
    """Refuse the few values that are no numbers in columns of numbers, and make one value of `4` and `4.0` in whole numbers.

    Args:
        events: `Events`, all of them.
        columns: what was named.
    Returns:
        The refused rows.
    """
    refused = [REFUSED.empty_table()]
    for name, kind in ((column.name, column.kind) for column in columns if column.kind != "number"):
        values, counts = events.values[name], events.count(name)
        is_wrong = (counts > 0) & ~_matches(values, f"^({NUMBER})$")
        if kind == TOLD and 0 < counts[is_wrong].sum() <= BROKEN * counts.sum():
            is_right = (counts > 0) & ~is_wrong
            if _tell(name, values.filter(pa.array(is_right)), counts[is_right])[0] == "number":
                refused.append(events.refuse(name, is_wrong, f"{name} is no number"))
                counts[is_wrong] = 0
        used = values.filter(pa.array(counts > 0))
        if _matches(used, r"\.0+$").any() and _matches(used, r"^[+-]?(0|[1-9][0-9]*)(\.0+)?$").all():
            events.rewrite(name, pc.replace_substring_regex(values, r"\.0+$", ""))
    return pa.concat_tables(refused)


def _matches(texts: pa.Array, pattern: str) -> np.ndarray:
    return pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False)


def fit_users(
    users: pa.Table, named: Mapping[str, str] | None, others: Iterable[str], without: Collection[str]
) -> tuple[list[Feature], dict[str, dict[str, Any]]]:
    """Learn the properties of users; see `fit_table`.

    Args:
        users: PyArrow table, the columns of `PreparedData.users`.
        named: kinds by the names of columns.
        others: names of the columns of events, which a property cannot share.
        without: names of columns that are no features.
    Raises:
        ValueError: a column was named that is neither a category nor a number, or has the name of another input.
    """
    features, report = fit_table(users, named, without=without, argument="user_features")
    for feature in features:
        if feature.kind not in EVENT_KINDS:
            if feature.name in (named or {}):
                raise ValueError(
                    f"`user_features`: column {feature.name!r} is {feature.kind}, and a property of users is "
                    f"{' or '.join(EVENT_KINDS)}. Name one of them, or leave the column out ({feature.name}={NONE})."
                )
            reason = f"left out: {feature.kind}, and a property of users is {' or '.join(EVENT_KINDS)}"
            report[feature.name] = {"kind": None, "reason": reason}
    features = [feature for feature in features if feature.kind in EVENT_KINDS]
    check_names([*others, *(feature.name for feature in features)])
    return features, report


def _learn(column: EventColumn, values: pa.Array, counts: np.ndarray) -> tuple[Feature, np.ndarray, dict[str, Any]]:
    """The feature of a column; what stands for each of its values, the first for a missing one; an entry of the report.

    `counts` are the events of each value, those without a value first.
    """
    is_used = counts[1:] > 0
    texts = values.fill_null("")
    used = texts.filter(pa.array(is_used))
    kind, reason = (column.kind, "named") if column.kind != TOLD else _tell(column.name, used, counts[1:][is_used])
    entry: dict[str, Any] = {"kind": kind}
    if kind == "number":
        numbers = np.append(np.nan, _numbers(texts.to_pylist()))
        known = is_used & np.isfinite(numbers[1:])
        feature = fit_number(Feature(column.name, kind), numbers[1:][known], counts[1:][known])
        if known.any():
            entry["range"] = [float(f"{end(numbers[1:][known]):.6g}") for end in (np.min, np.max)]
        found = numbers.astype(np.float32)
    else:
        table = pa.table({"text": used, "count": counts[1:][is_used]})
        order = table.filter(pc.greater_equal(table["count"], least_rows(len(used)))).sort_by(
            [("count", "descending"), ("text", "ascending")]
        )
        names = order["text"].slice(0, MAX_VALUES).combine_chunks()
        feature = Feature(column.name, "category", values=tuple(names.to_pylist()))
        place = pc.fill_null(pc.index_in(texts, value_set=names), OOV_INDEX - FIRST_ITEM_INDEX)
        found = np.append(PAD_INDEX, place.to_numpy(zero_copy_only=False) + FIRST_ITEM_INDEX).astype(np.int32)
        entry |= {"values": len(used), "known": len(names)}
    missing = round(float(counts[0] / max(counts.sum(), 1)), 4)
    return feature, found, entry | {"missing": missing, "reason": reason}


def _tell(name: str, used: pa.Array, counts: np.ndarray) -> tuple[str, str]:
    """The kind of a column of events, told from its distinct values, and why."""
    if not len(used):
        return "category", "no row has a value"
    is_number = _matches(used, f"^({NUMBER})$")
    has_zeros = pc.any(pc.match_substring_regex(used, "^[+-]?0[0-9]")).as_py()
    if not is_number.all() or has_zeros:
        is_nearly = counts[is_number].sum() > 0.9 * counts.sum() and not has_zeros
        wrong = used[int(np.argmin(is_number))].as_py()[:40] if is_nearly else ""
        return "category", f"values; {wrong!r} is no number" if is_nearly else "values"
    numbers = _numbers(used.to_pylist())
    if (numbers == np.floor(numbers)).all():
        if ID_NAMES.search(plain_name(name)):
            return "category", "values"
        if len(used) > 1 and YEARS[0] <= numbers.min() and numbers.max() <= YEARS[1]:
            return "number", "years"
        if len(used) <= FEW and 10 * len(used) <= counts.sum():
            return "category", f"{len(used)} whole numbers"
    return "number", "numbers"


def _numbers(texts: Sequence[str]) -> np.ndarray:
    """Float64: the numbers that texts are; NaN where one is none."""
    numbers = np.full(len(texts), np.nan)
    for place, text in enumerate(texts):
        if re.fullmatch(NUMBER, text):
            numbers[place] = float(text)
    return np.clip(numbers, -LARGEST, LARGEST)
