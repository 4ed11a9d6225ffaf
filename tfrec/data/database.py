"""Connects to DuckDB."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import duckdb


def connect(path: Path | None = None, **config: Any) -> duckdb.DuckDBPyConnection:
    """A connection that draws no progress bar; ours tells how far a command is.

    In `python -c` and at a prompt DuckDB draws one on stdout, after two seconds of a query.

    >>> connect(threads=1).sql("SELECT 1 + 1").fetchall()
    [(2,)]

    Args:
        path: the file of the database. Default: None, in memory.
        **config: DuckDB's options.
    """
    con = duckdb.connect(":memory:" if path is None else str(path), config=config)
    with contextlib.suppress(duckdb.InvalidInputException):  # Jupyter without ipywidgets: there it can draw none
        con.execute("SET enable_progress_bar = false")
    return con
