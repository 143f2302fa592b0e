"""Progress in the terminal: of work on episodes, and pieces that the bar of a training shares with it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

WIDE = 100
"""Columns of a terminal from which on names are whole and bars long."""
NAME = 24
"""Columns of a name on a narrower one."""


def bar_width(columns: int) -> int:
    """How long a bar is on a terminal of so many columns."""
    return 20 if columns >= WIDE else 8


def shortened(text: str, columns: int) -> str:
    """A text in so many columns, its middle left out where it is longer."""
    if len(text) <= columns:
        return text
    head = columns // 2
    return f"{text[:head]}…{text[len(text) - (columns - head - 1) :]}"


def fitting(parts: Sequence[str], columns: int) -> str:
    """The first parts that fit into so many columns, two apart; none is cut."""
    text = ""
    for part in parts:
        longer = f"{text}  {part}" if text else part
        if len(longer) > columns:
            break
        text = longer
    return text


def clock(seconds: float) -> str:
    """A time as m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def episode_progress(
    labelled: Iterable[tuple[str, T]], size: Callable[[T], int], total: int, title: str, seconds: float = 15.0
) -> Iterator[tuple[str, T]]:
    """Pass parts on and show of how many episodes they are: a live bar on a terminal, else a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    name = title if console.width >= WIDE else shortened(title, NAME)
    shown = (
        TextColumn(name),
        BarColumn(bar_width(console.width)),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    started = said = time.monotonic()
    done = 0
    with Progress(*shown, console=console, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=total, rate="")
        for part_name, part in labelled:
            yield part_name, part
            done += size(part)
            now = time.monotonic()
            speed = done / max(now - started, 1e-9)
            rate = f"{speed:.1f} episodes/s"
            if done < total:
                rate += f"  {clock((total - done) / speed)} left"
            bar.update(task, completed=done, rate=rate)
            if bar.disable and (now - said > seconds or done == total):
                said = now
                print(f"{title}: {done:,}/{total:,}  {rate}", file=sys.stderr, flush=True)
