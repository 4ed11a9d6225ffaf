"""Prepares a log: reads, checks and sorts it, and makes prepared data of it, in memory or in a folder."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from tfrec.data.cleaning import check_rows, drop_rare
from tfrec.data.columns import quote
from tfrec.data.items import read_items
from tfrec.data.prepared import FORMAT, MANIFEST, PreparedData
from tfrec.data.readers import CHUNK_ROWS, Log, read_files, read_frame
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, Vocabulary
from tfrec.progress import console
from tfrec.version import __version__


def prepare(
    log: Any,
    out: str | os.PathLike | None = None,
    *,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    items: Any = None,
    format: str | None = None,
    columns: Sequence[str] = (),
    first_column: str | None = None,
    max_refused: float = 0.01,
    min_user_events: int = 1,
    min_item_events: int = 1,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
) -> PreparedData:
    """Read, check and sort an interaction log.

    A row is refused for a missing id, a time that does not parse, a wrong number of columns, broken UTF-8, or for being an
    exact duplicate (same user, item and time) of an earlier row. Events of a user are sorted by time. Equal times, and logs
    without times, keep the order of the log.

    >>> import pyarrow as pa
    >>> data = prepare(pa.table({"customer": [7, 7, 8], "sku": ["a", "b", "a"], "day": ["2026-01-02", "2026-01-01", None]}),
    ...                user="customer", time="day", max_refused=0.5)
    >>> data.vocabulary.decode(data.history(0)), data.refused.to_pylist()
    (['b', 'a'], [{'file': '(in memory)', 'line': 3, 'reason': 'missing time'}])

    Args:
        log: the path of a file, a list of paths that are read in this order, or a data frame (pandas, Polars, PyArrow).
        out: the folder to write; it appears whole or not at all. Default: none, the data stays in memory.
        user, item, time: str, names of columns. Default: guessed by common names; the guesses are in `manifest["notes"]`. Times
            are numbers of seconds, milliseconds, microseconds or nanoseconds, timestamps, or ISO 8601 text.
        items: a file or a data frame of item properties: an item id, perhaps a title, anything else. Default: none.
        format: str, `csv`, `tsv`, `parquet`, `jsonl` or `sequences`. Default: by the ending of the file.
        columns: names for the columns of a CSV or TSV file without a header line.
        first_column: `"user"` when each line of sequence text starts with the user id. Default: the line number is the user.
        max_refused: float, share of refused rows above which nothing is prepared. Default: 0.01.
        min_user_events, min_item_events: int, users and items with fewer events are dropped, again and again until none is
            left. Default: 1.
        overwrite: bool, replace `out` where it exists. Default: False.
        about: further entries of the manifest. Default: none.
    Returns:
        `PreparedData`, memory-mapped where `out` is given. Its `refused` table has the row and the reason of each refused row.
    Raises:
        ValueError: nothing could be read, or too much was refused; the message says what, where, and what to do.
        TypeError: `log` is neither a path nor a data frame.
        FileExistsError: `out` exists.
    """
    if isinstance(log, str | os.PathLike):
        log = [log]
    paths = list(log) if isinstance(log, list | tuple) else []
    options = Log(paths, format, user, item, time, columns, first_column)
    notes: list[str] = []
    with _work_folder(out, overwrite) as aside, _database(aside) as con:
        try:
            if isinstance(log, list | tuple):
                files = [str(path) for path in paths]
                read_files(con, options, notes)
            else:
                files = ["(in memory)"]
                read_frame(con, options, log, notes)
            properties = None if items is None else read_items(items)
            counts, refused = check_rows(con, options, files, max_refused)
            counts |= drop_rare(con, min_user_events, min_item_events)
            vocabulary, arrays, tables = _collect(con, properties, aside, notes)
        except duckdb.Error as error:
            text = str(error).splitlines()[0]
            raise ValueError(f"The log cannot be prepared: {text}. Nothing was written.") from error
        num_events = len(arrays[0])
        assert counts["num_rows"] == num_events + counts["num_refused"] + counts["num_filtered_events"], counts
        manifest = {"format_version": FORMAT, "tfrec_version": __version__} | counts
        manifest |= {"num_users": len(tables["users"]), "num_items": len(vocabulary), "num_events": num_events}
        if properties is not None:
            given = set(properties["item_id"].to_pylist())
            missing = sum(item_id not in given for item_id in vocabulary.item_ids)
            manifest["num_items_without_properties"] = missing
            if missing:
                notes.append(f"{missing} of {len(vocabulary)} items have no row in the item file")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        manifest |= {"notes": list(dict.fromkeys(notes)), "source": files, "created": now, **(about or {})}
        data = PreparedData(vocabulary, *arrays, manifest, **tables, refused=refused)
        if aside is None:
            return data
        data.write_tables(aside)
    assert out is not None
    return PreparedData.open(out)


@contextlib.contextmanager
def _work_folder(out: str | os.PathLike | None, overwrite: bool) -> Iterator[Path | None]:
    """A folder to write to, renamed to `out` at the end; None where nothing is to be written."""
    if out is None:
        yield None
        return
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
    try:
        yield aside
        if out.exists():
            out.rename(aside.with_suffix(".old"))
        aside.rename(out)
        shutil.rmtree(aside.with_suffix(".old"), ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _database(folder: Path | None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the empty tables of a log, in a file of `folder` or in memory."""
    path = None if folder is None else folder / "work.duckdb"
    with contextlib.closing(duckdb.connect(":memory:" if path is None else str(path))) as con:
        con.execute("SET TimeZone = 'UTC'")
        if console.is_terminal:
            con.execute("SET enable_progress_bar = true")  # of any query longer than two seconds
        con.execute('CREATE TABLE log (file INTEGER, record BIGINT, "user" VARCHAR, item VARCHAR, time VARCHAR)')
        con.execute("CREATE TABLE refused (file INTEGER, line BIGINT, reason VARCHAR)")
        yield con
    if path is not None:
        path.unlink()


def _collect(
    con: duckdb.DuckDBPyConnection, properties: pa.Table | None, folder: Path | None, notes: list[str]
) -> tuple[Vocabulary, tuple[np.ndarray, np.ndarray, np.ndarray], dict[str, pa.Table]]:
    """Sort the events; users and items are numbered in order of first appearance.

    Returns:
        `(vocabulary, arrays, tables)`, the parts of `PreparedData`; the arrays lie in files of `folder` where there is one.
    """
    for column in ("user", "item"):
        con.execute(
            f'CREATE TABLE {column}s AS SELECT "{column}" AS id, row_number() OVER (ORDER BY min(ord)) - 1 AS n, '
            f'count(*) AS num_events FROM events GROUP BY "{column}"'
        )
    users = con.sql("SELECT id AS user_id, num_events FROM users ORDER BY n").to_arrow_table()
    catalogue = con.sql("SELECT id AS item_id, num_events FROM items ORDER BY n").to_arrow_table()
    num_events = con.execute("SELECT count(*) FROM events").fetchall()[0][0]
    if properties is not None:
        con.register("properties", properties)
        others = "".join(f", p.{quote(n)}" for n in properties.column_names if n not in ("item_id", "num_events"))
        catalogue = con.sql(f"""
            SELECT i.id AS item_id, i.num_events {others} FROM items i LEFT JOIN
            (SELECT * FROM properties QUALIFY row_number() OVER (PARTITION BY item_id) = 1) p ON p.item_id = i.id ORDER BY i.n
        """).to_arrow_table()
    item_index = _new_array(folder, "item_index", np.int32, num_events)
    timestamp = _new_array(folder, "timestamp", np.int64, num_events)
    offsets = _new_array(folder, "offsets", np.int64, len(users) + 1)
    offsets[:] = np.concatenate([[0], np.cumsum(users["num_events"].to_numpy())])
    reader = con.sql(f"""
        SELECT (items.n + {FIRST_ITEM_INDEX})::INTEGER, seconds FROM events
        JOIN users ON users.id = events."user" JOIN items ON items.id = events.item ORDER BY users.n, seconds, ord
    """).to_arrow_reader(CHUNK_ROWS)
    begin = 0
    for batch in reader:
        item_index[begin : begin + batch.num_rows] = batch.column(0).to_numpy()
        timestamp[begin : begin + batch.num_rows] = batch.column(1).to_numpy()
        begin += batch.num_rows
    tables = {"items": catalogue, "users": users.select(["user_id"])}
    return Vocabulary(catalogue["item_id"].to_pylist()), (item_index, timestamp, offsets), tables


def _new_array(folder: Path | None, name: str, dtype: type, length: int) -> np.ndarray:
    """An empty array, in a file of `folder` where there is one."""
    if folder is None:
        return np.empty(length, dtype)
    return np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (length,))
