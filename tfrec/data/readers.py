"""Reads logs and item files: one way for files of every format, folders of them, and data frames."""

from __future__ import annotations

import codecs
import datetime
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tfrec.data import delimited, json_lines
from tfrec.data.columns import EVENT, choose_columns, first_twin
from tfrec.data.rows import Part, as_text
from tfrec.data.sources import Source, find_sources
from tfrec.data.vocabulary import id_text

CHUNK_ROWS = 500_000
SAMPLE_ROWS, SAMPLE_FILES, SAMPLE_BYTES = 1000, 3, 1 << 18
"""What a guess by content looks at: the first rows of some files."""
KNOWN_FORMATS = ("csv", "tsv", "parquet", "jsonl", "sequences")


@dataclass(frozen=True)
class Reading:
    """How files are read. A field left at None is guessed, and the guess is reported.

    Attributes:
        format: `csv`, `tsv`, `parquet`, `jsonl` or `sequences`.
        user, item, time, tie: column names; events with equal times are in the order of `tie`.
        columns: names for the columns of a CSV or TSV file that has no header line.
        first_column: of sequence text, `"user"` when each line starts with the user id.
        delimiter, quote, escape: see `Dialect`; a quote of None: quotes are characters like others.
        null_values: texts that mean "missing". Default: `NULL_VALUES`.
        time_format: the format of times, in the letters of `strftime`.
        encoding: the encoding of text files. Default: UTF-8, or UTF-16 with a byte order mark.
        otherwise: the format of files whose ending tells none. Default: such a file is an error.
        events: names of further columns of a log that are read along.
    Raises:
        ValueError: an option is no such format, character or encoding.
    """

    format: str | None = None
    user: str | None = None
    item: str | None = None
    time: str | None = None
    tie: str | None = None
    columns: Sequence[str] = ()
    first_column: str | None = None
    delimiter: str | None = None
    quote: str | None = '"'
    escape: str | None = None
    null_values: Sequence[str] | None = None
    time_format: str | None = None
    encoding: str | None = None
    otherwise: str | None = None
    events: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.format not in (None, *KNOWN_FORMATS):
            raise ValueError(f"there is no format {self.format!r}. Pass --format, one of {', '.join(KNOWN_FORMATS)}.")
        if self.first_column not in (None, "user"):
            raise ValueError(f"--first-column must be user, or left out. Received: {self.first_column!r}.")
        for name in ("columns", "null_values"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"`{name}` must be a list of texts. Received: {getattr(self, name)!r}.")
        for name in ("quote", "escape"):
            value = getattr(self, name)
            if value is not None and (len(value.encode()) != 1 or value in "\r\n"):
                raise ValueError(
                    f"--{name} must be one ASCII character and no line break, or none. Received: {value!r}."
                )
        if self.delimiter is not None and (
            not self.delimiter or not self.delimiter.isascii() or set(self.delimiter) & {"\r", "\n"}
        ):
            raise ValueError(f"--delimiter must be ASCII characters, none a line break. Received: {self.delimiter!r}.")
        roles = [c for c in (self.quote, self.escape, self.delimiter) if c is not None]
        if len(set(roles)) < len(roles):
            raise ValueError(f"--delimiter, --quote and --escape must differ. Received: {', '.join(map(repr, roles))}.")
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                raise ValueError(
                    f"--encoding: there is no encoding {self.encoding!r}. Pass one such as latin-1 or utf-16."
                ) from None

    @property
    def told(self) -> dict[str, str | None]:
        """The columns that were named, by role."""
        own = {"user": self.user, "item": self.item, "time": self.time, "tie": self.tie}
        return own | {EVENT + name: name for name in self.events}


def sources_of(paths: Sequence[str | os.PathLike], reading: Reading) -> list[Source]:
    """The files of a log, in the order in which they are read.

    Raises:
        ValueError: no path was given, or one has no files.
    """
    if not paths:
        raise ValueError("No file was given. Pass one or more log files, or the name of a data set.")
    return [s for path in paths for s in find_sources(path, reading.format, reading.otherwise, reading.encoding)]


def read_files(sources: Sequence[Source], reading: Reading, notes: list[str]) -> Iterator[Callable[[], Part]]:
    """The parts of a log, in order, as functions that read them: several may run at a time.

    Raises:
        ValueError: a file cannot be read, or has no column of users or items.
    """
    if sum(source.format == "sequences" for source in sources) > 1 and reading.first_column != "user":
        raise ValueError(
            "Several files of sequence text: the line number cannot be the user, since each file begins with line 1. Start "
            "each line with the user id, and pass --first-column user."
        )
    if reading.events and any(source.format == "sequences" for source in sources):
        raise ValueError(
            f"Sequence text has items alone, and no columns {', '.join(map(repr, reading.events))}: leave out --event-feature and "
            f"--context, or bring the log as CSV, Parquet or JSON."
        )
    told = [f"--{role}" for role in ("user", "item", "time") if reading.told[role]]
    if told and all(source.format == "sequences" for source in sources):
        raise ValueError(f"Sequence text has no columns to name: leave out {', '.join(told)}.")
    choose = _Choice(sources, reading, notes)
    for number, source in enumerate(sources):
        read = {"csv": _delimited, "tsv": _delimited, "parquet": _parquet, "jsonl": _json, "sequences": _sequences}
        yield from read[source.format](source, number, reading, choose)


def read_frame(frame: Any, reading: Reading, notes: list[str]) -> Iterator[Callable[[], Part]]:
    """The parts of a data frame; see `read_files`."""
    sample = as_table(frame, "log", num_rows=SAMPLE_ROWS)
    names = choose_columns(sample.column_names, reading.told, "The frame", notes, [sample])
    table = as_table(frame, "log", [name for name in dict.fromkeys(names.values()) if name is not None])
    yield from _typed(table.to_batches(max_chunksize=CHUNK_ROWS), 0, names, {})


class _Choice:
    """Chooses the columns of a log's files: once for all files that have the same ones."""

    def __init__(self, sources: Sequence[Source], reading: Reading, notes: list[str]) -> None:
        self.sources, self.reading, self.notes = sources, reading, notes
        self._chosen: dict[tuple[str, ...], dict[str, str | None]] = {}

    def __call__(
        self, source: Source, names: Sequence[str], sample: Callable[[Source], pa.Table]
    ) -> dict[str, str | None]:
        """The columns of a file and of its folders, by role; see `choose_columns`.

        `sample` gives the first rows of this file, and of those that follow: one part may lack the times that others have.
        """
        key = (*names, *(name for name in source.partitions if name not in names))
        if key not in self._chosen:
            first, tables = self.sources.index(source), []
            for other in self.sources[first : first + SAMPLE_FILES] if self.reading.time is None else ():
                if other.format == source.format:
                    table = sample(other)
                    for name in other.partitions:
                        if name not in table.column_names:
                            values = pa.array([other.partitions[name]] * len(table), pa.string())
                            table = table.append_column(name, values)
                    if {*table.column_names} == {*key}:
                        tables.append(table)
            self._chosen[key] = choose_columns(key, self.reading.told, f"`{source.name}`", self.notes, tables)
        return self._chosen[key]


def _delimited(source: Source, number: int, reading: Reading, choose: _Choice) -> Iterator[Callable[[], Part]]:
    dialect = _dialect(source, reading)
    names = choose(source, dialect.names, partial(_delimited_sample, reading=reading))
    for block in delimited.read_blocks(source, dialect):
        yield partial(_delimited_part, block, number, names, source.partitions)


def _delimited_sample(source: Source, reading: Reading) -> pa.Table:
    dialect = _dialect(source, reading)
    block = next(delimited.read_blocks(source, dialect, SAMPLE_BYTES), None)
    if block is None:
        return pa.table({name: pa.array([], pa.binary()) for name in dialect.names})
    return delimited.read_sample(block, SAMPLE_ROWS)


def _delimited_part(block: delimited.Block, number: int, names: dict, partitions: Mapping) -> Part:
    own = {role: name for role, name in names.items() if name is not None and name in block.dialect.names}
    # where folders name everything, the rows are to be counted all the same
    table, lines, bad = block.read(list(dict.fromkeys(own.values())) or block.dialect.names[:1])
    columns = {role: table[name].combine_chunks() for role, name in own.items()}
    for role in own:
        if own[role] in block.dialect.lists:
            columns[role] = _split_lists(columns[role])
    return Part(number, columns | _of_folder(names, own, partitions, len(lines)), lines, bad, is_untyped=True)


def _split_lists(values: pa.Array) -> pa.Array:
    """Text with blanks between values as lists; a list that is not UTF-8 is missing."""
    text, is_broken = as_text(values, ())
    return pc.utf8_split_whitespace(pc.if_else(pa.array(is_broken), None, text))


def _of_folder(names: Mapping, own: Mapping, partitions: Mapping, length: int) -> dict[str, pa.Array]:
    """The columns that the names of folders hold."""
    others = {role: name for role, name in names.items() if name is not None and role not in own}
    return {role: pa.array([partitions[name]] * length, pa.string()) for role, name in others.items()}


def _dialect(source: Source, reading: Reading) -> delimited.Dialect:
    return delimited.read_dialect(source, reading.columns, reading.delimiter, reading.quote, reading.escape)


def _parquet(source: Source, number: int, reading: Reading, choose: _Choice) -> Iterator[Callable[[], Part]]:
    with _open_parquet(source) as file:
        names = file.schema_arrow.names
        chosen = choose(source, names, _parquet_sample)
        own = [name for name in dict.fromkeys(chosen.values()) if name is not None and name in names]
        yield from _typed(_batches(source, file, own), number, chosen, source.partitions)


def _parquet_sample(source: Source) -> pa.Table:
    with _open_parquet(source) as file, source.errors():
        return pa.Table.from_batches([*itertools.islice(file.iter_batches(SAMPLE_ROWS), 1)], file.schema_arrow)


def _batches(source: Source, file: pq.ParquetFile, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with source.errors():
        yield from file.iter_batches(CHUNK_ROWS, columns=names)


def _open_parquet(source: Source) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(source.filesystem.open_input_file(source.path))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"`{source.name}` is not a Parquet file: {str(error).splitlines()[0]}") from None


def _typed(batches, number: int, names: Mapping, partitions: Mapping) -> Iterator[Callable[[], Part]]:
    """The parts of typed columns."""
    begin = 1
    for batch in batches:
        own = {role: batch.column(name) for role, name in names.items() if name in batch.schema.names}
        columns = own | _of_folder(names, own, partitions, len(batch))
        yield partial(Part, number, columns, np.arange(begin, begin + len(batch)))
        begin += len(batch)


def _json(source: Source, number: int, reading: Reading, choose: _Choice) -> Iterator[Callable[[], Part]]:
    names, sample = json_lines.column_names(source, SAMPLE_ROWS)
    nothing = pa.table({})  # of other files: to name their columns, they would have to be read whole
    # without one good line there are no columns, and every line is refused
    chosen: dict[str, str | None] = {"user": "user", "item": "item"}
    if names:
        chosen = choose(source, names, lambda other: _json_table(sample, names) if other is source else nothing)
    own = {role: name for role, name in chosen.items() if name is not None and (name in names or not names)}
    for part in json_lines.read_parts(source, number, own):
        columns = {**part.columns, **_of_folder(chosen, own, source.partitions, len(part.lines))}
        yield partial(replace, part, columns=columns)


def _json_table(objects: Sequence[Mapping[str, Any]], names: Sequence[str]) -> pa.Table:
    """Objects as columns; a column that mixes kinds of values becomes text."""
    return pa.table({name: column_of([o.get(name) for o in objects]) for name in names})


def column_of(values: Sequence[Any]) -> pa.Array:
    """Python values as a column; where they mix kinds, as text: numbers as ids are written, lists and objects as JSON."""
    try:
        return pa.array(values)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return pa.array([json_lines.any_text(value) for value in values], pa.string())


def _sequences(source: Source, number: int, reading: Reading, choose: _Choice) -> Iterator[Callable[[], Part]]:
    """Sequence text: one user a line, items in time order; the line number is the user id unless it starts with one."""
    users: list[str] = []
    sessions: list[list[str]] = []
    lines: list[int] = []
    bad: list[tuple[int, str]] = []

    def part() -> Callable[[], Part]:
        columns = {"user": pa.array(users, pa.string()), "item": pa.array(sessions, pa.list_(pa.string()))}
        return partial(Part, number, columns, np.array(lines, np.int64), list(bad))

    for line, text in json_lines.read_lines(source):
        if text is None:
            bad.append((line, "broken UTF-8"))
        else:
            items = text.split()
            users.append(items.pop(0) if reading.first_column == "user" and items else str(line))
            sessions.append(items)
            lines.append(line)
        if len(lines) + len(bad) >= CHUNK_ROWS // 50:
            yield part()
            for column in (users, sessions, lines, bad):
                column.clear()
    yield part()


def as_table(frame: Any, argument: str, names: Sequence[str] | None = None, num_rows: int | None = None) -> pa.Table:
    """A pandas, Polars or PyArrow data frame, or any other with `__arrow_c_stream__`, as a PyArrow table.

    A column of pandas that mixes numbers and text becomes text, as ids are written; other values become JSON.

    Args:
        frame: the data frame.
        argument: how errors name it.
        names: the columns, none of which may hold other values than ids, times and lists of them. Default: all, of any values.
        num_rows: take the first rows only. Default: all.
    Raises:
        TypeError: it is no data frame.
        ValueError: a column holds values that are no ids, numbers or text.
    """
    if type(frame).__module__.partition(".")[0] == "pandas" and hasattr(frame, "columns"):
        columns = [n for n, name in enumerate(frame.columns) if names is None or str(name) in names]
        arrays = [_pandas_column(frame.iloc[:num_rows, n], argument, names is not None) for n in columns]
        return pa.table(arrays, [str(frame.columns[n]) for n in columns])
    try:
        if isinstance(frame, pa.Table) or hasattr(frame, "__arrow_c_stream__"):
            table = pa.table(frame)[:num_rows]
            table = table if names is None else table.select(names)
            return table.cast(pa.schema([field.with_type(_plain(field.type)) for field in table.schema]))
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(f"`{argument}` cannot be read: {error}") from None
    raise TypeError(
        f"`{argument}` must be a path, a list of paths or a data frame (pandas, Polars, PyArrow). Received: {type(frame).__name__}."
    )


def _plain(type_: pa.DataType) -> pa.DataType:
    """A type without views and dictionaries, which some of PyArrow's functions do not know."""
    if isinstance(type_, pa.ListType | pa.LargeListType):
        return pa.large_list(_plain(type_.value_type))
    if pa.types.is_dictionary(type_):
        return _plain(type_.value_type)
    return {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(type_, type_)


def _pandas_column(column: Any, argument: str, is_strict: bool) -> pa.Array:
    """A column of pandas; `is_strict`: of ids, times and lists of them only."""
    try:
        return pa.array(column, from_pandas=True)
    except (pa.ArrowException, TypeError, OverflowError):
        if not is_strict:
            return pa.array([json_lines.any_text(value) for value in column], pa.string())
    try:
        values = [v.isoformat() if isinstance(v, datetime.date) and v == v else v for v in column]
        if any(isinstance(v, list | tuple | np.ndarray) for v in values):
            lists = [[*v] if isinstance(v, list | tuple | np.ndarray) else [v] for v in values]
            return pa.array([[id_text(v) for v in each] for each in lists], pa.list_(pa.string()))
        return pa.array([id_text(v) for v in values], pa.string())
    except ValueError as error:
        raise ValueError(f"`{argument}`: column {str(column.name)!r} holds a value that is {error}") from None


def read_table(path: str | os.PathLike, reading: Reading) -> pa.Table:
    """All rows and columns of an item file, or of a folder of them: text stays text, other types stay as they are.

    Raises:
        ValueError: a file or a row cannot be read (the message says which).
    """
    tables = []
    for source in sources_of([path], reading):
        if source.format in ("csv", "tsv"):
            table = _delimited_table(source, reading)
        elif source.format == "parquet":
            with _open_parquet(source) as file:
                table = pa.Table.from_batches(_batches(source, file, file.schema_arrow.names), file.schema_arrow)
        elif source.format == "jsonl":
            table = _objects_table(source)
        else:
            raise ValueError(f"`{source.name}` must be CSV, TSV, Parquet or JSON: {source.format} has no properties.")
        for name, value in source.partitions.items():
            if name not in table.column_names:
                table = table.append_column(name, pa.array([value] * len(table), pa.string()))
        tables.append(table)
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"`{path}`: its files do not have the same columns: {error}") from None


def _delimited_table(source: Source, reading: Reading) -> pa.Table:
    dialect = _dialect(source, reading)
    if reading.delimiter is not None and len(dialect.names) == 1:  # that of the log, and the items have another
        dialect = _dialect(source, replace(reading, delimiter=None))
    names = [name for name in dialect.names if name]  # spreadsheets write columns without a name
    twice = first_twin(names)
    if twice is not None:
        raise ValueError(f"`{source.name}`: two columns have the name {twice!r}. Rename one of them.")
    tables = []
    for block in delimited.read_blocks(source, dialect):
        table, _, bad = block.read(names)
        if bad:
            raise ValueError(f"`{source.name}`, line {bad[0][0]}: {bad[0][1]}. Nothing was read.")
        tables.append(table)
    if not tables:
        return pa.table({name: pa.array([], pa.string()) for name in names})
    table, columns = pa.concat_tables(tables).combine_chunks(), {}
    for name in names:
        # a title may be "None", and a country NA: the texts that mean "missing" hold for ids, unless they were named
        text, is_broken = as_text(table[name].combine_chunks(), reading.null_values or ("NULL", r"\N"))
        if is_broken.any():
            row = int(np.flatnonzero(is_broken)[0])
            raise ValueError(f"`{source.name}`, row {row + 1}, column {name!r}: broken UTF-8. Nothing was read.")
        columns[name] = (
            pa.array([t and t.split() for t in text.to_pylist()], pa.list_(pa.string()))
            if name in dialect.lists
            else text
        )
    return pa.table(columns)


def _objects_table(source: Source) -> pa.Table:
    objects = []
    for line, content in json_lines.read_objects(source):
        if isinstance(content, str):
            raise ValueError(f"`{source.name}`, line {line}: {content}. Nothing was read.")
        objects.append(content)
    names = dict.fromkeys(name for content in objects for name in content)
    return _json_table(objects, list(names))
