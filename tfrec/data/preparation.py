"""Prepares a log: reads, checks and sorts it, and makes prepared data of it, in memory or in a folder."""

from __future__ import annotations

import collections
import contextlib
import datetime
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfrec.data.arrays import ArrayWriter, bincount, pieces
from tfrec.data.database import connect
from tfrec.data.event_columns import EventColumn, encode_events, event_columns, fit_users, settle_values
from tfrec.data.events import SORT_MEMORY, Events, Times, count_by_user, is_duplicate, rare
from tfrec.data.items import read_items, read_users
from tfrec.data.kinds import fit_table, named_kinds
from tfrec.data.prepared import FORMAT, MANIFEST, NO_ROWS, PreparedData
from tfrec.data.readers import Reading, read_files, read_frame, sources_of
from tfrec.data.rows import PLACES, Part, Rows, check, refused_table
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, Vocabulary
from tfrec.files import replace_folder, scratch
from tfrec.progress import count
from tfrec.version import __version__

NUM_READERS = 2
"""Parts of a log that are read at a time."""
NO_FEATURES = ("item_id", "user_id", "num_events")
"""Columns of items and users that a model reads in another way."""
DUPLICATES = ("drop", "keep", "refuse")


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
    delimiter: str | None = None,
    quote: str | None = '"',
    escape: str | None = None,
    null_values: Sequence[str] | None = None,
    encoding: str | None = None,
    items_options: Mapping[str, Any] | None = None,
    item_features: Mapping[str, str] | None = None,
    text_encoder: str | None = None,
    event_features: Mapping[str, str] | Sequence[str] | None = None,
    context: Mapping[str, str] | Sequence[str] | None = None,
    users: Any = None,
    users_options: Mapping[str, Any] | None = None,
    user_features: Mapping[str, str] | None = None,
    time_format: str | None = None,
    tie_break: str | None = None,
    duplicates: str = "drop",
    max_refused: float = 0.01,
    min_user_events: int = 1,
    min_item_events: int = 1,
    overwrite: bool = False,
    about: Mapping[str, Any] | None = None,
) -> PreparedData:
    """Read, check and sort an interaction log.

    A row is refused for a missing id, a time that does not parse, a wrong number of columns or broken UTF-8. A file that cannot
    be split into rows reliably is refused as a whole. Events of a user are sorted by time. Equal times, and logs without times,
    keep the order of the log. Rows read = events + refused rows + dropped duplicates + events of rare users and items.

    >>> import pyarrow as pa
    >>> data = prepare(pa.table({"customer": [7, 7, 8], "sku": ["a", "b", "a"], "day": ["2026-01-02", "2026-01-01", None]}),
    ...                user="customer", time="day", max_refused=0.5)
    >>> data.vocabulary.decode(data.history(0)), data.refused.to_pylist()
    (['b', 'a'], [{'file': '(in memory)', 'line': 3, 'reason': 'missing time'}])

    Args:
        log: the path of a file, of a folder of parts, a glob or a URI (`s3://`, `gs://`), or a list of them, read in this order;
            or a data frame (pandas, Polars, PyArrow). Files may be compressed (`.gz`, `.zst`, `.bz2`).
        out: the folder to write; it appears whole or not at all. Default: none, the data stays in memory.
        user, item, time: str, names of columns. Default: guessed by common names, a time also by its values; the guesses are in
            `manifest["notes"]`. A list of items is a session. Times are numbers of seconds, milliseconds, microseconds or
            nanoseconds (one unit for a log, decided on all of it), numbers such as 20260131, timestamps, or ISO 8601 text.
        items: a file or a data frame of item properties: an item id, perhaps a title, anything else. Default: none.
        format: str, `csv`, `tsv`, `parquet`, `jsonl` or `sequences`. Default: by the ending of the file.
        columns: names for the columns of a CSV or TSV file without a header line.
        first_column: `"user"` when each line of sequence text starts with the user id. Default: the line number is the user.
        delimiter: str, what stands between the fields of CSV and TSV files. Default: told from the first line.
        quote: str, the character around a field that holds delimiters or line breaks; None: quotes are characters like others.
            Default: `"`.
        escape: str, the character before a delimiter or quote that is part of a field, as MySQL and Spark write it. Default:
            none, a quote within quotes is doubled.
        null_values: texts that mean "missing" in ids and times. Default: `NULL_VALUES`.
        encoding: the encoding of text files, such as `latin-1`. Default: UTF-8, or UTF-16 with a byte order mark.
        items_options: what is different in the item file: `format`, `columns`, `delimiter`, `quote`, `escape`, `encoding`,
            `null_values`. Default: it is read like the log, its format and columns told from the file.
        item_features: dict, the kinds of columns of `items` by their names: `category`, `multi` (`multi:|` with the separator),
            `number`, `date`, `vector`, `text`, `none` (left out) or `auto`; see docs/features.md. Default: told from the values;
            `manifest["item_features"]` says what was told.
        text_encoder: str, the sentence encoder (of the package sentence-transformers) that makes vectors of text. Default: none,
            vectors of text are learned from the catalogue.
        event_features: names of columns of the log that a model reads of each event of a history, such as the type of the event;
            or a dict with their kinds: `category`, `number`, or `auto`, told from the values. A row whose value is no number is
            refused where a column was named as `number`. Default: none.
        context: the same of the event that is to be found, such as the device of a request. Default: none.
        users: a file or a data frame of user properties: a user id, anything else. Default: none.
        users_options: see `items_options`.
        user_features: the kinds of columns of `users`; see `item_features`. A model reads categories and numbers.
        time_format: str, the format of times in the letters of `strftime`. Default: numbers or ISO 8601.
        tie_break: str, the column that orders events of equal times: as numbers, if all are. Default: the order of the log.
        duplicates: str, what becomes of a row with the user, item and time of an earlier one: `drop`, `keep` or `refuse`.
            Default: `drop`.
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
    if duplicates not in DUPLICATES:
        raise ValueError(f"`duplicates` must be one of {', '.join(DUPLICATES)}. Received: {duplicates!r}.")
    if isinstance(log, str | os.PathLike):
        log = [log]
    if not 0 <= max_refused <= 1:
        raise ValueError(f"`max_refused` must be a share between 0 and 1. Received: {max_refused}.")
    named = event_columns(event_features, context)
    reading = Reading(
        format,
        user,
        item,
        time,
        tie_break,
        columns,
        first_column,
        delimiter,
        quote,
        escape,
        null_values,
        time_format,
        encoding,
        events=[column.name for column in named],
    )
    notes: list[str] = []
    with contextlib.ExitStack() as opened:
        aside = opened.enter_context(_work_folder(out, overwrite))
        con = opened.enter_context(_database(aside))
        properties = None if items is None else read_items(items, reading, **(items_options or {}))
        of_users = None if users is None else read_users(users, reading, **(users_options or {}))
        # wrong names are told before the log is read
        named_kinds(item_features, _columns(properties), "item_features")
        named_kinds(user_features, _columns(of_users), "user_features")
        if isinstance(log, list | tuple):
            sources = sources_of(log, reading)
            files, given = [source.name for source in sources], [os.fspath(path) for path in log]
            parts = read_files(sources, reading, notes)
        else:
            files = given = ["(in memory)"]
            parts = read_frame(log, reading, notes)
        events = opened.enter_context(contextlib.closing(Events(con, tie_break is not None, reading.events)))
        numbers = [column.name for column in named if column.kind == "number"]
        refused, num_rows = _read(parts, events, files, reading, numbers)
        try:
            refused.append(settle_values(events, named))
            times, late = events.times(notes)
            refused.append(late)
            _limit_refused(refused, num_rows, files, max_refused)
            arrays, users_of, catalogue, counts, repeated, encoded = _collect(
                events, times, named, aside, duplicates, min_user_events, min_item_events
            )
        except duckdb.Error as error:
            text = str(error).splitlines()[0]
            raise ValueError(f"The log cannot be prepared: {text}. Nothing was written.") from error
        refused.append(repeated)
        _limit_refused(refused, num_rows, files, max_refused)
        table = _refused_rows(refused, files)
        num_events = len(arrays[0])
        if num_rows != num_events + len(table) + counts["num_duplicates"] + counts["num_filtered_events"]:
            raise RuntimeError(
                f"{num_rows} rows were read, and not all can be accounted for: {len(table)} refused, {counts}."
            )
        reasons = pc.replace_substring_regex(table["reason"], r"(?s)( \(|:).*", "").value_counts().to_pylist()
        manifest: dict[str, Any] = {"format_version": FORMAT, "tfrec_version": __version__}
        manifest |= {"num_rows": num_rows, "num_refused": len(table)}
        manifest |= {"refused": {kind["values"]: kind["counts"] for kind in sorted(reasons, key=lambda k: k["values"])}}
        manifest |= {"time_units": times.counts, "time_resolution": times.resolution} | counts
        vocabulary = Vocabulary(catalogue["item_id"].to_pylist())
        manifest |= {"num_users": len(users_of), "num_items": len(vocabulary), "num_events": num_events}
        if properties is not None:
            catalogue, counts = _with_properties("item", catalogue, properties, notes)
            manifest |= counts
        of_items, told = fit_table(catalogue, item_features, encoder=text_encoder, without=NO_FEATURES)
        of_events, features, told_of_events = encoded
        features |= {"items": of_items} if of_items else {}
        manifest |= {"item_features": told} | ({"event_features": told_of_events} if named else {})
        if of_users is not None:
            users_of, counts = _with_properties("user", users_of, of_users, notes)
            known, told = fit_users(users_of, user_features, of_events, NO_FEATURES)
            features |= {"users": known} if known else {}
            users_of = users_of.select(["user_id", *(feature.name for feature in known)])  # others may be personal data
            manifest |= counts | {"user_features": told}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        manifest |= {"notes": list(dict.fromkeys(notes)), "source": given, "created": now, **(about or {})}
        tables = {"items": catalogue, "users": users_of, "refused": table}
        data = PreparedData(vocabulary, *arrays, manifest, **tables, features=features, event_columns=of_events)
        if aside is None:
            return data
        data.write_tables(aside)
    assert out is not None
    return PreparedData.open(out)


def _read(
    parts: Iterator[Callable[[], Part]],
    events: Events,
    files: Sequence[str],
    reading: Reading,
    numbers: Sequence[str],
) -> tuple[list[pa.Table], int]:
    """Read and check the parts of a log, some at a time, in order; return the refused rows, and how many rows there are."""
    refused: list[pa.Table] = []
    num_rows = 0
    running: collections.deque[Future[tuple[int, Rows]]] = collections.deque()

    def read(part: Callable[[], Part]) -> tuple[int, Rows]:
        rows = part()
        try:
            return rows.file, check(rows, reading.null_values, reading.time_format, numbers)
        except ValueError as error:
            raise ValueError(f"`{files[rows.file]}`: {error}. Nothing was read.") from None

    with ThreadPoolExecutor(NUM_READERS) as pool, count("Reading", "rows") as advance:

        def take() -> int:
            file, rows = running.popleft().result()
            refused.append(rows.refused)
            events.add(file, rows)
            number = len(rows) + len(rows.refused)
            advance(number)
            return number

        for part in parts:
            running.append(pool.submit(read, part))
            if len(running) > NUM_READERS:
                num_rows += take()
        while running:
            num_rows += take()
    events.finish()
    return refused, num_rows


def _limit_refused(refused: Sequence[pa.Table], num_rows: int, files: Sequence[str], max_refused: float) -> None:
    """Raise where more rows were refused than allowed, or none is left."""
    num_refused = sum(map(len, refused))
    if not num_rows:
        raise ValueError(f"{', '.join(f'`{f}`' for f in files)}: no rows. A log needs at least one user and item.")
    if num_refused > max_refused * num_rows or num_refused == num_rows:
        rows = _refused_rows(refused, files)[:3].to_pylist()
        first = "; ".join(f"{row['file']}, line {row['line']}: {row['reason']}" for row in rows)
        raise ValueError(
            f"{num_refused} of {num_rows} rows were refused, more than --max-refused "
            f"{max_refused:g} allows; nothing was written. The first: {first}. "
            f"Mend the log, or raise --max-refused."
        )


def _refused_rows(refused: Sequence[pa.Table], files: Sequence[str]) -> pa.Table:
    """The refused rows in the order of the log, with the names of their files."""
    table = pa.concat_tables(refused).sort_by([("file", "ascending"), ("line", "ascending")])
    names = pa.array(files, pa.string()).take(table["file"].combine_chunks())
    return table.set_column(0, "file", names).cast(NO_ROWS.schema)


def _collect(
    events: Events,
    times: Times,
    named: Sequence[EventColumn],
    folder: Path | None,
    duplicates: str,
    min_user_events: int,
    min_item_events: int,
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], pa.Table, pa.Table, dict[str, Any], pa.Table, tuple]:
    """Sort the events, drop duplicates and rare users and items.

    Returns:
        `(arrays, users, catalogue, counts, repeated, encoded)`: `item_index`, `timestamp` and `offsets`, in files of `folder` where
        there is one; tables of the users and items that are left, in order of first appearance in the log; entries of the manifest;
        the duplicates that are refused; the columns of events, see `encode_events`.
    """
    lengths, item_counts = (np.zeros(len(events.ids[role]), np.int64) for role in ("user", "item"))
    indexes, stamps = ArrayWriter(folder, "item_index", np.int32), ArrayWriter(folder, "timestamp", np.int64)
    others = [ArrayWriter(folder, f"event_{number}", np.int32) for number in range(len(named))]
    twice: list[np.ndarray] = []
    for user, item, time, place, position, *codes in events.by_user(times):
        if times.is_given and duplicates != "keep":
            is_twice = is_duplicate(user, item, time, position, *codes)
            twice.append(place[is_twice])
            user, item, time, *codes = (values[~is_twice] for values in (user, item, time, *codes))
        lengths[user[0] : user[-1] + 1] += np.bincount(user - user[0])
        item_counts += np.bincount(item, minlength=len(item_counts))
        indexes.append(item + FIRST_ITEM_INDEX)
        stamps.append(time)
        for writer, code in zip(others, codes, strict=True):
            writer.append(code)
    item_index, timestamp = indexes.finish(), stamps.finish()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    before, kept = len(item_index), None
    if min_user_events > 1 or min_item_events > 1:
        kept = rare(item_index, offsets, len(item_counts) + FIRST_ITEM_INDEX, min_user_events, min_item_events)
        if not kept.any():
            raise ValueError(
                f"No event is left after --min-user-events {min_user_events} and --min-item-events "
                f"{min_item_events}. Lower them."
            )
        indexes, stamps = ArrayWriter(folder, "item_index", np.int32), ArrayWriter(folder, "timestamp", np.int64)
        for part in pieces(before):
            indexes.append(item_index[part][kept[part]])
            stamps.append(timestamp[part][kept[part]])
        lengths = count_by_user(kept, offsets)
        item_index, timestamp = indexes.finish(), stamps.finish()
        item_counts = bincount(item_index, len(item_counts) + FIRST_ITEM_INDEX)[FIRST_ITEM_INDEX:]
    encoded = encode_events(named, [writer.finish() for writer in others], events.values, kept, folder)
    has_user, has_item = lengths > 0, item_counts > 0
    if not has_item.all():
        renumbered = np.cumsum(has_item, dtype=np.int32) + (FIRST_ITEM_INDEX - 1)
        for part in pieces(len(item_index)):
            item_index[part] = renumbered[item_index[part] - FIRST_ITEM_INDEX]
    borders = ArrayWriter(folder, "offsets", np.int64)
    borders.append(np.concatenate([[0], np.cumsum(lengths[has_user])]))
    users = pa.table({"user_id": events.ids["user"].filter(pa.array(has_user))})
    ids = events.ids["item"].filter(pa.array(has_item))
    catalogue = pa.table({"item_id": ids, "num_events": item_counts[has_item]})
    places = np.concatenate([np.zeros(0, np.int64), *twice])
    counts = {
        "duplicates": duplicates,
        "num_duplicates": len(places) if duplicates == "drop" else 0,
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "num_filtered_events": before - len(item_index),
    }
    refused = []
    for file in np.unique(places // PLACES) if duplicates == "refuse" else ():
        lines = np.sort(places[places // PLACES == file] % PLACES)
        refused.append(refused_table(int(file), lines.tolist(), ["duplicate of an earlier row"] * len(lines)))
    repeated = pa.concat_tables([refused_table(0, [], []), *refused])
    return (item_index, timestamp, borders.finish()), users, catalogue, counts, repeated, encoded


def _columns(properties: pa.Table | None) -> list[str]:
    """The columns of an item or user file that may be features."""
    return [] if properties is None else [name for name in properties.column_names if name not in NO_FEATURES]


def _with_properties(
    role: str, table: pa.Table, properties: pa.Table, notes: list[str]
) -> tuple[pa.Table, dict[str, int]]:
    """The catalogue, or the users, with their properties; of an item or user with several rows, the first counts."""
    id_, a = f"{role}_id", {"item": "an item", "user": "a user"}[role]
    given, own = properties[id_].combine_chunks(), table[id_].combine_chunks()
    row = pc.index_in(own, value_set=given)  # the first of equals
    for name in properties.column_names:
        if name == "num_events":
            notes.append(f"column 'num_events' of the {role} file is left out: it is counted from the log")
        elif name != id_:
            table = table.append_column(name, properties[name].take(row))
    twice = len(given) - pc.count_distinct(given).as_py()
    if row.null_count:
        notes.append(f"{row.null_count} of {len(row)} {role}s have no row in the {role} file")
    if twice:
        notes.append(f"{twice} rows of the {role} file repeat {a}: the first row of each counts")
    counts = {f"num_{role}s_without_properties": row.null_count, f"num_repeated_{role}s": twice}
    if role == "user":
        absent = pc.count_distinct(given).as_py() - (len(row) - row.null_count)
        counts["num_users_without_events"] = absent
        if absent:
            notes.append(f"{absent} users of the user file have no event in the log")
    return table, counts


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
    place = next(folder for folder in out.absolute().parents if folder.exists())  # missing ones are made at the end
    if not place.is_dir():
        raise FileExistsError(f"`{place}` is a file, so `{out}` cannot be made in it. Choose another folder.")
    aside = scratch(place / out.name)
    aside.mkdir()
    try:
        yield aside
        out.parent.mkdir(parents=True, exist_ok=True)
        if overwrite:
            replace_folder(aside, out)
        else:
            try:
                aside.rename(out)
            except OSError:
                raise FileExistsError(
                    f"`{out}` was written meanwhile. Choose another folder, or pass --overwrite."
                ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _database(folder: Path | None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database, in a file of `folder` or in memory."""
    path = None if folder is None else folder / "work.duckdb"
    with contextlib.closing(connect(path, memory_limit=SORT_MEMORY)) as con:
        if path is None:
            con.execute("SET temp_directory = ?", [tempfile.gettempdir()])
        yield con
    if path is not None:
        path.unlink()
