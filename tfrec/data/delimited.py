"""CSV, TSV and other delimited text, in blocks that are cut where a row ends.

Where rows end is decided here, and how many there are is counted here; PyArrow splits the rows into fields, and must find as
many. A quote that opens and does not close cannot be told from a long field: such a file is refused as a whole.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from tfrec.data.sources import Source

BLOCK_BYTES = 1 << 24
MAX_ROW_BYTES = 1 << 24
"""A longer row is a quote that was not closed."""
DELIMITERS = (",", ";", "\t", "::", "|")
"""What may stand between fields, where nobody says: the one that the first line has most of."""
STAND_IN = "\x1f"
"""Stands for a delimiter of several characters: PyArrow takes one."""
NEWLINE, RETURN = 10, 13
MARK = b"\xef\xbb\xbf"
"""The byte order mark of UTF-8."""
TYPED_HEADER = re.compile(r"(.+):(token|token_seq|float|float_seq)")
"""How RecBole's atomic files write a column's name."""

REMEDY = (
    "Where quotes are characters like others, pass --quote none; where a backslash stands before a quote that is part of a field, "
    "pass --escape '\\'."
)


@dataclass(frozen=True)
class Dialect:
    """How the rows of a file are split.

    Attributes:
        names: the columns, in order.
        delimiter: str, one or more characters.
        quote: str, the character around a field that holds a delimiter or a line break, doubled where it is part of the field;
            None where quotes are characters like others.
        escape: str, the character before a delimiter, quote or line break that is part of a field; or None.
        has_header: bool, whether the first row names the columns.
        lists: the columns that hold lists, with blanks between the values.
    """

    names: tuple[str, ...]
    delimiter: str
    quote: str | None = '"'
    escape: str | None = None
    has_header: bool = True
    lists: frozenset[str] = frozenset()


@dataclass
class Block:
    """Whole rows: their bytes, where each ends, and the line on which each starts; blank lines are no rows."""

    data: bytes
    lines: np.ndarray
    dialect: Dialect
    name: str

    def read(self, columns: Sequence[str]) -> tuple[pa.Table, np.ndarray, list[tuple[int, str]]]:
        """`(table, lines, bad)`: some columns as bytes, the line of each row, and `(line, reason)` of what is no row."""
        bad: list[tuple[int, str]] = []

        def refuse(row: pa.csv.InvalidRow) -> str:
            what = "few" if row.actual_columns < row.expected_columns else "many"
            bad.append(
                (row.number, f"too {what} columns ({row.expected_columns} expected, found {row.actual_columns})")
            )
            return "skip"

        try:
            table = self.parse(columns, refuse)
        except pa.ArrowInvalid as error:
            raise ValueError(f"`{self.name}`, line {self.lines[0]}: {error}") from None
        if table.num_rows + len(bad) != len(self.lines):
            raise ValueError(
                f"`{self.name}` cannot be split into rows reliably between lines {self.lines[0]} and {self.lines[-1]}: "
                f"{len(self.lines)} rows end there, {table.num_rows + len(bad)} were found. Nothing was read. {REMEDY}"
            )
        lines = self.lines
        if bad:
            rows = np.array([number for number, _ in bad]) - 1
            bad = [(int(line), reason) for line, (_, reason) in zip(self.lines[rows], bad, strict=True)]
            lines = np.delete(self.lines, rows)
        return table, lines, bad

    def parse(self, columns: Sequence[str], refuse: Callable[[pa.csv.InvalidRow], str]) -> pa.Table:
        """Some columns as bytes; `refuse` is called with each row that has another number of fields."""
        dialect = self.dialect
        numbers = [str(number) for number in range(len(dialect.names))]  # names may be empty
        chosen = {name: numbers[dialect.names.index(name)] for name in columns}
        kinds = dict.fromkeys(chosen.values(), pa.binary())
        # PyArrow skips a blank line, and a byte order mark at the start, which within a file belongs to the field
        data = b"\n" + self.data if self.data.startswith(MARK) else self.data
        table = pa.csv.read_csv(
            pa.BufferReader(data),
            pa.csv.ReadOptions(column_names=numbers, use_threads=False, block_size=max(1, len(data))),
            pa.csv.ParseOptions(
                delimiter=dialect.delimiter if len(dialect.delimiter) == 1 else STAND_IN,
                quote_char=dialect.quote or False,
                escape_char=dialect.escape or False,
                newlines_in_values=True,
                invalid_row_handler=refuse,
            ),
            pa.csv.ConvertOptions(include_columns=list(kinds), column_types=kinds, strings_can_be_null=False),
        )
        arrays = [table[number].combine_chunks() for number in chosen.values()]
        if len(dialect.delimiter) > 1:
            arrays = [pc.replace_substring(a, STAND_IN.encode(), dialect.delimiter.encode()) for a in arrays]
        return pa.Table.from_arrays(arrays, list(chosen))


class _QuoteError(Exception):
    """Text follows a closing quote: where, and where lines end."""

    def __init__(self, at: int, breaks: np.ndarray) -> None:
        self.at, self.breaks = at, breaks


def read_sample(block: Block, num_rows: int) -> pa.Table:
    """The first rows of a block, every column, as text; for a guess only: what does not parse is left out."""
    first = block.data.split(b"\n", num_rows)[:num_rows]
    sample = Block(b"\n".join(first) + b"\n", block.lines[:0], block.dialect, block.name)
    return sample.parse(list(dict.fromkeys(block.dialect.names)), lambda row: "skip")


def read_dialect(
    source: Source,
    columns: Sequence[str] = (),
    delimiter: str | None = None,
    quote: str | None = '"',
    escape: str | None = None,
) -> Dialect:
    """The dialect of a file: what is not told is told from its first line.

    Raises:
        ValueError: the first line cannot be read.
    """
    with source.open() as stream:
        start = stream.read(1 << 20).removeprefix(MARK)
    first = re.split(rb"\r\n|\n|\r", start, maxsplit=1)[0].decode(errors="replace")
    if delimiter is None:
        delimiter = "\t" if source.format == "tsv" else max(DELIMITERS, key=first.count)
    if columns:
        return Dialect(tuple(columns), delimiter, quote, escape, has_header=False)
    if len(delimiter) > 1:
        names = first.split(delimiter)
    else:
        rows = csv.reader(
            io.StringIO(start.decode(errors="replace"), newline=""),
            delimiter=delimiter,
            **({"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}),
            escapechar=escape,
        )
        try:
            names = next(rows, [])
        except csv.Error as error:
            raise ValueError(f"`{source.name}`: the first line cannot be read: {error}.") from None
    typed = [TYPED_HEADER.fullmatch(name) for name in names]
    lists: list[str] = []
    if names and all(typed):
        lists = [match[1] for match in typed if match[2].endswith("_seq")]  # type: ignore[index]
        names = [match[1] for match in typed]  # type: ignore[index]
    return Dialect(tuple(names), delimiter, quote, escape, lists=frozenset(lists))


def read_blocks(source: Source, dialect: Dialect, block_bytes: int | None = None) -> Iterator[Block]:
    """The rows of a file, without its header, `block_bytes` or `BLOCK_BYTES` at a time.

    Raises:
        ValueError: the file cannot be split into rows, or cannot be decompressed.
    """
    rest, line, is_first, is_last = b"", 1, True, False
    try:
        with source.open() as stream:
            while not is_last:
                read = stream.read(block_bytes or BLOCK_BYTES)
                is_last = not read
                data = rest + read
                if is_first:
                    data = data.removeprefix(MARK)
                if is_last and data and data[-1] not in (NEWLINE, RETURN):
                    data += b"\n"
                data, ends, breaks, open_at = _row_ends(data, dialect, is_last)
                if open_at is not None and (is_last or len(data) - open_at > MAX_ROW_BYTES):
                    at = line + int(np.searchsorted(breaks, open_at))
                    raise ValueError(
                        f"`{source.name}` cannot be split into rows: the quote that opens on line {at} is not closed. {REMEDY}"
                    )
                if not len(ends):
                    rest = data
                    continue
                stop = int(ends[-1]) + 1
                starts = np.concatenate([[0], ends[:-1] + 1])
                lines = line + np.searchsorted(breaks, starts)
                is_row = (ends > starts) & ~((ends == starts + 1) & (np.frombuffer(data, np.uint8)[starts] == RETURN))
                line += int(np.searchsorted(breaks, stop))
                block, rest, lines = data[:stop], data[stop:], lines[is_row]
                if is_first and len(lines):
                    is_first = False
                    if dialect.has_header:
                        block, lines = block[int(ends[is_row][0]) + 1 :], lines[1:]
                if len(lines):
                    yield Block(_prepared(block, dialect, source.name), lines, dialect, source.name)
            if rest:
                raise ValueError(
                    f"`{source.name}` cannot be split into rows: the character of --escape ends it, after line {line}, so its last "
                    f"row is not whole. Mend the end of the file."
                )
    except _QuoteError as error:
        at = line + int(np.searchsorted(error.breaks, error.at))
        raise ValueError(
            f"`{source.name}` cannot be split into rows: on line {at}, text follows the quote that closes a field. {REMEDY}"
        ) from None


def _row_ends(data: bytes, dialect: Dialect, is_last: bool) -> tuple[bytes, np.ndarray, np.ndarray, int | None]:
    """`(data, ends, breaks, open_at)`: the breaks that end a row, all line breaks, and the quote that is open at the end."""
    text = np.frombuffer(data, np.uint8)
    breaks = np.flatnonzero(text == NEWLINE)
    lone = np.zeros(0, np.int64)
    if data.count(b"\r") != data.count(b"\r\n"):  # a return without a newline ends a row too
        returns = np.flatnonzero(text[: len(text) if is_last else -1] == RETURN)
        lone = returns[np.append(text, 0)[returns + 1] != NEWLINE]
        breaks = np.sort(np.concatenate([breaks, lone]))
    ends, open_at = breaks, None
    escaped = (
        _escaped(text, dialect.escape) if dialect.escape and dialect.escape.encode() in data else np.zeros(0, np.int64)
    )
    if len(escaped):
        ends = ends[~np.isin(ends, escaped)]
    if dialect.quote and dialect.quote.encode() in data:
        quotes = np.flatnonzero(text == ord(dialect.quote))
        if len(escaped):
            quotes = quotes[~np.isin(quotes, escaped)]
        quotes = _structural(text, quotes, dialect, breaks, is_last)
        ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
        open_at = int(quotes[-1]) if len(quotes) % 2 else None
    if len(lone):
        changed = np.array(text)
        changed[np.intersect1d(lone, ends)] = NEWLINE
        data = changed.tobytes()
    return data, ends, breaks, open_at


def _escaped(text: np.ndarray, escape: str) -> np.ndarray:
    """Where a character has an escape before it that is not escaped itself: after each odd run of escapes."""
    at = np.flatnonzero(text == ord(escape))
    is_first = np.diff(at, prepend=-2) > 1
    run = np.cumsum(is_first) - 1
    length = np.bincount(run)
    last = at[np.append(is_first[1:], True)]
    # within a run, every second escape is escaped; it is no quote and no break, so only the character after the run counts
    return last[length % 2 == 1] + 1


def _structural(
    text: np.ndarray, quotes: np.ndarray, dialect: Dialect, breaks: np.ndarray, is_last: bool
) -> np.ndarray:
    """The quotes that open and close fields, in turn. A quote within a field that none opened is a character like others."""
    if not len(quotes):
        return quotes
    delimiter = np.frombuffer(dialect.delimiter.encode(), np.uint8)
    width = len(delimiter)
    around = np.concatenate([np.full(width, NEWLINE, np.uint8), text, np.full(width, NEWLINE, np.uint8)])
    at = quotes + width
    before, after = around[at - 1], around[at + 1]
    starts = (before == NEWLINE) | (before == RETURN)
    starts |= np.logical_and.reduce([around[at - width + n] == delimiter[n] for n in range(width)])
    stops = (after == NEWLINE) | (after == RETURN)
    stops |= np.logical_and.reduce([around[at + 1 + n] == delimiter[n] for n in range(width)])
    if not is_last:
        stops |= quotes >= len(text) - width  # the next block shows what follows
    follows = np.diff(quotes, prepend=-2) == 1
    opens, closes = slice(0, None, 2), slice(1, None, 2)
    is_doubled_before = np.append(follows[1:], False)
    if (
        (starts | follows)[opens][0]
        and (starts[opens] | (follows[opens] & (np.arange(len(quotes)) > 0)[opens])).all()
        and (stops | is_doubled_before)[closes].all()
    ):
        return quotes
    kept: list[int] = []
    is_open, number = False, 0
    while number < len(quotes):
        if not is_open:
            if starts[number]:
                is_open = True
                kept.append(number)
        elif number + 1 < len(quotes) and follows[number + 1]:
            number += 1  # doubled: a character of the field
        elif stops[number]:
            is_open = False
            kept.append(number)
        else:
            raise _QuoteError(int(quotes[number]), breaks)
        number += 1
    return quotes[kept]


def _prepared(data: bytes, dialect: Dialect, name: str) -> bytes:
    """Bytes as PyArrow splits them: one character between fields, and MySQL's null, which an escape would turn into N, empty."""
    if len(dialect.delimiter) > 1:
        if STAND_IN.encode() in data:
            raise ValueError(
                f"`{name}` holds the character U+001F, which stands for --delimiter {dialect.delimiter!r} while it is read: "
                "use a delimiter of one character."
            )
        delimiter = dialect.delimiter.encode()
        if dialect.escape:  # what an escape stands before is no part of a delimiter
            either = b"(?s)(" + re.escape(dialect.escape.encode()) + b".)|" + re.escape(delimiter)
            data = re.sub(either, lambda found: found[1] or STAND_IN.encode(), data)
        else:
            data = data.replace(delimiter, STAND_IN.encode())
    if dialect.escape == "\\" and rb"\N" in data:
        between = re.escape((dialect.delimiter if len(dialect.delimiter) == 1 else STAND_IN).encode())
        data = re.sub(rb"(?<![^\n" + between + rb"])\\N(?=[\r\n" + between + rb"])", b"", data)
    return data
