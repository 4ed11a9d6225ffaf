"""Reads the properties of items."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from tfrec.data.columns import COMMON_NAMES
from tfrec.data.readers import FORMATS, as_table, dialect


def read_items(source: Any) -> pa.Table:
    """Read items with their properties: `item_id`, perhaps `title`, and the other columns as they are.

    >>> read_items(pa.table({"sku": [1, 2], "Title": ["A", "B"]})).column_names
    ['item_id', 'title']

    Args:
        source: the path of a CSV, TSV (every column text), Parquet or JSON Lines file; or a data frame.
    Raises:
        ValueError: the file cannot be read, or no column looks like the item id.
    """
    is_path = isinstance(source, str | os.PathLike)
    table = _read_file(Path(source)) if is_path else as_table(source, "items")
    where = f"`{source}`" if is_path else "`items`"
    lower = {name.lower(): name for name in reversed(table.column_names)}
    renamed = {}
    for role, wanted in (("item", "item_id"), ("title", "title")):
        name = next((lower[n] for n in (*COMMON_NAMES[role], *(["id"] if role == "item" else [])) if n in lower), None)
        if name is None and role == "item":
            raise ValueError(
                f"{where} has no item id. Its columns: {', '.join(table.column_names)}. Call one of them item_id."
            )
        if name is not None:
            renamed[name] = wanted
    table = table.rename_columns([renamed.get(name, name) for name in table.column_names])
    ids = table["item_id"]
    if pa.types.is_floating(ids.type):
        ids = ids.cast(pa.int64())
    return table.set_column(table.column_names.index("item_id"), "item_id", ids.cast(pa.string()))


def _read_file(path: Path) -> pa.Table:
    """The table of a file, with its own names of columns."""
    if not path.is_file():
        raise ValueError(f"`{path}` does not exist or is not a file.")
    format = FORMATS.get(path.suffix.lower())
    values: dict[str, Any] = {"path": str(path)}
    if format in ("csv", "tsv"):
        delimiter, names = dialect(path, format)
        relation = """read_csv($path, auto_detect = false, header = true, quote = '"', escape = '"', delim = $delim,
                      columns = $columns)"""
        values |= {"delim": delimiter, "columns": dict.fromkeys(names, "VARCHAR")}
    elif format in ("parquet", "jsonl"):
        relation = "read_parquet($path)" if format == "parquet" else "read_json($path, format = 'newline_delimited')"
    else:
        raise ValueError(f"`{path}` must end in .csv, .tsv, .parquet or .jsonl.")
    try:
        return duckdb.connect().sql(f"SELECT * FROM {relation}", params=values).to_arrow_table()
    except duckdb.Error as error:
        raise ValueError(f"`{path}` cannot be read: {str(error).splitlines()[0]}") from None
