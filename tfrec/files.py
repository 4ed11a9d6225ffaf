"""Files that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write(aside)`, then rename: a reader sees the old file or the new one, never half of one."""
    aside = path.with_name(f".{path.name}.partial{''.join(path.suffixes)}")
    write(aside)
    aside.replace(path)
