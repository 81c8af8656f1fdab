"""Progress bars on standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def progress(
    description: str, total: int | None = None, unit: str = "it", before: int = 0
) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error for the length of a block: rate and time left.

    On a terminal a bar; elsewhere (a log file) a line every ten seconds. ``before`` of the total
    are done already, and count for no rate. Yields a function that is told how many more are done.
    """
    start = last = time.monotonic()
    count = 0
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
        with Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(description, total=total, completed=before, rate="")

            def draw(more: int) -> None:
                nonlocal count
                count += more
                bar.update(task, advance=more, rate=f"{count / max(time.monotonic() - start, 1e-9):.2f} {unit}/s")

            yield draw
        return

    def say(more: int) -> None:
        nonlocal count, last
        count += more
        now = time.monotonic()
        if now - last >= 10:
            last = now
            rate = count / (now - start)
            left = f", {max(total - before - count, 0) / rate:.0f} s left" if total and rate else ""
            of = f"/{total}" if total else ""
            print(f"{description}: {before + count}{of}, {rate:.2f} {unit}/s{left}", file=sys.stderr, flush=True)

    yield say


def track(items: Iterable[T], description: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Yield ``items`` with a progress bar; see :func:`progress`."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with progress(description, total, unit) as advance:
        for item in items:
            yield item
            advance(1)
