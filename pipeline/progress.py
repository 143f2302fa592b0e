"""Progress of work on episodes in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def episode_progress(
    labelled: Iterable[tuple[str, T]], size: Callable[[T], int], total: int, title: str, seconds: float = 15.0
) -> Iterator[tuple[str, T]]:
    """Pass parts on and show of how many episodes they are: a live bar on a terminal, else a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    started = said = time.monotonic()
    done = 0
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=total, rate="")
        for name, part in labelled:
            yield name, part
            done += size(part)
            now = time.monotonic()
            rate = f"{done / max(now - started, 1e-9):.1f} episodes/s"
            bar.update(task, completed=done, rate=rate)
            if bar.disable and (now - said > seconds or done == total):
                said = now
                print(f"{title}: {done:,}/{total:,}  {rate}", file=sys.stderr, flush=True)
