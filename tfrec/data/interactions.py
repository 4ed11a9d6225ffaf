"""Read and check an interaction log, and write it as prepared data.

CSV, TSV and Parquet are read by DuckDB, sorted out of core; JSON Lines and sequence text line by line. Whatever the
format, a log becomes one table `log(file, record, user, item, time)` of strings, which is checked and sorted in SQL. A row
that is refused is reported with its file, line and reason.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import tfrec
from tfrec.data.prepared import ITEMS, MANIFEST, SCHEMA_VERSION, USERS
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, Vocabulary
from tfrec.progress import console, track

REFUSED = "refused.csv"
FORMATS = {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
COMMON_NAMES = {
    "user": ("user_id", "user", "userid", "customer_id", "customer", "session_id", "visitorid", "reviewerid", "uid"),
    "item": ("item_id", "item", "itemid", "movieid", "movie_id", "product_id", "asin", "article_id", "sku", "iid"),
    "time": ("timestamp", "time", "unixreviewtime", "event_time", "datetime", "created_at", "date", "ts"),
    "title": ("title", "name", "item_name", "product_name", "movie_title"),
}
"""What columns are called in public logs, most specific first; compared in lower case."""

CHUNK_ROWS = 1_000_000

# numbers are seconds, milliseconds, microseconds or nanoseconds by their size; everything else is read as ISO 8601
SECONDS = """
    CASE WHEN isfinite(TRY_CAST(time AS DOUBLE)) THEN
        CAST(floor(TRY_CAST(time AS DOUBLE) / CASE WHEN abs(TRY_CAST(time AS DOUBLE)) < 1e11 THEN 1
            WHEN abs(TRY_CAST(time AS DOUBLE)) < 1e14 THEN 1e3
            WHEN abs(TRY_CAST(time AS DOUBLE)) < 1e17 THEN 1e6 ELSE 1e9 END) AS BIGINT)
    ELSE CAST(floor(epoch(TRY_CAST(time AS TIMESTAMPTZ))) AS BIGINT) END
"""
UNITS = """
    CASE WHEN time IS NULL THEN 'none'
        WHEN TRY_CAST(time AS DOUBLE) IS NULL THEN 'ISO 8601'
        WHEN abs(TRY_CAST(time AS DOUBLE)) < 1e11 THEN 'seconds'
        WHEN abs(TRY_CAST(time AS DOUBLE)) < 1e14 THEN 'milliseconds'
        WHEN abs(TRY_CAST(time AS DOUBLE)) < 1e17 THEN 'microseconds' ELSE 'nanoseconds' END
"""


@dataclass(frozen=True)
class Log:
    """Where a log lies and how it is to be read; what is None is guessed, and the guess is reported.

    Attributes:
        paths: the files, read in this order.
        format: `csv`, `tsv`, `parquet`, `jsonl` or `sequences`.
        user, item, time: column names.
        columns: names for the columns of a CSV or TSV file that has no header line.
        first_column: of sequence text, `"user"` when each line starts with the user id.
        items: a file of item properties: item id, title, anything else.
    """

    paths: Sequence[str | os.PathLike]
    format: str | None = None
    user: str | None = None
    item: str | None = None
    time: str | None = None
    columns: Sequence[str] = ()
    first_column: str | None = None
    items: str | os.PathLike | None = None


@dataclass
class Report:
    """What `prepare` did: the manifest, and what a person should be told of it."""

    manifest: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def prepare(
    log: Log | Mapping[str, pa.Table],
    out: str | os.PathLike,
    *,
    max_refused: float = 0.01,
    min_user_events: int = 1,
    min_item_events: int = 1,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Report:
    """Read, check and sort a log; write prepared data.

    A row is refused for a missing id, a time that does not parse, a wrong number of columns, broken UTF-8, or for being an
    exact duplicate (same user, item and time) of an earlier row. Events of a user are sorted by time; equal times, and logs
    without times, keep the order of the files.

    Args:
        log: the log, or tables already in memory: `events` (`user`, `item`, `time` in seconds) and perhaps `items`
            (`item_id` and properties).
        out: the folder to write. It appears whole or not at all.
        max_refused: share of refused rows above which nothing is written.
        min_user_events, min_item_events: drop users and items with fewer events, again and again until none is left.
        overwrite: replace `out` where it exists.
        about: further entries of the manifest.
    Raises:
        ValueError: nothing could be read, or too much was refused; the message says what, where, and what to do.
        FileExistsError: `out` exists.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise FileExistsError(f"`{out}` exists. Choose another folder, or pass --overwrite to replace it.")
    if out.exists() and not (out / MANIFEST).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(
            f"`{out}` is not prepared data, so --overwrite does not replace it. Choose another folder."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.parent / f".{out.name}.{os.getpid()}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    report = Report({"schema_version": SCHEMA_VERSION, "tfrec_version": tfrec.__version__})
    try:
        with contextlib.closing(duckdb.connect(str(aside / "work.duckdb"))) as con:
            con.execute("SET TimeZone = 'UTC'")
            if console.is_terminal:
                con.execute("SET enable_progress_bar = true")  # of any query longer than two seconds
            con.execute('CREATE TABLE log (file INTEGER, record BIGINT, "user" VARCHAR, item VARCHAR, time VARCHAR)')
            con.execute("CREATE TABLE refused (file INTEGER, line BIGINT, reason VARCHAR)")
            if isinstance(log, Log):
                files = [str(path) for path in log.paths]
                items = _read_log(con, log, report)
            else:
                files, items = ["(in memory)"], log.get("items")
                con.register("given", log["events"])
                con.execute('INSERT INTO log SELECT 0, row_number() OVER (), "user", item, time FROM given')
            _check(con, log if isinstance(log, Log) else None, files, report, max_refused)
            _filter(con, min_user_events, min_item_events, report)
            _write(con, items, aside, report)
        (aside / "work.duckdb").unlink()
        report.manifest |= {
            "source": files,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **(about or {}),
        }
        (aside / MANIFEST).write_text(json.dumps(report.manifest, indent=2, ensure_ascii=False), encoding="utf-8")
        if out.exists():
            out.rename(aside.with_suffix(".old"))
        aside.rename(out)
        shutil.rmtree(aside.with_suffix(".old"), ignore_errors=True)
    except duckdb.Error as error:
        raise ValueError(f"The log cannot be prepared: {str(error).splitlines()[0]}. Nothing was written.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return report


# --- reading -----------------------------------------------------------------------------------------------------------


def _read_log(con: duckdb.DuckDBPyConnection, log: Log, report: Report) -> pa.Table | None:
    """Fill the table `log`, and `refused` with the rows that are not even rows; return the item properties."""
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
            _read_delimited(con, log, number, path, format, report)
        elif format == "parquet":
            _read_parquet(con, log, number, path, report)
        else:
            read = _jsonl_rows(log, path, report) if format == "jsonl" else _sequence_rows(log, path)
            _insert_rows(con, number, read)
    report.notes = list(dict.fromkeys(report.notes))
    return None if log.items is None else read_items(log.items, con)


def _choose_columns(log: Log, path: Path, names: Sequence[str], report: Report) -> dict[str, str | None]:
    """Which column is the user, the item and the time: as told, else guessed by common names."""
    chosen: dict[str, str | None] = {}
    lower = {name.strip().lower(): name for name in reversed(names)}
    for role in ("user", "item", "time"):
        told = getattr(log, role)
        if told is not None and told not in names:
            raise ValueError(f"`{path}` has no column {told!r} (--{role}). Its columns: {', '.join(names)}.")
        guess = next((lower[name] for name in COMMON_NAMES[role] if name in lower), None)
        chosen[role] = told or guess
        if chosen[role] is None and role != "time":
            raise ValueError(
                f"`{path}`: no column looks like the {role} id. Its columns: {', '.join(names)}. Name it "
                f"with --{role}; name the columns of a file without a header line with --columns."
            )
        if told is None:
            report.notes.append(
                f"{role} column: {guess!r} (guessed; --{role} sets it)"
                if guess
                else "no time column: events keep the order of the file (--time names one)"
            )
    return chosen


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _dialect(log: Log, path: Path, format: str) -> tuple[str, list[str]]:
    """The delimiter and the column names of a delimited file, from its first line."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline()
        delimiter = "\t" if format == "tsv" else max(",;\t|", key=first.count)
        file.seek(0)
        names = list(log.columns) or next(csv.reader(file, delimiter=delimiter), [])
    if len(set(names)) < len(names):
        raise ValueError(f"`{path}`: two columns have the same name: {', '.join(names)}.")
    return delimiter, names


def _read_delimited(con, log: Log, number: int, path: Path, format: str, report: Report) -> None:
    delimiter, names = _dialect(log, path, format)
    chosen = _choose_columns(log, path, names, report)
    select = ", ".join(_quote(name) if name else "NULL" for name in chosen.values())
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


def _read_parquet(con, log: Log, number: int, path: Path, report: Report) -> None:
    try:
        names = pq.read_schema(path).names
    except pa.ArrowException as error:
        raise ValueError(f"`{path}` is not a Parquet file: {error}") from None
    chosen = _choose_columns(log, path, names, report)
    select = ", ".join(f"CAST({_quote(name)} AS VARCHAR)" if name else "NULL" for name in chosen.values())
    con.execute(f"INSERT INTO log SELECT ?, row_number() OVER (), {select} FROM read_parquet(?)", [number, str(path)])


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


def _jsonl_rows(log: Log, path: Path, report: Report) -> Iterator[Row]:
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
        chosen = chosen or _choose_columns(log, path, list(event), report)
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


def read_items(path: str | os.PathLike, con: duckdb.DuckDBPyConnection | None = None) -> pa.Table:
    """A file of items, with their properties: `item_id`, perhaps `title`, and what else it holds.

    Args:
        path: CSV, TSV (every column text), Parquet or JSON lines.
        con: None, or the connection to read it with.
    """
    con, path = con or duckdb.connect(), Path(path)
    if not path.is_file():
        raise ValueError(f"`{path}` does not exist or is not a file.")
    format = FORMATS.get(path.suffix.lower())
    if format in ("csv", "tsv"):
        delimiter, names = _dialect(Log([]), path, format)
        relation = """read_csv($path, auto_detect = false, header = true, quote = '"', escape = '"', delim = $delim,
                      columns = $columns)"""
        values: dict[str, Any] = {"path": str(path), "delim": delimiter, "columns": dict.fromkeys(names, "VARCHAR")}
    elif format in ("parquet", "jsonl"):
        relation = "read_parquet($path)" if format == "parquet" else "read_json($path, format = 'newline_delimited')"
        values = {"path": str(path)}
    else:
        raise ValueError(f"`{path}` must end in .csv, .tsv, .parquet or .jsonl.")
    try:
        table = con.sql(f"SELECT * FROM {relation}", params=values).to_arrow_table()
    except duckdb.Error as error:
        raise ValueError(f"`{path}` cannot be read: {str(error).splitlines()[0]}") from None
    lower = {name.lower(): name for name in reversed(table.column_names)}
    renamed = {}
    for role, wanted in (("item", "item_id"), ("title", "title")):
        name = next((lower[n] for n in (*COMMON_NAMES[role], *(["id"] if role == "item" else [])) if n in lower), None)
        if name is None and role == "item":
            raise ValueError(
                f"`{path}` has no item id. Its columns: {', '.join(table.column_names)}. Call one of them item_id."
            )
        if name is not None:
            renamed[name] = wanted
    table = table.rename_columns([renamed.get(name, name) for name in table.column_names])
    return table.set_column(table.column_names.index("item_id"), "item_id", table["item_id"].cast(pa.string()))


# --- checking ----------------------------------------------------------------------------------------------------------


def _check(con, log: Log | None, files: list[str], report: Report, max_refused: float) -> None:
    """Make `events(ord, user, item, seconds)` of the good rows; refuse, report and count the others."""
    has_time = con.execute("SELECT count(time) > 0 FROM log").fetchall()[0][0]
    con.execute(f"""
        CREATE TABLE checked AS
        SELECT *, CASE
            WHEN coalesce("user", '') = '' THEN 'missing user id'
            WHEN coalesce(item, '') = '' THEN 'missing item id'
            WHEN {has_time} AND coalesce(time, '') = '' THEN 'missing time'
            WHEN {has_time} AND seconds IS NULL THEN 'time does not parse: ' || left(time, 40)
            WHEN seconds < 0 THEN 'time is before 1970: ' || left(time, 40)
            END AS reason
        FROM (SELECT file, record, "user", item, time, {SECONDS} AS seconds FROM log)
    """)
    if has_time:  # the same user and item without a time is a repeat, not a duplicate
        con.execute("""
            CREATE TABLE duplicate AS SELECT file, record FROM checked WHERE reason IS NULL
            QUALIFY row_number() OVER (PARTITION BY "user", item, seconds ORDER BY file, record) > 1
        """)
        con.execute(
            "UPDATE checked SET reason = 'duplicate of an earlier row' FROM duplicate "
            "WHERE checked.file = duplicate.file AND checked.record = duplicate.record"
        )
    bad = con.execute("SELECT file, record, reason FROM checked WHERE reason IS NOT NULL ORDER BY ALL").fetchall()
    for file in sorted({row[0] for row in bad}):
        records = [record for f, record, _ in bad if f == file]
        lines = records if log is None else _line_numbers(con, log, file, Path(files[file]), records)
        reasons = [reason for f, _, reason in bad if f == file]
        rows = [(file, line, reason) for line, reason in zip(lines, reasons, strict=True)]
        con.executemany("INSERT INTO refused VALUES (?, ?, ?)", rows)
    num_rows, num_refused = con.execute(
        "SELECT (SELECT count(*) FROM checked WHERE reason IS NULL), (SELECT count(*) FROM refused)"
    ).fetchall()[0]
    by_reason = con.execute(
        "SELECT split_part(split_part(reason, ':', 1), ' (', 1) AS kind, count(*) FROM refused "
        "GROUP BY kind ORDER BY kind"
    ).fetchall()
    report.manifest |= {"num_rows": num_rows + num_refused, "num_refused": num_refused, "refused": dict(by_reason)}
    if num_refused > max_refused * (num_rows + num_refused) or not num_rows:
        rows = con.execute("SELECT file, line, reason FROM refused ORDER BY ALL LIMIT 3").fetchall()
        first = "; ".join(f"{files[f]}, line {line}: {reason}" for f, line, reason in rows)
        if not num_rows and not num_refused:
            raise ValueError(f"{', '.join(f'`{f}`' for f in files)}: no rows. A log needs at least one user and item.")
        raise ValueError(
            f"{num_refused} of {num_rows + num_refused} rows were refused, more than --max-refused "
            f"{max_refused:g} allows; nothing was written. The first: {first}. "
            f"Mend the log, or raise --max-refused."
        )
    units = con.execute(f"SELECT {UNITS} AS unit, count(*) FROM checked WHERE reason IS NULL GROUP BY unit").fetchall()
    report.manifest["time_units"] = dict(sorted(units))
    con.execute("""CREATE TABLE events AS SELECT (file::BIGINT << 44) + row_number() OVER (ORDER BY file, record) AS ord,
                   "user", item, coalesce(seconds, 0) AS seconds FROM checked WHERE reason IS NULL""")
    path = con.execute("SELECT path FROM duckdb_databases() WHERE database_name = current_database()").fetchall()[0][0]
    with (Path(path).parent / REFUSED).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "line", "reason"])
        for f, line, reason in con.execute("SELECT file, line, reason FROM refused ORDER BY ALL").fetchall():
            writer.writerow([files[f], line, reason])
    con.execute("DROP TABLE log; DROP TABLE checked")


def _line_numbers(con, log: Log, number: int, path: Path, records: list[int]) -> list[int]:
    """The line on which each record of a file starts.

    DuckDB numbers the rows that it accepts; quoted line breaks, blank lines and rejected rows move lines away from that. So
    a file with something to report is walked once more, which a clean log never pays for.
    """
    format = log.format or FORMATS[path.suffix.lower()]
    if format not in ("csv", "tsv"):
        return records  # Parquet: row numbers; the line readers: already lines
    delimiter, _ = _dialect(log, path, format)
    rejected = {line for (line,) in con.execute("SELECT line FROM refused WHERE file = ?", [number]).fetchall()}
    wanted, lines = set(records), {}
    with path.open(encoding="latin-1", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        record, line = -1 if not log.columns else 0, 1
        for row in reader:
            if row and line not in rejected:
                record += 1
                if record in wanted:
                    lines[record] = line
                    if len(lines) == len(wanted):
                        break
            line = reader.line_num + 1
    return [lines[record] for record in records]


def _filter(con, min_user_events: int, min_item_events: int, report: Report) -> None:
    """Drop rare users and items until none is left: dropping the one can make the other rare."""
    before = con.execute("SELECT count(*) FROM events").fetchall()[0][0]
    changed = min_user_events > 1 or min_item_events > 1
    while changed:
        count = con.execute("SELECT count(*) FROM events").fetchall()[0][0]
        for column, least in (("user", min_user_events), ("item", min_item_events)):
            con.execute(
                f'DELETE FROM events WHERE "{column}" IN (SELECT "{column}" FROM events GROUP BY "{column}" '
                f"HAVING count(*) < {int(least)})"
            )
        changed = con.execute("SELECT count(*) FROM events").fetchall()[0][0] < count
    left = con.execute("SELECT count(*) FROM events").fetchall()[0][0]
    report.manifest |= {
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "num_filtered_events": before - left,
    }
    if not left:
        raise ValueError(
            f"No event is left after --min-user-events {min_user_events} and --min-item-events "
            f"{min_item_events}. Lower them."
        )


# --- writing -----------------------------------------------------------------------------------------------------------


def _write(con, items: pa.Table | None, folder: Path, report: Report) -> None:
    """Sort the events and write the prepared folder; users and items are numbered in order of first appearance."""
    for column in ("user", "item"):
        con.execute(
            f'CREATE TABLE {column}s AS SELECT "{column}" AS id, row_number() OVER (ORDER BY min(ord)) - 1 AS n, '
            f'count(*) AS num_events FROM events GROUP BY "{column}"'
        )
    users = con.sql("SELECT id AS user_id, num_events FROM users ORDER BY n").to_arrow_table()
    catalogue = con.sql("SELECT id AS item_id, num_events FROM items ORDER BY n").to_arrow_table()
    num_events = con.execute("SELECT count(*) FROM events").fetchall()[0][0]
    Vocabulary(catalogue["item_id"].to_pylist()).save(folder)
    offsets = np.concatenate([[0], np.cumsum(users["num_events"].to_numpy())]).astype(np.int64)
    np.save(folder / "offsets.npy", offsets)
    pq.write_table(users.select(["user_id"]), folder / USERS)
    if items is not None:
        con.register("properties", items)
        others = "".join(f", p.{_quote(n)}" for n in items.column_names if n not in ("item_id", "num_events"))
        catalogue = con.sql(f"""
            SELECT i.id AS item_id, i.num_events {others} FROM items i LEFT JOIN
            (SELECT * FROM properties QUALIFY row_number() OVER (PARTITION BY item_id) = 1) p ON p.item_id = i.id ORDER BY i.n
        """).to_arrow_table()
        missing = con.execute("SELECT count(*) FROM items WHERE id NOT IN (SELECT item_id FROM properties)").fetchall()[
            0
        ][0]
        report.manifest["num_items_without_properties"] = missing
        if missing:
            report.notes.append(f"{missing} of {len(catalogue)} items have no row in the item file")
    pq.write_table(catalogue, folder / ITEMS)
    item_index = np.lib.format.open_memmap(folder / "item_index.npy", "w+", np.int32, (num_events,))
    timestamp = np.lib.format.open_memmap(folder / "timestamp.npy", "w+", np.int64, (num_events,))
    reader = con.sql(f"""
        SELECT (items.n + {FIRST_ITEM_INDEX})::INTEGER, seconds FROM events
        JOIN users ON users.id = events."user" JOIN items ON items.id = events.item ORDER BY users.n, seconds, ord
    """).to_arrow_reader(CHUNK_ROWS)
    begin = 0
    for batch in reader:
        item_index[begin : begin + batch.num_rows] = batch.column(0).to_numpy()
        timestamp[begin : begin + batch.num_rows] = batch.column(1).to_numpy()
        begin += batch.num_rows
    item_index.flush()
    timestamp.flush()
    report.manifest |= {"num_users": len(users), "num_items": len(catalogue), "num_events": num_events}
