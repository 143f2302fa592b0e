"""Tables of stored results: interquartile means with intervals, last and best policy apart, budget in the same row.

    python -m benchmarks.tables docs/results.md

rewrites every block that ends with ``<!-- end -->`` from the stored results. It begins with one of

- ``<!-- scores <preset> [<setting> ...] -->``: a table per setting,
- ``<!-- grid <preset> [<setting> ...] -->``: a row per method and a column per setting,
- ``<!-- distances <kind> -->``: what ``benchmarks.distances`` measured: ``paths``, ``linearity`` or ``noise``,
- ``<!-- matrix <preset> <learner> -->``: labels by spaces, of methods called ``<label>_<space>_<learner>``,
- ``<!-- throughput <kind> -->``: what ``benchmarks.throughput`` measured: ``setting``, ``compared``, ``growth``,
  ``parts``, ``accuracy``, ``start_up`` or ``end_to_end``.
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

from dynarep.data.d4rl import environment_reference
from dynarep.pipeline.playing.scores import (
    bootstrap_interval,
    expert_fraction,
    interquartile_mean,
    normalised_score,
    probability_of_improvement,
    rate_interval,
    stratified_interval,
)
from dynarep.pipeline.tables import number_text

RESULTS = Path(__file__).parent / "results"
BLOCK = re.compile(r"(?P<head><!-- (?P<kind>\w+)(?P<words>(?: [^>]*?)?) -->\n).*?(?P<tail><!-- end -->)", re.DOTALL)

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
    reference = environment_reference(cell["env"])
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
    reference = environment_reference(cell["env"])
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
        f"{budget['own_steps']:,} of its own" if budget.get("own_steps") else f"{budget['transitions']:,}",
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


def shares(cell: Cell) -> tuple[NDArray[np.float64], bool]:
    """Of each episode of the last policy, whether it was a success, or else its expert fraction: (R, E), and which of the two."""
    successes = np.asarray(cell.get("successes"), dtype=np.float64)
    if np.isfinite(successes).any():
        return np.nan_to_num(successes), True
    low, high = cell["random_return"], cell["demonstrations_return"]
    return (last(cell) - low) / (high - low), False


def grid(cells: Sequence[Cell], settings: Sequence[str] = ()) -> str:
    """Markdown: a row per method, a column per setting, and what all settings say together, best first; learned spaces bold.

    A number is a success rate where the environment tells one, else the interquartile mean of the expert fraction; with its
    interval. The last two columns are of the methods that ran in every setting: the interquartile mean over all of them, and
    the probability that an episode is better than one of the best method without a learned space.
    """
    names = list(settings) or list(dict.fromkeys(cell["setting"] for cell in cells))
    found: dict[str, dict[str, tuple[NDArray[np.float64], bool]]] = {}
    for cell in cells:
        if cell["setting"] in names:
            found.setdefault(cell["method"], {})[cell["setting"]] = shares(cell)
    whole = {method: [row[name][0] for name in names] for method, row in found.items() if len(row) == len(names)}
    level = {method: interquartile_mean(np.concatenate([x.ravel() for x in parts])) for method, parts in whole.items()}
    learned = {cell["method"] for cell in cells if learns_a_space(cell)}
    plain = max((method for method in whole if method not in learned), key=level.__getitem__, default=None)

    def column(row: dict[str, tuple[NDArray[np.float64], bool]], name: str) -> str:
        if name not in row:
            return "-"
        values, rate = row[name]
        low, high = rate_interval(values) if rate else bootstrap_interval(values)
        return bounded(float(values.mean()) if rate else interquartile_mean(values), low, high)

    lines = [f"| method | {' | '.join(names)} | all | P(better) |", f"|---{'|---' * (len(names) + 2)}|"]
    for method, row in sorted(found.items(), key=lambda item: -level.get(item[0], -np.inf)):
        shown = f"**{method}**" if method in learned else method
        total = ["-", "-"]
        if method in whole:
            low, high = stratified_interval(whole[method])
            total[0] = bounded(level[method], low, high)
            if plain not in (None, method):
                total[1] = f"{probability_of_improvement(whole[method], whole[plain]):.2f}"
        lines.append(f"| {shown} | {' | '.join([column(row, name) for name in names] + total)} |")
    return "\n".join(lines)


def bounded(value: float, low: float, high: float, form: str = ".2f") -> str:
    """``value [low, high]``, by default with two digits, and no sign where that reads as zero."""
    middle, left, right = (number_text(x, form) for x in (value, low, high))
    return f"{middle} [{left}, {right}]"


def learns_a_space(cell: Cell) -> bool:
    """Whether a method chooses or acts in a space that has been trained."""
    return any(
        entry["kind"] not in ("identity", "standardise")
        for name, entry in cell["params"].items()
        if name.startswith("pretrain.")
    )


def matrix(cells: Sequence[Cell], learner: str) -> str:
    """Markdown: scores of ``<label>_<space>_<learner>``, a row per label and a column per space; methods of other forms below.

    In brackets the interval and, after the semicolon, the rank correlation of the label's returns with the true ones.
    """
    found: dict[str, dict[str, str]] = {}
    for cell in cells:
        label, _, rest = cell["method"].removesuffix(f"_{learner}").partition("_")
        if cell["method"].endswith(f"_{learner}"):
            agreement = cell["labels"]["spearman_true_return"]
            rank = "-" if agreement is None else f"{agreement:.2f}"
            found.setdefault(label, {})[rest] = interval(cell, last(cell)).replace("]", f"; {rank}]")
    spaces = list(dict.fromkeys(space for row in found.values() for space in row))
    lines = [f"| label | {' | '.join(spaces)} |", f"|---{'|---' * len(spaces)}|"]
    lines += [f"| {label} | {' | '.join(row.get(space, '') for space in spaces)} |" for label, row in found.items()]
    return "\n".join(lines)


DISTANCES = {
    "paths": (
        "maze",
        {"spearman": "Spearman, all pairs", "spearman_near": "Spearman, near pairs", "auc": "AUC across walls"},
    ),
    "linearity": (
        "recording",
        {"spearman": "Spearman", "r_squared": "R² of distance", "r_squared_of_squares": "R² of squared distance"},
    ),
    "noise": (
        "recording",
        {"overlap": "same choice", "return": "return of the choice", "return_without": "... without the added numbers"},
    ),
}
"""What ``benchmarks.distances`` measures: what the rows are of, and columns by the name of a number."""


def distances_table(kind: str, measured: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """Markdown: a row per setting and space, best first; mean [least, largest] over replicas."""
    of, columns = DISTANCES[kind]
    best = "auc" if kind == "paths" else next(iter(columns))
    lines = [f"| {of} | space | {' | '.join(columns.values())} |", f"|---|---|{'---|' * len(columns)}"]

    def text(values: list[float] | None) -> str:
        form = ",.0f" if values and max(values) > 10 else ".3f"
        return "-" if values is None else bounded(float(np.mean(values)), min(values), max(values), form)

    for setting, spaces in measured.items():
        for space, found in sorted(spaces.items(), key=lambda item: -float(np.mean(item[1][best]))):
            lines.append(f"| {setting} | {space} | {' | '.join(text(found.get(key)) for key in columns)} |")
    return "\n".join(lines)


def seconds_table(kind: str, measured: dict[str, Any]) -> str:
    """Markdown: errors of couplings, seconds of programs, or seconds of stages beside those of their bare loops."""
    if kind == "accuracy":
        columns = list(next(iter(measured.values())))
        rows = [[name, *(f"{errors[column]:.1e}" for column in columns)] for name, errors in measured.items()]
        head = ["", *(f"epsilon {column}" for column in columns)]
    elif kind == "start_up":
        head = ["", "seconds [least, largest]"]
        rows = [[f"`{name}`", f"{t['median']:.2f} [{t['low']:.2f}, {t['high']:.2f}]"] for name, t in measured.items()]
    else:
        head = ["stage", "seconds", "its bare loop"]
        names = [name for name in measured if f"{name}, bare loop" in measured]
        rows = [[name, f"{measured[name]:.0f}", f"{measured[f'{name}, bare loop']:.0f}"] for name in names]
        rows.append(["together", f"{measured['ratio']:.2f} times", ""])
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def parts_table(group: dict[str, Any]) -> str:
    """Markdown: microseconds of a whole, of each part alone, and shares."""
    rows = [
        f"| {row['name']} | not measured: {row['missing']} | |"
        if "missing" in row
        else f"| {row['name']} | {1e6 / row['rate']:,.0f} | {row['ratio']:.0%} |"
        for row in group["rows"]
    ]
    return "\n".join([f"**{group['name']}**", "", "| | microseconds | share |", "|---|---|---|", *rows])


def throughput_table(kind: str) -> str:
    """Markdown: rates of the groups of a kind, with the least and the largest, and ratios to the first contender's."""
    measured = json.loads((RESULTS / "throughput.json").read_text())
    if kind == "setting":
        machine, versions = measured["machine"], measured["versions"]
        packages = ", ".join(f"{name} {version}" for name, version in versions.items())
        where = f"{machine['processor']}, {machine['cores']} cores, {machine['device']}"
        return f"Measured on {where}; {measured['repeats']} turns each; {packages}."
    if kind in ("accuracy", "start_up", "end_to_end"):
        return seconds_table(kind, measured[kind]) if kind in measured else "Not measured in this run."
    parts = []
    for group in measured["groups"]:
        if group["kind"] != kind:
            continue
        if kind == "parts":
            parts.append(parts_table(group))
            continue
        head = [
            f"**{group['name']}**",
            "",
            f"| | {group['unit']}/s [least, largest] | first / it | peak MB |",
            "|---|---|---|---|",
        ]
        rows = []
        for row in group["rows"]:
            if "missing" in row:
                rows.append(f"| {row['name']} | not measured: {row['missing']} | | |")
                continue
            name = f"{row['name']} ({row['note']})" if row["note"] else row["name"]
            rate = f"{row['rate']:,.3g} [{row['low']:,.3g}, {row['high']:,.3g}]"
            rows.append(f"| {name} | {rate} | {row['ratio']:.2f} | {row.get('peak_mb') or '-'} |")
        if "floor" in group:
            ratio = group["rows"][0]["rate"] / group["floor"]
            rows.append(f"| the arithmetic alone | {group['floor']:,.3g} | {ratio:.2f} | |")
        parts.append("\n".join([*head, *rows]))
    return "\n\n".join(parts)


def ratio_plot(path: Path) -> None:
    """Draw how many times as fast the project is as each peer, with the spread of the peer's repeats."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    measured = json.loads((RESULTS / "throughput.json").read_text())
    labels: list[str] = []
    values: list[tuple[float, float, float]] = []
    for group in measured["groups"]:
        if group["kind"] != "compared":
            continue
        ours = group["rows"][0]["rate"]
        for row in group["rows"][1:]:
            if "missing" not in row and not row["name"].startswith("dynarep"):
                labels.append(f"{group['name']} | {row['name']}")
                values.append((ours / row["rate"], ours / row["high"], ours / row["low"]))
    middle, low, high = np.array(values).T
    places = np.arange(len(labels))[::-1]
    with plt.rc_context({"svg.hashsalt": "dynarep", "font.size": 8}):
        figure, axes = plt.subplots(figsize=(10, 0.28 * len(labels) + 0.8), layout="constrained")
        axes.barh(places, middle - 1, left=1, color=np.where(middle >= 1, "#2a7f62", "#b3541e"))
        axes.errorbar(middle, places, xerr=(middle - low, high - middle), fmt="none", ecolor="black", elinewidth=1)
        axes.axvline(1, color="black", linewidth=1)
        axes.set(xscale="log", yticks=places, yticklabels=labels, xlabel="times as fast as the peer (log scale)")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def growth_plot(path: Path) -> None:
    """Draw the rate of each group of ``growth`` against what grows, from 0 on."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    groups = [g for g in json.loads((RESULTS / "throughput.json").read_text())["groups"] if g["kind"] == "growth"]
    columns = 4
    with plt.rc_context({"svg.hashsalt": "dynarep", "font.size": 8}):
        figure, grid_of_axes = plt.subplots(
            -(-len(groups) // columns), columns, figsize=(10, 5), layout="constrained", squeeze=False
        )
        for axes in grid_of_axes.flat[len(groups) :]:
            axes.set_visible(False)
        for axes, group in zip(grid_of_axes.flat, groups, strict=False):
            rows = [row for row in group["rows"] if "missing" not in row]
            x = [float(row["name"].split()[0].replace(",", "")) for row in rows]
            middle, low, high = (np.array([row[key] for row in rows]) for key in ("rate", "low", "high"))
            axes.errorbar(x, middle, yerr=(middle - low, high - middle), marker="o", color="#2a7f62", ecolor="black")
            axes.set(xscale="log", title=group["name"], ylabel=f"{group['unit']}/s")
            axes.set_xticks(x, [f"{value:,.0f}" for value in x])
            axes.minorticks_off()
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def refreshed(text: str) -> str:
    """``text`` with every block made anew."""

    def replace(match: re.Match[str]) -> str:
        first, *rest = match["words"].split() or [""]
        if match["kind"] == "scores":
            table = score_table(read_cells(first), rest)
        elif match["kind"] == "grid":
            table = grid(read_cells(first), rest)
        elif match["kind"] == "distances":
            measured = json.loads((RESULTS / "distances.json").read_text()).get(first)
            table = distances_table(first, measured) if measured else "Not measured yet."
        elif match["kind"] == "matrix":
            table = matrix(read_cells(first), rest[0])
        elif match["kind"] == "throughput":
            table = throughput_table(first)
            if first == "compared":
                table = f"![times as fast as each peer](performance.svg)\n\n{table}"
            if first == "growth":
                table = f"![rates by what grows](growth.svg)\n\n{table}"
        else:
            return match[0]
        return f"{match['head']}{table}\n{match['tail']}"

    return BLOCK.sub(replace, text)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        page = Path(argument)
        text = page.read_text()
        page.write_text(refreshed(text))
        if "<!-- throughput compared -->" in text:
            ratio_plot(page.with_suffix(".svg"))
            growth_plot(page.with_name("growth.svg"))
