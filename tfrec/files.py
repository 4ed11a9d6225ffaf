"""Files and folders that appear whole or not at all.

What is not whole yet lies beside its place under a random name: two processes, in two containers even, never share one.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any


def scratch(path: Path, ending: str = "partial") -> Path:
    """A hidden name beside `path` that nobody else has."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{ending}")


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write(aside)`, then rename: a reader sees the old file or the new one, never half of one."""
    aside = scratch(path)
    aside = aside.with_name(aside.name + "".join(path.suffixes))
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def replace_folder(new: Path, path: Path) -> None:
    """Rename a whole folder to `path`; what lay there is deleted after that."""
    old = scratch(path, "old")
    with contextlib.suppress(FileNotFoundError):
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
