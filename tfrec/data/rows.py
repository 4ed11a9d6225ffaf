"""Rows as a reader gives them, and the check of each: what is missing or wrong is refused, with its line."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfrec.data.columns import EVENT
from tfrec.data.times import Kind, read_times

NULL_VALUES = ("NULL", "null", r"\N", "None", "none", "nan", "NaN", "NA", "N/A", "<NA>", "NaT")
"""Texts that mean "missing", as databases, pandas, R and spreadsheets write it. Blanks around them do not count."""
REFUSED = pa.schema([("file", pa.int32()), ("line", pa.int64()), ("reason", pa.string())])
NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
"""A number in text."""
PLACES = 1 << 40
"""A row's place in the log is `file * PLACES + line`."""


@dataclass
class Part:
    """Some rows of one file.

    Attributes:
        file: int, the number of the file.
        columns: arrays by role: `user`, `item`, perhaps `time`, `tie` and columns of events (see `EVENT`); text, or typed as the
            file has them. A list of items is a session.
        lines: int64 array: the line on which each row starts; without lines (Parquet, data frames), its number from 1.
        bad: `(line, reason)` of what is no row.
        is_untyped: bool, whether the file writes numbers as text, so that a column of floats cannot be told by its type.
    """

    file: int
    columns: Mapping[str, pa.Array]
    lines: np.ndarray
    bad: Sequence[tuple[int, str]] = ()
    is_untyped: bool = False


@dataclass
class Rows:
    """Checked rows of a `Part`.

    `user`, `item` and `tie` are text; `kind` and `value` see `read_times`; `position` counts within a session. `events` are the
    other columns by name, text, null where a value is missing.
    """

    user: pa.Array
    item: pa.Array
    kind: np.ndarray
    value: np.ndarray
    place: np.ndarray
    position: np.ndarray
    tie: pa.Array | None
    refused: pa.Table = field(repr=False)
    is_untyped: bool
    events: Mapping[str, pa.Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.place)


def check(
    part: Part,
    null_values: Sequence[str] | None = None,
    time_format: str | None = None,
    numbers: Collection[str] = (),
) -> Rows:
    """Take the good rows of a part; refuse the others.

    >>> part = Part(0, {"user": pa.array(["u", " "]), "item": pa.array([["a", "b"], ["c"]])}, np.array([1, 2]))
    >>> rows = check(part)
    >>> rows.item.to_pylist(), rows.position.tolist(), rows.refused["reason"].to_pylist()
    (['a', 'b'], [0, 1], ['missing user id'])

    Args:
        part: `Part`.
        null_values: texts that mean "missing", beside none at all. Default: `NULL_VALUES`.
        time_format: see `read_times`.
        numbers: names of columns of events that hold numbers: a row with another value is refused. Default: none.
    Raises:
        ValueError: a column's type holds no ids or no times (the message says which).
    """
    columns, lines, position, bad = dict(part.columns), part.lines, np.zeros(len(part.lines), np.int32), list(part.bad)
    if is_list(columns["item"].type):
        columns, lines, position, short = _explode(columns, lines)
        bad += short
    reason, is_bad = np.empty(len(lines), object), np.zeros(len(lines), bool)

    def refuse(where: np.ndarray, text: str, details: pa.Array | None = None) -> None:
        where = where & ~is_bad
        if where.any():
            is_bad[where] = True
            reason[where] = text
            if details is not None:
                shown = details.filter(pa.array(where)).cast(pa.string()).to_pylist()
                reason[where] = [f"{text}: {detail[:40]}" for detail in shown]

    texts = {}
    for role in ("user", "item", "time", "tie"):
        column = columns.get(role)
        if column is None or (role == "time" and _is_typed_time(column.type)):
            continue
        try:
            texts[role], is_broken = as_text(column, null_values)
        except ValueError as error:
            raise ValueError(f"the {role} column {error}") from None
        refuse(is_broken, "broken UTF-8")
    for role in ("user", "item"):
        refuse(texts[role].is_null().to_numpy(zero_copy_only=False), f"missing {role} id")
    for role in (role for role in columns if role.startswith(EVENT)):
        name = role.removeprefix(EVENT)
        texts[role], is_broken = _event_text(name, columns[role], null_values)
        refuse(is_broken, "broken UTF-8")
        if name in numbers:
            is_number = pc.fill_null(pc.match_substring_regex(texts[role], f"^({NUMBER})$"), True)
            refuse(~is_number.to_numpy(zero_copy_only=False), f"{name} is no number", texts[role])
    kind, value = np.zeros(len(lines), np.uint8), np.zeros(len(lines), np.int64)
    if "time" in columns:
        times = texts.get("time", columns["time"])
        try:
            kind, value = read_times(times, time_format)
        except ValueError as error:
            raise ValueError(f"the time column: {error}") from None
        refuse(kind == Kind.WRONG, "time does not parse", times)
        refuse(value < 0, "time is before 1970", times)
    place = part.file * PLACES + lines
    refused = refused_table(
        part.file, [*(line for line, _ in bad), *lines[is_bad]], [*(r for _, r in bad), *reason[is_bad]]
    )
    if is_bad.any():
        good = ~is_bad
        texts = {role: text.filter(pa.array(good)) for role, text in texts.items()}
        kind, value, place, position = kind[good], value[good], place[good], position[good]
    events = {role.removeprefix(EVENT): text for role, text in texts.items() if role.startswith(EVENT)}
    ids = texts["user"], texts["item"]
    return Rows(*ids, kind, value, place, position, texts.get("tie"), refused, part.is_untyped, events)


def refused_table(file: int, lines: Sequence[int], reasons: Sequence[str]) -> pa.Table:
    """Refused rows of one file."""
    return pa.table({"file": np.full(len(lines), file, np.int32), "line": lines, "reason": reasons}, schema=REFUSED)


def as_text(values: pa.Array, null_values: Sequence[str] | None = None) -> tuple[pa.Array, np.ndarray]:
    """Ids as text: what is the same id in two types is the same text. Blanks around an id are removed.

    >>> as_text(pa.array([7.0, None, float("nan"), 1.5]))[0].to_pylist()
    ['7', None, None, '1.5']
    >>> as_text(pa.array([" 7 ", "NULL", "0007"]))[0].to_pylist()
    ['7', None, '0007']

    Returns:
        `(text, is_broken)`: text, null where it is missing; and a bool array, True where bytes are no UTF-8.
    Raises:
        ValueError: the type holds no ids.
    """
    type_, is_broken = values.type, np.zeros(len(values), bool)
    if isinstance(type_, pa.BaseExtensionType):
        if type_.extension_name != "arrow.uuid":
            return as_text(values.storage, null_values)
        values = pa.array([raw and str(uuid.UUID(bytes=raw)) for raw in values.storage.to_pylist()], pa.string())
    elif pa.types.is_dictionary(type_):
        return as_text(values.cast(type_.value_type), null_values)
    elif pa.types.is_floating(type_):
        return _whole_or_not(values.cast(pa.float64())), is_broken
    elif pa.types.is_decimal(type_):
        values = pc.replace_substring_regex(values.cast(pa.string()), r"\.0+$", "")
    elif pa.types.is_nested(type_) or pa.types.is_boolean(type_):
        raise ValueError(f"holds values of type {type_}: an id is text or a number, a session is a list of item ids")
    elif pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_):
        try:
            values = values.cast(pa.binary()).cast(pa.string())
        except pa.ArrowInvalid:
            values, is_broken = _decode(values)
    else:
        values = values.cast(pa.string())
    values = pc.utf8_trim_whitespace(values)
    is_null = pc.is_in(
        values, value_set=pa.array(["", *(NULL_VALUES if null_values is None else null_values)], pa.string())
    )
    if pc.any(is_null).as_py():
        values = pc.if_else(is_null, None, values)
    return values, is_broken


def _event_text(name: str, values: pa.Array, null_values: Sequence[str] | None) -> tuple[pa.Array, np.ndarray]:
    """A column of events as text; see `as_text`."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_nested(values.type):
        raise ValueError(f"column {name!r} holds {values.type}, and a feature of events is text or a number")
    return as_text(values.cast(pa.string()) if pa.types.is_boolean(values.type) else values, null_values)


def without_point(values: pa.Array) -> pa.Array:
    """Where every id is a whole number that ends in `.0`, a column of numbers went through floats: the same ids without it."""
    if is_pointed(values):
        return pc.replace_substring_regex(values, r"\.0$", "")
    return values


def is_pointed(values: pa.Array) -> bool:
    """Whether every id is a whole number that ends in `.0`."""
    found = values.drop_null()
    if not len(found) or not found[0].as_py().endswith(".0"):  # the usual case costs nothing
        return False
    return pc.all(pc.match_substring_regex(found, r"^-?[0-9]+\.0$")).as_py()


def _whole_or_not(values: pa.Array) -> pa.Array:
    """Floats as text, whole ones without a point; NaN and infinity are missing."""
    number = values.to_numpy(zero_copy_only=False)
    is_whole = np.isfinite(number) & (number == np.floor(number)) & (np.abs(number) < 2.0**63)
    whole = pa.array(np.where(is_whole, number, 0).astype(np.int64)).cast(pa.string())
    other = pa.array(np.where(np.isfinite(number), number, np.nan), from_pandas=True).cast(pa.string())
    return pc.if_else(pa.array(is_whole), whole, other)


def _decode(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Bytes as text, one by one, and which are no UTF-8."""
    texts: list[str | None] = []
    is_broken = np.zeros(len(values), bool)
    for number, raw in enumerate(values.to_pylist()):
        try:
            texts.append(raw if raw is None else raw.decode())
        except UnicodeDecodeError:
            is_broken[number] = True
            texts.append(raw.decode(errors="replace"))
    return pa.array(texts, pa.string()), is_broken


def is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def _is_typed_time(type_: pa.DataType) -> bool:
    is_text = pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)
    return not (
        is_text or pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_dictionary(type_)
    )


def _explode(columns: Mapping[str, pa.Array], lines: np.ndarray) -> tuple:
    """A row for each item of each session: `(columns, lines, position, bad)`. A list of times goes along with its items."""
    items = columns["item"]
    number = pc.fill_null(pc.list_value_length(items), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    lists = [role for role, column in columns.items() if role != "item" and is_list(column.type)]
    bad, is_good = [], number > 0
    for role in lists:
        if role == "user":
            raise ValueError("the user column holds lists: a row has one user")
        other = pc.fill_null(pc.list_value_length(columns[role]), 0).to_numpy(zero_copy_only=False)
        is_wrong = is_good & (other != number)
        bad += [
            (int(line), f"{n} items, but {m} values of the {role.removeprefix(EVENT)} column")
            for line, n, m in zip(lines[is_wrong], number[is_wrong], other[is_wrong], strict=True)
        ]
        is_good &= ~is_wrong
    bad += [(int(line), "no items") for line in lines[number == 0]]
    kept = {role: column.filter(pa.array(is_good)) for role, column in columns.items()}
    number = number[is_good]
    row = np.repeat(np.arange(len(number)), number)
    exploded = {
        role: column.flatten() if role == "item" or role in lists else column.take(pa.array(row))
        for role, column in kept.items()
    }
    position = np.arange(len(row)) - np.repeat(np.cumsum(number) - number, number)
    return exploded, lines[is_good][row], position.astype(np.int32), bad
