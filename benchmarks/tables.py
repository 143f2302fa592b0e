"""Tables of stored scores: interquartile means with intervals, last and best policy apart, budget in the same row.

    python -m benchmarks.tables docs/results.md

rewrites every block between ``<!-- scores <preset> [<setting> ...] -->`` and ``<!-- end -->`` from the stored results.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynarep.pipeline.scores import (
    bootstrap_interval,
    d4rl_reference,
    expert_fraction,
    interquartile_mean,
    normalised_score,
    stratified_interval,
)

RESULTS = Path(__file__).parent / "results"
BLOCK = re.compile(r"(<!-- scores (?P<preset>[\w-]+)(?P<settings>[^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)

Cell = dict[str, Any]


def last(cell: Cell) -> NDArray[np.float64]:
    """Returns of the final policies, (R, E)."""
    return np.asarray(cell["returns"]["last"])


def best(cell: Cell) -> NDArray[np.float64]:
    """Of each replica the returns of its policy, among the last one and the snapshots, with the largest mean: (R, E).

    Chosen on the returns that are reported, so it flatters: it shows what stopping early could have given at most.
    """
    returns: NDArray[np.float64] = np.asarray(list(cell["returns"].values()))
    chosen = returns.mean(-1).argmax(0)
    picked: NDArray[np.float64] = returns[chosen, np.arange(returns.shape[1])]
    return picked


def normalised(cell: Cell, returns: NDArray[np.float64]) -> NDArray[np.float64]:
    """D4RL scores of returns; without a D4RL reference, 0 is the random policy and 100 the demonstrations."""
    reference = d4rl_reference(cell["env"])
    return normalised_score(returns, reference or (cell["random_return"], cell["demonstrations_return"]))


def interval(cell: Cell, returns: NDArray[np.float64]) -> str:
    """``IQM [low, high]`` of normalised scores."""
    scores = normalised(cell, returns)
    low, high = bootstrap_interval(scores)
    return f"{interquartile_mean(scores):.1f} [{low:.1f}, {high:.1f}]"


def fraction(cell: Cell) -> str:
    """Mean return between a random policy's (0) and the demonstrations' (1)."""
    if cell["demonstrations_return"] is None:
        return "-"
    reference = d4rl_reference(cell["env"])
    random = reference[0] if reference else cell["random_return"]
    value = expert_fraction(float(last(cell).mean()), random, cell["demonstrations_return"])
    return "-" if value is None else f"{value:.2f}"


def score_table(cells: Sequence[Cell], settings: Sequence[str] = ()) -> str:
    """Markdown: one table per setting, best last policy first, and the total over settings where there are several."""
    names = list(dict.fromkeys(cell["setting"] for cell in cells if not settings or cell["setting"] in settings))
    parts = []
    for name in names:
        rows = [cell for cell in cells if cell["setting"] == name]
        rows.sort(key=lambda cell: interquartile_mean(normalised(cell, last(cell))), reverse=True)
        parts.append("\n".join([f"**{name}**", "", *HEAD, *map(_row, rows)]))
    if len(names) > 1:
        parts.append(_total([cell for cell in cells if cell["setting"] in names], len(names)))
    return "\n\n".join(parts)


HEAD = (
    "| method | last [95 %] | best [95 %] | expert fraction | replicas x episodes | updates x batch | transitions | CPU s |",
    "|---|---|---|---|---|---|---|---|",
)


def _row(cell: Cell) -> str:
    returns, budget = last(cell), cell["budget"]
    seconds = budget["seconds"].values()
    columns = (
        cell["method"],
        interval(cell, returns),
        interval(cell, best(cell)) if len(cell["returns"]) > 1 else "-",
        fraction(cell),
        f"{returns.shape[0]} x {returns.shape[1]}",
        f"{budget['updates']:,} x {budget['batch_size']}",
        f"{budget['transitions']:,}",
        "-" if None in seconds else f"{sum(seconds):,.0f}",
    )
    return f"| {' | '.join(columns)} |"


def _total(cells: Sequence[Cell], count: int) -> str:
    """Interquartile mean over all settings, of the methods that ran in all of them."""
    methods: dict[str, list[NDArray[np.float64]]] = {}
    for cell in cells:
        methods.setdefault(cell["method"], []).append(normalised(cell, last(cell)))
    complete = {name: scores for name, scores in methods.items() if len(scores) == count}
    rows = []
    for name, scores in sorted(
        complete.items(), key=lambda item: -interquartile_mean(np.concatenate([s.ravel() for s in item[1]]))
    ):
        low, high = stratified_interval(scores)
        value = interquartile_mean(np.concatenate([score.ravel() for score in scores]))
        rows.append(f"| {name} | {value:.1f} [{low:.1f}, {high:.1f}] |")
    return "\n".join([f"**total over {count} settings**", "", "| method | last [95 %] |", "|---|---|", *rows])


def read_cells(preset: str) -> list[Cell]:
    """Stored cells of a preset."""
    cells: list[Cell] = json.loads((RESULTS / f"{preset}.json").read_text())["cells"]
    return cells


def refreshed(text: str) -> str:
    """``text`` with every block of scores made anew."""

    def replace(match: re.Match[str]) -> str:
        table = score_table(read_cells(match["preset"]), match["settings"].split())
        return f"{match[1]}{table}\n{match[4]}"

    return BLOCK.sub(replace, text)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        Path(argument).write_text(refreshed(Path(argument).read_text()))
