"""The good rows of a log as numbers: users and items numbered, times in one unit, sorted by user and time.

DuckDB sorts, and uses the disk where memory is short. What follows walks the sorted rows once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfrec.data.arrays import pieces
from tfrec.data.rows import PLACES, REFUSED, Rows, is_pointed
from tfrec.data.times import DATES, NANOSECONDS, UNITS, YEAR_1990, Kind, nanoseconds, plausible, tomorrow

BATCH_ROWS = 3_000_000
FETCH_ROWS = 1_000_000
SORT_MEMORY = "600MB"


@dataclass(frozen=True)
class Times:
    """The times of a log.

    Attributes:
        unit: str, the unit of a column of numbers; see `UNITS` and `DATES`.
        resolution: str, `s`, `ms`, `us` or `ns`: the coarsest that loses nothing.
        counts: how many rows have a time of which kind.
        is_given: bool, whether any row has one.
    """

    unit: str
    resolution: str
    counts: dict[str, int]
    is_given: bool


class Events:
    """Numbers users and items in order of first appearance, and keeps the rows in DuckDB until all are there.

    Args:
        con: a DuckDB connection.
        has_tie: bool, whether rows have a value that orders equal times.
        columns: names of the other columns of the rows, see `Rows.events`. Default: none.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, has_tie: bool, columns: Sequence[str] = ()) -> None:
        self.con, self.has_tie, self.columns = con, has_tie, columns
        self.ids = {role: pa.array([], pa.string()) for role in ("user", "item")}
        """The distinct ids, in order of first appearance."""
        self.values = {name: pa.array([], pa.string()) for name in columns}
        """The distinct values of the other columns, in order of first appearance."""
        self._pointed: dict[tuple[int, str], bool] = {}  # (file, role): every id so far ends in .0
        self._batch: list[Rows] = []
        self._worker, self._roles = ThreadPoolExecutor(1), ThreadPoolExecutor(2)
        self._running: Future | None = None
        con.execute(
            'CREATE TABLE events (u INTEGER, i INTEGER, kind UTINYINT, "value" BIGINT, place BIGINT, position INTEGER'
            f"{', tie VARCHAR' if has_tie else ''}{''.join(f', c{n} INTEGER' for n in range(len(columns)))})"
        )

    def add(self, file: int, rows: Rows) -> None:
        """Add the good rows of a part of a file."""
        for role in ("user", "item") if rows.is_untyped else ():
            if len(rows) and self._pointed.get((file, role), True):
                self._pointed[file, role] = is_pointed(getattr(rows, role))
        self._batch.append(rows)
        if sum(map(len, self._batch)) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        """Number and store the batch while the next one is read."""
        batch, self._batch = [rows for rows in self._batch if len(rows)], []
        self._wait()
        if batch:
            self._running = self._worker.submit(self._store, batch)

    def _wait(self) -> None:
        if self._running is not None:
            self._running.result()
            self._running = None

    def _store(self, batch: Sequence[Rows]) -> None:
        def number(role: str) -> np.ndarray:
            return self._number(self.ids, role, [getattr(rows, role) for rows in batch])

        codes = dict(zip(self.ids, self._roles.map(number, self.ids), strict=True))
        columns = {"u": codes["user"], "i": codes["item"]}
        for name in ("kind", "value", "place", "position"):
            columns[name] = np.concatenate([getattr(rows, name) for rows in batch])
        if self.has_tie:
            # sequence text has none
            ties = [pa.nulls(len(rows), pa.string()) if rows.tie is None else rows.tie for rows in batch]
            columns["tie"] = pa.chunked_array(ties, pa.string())
        for number_of, name in enumerate(self.columns):
            # a file without one good row has no columns
            values = [rows.events.get(name, pa.nulls(len(rows), pa.string())) for rows in batch]
            columns[f"c{number_of}"] = self._number(self.values, name, values)
        table = pa.table(columns)
        self.con.register("batch", table)
        self.con.execute("INSERT INTO events SELECT * FROM batch")
        self.con.unregister("batch")

    def _number(self, all_known: dict[str, pa.Array], name: str, batch: Sequence[pa.Array]) -> np.ndarray:
        """The numbers of a batch's values, -1 where one is missing; new values are appended, so that earlier numbers stay."""
        known = all_known[name]
        encoded = pa.chunked_array([known, *batch], pa.string()).dictionary_encode()
        all_known[name] = encoded.chunk(0).dictionary
        numbers = [chunk.indices for chunk in encoded.chunks]
        numbers = [pc.fill_null(number, -1) if number.null_count else number for number in numbers]
        return np.concatenate([number.to_numpy() for number in numbers])[len(known) :]

    def close(self) -> None:
        """End the threads."""
        self._worker.shutdown()
        self._roles.shutdown()

    def finish(self) -> None:
        """Wait until every row is stored. Ids of a column that went through floats lose their `.0`."""
        self._flush()
        self._wait()
        for role, column in (("user", "u"), ("item", "i")):
            if any(is_of_floats for (_, r), is_of_floats in self._pointed.items() if r == role):
                ids = self.ids[role]
                is_number = pc.match_substring_regex(ids, r"^-?[0-9]+\.0$")
                self.ids[role] = self._renumber(
                    column, pc.if_else(is_number, pc.replace_substring_regex(ids, r"\.0$", ""), ids)
                )

    def _renumber(self, column: str, texts: pa.Array) -> pa.Array:
        """Give a column's values the numbers of new texts, of which some may be equal; return the distinct ones."""
        encoded = texts.dictionary_encode()
        self.con.register("renumbered", pa.table({"old": np.arange(len(texts)), "new": encoded.indices}))
        self.con.execute(f"UPDATE events SET {column} = r.new FROM renumbered r WHERE r.old = events.{column}")
        self.con.unregister("renumbered")
        return encoded.dictionary

    def count(self, name: str) -> np.ndarray:
        """int64, shape `(values,)`: the events of each value of a column."""
        counts = np.zeros(len(self.values[name]), np.int64)
        column = f"c{self.columns.index(name)}"
        found = self.con.execute(
            f"SELECT {column} AS c, count(*) AS n FROM events WHERE {column} >= 0 GROUP BY 1"
        ).fetchnumpy()
        counts[found["c"]] = found["n"]
        return counts

    def refuse(self, name: str, is_wrong: np.ndarray, reason: str) -> pa.Table:
        """Delete the events of some values of a column; return them as refused rows."""
        column, wrong = f"c{self.columns.index(name)}", np.flatnonzero(is_wrong)
        reasons = [f"{reason}: {value[:40]}" for value in self.values[name].take(pa.array(wrong)).to_pylist()]
        self.con.register("wrong", pa.table({"code": wrong, "reason": pa.array(reasons, pa.string())}))
        refused = self._take_out(
            f"{column} IN (SELECT code FROM wrong)", f"(SELECT reason FROM wrong WHERE code = {column})"
        )
        self.con.unregister("wrong")
        return refused

    def _take_out(self, where: str, reason: str) -> pa.Table:
        """Delete the events for which an SQL condition holds, and return them as refused rows with an SQL expression as the reason.

        By event and not by place: the events of a session share theirs.
        """
        place = f"(place // {PLACES})::INTEGER AS file, place % {PLACES} AS line"
        refused = self.con.sql(f"SELECT {place}, {reason} AS reason FROM events WHERE {where}").to_arrow_table()
        self.con.execute(f"DELETE FROM events WHERE {where}")
        return refused.cast(REFUSED)

    def rewrite(self, name: str, texts: pa.Array) -> None:
        """Write the values of a column otherwise: what becomes the same text becomes one value."""
        self.values[name] = self._renumber(f"c{self.columns.index(name)}", texts)

    def times(self, notes: list[str]) -> tuple[Times, pa.Table]:
        """Choose the unit of the times from all of them; refuse what it makes no time of.

        A column of numbers has the unit that puts the most of them between 1990 and tomorrow; seconds, if none does.

        Returns:
            `(times, refused)`: the rows that are refused are deleted.
        """
        ranges = {unit: plausible(unit) for unit in (*UNITS, *DATES)}
        found = self.con.execute(
            "SELECT count(*) FILTER (kind > 0), count(*) FILTER (kind = 0), "
            + ", ".join(
                f"count(*) FILTER (kind IN (1, 2) AND {_whole()} BETWEEN {a} AND {b})" for a, b in ranges.values()
            )
            + " FROM events"
        ).fetchall()[0]
        is_given, hits = found[0] > 0, dict(zip(ranges, found[2:], strict=True))
        unit = max(hits, key=hits.__getitem__)  # the first of equals
        if not is_given:
            notes.append("no times: the events of a user keep the order of the log (--time names the column of times)")
            return Times(unit, "s", {"none": found[1]}, False), REFUSED.empty_table()
        self.con.execute(f"CREATE VIEW timed AS SELECT *, {nanoseconds(unit)} AS t FROM events")
        *loses, early, late, numbers, instants, good = self.con.execute(
            "SELECT "
            + ", ".join(f"count(*) FILTER (t % {ns} <> 0)" for ns in NANOSECONDS.values())
            + f", count(*) FILTER (t < {YEAR_1990 * 10**9}), count(*) FILTER (t > {tomorrow() * 10**9})"
            + f", count(*) FILTER (kind <> {int(Kind.INSTANT)}), count(*) FILTER (kind = {int(Kind.INSTANT)}), count(*) "
            + "FROM timed WHERE t >= 0"
        ).fetchall()[0]
        refused = REFUSED.empty_table()
        if good < found[0] + found[1]:
            refused = self._take_out(
                f"{nanoseconds(unit)} IS NULL OR {nanoseconds(unit)} < 0",
                f"CASE WHEN kind = 0 THEN 'missing time' ELSE 'time is no date of 1970 to 2262: ' || {_whole()} END",
            )
        resolution = next(name for name, lost in zip(NANOSECONDS, loses, strict=True) if not lost)
        if early or late:
            notes.append(
                f"warning: {early:,} times lie before 1990 and {late:,} after tomorrow: is the unit right? "
                f"{'Numbers are read as ' + unit if numbers else 'Times are read as ISO 8601'}"
            )
        counts = {name: n for name, n in ((unit, numbers), ("dates and times", instants)) if n}
        return Times(unit, resolution, counts, True), refused

    def by_user(self, times: Times) -> Iterator[tuple[np.ndarray, ...]]:
        """Batches of `(user, item, time, place, position, *columns)` by user and time; equal times in the order of the tie-break,
        then of the log. The events of a user are in one batch. `columns` are numbers of `values`, -1 where one is missing."""
        time = f"t // {NANOSECONDS[times.resolution]}" if times.is_given else "0::BIGINT"
        order = ["u", *(["t"] if times.is_given else [])]
        if self.has_tie:
            found = self.con.execute("SELECT count(tie), count(TRY_CAST(tie AS DOUBLE)) FROM events").fetchall()[0]
            number = ["TRY_CAST(tie AS DECIMAL(38, 9))", "TRY_CAST(tie AS DOUBLE)"]  # a double holds no 19 digits
            order += [f"{value} NULLS LAST" for value in (number if found[0] == found[1] else ["tie"])]
        columns = "".join(f", c{n}" for n in range(len(self.columns)))
        reader = self.con.sql(
            f"SELECT u, i, {time} AS t, place, position{columns} FROM {'timed' if times.is_given else 'events'} "
            f"ORDER BY {', '.join(order)}, place, position"
        ).to_arrow_reader(FETCH_ROWS)
        last_user: list[tuple[np.ndarray, ...]] = []  # batches, of which the next one may hold more
        for batch in reader:
            found = tuple(column.to_numpy() for column in batch.columns)
            user = found[0]
            if not len(user):
                continue
            cut = int(np.searchsorted(user, user[-1]))
            if cut or (last_user and last_user[0][0][0] != user[0]):
                yield _joined([*last_user, tuple(column[:cut] for column in found)])
                last_user = []
            last_user.append(tuple(column[cut:] for column in found))
        if last_user:
            yield _joined(last_user)


def _joined(batches: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(columns) for columns in zip(*batches, strict=True))


def _whole() -> str:
    """SQL of the whole part of a number."""
    return f'CASE kind WHEN {int(Kind.FRACTION)} THEN "value" // 1000000 ELSE "value" END'


def is_duplicate(
    user: np.ndarray, item: np.ndarray, time: np.ndarray, position: np.ndarray, *columns: np.ndarray
) -> np.ndarray:
    """Bool: whether an earlier row has the same user, item, time, place within a session and other columns. Rows are sorted by
    user and time.

    >>> is_duplicate(np.array([0, 0, 0, 1]), np.array([5, 6, 5, 5]), np.array([3, 3, 3, 3]), np.zeros(4)).tolist()
    [False, False, True, False]
    """
    is_tied = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    found = np.zeros(len(user), bool)
    tied = np.flatnonzero(np.append(is_tied, False) | np.insert(is_tied, 0, False))
    if len(tied):
        group = np.cumsum(np.insert(~is_tied, 0, True))[tied]
        keys = [*(column[tied] for column in columns), position[tied], item[tied], group]
        order = np.lexsort(keys)  # stable: the earlier row first
        keys = [values[order] for values in keys]
        is_same = np.logical_and.reduce([key[1:] == key[:-1] for key in keys])
        found[tied[order[1:][is_same]]] = True
    return found


def rare(
    item: np.ndarray, offsets: np.ndarray, num_items: int, min_user_events: int, min_item_events: int
) -> np.ndarray:
    """Bool: the events that stay when rare users and items are dropped until none is left.

    Dropping a user can make an item rare, and the other way round.

    >>> rare(np.array([0, 0, 1, 1, 2]), np.array([0, 3, 5]), 3, min_user_events=2, min_item_events=2).tolist()
    [True, True, False, False, False]
    """
    kept = np.ones(len(item), bool)
    lengths = np.diff(offsets)
    while True:
        before = int(kept.sum())
        count = count_by_user(kept, offsets)
        kept &= np.repeat(count >= min_user_events, lengths)
        count = np.zeros(num_items, np.int64)
        for part in pieces(len(kept)):
            count += np.bincount(item[part][kept[part]], minlength=num_items)
        is_common = count >= min_item_events
        for part in pieces(len(kept)):
            kept[part] &= is_common[item[part]]
        if int(kept.sum()) == before:
            return kept


def count_by_user(kept: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """int64, shape `(users,)`: the events that are kept.

    >>> count_by_user(np.array([True, False, True]), np.array([0, 2, 2, 3])).tolist()
    [1, 0, 1]
    """
    # `reduceat` gives an empty stretch the value at its start
    return np.add.reduceat(np.append(kept, False), offsets[:-1], dtype=np.int64) * (np.diff(offsets) > 0)
