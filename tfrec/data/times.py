"""Times: text, numbers and timestamps to int64, and the one unit of a column of numbers.

A number's unit cannot be told from one row. Rows are read as `(kind, value)`, and the unit is chosen at the end, from all of
them.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
from enum import IntEnum

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfrec.data.database import connect

RESOLUTIONS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Ticks in a second."""
SECOND = 10**9
"""Nanoseconds."""
NANOSECONDS = {name: SECOND // ticks for name, ticks in RESOLUTIONS.items()}
"""Nanoseconds in a unit of stored times and of timestamps, coarsest first."""
YEAR_1990 = 631_152_000
"""Seconds. Between it and tomorrow, a time is plausible."""
UNITS = {"seconds": SECOND, "milliseconds": 10**6, "microseconds": 10**3, "nanoseconds": 1}
"""Nanoseconds in a unit of numbers."""
DATES = {"dates as YYYYMMDD": "%Y%m%d", "times as YYYYMMDDhhmmss": "%Y%m%d%H%M%S"}
"""Formats of numbers that spell a date."""
MILLIONTH = 10**6
MAX_FRACTION = 9_000_000_000_000
"""The largest number whose millionths fit an int64: a fraction of a larger one is dropped."""


class Kind(IntEnum):
    """What a row says about its time."""

    NONE = 0
    NUMBER = 1  # a whole number, of a unit that is not known yet
    FRACTION = 2  # a number in millionths
    INSTANT = 3  # nanoseconds since 1970
    WRONG = 4  # neither a number nor a date


@functools.cache
def _database() -> duckdb.DuckDBPyConnection:
    """DuckDB casts what parses, and leaves null what does not."""
    return connect(threads=1)


def read_times(values: pa.Array, time_format: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Times as `(kind, value)`: uint8 and int64 arrays, see `Kind`.

    >>> kind, value = read_times(pa.array(["1700000000", "2026-01-01T02:00:00.5+02:00", None, "soon"]))
    >>> [Kind(k).name for k in kind], value.tolist()
    (['NUMBER', 'INSTANT', 'NONE', 'WRONG'], [1700000000, 1767225600500000000, 0, 0])

    Args:
        values: text, numbers, dates or timestamps; null = missing.
        time_format: str, the format of text, in the letters of `strftime`. Default: a number or ISO 8601.
    Raises:
        ValueError: the type holds no times, or `time_format` is no format.
    """
    type_ = values.type
    if pa.types.is_date(type_) or pa.types.is_timestamp(type_):
        return _instants(values)
    if pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return _numbers(values.cast(pa.float64()).to_numpy(zero_copy_only=False))
    if pa.types.is_integer(type_):
        if pa.types.is_uint64(type_):  # what an int64 cannot hold is no time
            return _numbers(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        return _integers(values)
    if pa.types.is_null(type_):
        return np.zeros(len(values), np.uint8), np.zeros(len(values), np.int64)
    if not pa.types.is_string(type_):
        raise ValueError(f"holds values of type {type_}, which are no times")
    if time_format is None:
        with contextlib.suppress(pa.ArrowInvalid):  # the usual case: whole numbers
            numbers = _integers(values.cast(pa.int64()))
            if not _has_letter_x(values):  # PyArrow reads 0x10
                return numbers
    return _texts(values, time_format)


def _has_letter_x(values: pa.Array) -> bool:
    data = values.buffers()[2]
    text = b"" if data is None else data.to_pybytes()
    return b"x" in text or b"X" in text


def _integers(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    kind = np.where(_is_valid(values), Kind.NUMBER, Kind.NONE).astype(np.uint8)
    return kind, pc.fill_null(values.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)


def _is_valid(values: pa.Array) -> np.ndarray:
    return np.ones(len(values), bool) if not values.null_count else values.is_valid().to_numpy(zero_copy_only=False)


def _instants(values: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Dates and timestamps of any unit; one that nanoseconds cannot hold is wrong."""
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("ms"))
    unit = NANOSECONDS[values.type.unit]
    number = pc.fill_null(values.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    fits = np.abs(number) <= np.iinfo(np.int64).max // unit
    kind = np.where(fits, Kind.INSTANT, Kind.WRONG)
    return np.where(_is_valid(values), kind, Kind.NONE).astype(np.uint8), np.where(fits, number, 0) * unit


def _numbers(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Floats; NaN = missing."""
    fits = np.abs(number) < 2.0**63
    whole = (number == np.floor(number)) | (np.abs(number) > MAX_FRACTION)
    kind = np.select([np.isnan(number), ~fits, whole], [Kind.NONE, Kind.WRONG, Kind.NUMBER], Kind.FRACTION)
    fitting = np.where(fits, number, 0.0)
    value = np.where(whole, np.floor(fitting), 0.0).astype(np.int64)
    floor = np.floor(np.where(whole, 0.0, fitting))  # the product of the whole number would lose digits
    millionths = floor.astype(np.int64) * MILLIONTH
    millionths += np.round(np.where(whole, 0.0, fitting - floor) * MILLIONTH).astype(np.int64)
    return kind.astype(np.uint8), np.where(kind == Kind.FRACTION, millionths, value)


def _texts(values: pa.Array, time_format: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Text that is not all whole numbers."""
    # DuckDB's casts take 0x10, 1_000, epoch and infinity as well
    is_number = r"regexp_full_match(t, '[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?')"
    integer = f"CASE WHEN {is_number} AND t NOT LIKE '%.%' THEN TRY_CAST(t AS BIGINT) END"
    number = f"CASE WHEN {is_number} THEN TRY_CAST(t AS DOUBLE) END"
    # a double has too few digits for the millionths of milliseconds
    millionths = f"CASE WHEN {is_number} THEN TRY_CAST(TRY_CAST(t AS DECIMAL(25, 6)) * {MILLIONTH} AS BIGINT) END"
    # an offset may stand after a blank; DuckDB keeps microseconds, the last three digits are added
    text = r"regexp_replace(t, ' ([+-]\d\d(:?\d\d)?)$', '\1')"
    digits = r"TRY_CAST(rpad(regexp_extract(t, '\.\d{6}(\d{1,3})', 1), 3, '0') AS BIGINT)"
    instant = (
        f"CASE WHEN t SIMILAR TO '[0-9].*' THEN epoch_ns(TRY_CAST({text} AS TIMESTAMPTZ)) + coalesce({digits}, 0) END"
    )
    parameters = []
    if time_format is not None:
        number = integer = millionths = "NULL"
        instant, parameters = "epoch_ns(try_strptime(t, $1))", [time_format]
    with _database().cursor() as con:
        con.execute("SET TimeZone = 'UTC'")
        con.register("given", pa.table({"t": pc.fill_null(values, "")}))
        query = f"SELECT {integer}::BIGINT AS i, {number}::DOUBLE AS n, {millionths}::BIGINT AS m, TRY({instant}) AS t FROM given"
        try:
            table = con.sql(query, params=parameters).to_arrow_table()
        except duckdb.Error as error:
            raise ValueError(f"--time-format {time_format!r}: {str(error).splitlines()[0]}") from None
    integer_, instant_ = table["i"].combine_chunks(), table["t"].combine_chunks()
    kind, value = _numbers(table["n"].combine_chunks().fill_null(np.nan).to_numpy(zero_copy_only=False))
    exact = table["m"].combine_chunks()
    value = np.where((kind == Kind.FRACTION) & _is_valid(exact), exact.fill_null(0), value)
    is_integer, is_instant = _is_valid(integer_), _is_valid(instant_) & (kind == Kind.NONE)
    kind, value = np.where(is_integer, Kind.NUMBER, kind), np.where(is_integer, integer_.fill_null(0), value)
    kind, value = np.where(is_instant, Kind.INSTANT, kind), np.where(is_instant, instant_.fill_null(0), value)
    is_wrong = (kind == Kind.NONE) & _is_valid(values)
    return np.where(is_wrong, Kind.WRONG, kind).astype(np.uint8), value.astype(np.int64)


def tomorrow() -> int:
    """The second, since 1970, one day from now."""
    return int((datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)).timestamp())


def plausible(unit: str) -> tuple[int, int]:
    """The numbers that are times between 1990 and tomorrow, in a unit.

    >>> plausible("dates as YYYYMMDD")[0]
    19900101
    """
    if unit in UNITS:
        return YEAR_1990 * SECOND // UNITS[unit], tomorrow() * SECOND // UNITS[unit]
    return tuple(  # type: ignore[return-value]
        int(f"{datetime.datetime.fromtimestamp(t, datetime.UTC):{DATES[unit]}}") for t in (YEAR_1990, tomorrow())
    )


def nanoseconds(unit: str, kind: str = "kind", value: str = "value") -> str:
    """SQL of the nanoseconds since 1970 of a row, where its numbers are of `unit`; null where they are out of range."""
    if unit in DATES:
        number = f"TRY(epoch_ns(try_strptime({value}::VARCHAR, '{DATES[unit]}')))"
        fraction = "NULL::BIGINT"
    else:
        number = f"TRY({value} * {UNITS[unit]}::BIGINT)"
        fraction = f"TRY(({value}::HUGEINT * {UNITS[unit]} // {MILLIONTH})::BIGINT)"
    return (
        f"CASE {kind} WHEN {int(Kind.NUMBER)} THEN {number} WHEN {int(Kind.FRACTION)} THEN {fraction} "
        f"WHEN {int(Kind.INSTANT)} THEN {value} END"
    )


def share_of_times(column: pa.ChunkedArray) -> float:
    """The share of a column's values that are times: timestamps, dates, or numbers and text between 1990 and tomorrow.

    >>> share_of_times(pa.chunked_array([["2024-01-02", "10:00:00", None]])), share_of_times(pa.chunked_array([[7, 8]]))
    (0.5, 0.0)
    """
    try:
        values = (
            column.combine_chunks().cast(pa.string()) if pa.types.is_binary(column.type) else column.combine_chunks()
        )
        values = values.cast(pa.string()) if pa.types.is_large_string(values.type) else values
        if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
            return float(values.null_count < len(values))
        if pa.types.is_string(values.type):
            values = pc.if_else(pc.equal(pc.utf8_trim_whitespace(values), ""), None, values)
        kind, value = read_times(values)
    except (ValueError, pa.ArrowException):
        return 0.0
    value, kind = value[kind != Kind.NONE], kind[kind != Kind.NONE]
    if not len(kind):
        return 0.0
    instants = (kind == Kind.INSTANT) & (value >= YEAR_1990 * SECOND) & (value <= tomorrow() * SECOND)
    value = np.where(kind == Kind.FRACTION, value // MILLIONTH, value)
    is_number = (kind == Kind.NUMBER) | (kind == Kind.FRACTION)
    numbers = [is_number & (low <= value) & (value <= high) for low, high in map(plausible, (*UNITS, *DATES))]
    for found in numbers:
        if all(len(str(v)) == 8 for v in value[found]):
            found[found] = [_is_date(int(v)) for v in value[found]]
    return max(float(found.mean()) for found in (instants, *numbers))


def _is_date(number: int) -> bool:
    try:
        datetime.datetime.strptime(str(number), "%Y%m%d")
    except ValueError:
        return False
    return True
