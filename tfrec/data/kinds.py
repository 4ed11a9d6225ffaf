"""Tells the kind of a column from its values, and learns the features of a table; see docs/features.md."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfrec.data.features import MAX_VALUES, MIN_ROWS, Feature, fit_feature, input_name, twin_input
from tfrec.data.raw_columns import (
    days_of,
    is_given,
    numbers_of,
    plain_array,
    raw_column,
    value_lists,
    values_of,
)
from tfrec.data.rows import NUMBER, is_list
from tfrec.data.text import UNSPACED

KINDS = ("category", "multi", "number", "date", "vector", "text")
NONE, TOLD = "none", "auto"
"""In place of a kind: leave the column out; take it, and tell its kind from its values."""
SAMPLE = 20_000
"""Values of a column that patterns are looked for in."""
FEW = 20
"""Distinct whole numbers up to which they are a category."""
YEARS = (1500, 2100)
"""Whole numbers between them are years, however few."""
SEPARATORS = ("|", ";", ",")
PERSONAL_NAMES = re.compile(
    r"(^|_)(e_?mail|mail|(tele)?phone|mobile|fax|(sur|first|last|full|family|given|user|nick)_?name|(mail|street|ip)?_?address|street|"
    r"ip|ssn|passport|iban|birth_?(date|day)|date_of_birth|dob)(_?(number|no|addr|address|\d+))?s?$"
)
"""Names of columns, in the form of `plain_name`, of data about people."""
PERSONAL_VALUES = {
    "e-mail addresses": r"^[^@\s]+@[^@\s]+\.[A-Za-z]{2,}$",
    "phone numbers": (
        r"^((\+|00)[1-9][0-9 ()./-]{6,}[0-9]|\([0-9]{2,5}\) ?[0-9]{3,4}[ .-]?[0-9]{3,4}|[0-9]{3}([ .-])[0-9]{3}[ .-][0-9]{4})$"
    ),
    "IP addresses": r"^[0-9]{1,3}(\.[0-9]{1,3}){3}$",
}
ID_NAMES = re.compile(r"(^|_)(id|ids|no|nr|code|zip|ean|gtin|isbn)$")
"""Whole numbers in a column of such a name only name something."""


@dataclass(frozen=True)
class Told:
    """What a column holds.

    Attributes:
        kind: str, one of `KINDS`; None: nothing to learn from, or nothing that should be.
        separator: str, of text that holds several values.
        reason: str, for a person to read.
    """

    kind: str | None
    separator: str = ""
    reason: str = ""


def tell_kind(name: str, column: pa.ChunkedArray, *, is_named: bool = False) -> Told:
    """Tell the kind of a column from its values.

    >>> tell_kind("genres", pa.chunked_array([["Drama|War", "Drama", "War|Drama", None]]))
    Told(kind='multi', separator='|', reason="values between '|'")
    >>> tell_kind("author_email", pa.chunked_array([["a@b.org", "c@d.org"]]))
    Told(kind=None, separator='', reason='left out: its name says personal data')

    Args:
        name: str, of the column.
        column: PyArrow column.
        is_named: bool, whether somebody asked for the column: then it is taken, if it can be read at all.
    """
    if not is_named and PERSONAL_NAMES.search(plain_name(name)):
        return Told(None, reason="left out: its name says personal data")
    array = plain_array(column)
    type_ = array.type
    if array.null_count == len(array):
        return Told("category" if is_named else None, reason="left out: no row has a value")
    if is_list(type_):
        return _list(name, array, is_named)
    if pa.types.is_boolean(type_):
        return _category(array.drop_null().cast(pa.string()), len(array), is_named)
    if pa.types.is_date(type_) or pa.types.is_timestamp(type_):
        few = pc.count_distinct(array).as_py() == 1 and not is_named
        return Told(None, reason="left out: every row has the same value") if few else Told("date", reason="dates")
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return _number(name, array, numbers_of(array), is_named)
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return _text(name, array, is_named)
    return Told(None, reason=f"left out: it holds {type_}")


def fit_table(
    table: pa.Table,
    named: Mapping[str, str] | None = None,
    *,
    encoder: str | None = None,
    without: Collection[str] = (),
    argument: str = "item_features",
) -> tuple[list[Feature], dict[str, dict[str, Any]]]:
    """Learn the features of a table.

    >>> films = pa.table({"item_id": ["1", "2", "3", "4"], "genre": ["war", "war", "love", "love"]})
    >>> fit_table(films, without=["item_id"])
    ([Feature(name='genre', kind='category', values=('love', 'war'), ...)], {'genre': {'kind': 'category', ...}})

    Args:
        table: PyArrow table.
        named: dict, kinds by the names of columns: one of `KINDS`, `"multi:|"` with the separator, `"none"`, or `"auto"`. Default:
            the kind of each column is told from its values.
        encoder: str, the sentence encoder that makes vectors of columns of text. Default: none, see `tfrec.data.text`.
        without: names of columns that are no features.
        argument: how errors name `named`.
    Returns:
        `(features, report)`: `Feature`s in the order of the columns; dict, by column its `kind` (None where it is left out) and
        what else a person wants to know of it, as plain values.
    Raises:
        ValueError: `named` names no column or no kind, or a column's values are not of its kind; or two columns would be the same
            input of a served model.
    """
    columns = [name for name in table.column_names if name not in without]
    kinds = named_kinds(named, columns, argument)
    features, report = [], {}
    for name in columns:
        kind, separator = kinds.get(name, ("", ""))
        column = table[name]
        if kind == NONE:
            report[name] = {"kind": None, "reason": "left out: named so"}
            continue
        told = tell_kind(name, column, is_named=name in kinds)
        if kind in KINDS:
            if kind == "multi" and not separator and not is_list(column.type):
                separator = told.separator or _any_separator(name, column)
            told = Told(kind, separator, "named")
        report[name] = {"kind": told.kind, "reason": told.reason}
        if told.kind is None:
            if kind == TOLD:
                raise ValueError(f"`{argument}`: column {name!r} has no kind of feature ({told.reason}).")
            continue
        is_encoded = told.kind == "text" and encoder is not None
        options = {"separator": told.separator, "encoder": encoder or "" if is_encoded else ""}
        feature = fit_feature(name, "vector" if is_encoded else told.kind, column, **options)
        if feature.table is not None and not feature.table.any() and name not in kinds:
            report[name] = {"kind": None, "reason": "left out: no word stands in two rows"}
            continue
        features.append(feature)
        report[name] = {"kind": feature.kind, **_figures(feature, plain_array(column)), "reason": told.reason}
    if twins := twin_input(feature.name for feature in features):
        raise ValueError(
            f"`{argument}`: columns {twins[0]!r} and {twins[1]!r} would be the same input {input_name(twins[1])!r} of a served "
            f"model. Rename one of them, or leave it out ({twins[1]}={NONE})."
        )
    return features, report


def named_kinds(named: Mapping[str, str] | None, columns: Collection[str], argument: str) -> dict[str, tuple[str, str]]:
    """Kinds that were named as `(kind, separator)`; see `fit_table`.

    >>> named_kinds({"genres": "multi:|"}, ["title", "genres"], "item_features")
    {'genres': ('multi', '|')}

    Raises:
        ValueError: there is no such column or kind; the message says what was meant perhaps.
    """
    kinds = {}
    for name, kind in (named or {}).items():
        if name not in columns:
            there = ", ".join(columns) or "none"
            raise ValueError(
                f"`{argument}`: there is no column {name!r} to make a feature of.{meant(name, columns)} The columns: {there}."
            )
        found, colon, separator = kind.partition(":")
        if found not in (*KINDS, NONE, TOLD) or (colon and (found != "multi" or not separator)):
            raise ValueError(
                f"`{argument}`: {kind!r} is no kind for column {name!r}.{meant(found, KINDS)} The kinds: {', '.join(KINDS)}; "
                f"`multi:|` for values between `|`; {NONE} leaves a column out, {TOLD} tells the kind from its values."
            )
        kinds[name] = found, separator
    return kinds


def describe_feature(entry: Mapping[str, Any]) -> str:
    """An entry of the report of `fit_table` as a line.

    >>> describe_feature({"kind": "multi", "separator": "|", "values": 18, "known": 18, "missing": 0.25, "reason": "named"})
    "multi between '|', 18 values, 25% missing (named)"
    """
    if entry["kind"] is None:
        return entry["reason"]
    parts = [entry["kind"] + (f" between {entry['separator']!r}" if entry.get("separator") else "")]
    if "values" in entry:
        known = f" ({entry['known']:,} known, the others are unknown)" if entry["known"] < entry["values"] else ""
        parts.append(f"{entry['values']:,} values{known}")
    if "range" in entry:
        parts.append(f"{entry['range'][0]} to {entry['range'][1]}")
    if "width" in entry:
        by = f" by {entry['encoder']}" if entry.get("encoder") else ""
        parts.append(f"{entry['width']} numbers{by}")
    if entry["missing"]:
        parts.append(f"{entry['missing']:.1%} missing".replace(".0%", "%"))
    return f"{', '.join(parts)} ({entry['reason']})"


def plain_name(name: str) -> str:
    """A name in lower case with `_` between words.

    >>> plain_name("authorEmail"), plain_name("IP address")
    ('author_email', 'ip_address')
    """
    return re.sub(r"\W+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())).lower()


def meant(word: str, words: Collection[str]) -> str:
    """A question after the word that is nearest to a wrong one."""
    close = [] if word in words else difflib.get_close_matches(word, words, 1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _sample(values: pa.Array) -> pa.Array:
    """Some values, evenly taken."""
    return (
        values
        if len(values) <= SAMPLE
        else values.take(pa.array(np.linspace(0, len(values) - 1, SAMPLE).astype(np.int64)))
    )


def _share(values: pa.Array, pattern: str) -> float:
    """The share of values that match a pattern."""
    return (pc.sum(pc.match_substring_regex(values, pattern)).as_py() or 0) / max(len(values), 1)


def _counts(values: pa.Array) -> np.ndarray:
    """How often each distinct value occurs, the most frequent first."""
    return np.sort(values.value_counts().field("counts").to_numpy(zero_copy_only=False))[::-1]


def _list(name: str, array: pa.Array, is_named: bool) -> Told:
    """The kind of a column of lists."""
    inner = array.type.value_type
    if pa.types.is_nested(inner) and not pa.types.is_dictionary(inner):
        return Told(None, reason=f"left out: it holds {array.type}")
    if pa.types.is_floating(inner) or pa.types.is_decimal(inner):
        numbers = numbers_of(_sample(plain_array(array.flatten())))
        widths = pc.unique(pc.list_value_length(array).filter(array.is_valid()))
        is_whole = pc.all(
            pc.equal(pc.floor(numbers), numbers)
        ).as_py()  # whole numbers beside nulls are floats in pandas
        if len(widths) == 1 or not is_whole:
            return Told("vector", reason="lists of numbers")
    values, lengths = value_lists(name, array)
    values = values.drop_null()
    counts = _counts(values)
    if not is_named:
        if not len(counts):
            return Told(None, reason="left out: no row has a value")
        if len(counts) == 1 and (lengths == 1).all():
            return Told(None, reason="left out: every row has the same value")
        personal = _personal(values)
        if personal is not None:
            return personal
        if counts[counts > 1].sum() < 0.1 * counts.sum():
            return Told(None, reason="left out: almost every value occurs once")
    return Told("multi", reason="lists of values")


def _number(name: str, array: pa.Array, numbers: pa.Array, is_named: bool) -> Told:
    """The kind of a column of numbers."""
    found = numbers.drop_null()
    num_values = pc.count_distinct(found).as_py()
    if not is_named:
        if not num_values:
            return Told(None, reason="left out: no row has a value")
        if num_values == 1 and len(found) == len(array):
            return Told(None, reason="left out: every row has the same value")
    if pc.all(pc.equal(pc.floor(found), found)).as_py():
        if ID_NAMES.search(plain_name(name)):
            return _category(values_of(name, array).drop_null(), len(array), is_named)
        low, high = pc.min_max(found).as_py().values()
        if num_values > 1 and YEARS[0] <= low and high <= YEARS[1]:
            return Told("number", reason="years")
        if num_values <= FEW and 10 * num_values <= len(found):
            return Told("category", reason=f"{num_values} whole numbers")
    return Told("number", reason="numbers")


def _text(name: str, array: pa.Array, is_named: bool) -> Told:
    """The kind of a column of text."""
    given = is_given(array)
    texts = values_of(name, array).drop_null()
    sample = _sample(texts)
    if not len(texts):
        return Told("category" if is_named else None, reason="left out: no row has a value")
    counts = _counts(texts)
    if len(counts) == 1 and not is_named and (len(texts) == len(array) or len(texts) < MIN_ROWS):
        return Told(None, reason="left out: every row has the same value")
    personal = None if is_named else _personal(sample)
    if personal is not None:
        return personal
    if name.lower() == "title":
        return Told("text", reason="titles")
    of_kinds, note = array.filter(given), ""
    if len(of_kinds):  # not a column of "NA" alone
        some = values_of(name, _sample(of_kinds))
        if _share(some, rf"^({NUMBER})$") > 0.9 and not _share(some, r"^[+-]?0[0-9]"):
            numbers = numbers_of(array)
            if len(numbers.drop_null()) == len(of_kinds):
                return _number(name, array, numbers, is_named)
            note = _wrong(given, numbers, array, "number")
        elif _share(some, r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ]|$)") > 0.9:
            days = days_of(array)
            if len(days.drop_null()) == len(of_kinds):
                few = len(counts) == 1 and not is_named
                return Told(None, reason="left out: one date") if few else Told("date", reason="dates")
            note = _wrong(given, days, array, "date")
    separator = _separator(sample)
    if separator:
        return Told("multi", separator, f"values between {separator!r}")
    told = _category(texts, len(array), is_named)
    return Told(told.kind, reason=told.reason + note)


def _wrong(given: pa.Array, read: pa.Array, array: pa.Array, kind: str) -> str:
    """Says which value is the first that keeps a column from being of a kind."""
    row = pc.index(pc.and_(given, pc.invert(read.is_valid())), True).as_py()
    return f"; row {row + 1}: {array[row].as_py()[:40]!r} is no {kind}"


def _category(texts: pa.Array, num_rows: int, is_named: bool) -> Told:
    """Whether texts are a category, text of several words, or ids."""
    counts, sample = _counts(texts), _sample(texts)
    num_values, total = len(counts), len(texts)
    if num_values == 1 and total == num_rows and not is_named:
        return Told(None, reason="left out: every row has the same value")
    words = pc.mean(pc.add(pc.count_substring_regex(sample, r"\s\S"), 1)).as_py()
    repeated = counts[counts > 1].sum() / total
    is_text = words >= 1.5 or _share(sample, UNSPACED + "{4}") > 0.5
    if is_text and (repeated < 0.5 or (words >= 4 and 4 * num_values > total)):
        return Told("text", reason="text of several words")
    if is_named:
        return Told("category", reason="values")
    if repeated < 0.1:
        return Told(None, reason="left out: almost every row has a value of its own, as ids have")
    known = counts[:MAX_VALUES].sum() / total
    if known < 0.1:
        return Told(None, reason=f"left out: the {MAX_VALUES:,} most frequent values stand in {known:.1%} of the rows")
    return Told("category", reason="values that repeat")


def _personal(values: pa.Array) -> Told | None:
    """`Told` where values look like data about people."""
    sample = _sample(values)
    what = next((what for what, pattern in PERSONAL_VALUES.items() if _share(sample, pattern) > 0.1), None)
    return None if what is None else Told(None, reason=f"left out: {what}")


def _separator(sample: pa.Array) -> str:
    """What stands between values that repeat; "" where nothing does."""
    for separator in SEPARATORS:
        is_split = pc.match_substring(sample, separator)
        if pc.sum(is_split).as_py() < 0.2 * len(sample):
            continue
        parts = pc.utf8_trim_whitespace(pc.split_pattern(sample, separator).flatten())
        words = pc.mean(pc.add(pc.count_substring_regex(parts, r"\s\S"), 1)).as_py()
        most = 0.25 if separator == "," else 0.7  # a comma stands in sentences too
        if pc.count_distinct(parts).as_py() <= most * len(parts) and words <= 4:
            return separator
    return ""


def _any_separator(name: str, column: pa.ChunkedArray) -> str:
    """The separator that stands in most values; "" where none does."""
    sample = _sample(values_of(name, plain_array(column)).drop_null())
    number = {s: pc.sum(pc.match_substring(sample, s)).as_py() or 0 for s in SEPARATORS}
    best = max(SEPARATORS, key=lambda s: number[s])
    return best if number[best] else ""


def _figures(feature: Feature, array: pa.Array) -> dict[str, Any]:
    """How many values, which range, how wide, and the share of rows that have none."""
    figures: dict[str, Any] = {}
    if feature.separator:
        figures["separator"] = feature.separator
    if feature.kind in ("category", "multi"):
        if feature.kind == "category":
            values = values_of(feature.name, array)
            missing = values.null_count
        else:
            values, lengths = value_lists(feature.name, array, feature.separator)
            row = np.repeat(np.arange(len(lengths)), lengths)[values.is_valid().to_numpy(zero_copy_only=False)]
            missing = len(array) - len(np.unique(row))
        figures |= {"values": pc.count_distinct(values).as_py(), "known": len(feature.values)}
    elif feature.kind in ("number", "date"):
        raw = raw_column(feature.name, feature.kind, array)
        missing = int(np.isnan(raw).sum())
        if missing < len(raw):
            ends = [float(f(raw)) for f in (np.nanmin, np.nanmax)]
            figures["range"] = [_shown(end, feature.kind) for end in ends]
    else:
        figures["width"] = feature.width
        if feature.encoder:
            figures["encoder"] = feature.encoder
        is_text = feature.kind == "text" or feature.encoder
        missing = (values_of(feature.name, array) if is_text else array).null_count
    return figures | {"missing": round(missing / max(len(array), 1), 4)}


def _shown(number: float, kind: str) -> Any:
    """A number as it is written, a day as a date."""
    if kind == "date":
        try:
            return str(np.datetime64(int(np.floor(number)), "D"))
        except (OverflowError, ValueError):
            return number
    return int(number) if number.is_integer() and abs(number) < 2**53 else float(f"{number:.6g}")
