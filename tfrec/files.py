"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, write) -> None:
    """Call `write(aside)`, then rename: a reader sees the old file or the new one, never half of one."""
    aside = path.with_name(f".{path.name}.partial{''.join(path.suffixes)}")
    write(aside)
    aside.replace(path)
