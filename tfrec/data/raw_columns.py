"""Columns of files as the arrays that a served model takes; see `tfrec.data.features` for the form of each kind."""

from __future__ import annotations

import importlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfrec.data.database import connect
from tfrec.data.rows import as_text, is_list

MAX_LIST = 64
"""Values of a row of a `multi` column that are read: the first."""


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
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if kind == "vector":
        return _encoded(name, array, encoder) if encoder else _vectors(name, array, width)
    if kind == "multi":
        lists = array if is_list(array.type) else _split(_text(name, array), separator)
        return _padded(name, lists)
    if kind in ("category", "text"):
        return _objects(_text(name, array))
    numbers = _days(array) if kind == "date" else numbers_of(array)
    wrong = pc.and_(is_given(array), pc.invert(numbers.is_valid()))
    if pc.any(wrong).as_py():
        row = pc.index(wrong, True).as_py()
        raise ValueError(
            f"Column `{name}`, row {row + 1}: {str(array[row])[:40]!r} is no {kind}. Mend it, or give the column another kind."
        )
    return numbers.cast(pa.float32(), safe=False).fill_null(float("nan")).to_numpy(zero_copy_only=False)


def is_given(array: pa.Array) -> pa.Array:
    """Which values are not missing."""
    return as_text(array)[0].is_valid() if _is_text(array.type) else array.is_valid()


def numbers_of(array: pa.Array) -> pa.Array:
    """Float64: the numbers of a column; null where it is missing or none."""
    if pa.types.is_boolean(array.type):
        return array.cast(pa.uint8()).cast(pa.float64())
    if not _is_text(array.type):
        numbers = array.cast(pa.float64(), safe=False)
        return pc.if_else(pc.is_finite(numbers), numbers, None)
    texts = pa.table({"text": as_text(array)[0]})
    con = connect(threads=1)
    con.register("texts", texts)
    numbers = (
        con.sql("SELECT TRY_CAST(text AS DOUBLE) AS number FROM texts").to_arrow_table()["number"].combine_chunks()
    )
    return pc.if_else(pc.is_finite(numbers), numbers, None)


def _days(array: pa.Array) -> pa.Array:
    """Float64: days since 1970 of dates, timestamps or ISO 8601 text; null where it is missing or none."""
    texts = pa.table({"given": as_text(array)[0] if _is_text(array.type) else array})
    con = connect(threads=1)
    con.register("texts", texts)
    days = "epoch_us(TRY_CAST(given AS TIMESTAMP)) / 86400e6"
    return con.sql(f"SELECT {days} AS days FROM texts").to_arrow_table()["days"].combine_chunks().cast(pa.float64())


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)


def _text(name: str, array: pa.Array) -> pa.Array:
    """Values as text; of equal values of two types the same text."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.string())
    try:
        return as_text(array)[0]
    except ValueError as error:
        raise ValueError(f"Column `{name}` {error}. Give it the kind multi or vector, or leave it out.") from None


def _split(texts: pa.Array, separator: str) -> pa.Array:
    """Lists of the values between separators."""
    return (
        pc.split_pattern(texts, separator)
        if separator
        else pa.ListArray.from_arrays(np.arange(len(texts) + 1, dtype=np.int32), texts)
    )


def _objects(texts: pa.Array) -> np.ndarray:
    """Text as an array of objects, "" where it is missing."""
    return texts.fill_null("").to_numpy(zero_copy_only=False)


def _padded(name: str, lists: pa.Array) -> np.ndarray:
    """Lists of values as an array of text, shape `(rows, values)`, "" where a row has fewer."""
    lists = pc.list_slice(lists.fill_null([]) if lists.null_count else lists, 0, MAX_LIST)
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    values = _objects(_text(name, lists.flatten()))
    padded = np.full((len(lists), max(1, lengths.max(initial=0))), "", object)
    row = np.repeat(np.arange(len(lists)), lengths)
    padded[row, np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)] = values
    return padded


def _vectors(name: str, array: pa.Array, width: int) -> np.ndarray:
    """Lists of numbers of one length, float32 `(rows, width)`; zeros where a row has none."""
    if not is_list(array.type):
        raise ValueError(f"Column `{name}` holds {array.type}, and a vector is a list of numbers.")
    lengths = pc.list_value_length(array)
    given = pc.unique(lengths.drop_null()).to_pylist()
    width = width or (given[0] if given else 1)
    wrong = pc.fill_null(pc.not_equal(lengths, width), False)
    if pc.any(wrong).as_py():
        row = pc.index(wrong, True).as_py()
        raise ValueError(f"Column `{name}`, row {row + 1}: a vector of {lengths[row]} numbers among those of {width}.")
    vectors = np.zeros((len(array), width), np.float32)
    numbers = array.flatten().cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    vectors[array.is_valid().to_numpy(zero_copy_only=False)] = numbers.reshape(-1, width)
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise ValueError(f"Column `{name}`, row {row + 1}: a vector with a missing or infinite number.")
    return vectors


def _encoded(name: str, array: pa.Array, encoder: str) -> np.ndarray:
    """The vectors of texts by an installed sentence encoder, float32 `(rows, width)`; zeros where there is no text."""
    try:
        module = importlib.import_module("sentence_transformers")
    except ImportError:
        raise ValueError(
            f"`{encoder}` encodes column `{name}` with the package sentence-transformers, which is not installed: install it, "
            f"or leave the encoder out."
        ) from None
    texts = _objects(_text(name, array))
    vectors = np.asarray(module.SentenceTransformer(encoder).encode(list(texts)), np.float32)
    return np.where((texts == "")[:, None], np.float32(0), vectors)
