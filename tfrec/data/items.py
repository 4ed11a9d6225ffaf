"""Reads the properties of items."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tfrec.data.columns import COMMON_NAMES
from tfrec.data.readers import Reading, as_table, read_table
from tfrec.data.rows import as_text, without_point


def read_items(source: Any, reading: Reading | None = None) -> pa.Table:
    """Read items with their properties: `item_id`, perhaps `title`, and the other columns as they are.

    An item id is the same text as in a log: 123.0 of a column of floats is `123`, blanks around it are removed.

    >>> read_items(pa.table({"sku": [1, 2], "Title": ["A", "B"]})).to_pydict()
    {'item_id': ['1', '2'], 'title': ['A', 'B']}

    Args:
        source: the path of a CSV or TSV (every column text), Parquet or JSON file, of a folder of them, or a glob; or a data
            frame.
        reading: how CSV and TSV files are split, and which texts mean "missing"; see `Reading`. Default: told from the file.
    Raises:
        ValueError: the file or one of its rows cannot be read, no column looks like the item id, or a row has none.
    """
    reading = replace(reading or Reading(), format=None, columns=())  # those of the log
    is_path = isinstance(source, str | os.PathLike)
    table = read_table(source, reading) if is_path else as_table(source, "items")
    where = f"`{source}`" if is_path else "`items`"
    lower = {name.strip().lower(): name for name in reversed(table.column_names)}
    own = [n for n in (reading.item, *COMMON_NAMES["item"], "id") if n is not None]
    name = next((n for n in own if n in table.column_names), next((lower[n] for n in own if n in lower), None))
    if name is None:
        raise ValueError(
            f"{where} has no item id. Its columns: {', '.join(table.column_names)}. Call one of them item_id."
        )
    title = next((lower[n] for n in COMMON_NAMES["title"] if n in lower and lower[n] != name), None)
    renamed = {name: "item_id"} | ({title: "title"} if title else {})
    table = table.rename_columns([renamed.get(n, n) for n in table.column_names])
    if title and pa.types.is_list(table["title"].type):  # words, as RecBole writes them
        titles = pc.binary_join(table["title"].combine_chunks(), " ")
        table = table.set_column(table.column_names.index("title"), "title", titles)
    try:
        ids, is_broken = as_text(table["item_id"].combine_chunks(), reading.null_values)
    except ValueError as error:
        raise ValueError(f"{where}: the item id column {error}.") from None
    if ids.null_count or is_broken.any():
        row = pc.index(pc.or_(ids.is_null(), pa.array(is_broken)), True).as_py() + 1
        raise ValueError(f"{where}, row {row}: the item id is missing or broken. Nothing was read.")
    return table.set_column(table.column_names.index("item_id"), "item_id", without_point(ids))
