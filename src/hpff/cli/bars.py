"""Bars for work that leaves nothing to resume: gone when it is done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def bar(total: int, *, shown: bool = True) -> Iterator[Callable[[str], None]]:
    """A bar on stderr while it lasts, if that is a terminal; called with each piece of work."""
    with _bars(shown=shown) as bars:
        task = bars.add_task("", total=total)
        begun = 0

        def observe(label: str) -> None:
            nonlocal begun
            bars.update(task, description=label, completed=begun)
            begun += 1

        yield observe


@contextlib.contextmanager
def batch_bar(label: str) -> Iterator[Callable[[int], None]]:
    """The same, called after each batch with the number of all."""
    with _bars(shown=True) as bars:
        task = bars.add_task(label, total=None)

        def observe(number: int) -> None:
            bars.update(task, total=number, advance=1)

        yield observe


def _bars(*, shown: bool) -> Progress:
    console = Console(stderr=True, highlight=False, markup=False)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )
