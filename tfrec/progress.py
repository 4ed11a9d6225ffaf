"""Progress bars: on a terminal, for what takes longer than a moment; silent elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import track as rich_track

T = TypeVar("T")

console = Console(stderr=True)


def track(items: Sequence[T], description: str) -> Iterable[T]:
    """Iterate over `items` with a bar on standard error."""
    return rich_track(items, description, console=console, transient=True, disable=not console.is_terminal)


@contextlib.contextmanager
def count(description: str, unit: str) -> Iterator[Callable[[int], None]]:
    """A count on standard error of what was done, where nobody knows how much there is; call what it gives with each more."""
    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,} " + unit), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=None)
        yield lambda more: progress.advance(task, more)
