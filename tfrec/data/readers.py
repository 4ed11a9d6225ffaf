"""Reads a log into one table of text, `log(file, record, user, item, time)`, that `cleaning` checks.

CSV, TSV, Parquet and data frames are read by DuckDB, JSON Lines and sequence text line by line.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tfrec.data.columns import choose_columns, quote
from tfrec.progress import track

FORMATS = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
CHUNK_ROWS = 1_000_000


@dataclass(frozen=True)
class Log:
    """The files of a log and the way to read them. A field left at None is guessed, and the guess is reported.

    Attributes:
        paths: the files, read in this order.
        format: `csv`, `tsv`, `parquet`, `jsonl` or `sequences`.
        user, item, time: column names.
        columns: names for the columns of a CSV or TSV file that has no header line.
        first_column: of sequence text, `"user"` when each line starts with the user id.
    """

    paths: Sequence[str | os.PathLike]
    format: str | None = None
    user: str | None = None
    item: str | None = None
    time: str | None = None
    columns: Sequence[str] = ()
    first_column: str | None = None


def read_files(con: duckdb.DuckDBPyConnection, log: Log, notes: list[str]) -> None:
    """Fill the table `log` from files, and the table `refused` with the lines that are no rows."""
    paths = [Path(path) for path in log.paths]
    if not paths:
        raise ValueError("No file was given. Pass one or more log files, or the name of a data set.")
    for number, path in enumerate(track(paths, "Reading") if len(paths) > 1 else paths):
        if not path.is_file():
            raise ValueError(f"`{path}` does not exist or is not a file.")
        format = log.format or FORMATS.get(path.suffix.lower())
        if format not in (*FORMATS.values(), "sequences"):
            wrong = f"there is no format {format!r}" if format else f"no format is known for the ending {path.suffix!r}"
            raise ValueError(f"`{path}`: {wrong}. Pass --format, one of csv, tsv, parquet, jsonl, sequences.")
        if path.stat().st_size == 0:
            raise ValueError(f"`{path}` is empty. A log needs at least one row with a user and an item.")
        if format in ("csv", "tsv"):
            _read_delimited(con, log, number, path, format, notes)
        elif format == "parquet":
            _read_parquet(con, log, number, path, notes)
        else:
            read = _jsonl_rows(log, path, notes) if format == "jsonl" else _sequence_rows(log, path)
            _insert_rows(con, number, read)


def _choose(log: Log, path: Path, names: Sequence[str], notes: list[str]) -> dict[str, str | None]:
    """The columns of a file; see `choose_columns`."""
    told = {"user": log.user, "item": log.item, "time": log.time}
    return choose_columns(names, told, f"`{path}`", notes)


def dialect(path: Path, format: str, columns: Sequence[str] = ()) -> tuple[str, list[str]]:
    """The delimiter and the column names of a delimited file, from its first line."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline()
        delimiter = "\t" if format == "tsv" else max(",;\t|", key=first.count)
        file.seek(0)
        names = list(columns) or next(csv.reader(file, delimiter=delimiter), [])
    if len(set(names)) < len(names):
        raise ValueError(f"`{path}`: two columns have the same name: {', '.join(names)}.")
    return delimiter, names


def _read_delimited(con, log: Log, number: int, path: Path, format: str, notes: list[str]) -> None:
    delimiter, names = dialect(path, format, log.columns)
    chosen = _choose(log, path, names, notes)
    select = ", ".join(quote(name) if name else "NULL" for name in chosen.values())
    con.execute("DROP TABLE IF EXISTS reject_errors; DROP TABLE IF EXISTS reject_scans")
    con.execute(
        f"""INSERT INTO log SELECT ?, row_number() OVER (), {select} FROM read_csv(?, auto_detect = false, delim = ?,
            quote = '"', escape = '"', header = ?, columns = ?, store_rejects = true, rejects_limit = 0)""",
        [number, str(path), delimiter, not log.columns, dict.fromkeys(names, "VARCHAR")],
    )
    rejects = con.execute(
        "SELECT line_byte_position, any_value(error_type), any_value(error_message), any_value(csv_line) "
        "FROM reject_errors GROUP BY line_byte_position ORDER BY line_byte_position"
    ).fetchall()
    reasons = {
        "MISSING COLUMNS": "too few columns",
        "TOO MANY COLUMNS": "too many columns",
        "INVALID ENCODING": "broken UTF-8",
        "UNQUOTED VALUE": "a quote opens and does not close",
    }
    lines = _lines_at(path, [position for position, *_ in rejects])
    for line, (_, kind, message, text) in zip(lines, rejects, strict=True):
        # an open quote swallows what follows: every line of it is refused
        for extra in range(max(1, len((text or "").splitlines())) if kind == "UNQUOTED VALUE" else 1):
            reason = reasons.get(kind, kind.lower())
            if "columns" in reason:
                reason += f" ({message.removeprefix('Expected Number of Columns: ').replace(' Found: ', ' expected, found ')})"
            con.execute("INSERT INTO refused VALUES (?, ?, ?)", [number, line + extra, reason])


def _lines_at(path: Path, positions: list[int]) -> list[int]:
    """The line that each byte position lies on; positions ascend. (DuckDB's own line numbers miss quoted line breaks.)"""
    lines, line = [], 1
    if positions:
        with path.open("rb") as file:
            for begin, end in zip([0, *positions], positions, strict=False):
                line += sum(file.read(min(1 << 20, end - at)).count(b"\n") for at in range(begin, end, 1 << 20))
                lines.append(line)
    return lines


def _read_parquet(con, log: Log, number: int, path: Path, notes: list[str]) -> None:
    try:
        schema = pq.read_schema(path)
    except pa.ArrowException as error:
        raise ValueError(f"`{path}` is not a Parquet file: {error}") from None
    chosen = _choose(log, path, schema.names, notes)
    select = _as_text(schema, chosen)
    con.execute(f"INSERT INTO log SELECT ?, row_number() OVER (), {select} FROM read_parquet(?)", [number, str(path)])


def read_frame(con: duckdb.DuckDBPyConnection, log: Log, frame: Any, notes: list[str]) -> None:
    """Fill the table `log` from a data frame."""
    table = as_table(frame, "log")
    told = {"user": log.user, "item": log.item, "time": log.time}
    chosen = choose_columns(table.column_names, told, "The frame", notes)
    con.register("given", table)
    con.execute(f"INSERT INTO log SELECT 0, row_number() OVER (), {_as_text(table.schema, chosen)} FROM given")
    con.unregister("given")


def as_table(frame: Any, argument: str) -> pa.Table:
    """A pandas, Polars or PyArrow data frame, or any other with `__arrow_c_stream__`, as a PyArrow table.

    Raises:
        TypeError: it is no data frame.
        ValueError: a column mixes kinds of values.
    """
    try:
        if type(frame).__module__.partition(".")[0] == "pandas":
            return pa.Table.from_pandas(frame, preserve_index=False)
        if isinstance(frame, pa.Table) or hasattr(frame, "__arrow_c_stream__"):
            return pa.table(frame)
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(
            f"`{argument}` has a column that mixes kinds of values: make it text, as with .astype(str). ({error})"
        ) from None
    raise TypeError(
        f"`{argument}` must be a path, a list of paths or a data frame (pandas, Polars, PyArrow). Received: {type(frame).__name__}."
    )


def _as_text(schema: pa.Schema, chosen: Mapping[str, str | None]) -> str:
    """SQL that reads the chosen columns of a typed table as text; a whole float such as 123.0 is the id 123."""
    parts = []
    for name in chosen.values():
        if name is None:
            parts.append("NULL")
        elif pa.types.is_floating(schema.field(name).type):
            column = f"CAST({quote(name)} AS DOUBLE)"
            whole = f"CAST(CAST({column} AS HUGEINT) AS VARCHAR)"
            parts.append(
                f"CASE WHEN isnan({column}) THEN NULL WHEN isfinite({column}) AND {column} = floor({column}) "
                f"THEN {whole} ELSE CAST({column} AS VARCHAR) END"
            )
        else:
            parts.append(f"CAST({quote(name)} AS VARCHAR)")
    return ", ".join(parts)


Row = tuple[int, str | None, str | None, str | None] | tuple[int, str]
"""`(line, user, item, time)`, or `(line, reason)` for a line that is refused."""


def _insert_rows(con, number: int, rows: Iterator[Row]) -> None:
    """Insert rows in chunks."""
    schema = pa.schema([("record", pa.int64()), ("user", pa.string()), ("item", pa.string()), ("time", pa.string())])
    good: list[tuple] = []

    def flush() -> None:
        columns = [pa.array(column, f.type) for column, f in zip(zip(*good, strict=True), schema, strict=True)]
        con.register("chunk", pa.Table.from_arrays(columns, schema=schema))
        con.execute(f"INSERT INTO log SELECT {number}, * FROM chunk")
        con.unregister("chunk")
        good.clear()

    for row in rows:
        if len(row) == 2:
            con.execute("INSERT INTO refused VALUES (?, ?, ?)", [number, *row])
        else:
            good.append(row)
            if len(good) >= CHUNK_ROWS:
                flush()
    if good:
        flush()


def _lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """Numbered lines without their ends; None for one that is not UTF-8."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                yield number, None


def _jsonl_rows(log: Log, path: Path, notes: list[str]) -> Iterator[Row]:
    chosen: dict[str, str | None] = {}
    for number, line in _lines(path):
        if line is None:
            yield number, "broken UTF-8"
            continue
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, f"not JSON: {error.msg} (column {error.colno})"
            continue
        if not isinstance(event, dict):
            yield number, "not a JSON object"
            continue
        chosen = chosen or _choose(log, path, list(event), notes)
        values = [None if name is None else event.get(name) for name in chosen.values()]
        if any(isinstance(value, (dict, list, bool)) for value in values):
            yield number, "an id or time is neither text nor a number"
            continue
        user, item, time = (None if value is None else str(value) for value in values)
        try:
            f"{user}{item}{time}".encode()
        except UnicodeEncodeError:
            yield number, "broken Unicode escape"
            continue
        yield number, user, item, time


def _sequence_rows(log: Log, path: Path) -> Iterator[Row]:
    """Sequence text: one user a line, items in time order; the line number is the user id unless it starts with one."""
    for number, line in _lines(path):
        if line is None:
            yield number, "broken UTF-8"
            continue
        items = line.split()
        user = items.pop(0) if log.first_column == "user" and items else str(number)
        if not items:
            yield number, "no items"
        for item in items:
            yield number, user, item, None
