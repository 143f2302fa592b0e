"""Tell which stages are fresh, and why the others are not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynarep.pipeline.status import StageStatus

SHOWN = 3
"""Reasons per stage."""

COLOURS = {
    "fresh": "green",
    "stale": "yellow",
    "interrupted": "cyan",
    "running": "blue",
    "broken": "bold red",
    "never run": "magenta",
}


def show(statuses: Sequence[StageStatus]) -> None:
    """Print a line for each stage, and one on all of them."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    names, states = (max(map(len, texts)) for texts in ([s.name for s in statuses], COLOURS))
    for number, status in enumerate(statuses, 1):
        rest = len(status.reasons) - SHOWN
        more = [f"and {rest} more (dvc status {status.name})"] if rest > 0 else []
        place = f"{number:{len(str(len(statuses)))}}/{len(statuses)}"
        line = Text(f"{place} {status.name:{names}}  ")
        line.append(f"{status.state:{states}}", COLOURS[status.state])
        line.append(f"  {'; '.join((*status.reasons[:SHOWN], *more))}")
        line.rstrip()
        console.print(line, soft_wrap=True)
    fresh = sum(status.state == "fresh" for status in statuses)
    rest = len(statuses) - fresh
    console.print("all stages are fresh" if not rest else f"{fresh} of {len(statuses)} fresh; dvc repro runs the rest")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 where all stages are fresh, 1 where not, 2 where it cannot be told."""
    parser = argparse.ArgumentParser(prog="dynarep status", description=__doc__)
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="params file; its folder is the project"
    )
    options = parser.parse_args(arguments)

    from dynarep.configs.params import ParamsError
    from dynarep.pipeline.status import pipeline_status

    try:
        statuses = pipeline_status(options.params.resolve().parent)
    except ParamsError as error:
        print(f"error: status: {error}", file=sys.stderr)
        return 2
    show(statuses)
    return int(any(status.state != "fresh" for status in statuses))


if __name__ == "__main__":
    sys.exit(main())
