"""Checks the rows of a log: refuses, counts, drops rare users and items."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa

from tfrec.data.prepared import NO_ROWS
from tfrec.data.readers import FORMATS, Log, dialect

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


def check_rows(con, log: Log, files: list[str], max_refused: float) -> tuple[dict[str, Any], pa.Table]:
    """Make the table `events(ord, user, item, seconds)` of the good rows; refuse and count the others.

    Returns:
        `(counts, refused)`: entries of the manifest, and a table of `file`, `line` and `reason`.
    Raises:
        ValueError: there are no rows, or more are refused than `max_refused` allows.
    """
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
        lines = _line_numbers(con, log, file, Path(files[file]), records) if log.paths else records
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
    counts: dict[str, Any] = {
        "num_rows": num_rows + num_refused,
        "num_refused": num_refused,
        "refused": dict(by_reason),
    }
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
    counts["time_units"] = dict(sorted(units))
    con.execute("""CREATE TABLE events AS SELECT (file::BIGINT << 44) + row_number() OVER (ORDER BY file, record) AS ord,
                   "user", item, coalesce(seconds, 0) AS seconds FROM checked WHERE reason IS NULL""")
    rows = con.execute("SELECT file, line, reason FROM refused ORDER BY ALL").fetchall()
    columns = {"file": [files[f] for f, _, _ in rows], "line": [n for _, n, _ in rows], "reason": [r for *_, r in rows]}
    con.execute("DROP TABLE log; DROP TABLE checked")
    return counts, pa.table(columns, schema=NO_ROWS.schema)


def _line_numbers(con, log: Log, number: int, path: Path, records: list[int]) -> list[int]:
    """The line on which each record of a file starts.

    DuckDB numbers the rows that it accepts; quoted line breaks, blank lines and rejected rows move lines away from that. So
    a file with something to report is walked once more, which a clean log never pays for.
    """
    format = log.format or FORMATS[path.suffix.lower()]
    if format not in ("csv", "tsv"):
        return records  # Parquet: row numbers; the line readers: already lines
    delimiter, _ = dialect(path, format, log.columns)
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


def drop_rare(con, min_user_events: int, min_item_events: int) -> dict[str, int]:
    """Drop rare users and items until none is left: dropping the one can make the other rare.

    Returns:
        Entries of the manifest.
    Raises:
        ValueError: no event is left.
    """
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
    if not left:
        raise ValueError(
            f"No event is left after --min-user-events {min_user_events} and --min-item-events "
            f"{min_item_events}. Lower them."
        )
    return {
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "num_filtered_events": before - left,
    }
