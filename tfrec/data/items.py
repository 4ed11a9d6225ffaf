"""Reads the properties of items and of users."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tfrec.data.columns import COMMON_NAMES, first_twin
from tfrec.data.json_lines import any_text
from tfrec.data.readers import Reading, as_table, read_table
from tfrec.data.rows import as_text, is_list, without_point


def read_items(source: Any, reading: Reading | None = None, **options: Any) -> pa.Table:
    """Read items with their properties: `item_id`, perhaps `title`, and the other columns as they are.

    An item id is the same text as in a log: 123.0 of a column of floats is `123`, blanks around it are removed.

    >>> read_items(pa.table({"sku": [1, 2], "Title": ["A", "B"]})).to_pydict()
    {'item_id': ['1', '2'], 'title': ['A', 'B']}

    Args:
        source: the path of a CSV or TSV (every column text), Parquet or JSON file, of a folder of them, or a glob; or a data
            frame.
        reading: how the log is read. Its `format` holds for item files whose ending tells none, its `delimiter` where it occurs in
            them, its `columns` not. Default: told from the file.
        **options: fields of `Reading` that are others than the log's.
    Raises:
        ValueError: the file or one of its rows cannot be read, no column looks like the item id, or a row has none.
    """
    return _read("item", source, reading or Reading(), options)


def read_users(source: Any, reading: Reading | None = None, **options: Any) -> pa.Table:
    """Read users with their properties: `user_id`, and the other columns as they are; see `read_items`.

    >>> read_users(pa.table({"customer": [7.0], "Country": ["NO"]})).to_pydict()
    {'user_id': ['7'], 'Country': ['NO']}
    """
    return _read("user", source, reading or Reading(), options)


def _read(role: str, source: Any, log: Reading, options: dict[str, Any]) -> pa.Table:
    """The properties of items or users; see `read_items`."""
    try:
        reading = replace(log, **({"format": None, "columns": (), "otherwise": log.format} | options))
    except TypeError as error:
        raise ValueError(
            f"`{role}s_options`: {str(error).split(') ')[-1]}; the fields of `Reading` can be set."
        ) from None
    is_path = isinstance(source, str | os.PathLike)
    table = read_table(source, reading) if is_path else as_table(source, f"{role}s")
    where = f"`{source}`" if is_path else f"`{role}s`"
    names, id_ = table.column_names, f"{role}_id"
    lower = {name.strip().lower(): name for name in reversed(names)}
    own = [n for n in (reading.told[role], *COMMON_NAMES[role], "id") if n is not None]
    name = next((n for n in own if n in names), next((lower[n] for n in own if n in lower), None))
    if name is None:
        raise ValueError(f"{where} has no {role} id. Its columns: {', '.join(names)}. Call one of them {id_}.")
    titles = [n for n in ("title", *(lower.get(n) for n in COMMON_NAMES["title"])) if n in names and n != name]
    titles = titles if role == "item" else []
    renamed = {name: id_} | dict.fromkeys(titles[:1], "title")
    names = [renamed.get(n, n) for n in names]
    twice = first_twin(names)
    if twice is not None:
        raise ValueError(f"{where}: two columns have the name {twice!r}, or are read as it. Rename one of them.")
    table = pa.table({n: _storable(table.column(number)) for number, n in enumerate(names)})
    if titles and is_list(table["title"].type):  # words, as RecBole writes them
        texts = [words and " ".join(map(str, words)) for words in table["title"].to_pylist()]
        table = table.set_column(names.index("title"), "title", pa.array(texts, pa.string()))
    try:
        ids, is_broken = as_text(table[id_].combine_chunks(), reading.null_values)
    except ValueError as error:
        raise ValueError(f"{where}: the {role} id column {error}.") from None
    if ids.null_count or is_broken.any():
        row = pc.index(pc.or_(ids.is_null(), pa.array(is_broken)), True).as_py() + 1
        raise ValueError(f"{where}, row {row}: the {role} id is missing or broken. Nothing was read.")
    return table.set_column(table.column_names.index(id_), id_, without_point(ids))


def _storable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as Parquet can hold it: objects without any field become JSON."""
    try:
        pq.write_table(pa.table({"column": column[:0]}), pa.BufferOutputStream())
    except pa.ArrowNotImplementedError:
        return pa.chunked_array([[any_text(value) for value in column.to_pylist()]], pa.string())
    return column
