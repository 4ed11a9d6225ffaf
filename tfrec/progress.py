"""Progress bars: on a terminal, for what takes longer than a moment; silent elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar("T")

console = Console(stderr=True)


def track(items: Sequence[T], description: str) -> Iterable[T]:
    """Iterate over `items` with a bar on standard error."""
    return rich_track(items, description, console=console, transient=True, disable=not console.is_terminal)
