"""Columns of files as the arrays that a served model takes; see `tfrec.data.features` for the form of each kind."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfrec.data.database import connect
from tfrec.data.rows import NUMBER, as_text, is_list

BAR = "|"
MAX_LIST = 64
"""Values of a row of a `multi` column that are read: the first."""
LARGEST = float(np.finfo(np.float32).max)
"""A larger number is read as this one."""
TICKS_PER_DAY = {"s": 86_400, "ms": 86_400 * 10**3, "us": 86_400 * 10**6, "ns": 86_400 * 10**9}


def raw_column(
    name: str, kind: str, column: pa.ChunkedArray, *, separator: str = "", width: int = 0, encoder: str = ""
) -> np.ndarray:
    """A column as an array.

    >>> raw_column("price", "number", pa.chunked_array([["1.5", None]]))
    array([1.5, nan], dtype=float32)

    Args:
        name, kind, separator, width, encoder: see `Feature`; a width of 0 is told from the column.
        column: PyArrow column of any type that can be read so.
    Raises:
        ValueError: a value is not of that kind; the message says which, and where.
    """
    array = plain_array(column)
    if kind == "vector":
        return _encoded(name, array, encoder) if encoder else _vectors(name, array, width)
    if kind == "multi":
        return _padded(*value_lists(name, array, separator))
    if kind in ("category", "text"):
        return _objects(values_of(name, array))
    if pa.types.is_nested(array.type):
        raise ValueError(f"Column `{name}` holds {array.type}, and no {kind}s. {_otherwise(name, 'multi')}")
    numbers = days_of(array) if kind == "date" else numbers_of(array)
    wrong = pc.and_(is_given(array), pc.invert(numbers.is_valid()))
    if pc.any(wrong).as_py():
        row = pc.index(wrong, True).as_py()
        raise ValueError(f"Column `{name}`, row {row + 1}: {str(array[row])[:40]!r} is no {kind}. {_otherwise(name)}")
    return np.clip(numbers.fill_null(np.nan).to_numpy(zero_copy_only=False), -LARGEST, LARGEST).astype(np.float32)


def plain_array(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece: without dictionaries, views and extension types; one without a type is text."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    type_ = array.type
    if isinstance(type_, pa.BaseExtensionType):
        return plain_array(as_text(array)[0] if type_.extension_name == "arrow.uuid" else array.storage)
    if pa.types.is_dictionary(type_):
        is_empty = pa.types.is_null(type_.value_type)  # as PyArrow encodes a column without a value
        return pa.nulls(len(array), pa.string()) if is_empty else plain_array(array.cast(type_.value_type))
    if pa.types.is_null(type_) or pa.types.is_string_view(type_):
        return array.cast(pa.string())
    if type_ in (pa.binary_view(), pa.binary(), pa.large_binary()) or pa.types.is_fixed_size_binary(type_):
        return as_text(array, ())[0]
    if is_list(type_) and pa.types.is_null(type_.value_type):
        return array.cast(pa.list_(pa.string()))
    return array


def is_given(array: pa.Array) -> pa.Array:
    """Which values of a plain array of numbers or dates are not missing: NaN and infinity are."""
    if _is_text(array.type):
        return as_text(array)[0].is_valid()
    if pa.types.is_floating(array.type):
        return pc.fill_null(pc.is_finite(array), False)
    return array.is_valid()


def numbers_of(array: pa.Array) -> pa.Array:
    """Float64: the numbers of a plain array; null where it is missing or none."""
    if _is_text(array.type):  # DuckDB's casts take 0x10, 1_000 and infinity as well
        return _query(array, f"CASE WHEN regexp_full_match(given, '{NUMBER}') THEN TRY_CAST(given AS DOUBLE) END")
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    try:
        numbers = array.cast(pa.float64(), safe=False)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return pa.nulls(len(array), pa.float64())
    return pc.if_else(pc.is_finite(numbers), numbers, None)


def days_of(array: pa.Array) -> pa.Array:
    """Float64: days since 1970 of dates, timestamps or ISO 8601 text; null where it is missing or none."""
    type_ = array.type
    if pa.types.is_date32(type_):
        return array.cast(pa.int32()).cast(pa.float64())
    if pa.types.is_date64(type_) or pa.types.is_timestamp(type_):
        unit = "ms" if pa.types.is_date64(type_) else type_.unit
        ticks = array.cast(pa.int64()).cast(pa.float64(), safe=False)  # of UTC, whatever the zone
        return pc.divide(ticks, float(TICKS_PER_DAY[unit]))
    if not _is_text(type_):
        return pa.nulls(len(array), pa.float64())
    given = r"regexp_replace(given, ' ([+-]\d\d(:?\d\d)?)$', '\1')"
    days = rf"TRY(epoch_us(TRY_CAST({given} AS TIMESTAMPTZ)) / 86400e6)"
    return _query(array, rf"CASE WHEN regexp_matches(given, '^\d{{4}}-\d\d-\d\d') THEN {days} END")


def values_of(name: str, array: pa.Array) -> pa.Array:
    """Values of a plain array as text, null where there is none; of equal values of two types the same text."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.string())
    try:
        texts, is_broken = as_text(array, ())  # a country may be NA
    except ValueError:
        raise ValueError(f"Column `{name}` holds {array.type}. {_otherwise(name, 'multi or vector')}") from None
    return pc.if_else(pa.array(is_broken), None, texts) if is_broken.any() else texts


def value_lists(name: str, array: pa.Array, separator: str = "") -> tuple[pa.Array, np.ndarray]:
    """The values of the rows of a `multi` column; text without a separator has them between bars.

    Returns:
        `(values, lengths)`: text, row after row, null where there is none; int64, the values of each row.
    """
    if is_list(array.type):
        lists = array.cast(pa.large_list(array.type.value_type))
    else:
        lists = pc.split_pattern(values_of(name, array), separator or BAR)
    if len(lists):
        lists = pc.list_slice(lists, 0, MAX_LIST)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return values_of(name, plain_array(lists.flatten())), lengths


def _otherwise(name: str, kind: str = "") -> str:
    """What to do about a column that is not of its kind."""
    return (
        f"Mend it, or give the column another kind ({kind or 'category'}) or none ({name}=none) when data is prepared."
    )


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def _query(texts: pa.Array, expression: str) -> pa.Array:
    """Float64: an SQL expression of `given`, the texts without blanks around them."""
    table = pa.table({"given": as_text(texts)[0]})
    with connect(threads=1) as con:
        con.execute("SET TimeZone = 'UTC'")
        con.register("texts", table)
        found = con.sql(f"SELECT {expression} AS found FROM texts").to_arrow_table()["found"].combine_chunks()
    found = found.cast(pa.float64())
    return pc.if_else(pc.is_finite(found), found, None)


def _objects(texts: pa.Array) -> np.ndarray:
    """Text as an array of objects, "" where it is missing."""
    return texts.fill_null("").to_numpy(zero_copy_only=False)


def _padded(values: pa.Array, lengths: np.ndarray) -> np.ndarray:
    """Lists of values as an array of text, shape `(rows, values)`, "" where a row has fewer."""
    padded = np.full((len(lengths), max(1, lengths.max(initial=0))), "", object)
    row = np.repeat(np.arange(len(lengths)), lengths)
    padded[row, np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)] = _objects(values)
    return padded


def _vectors(name: str, array: pa.Array, width: int) -> np.ndarray:
    """Lists of numbers of one length, float32 `(rows, width)`; zeros where a row has none."""
    if not array.null_count == len(array) and not is_list(array.type):
        raise ValueError(f"Column `{name}` holds {array.type}, and a vector is a list of numbers. {_otherwise(name)}")
    if array.null_count == len(array):
        return np.zeros((len(array), width or 1), np.float32)
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    given = np.flatnonzero(lengths)
    width = width or int(np.bincount(lengths[given], minlength=2).argmax()) or 1
    wrong = given[lengths[given] != width]
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"Column `{name}`, row {row + 1}: a vector of {lengths[row]} numbers among those of {width}. Give every row as many "
            f"or none, or read the column as multi ({name}=multi), or leave it out ({name}=none)."
        )
    try:
        numbers = plain_array(array.flatten()).cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise ValueError(
            f"Column `{name}` holds {array.type}, and a vector is a list of numbers. {_otherwise(name)}"
        ) from None
    is_wrong = ~np.isfinite(numbers.reshape(-1, width)).all(axis=1)
    if is_wrong.any():
        raise ValueError(
            f"Column `{name}`, row {given[is_wrong][0] + 1}: a vector with a missing or infinite number. Mend it, leave the row's "
            f"vector out, or the column ({name}=none)."
        )
    if len(given) == len(array):
        return numbers.reshape(-1, width)
    vectors = np.zeros((len(array), width), np.float32)
    vectors[given] = numbers.reshape(-1, width)
    return vectors


def _encoded(name: str, array: pa.Array, encoder: str) -> np.ndarray:
    """The vectors of texts by an installed sentence encoder, float32 `(rows, width)`; zeros where there is no text."""
    texts = _objects(values_of(name, array))
    try:
        model = _sentence_encoder(encoder)
    except ImportError:
        raise ValueError(
            f"`{encoder}` encodes column `{name}` with the package sentence-transformers, which is not installed: install it, "
            f"or leave the encoder out."
        ) from None
    except OSError as error:
        raise ValueError(f"The text encoder `{encoder}` cannot be loaded: {str(error).splitlines()[0]}") from None
    vectors = np.asarray(model.encode(list(texts)), np.float32)
    return np.where((texts == "")[:, None], np.float32(0), vectors)


@functools.lru_cache(maxsize=1)
def _sentence_encoder(name: str) -> Any:
    return importlib.import_module("sentence_transformers").SentenceTransformer(name)
