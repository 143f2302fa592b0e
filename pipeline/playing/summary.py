"""What the episodes of all policies are worth, side by side: scores with intervals, the demonstrations and chance as marks.

Scores are D4RL's normalised scores where it has references (``dynarep.data.d4rl``), and beside them returns, the share of
episodes that reach their goal where the environment says what that is, the position between a random policy and the
demonstrations, and the distance to a motion where one is named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynarep.pipeline.playing.scores import (
    OPTIONAL_SCORES,
    bootstrap_interval,
    expert_fraction,
    interquartile_mean,
    mean_interval,
    normalised_score,
    ranking,
)
from dynarep.pipeline.tables import read_json

Table = NDArray[np.float64]


def episode_table(played: Mapping[str, Any], key: str) -> Table:
    """One number per replica and episode (R, E); NaN where it is not known."""
    shape = np.array(played["returns"], dtype=np.float64).shape
    return np.array(played[key], dtype=np.float64) if key in played else np.full(shape, np.nan)


def gather(artifacts: Path) -> dict[str, Any]:
    """The returns of all evaluated policies as one, as each ``returns.json`` has them.

    Also ``random``, the policies that act at random, ``kinds`` by policy, and ``demonstrations``, the returns of what the scores
    are compared with, or None.

    Raises:
        ValueError: if there are none, or they come from different environments.
    """
    paths = sorted((artifacts / "evaluate").glob("*/returns.json"))
    if not paths:
        raise ValueError(f"{artifacts / 'evaluate'}/*/returns.json: no such file; there are no scores to report")
    found: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for path in paths:
        returns = read_json(path)
        for key in ("env", "env_options", "seed", "max_steps", "reference", "versions"):
            if key not in returns:
                raise ValueError(f"{path}: no {key!r}")
            if found and returns[key] != found[key] and key != "versions":
                raise ValueError(f"{path}: {key} is {returns[key]!r}, {paths[0]} has {found[key]!r}")
        policies = {**found.get("policies", {}), **returns["policies"]}
        found = {**returns, "policies": policies}
        metadata = artifacts / "learn" / path.parent.name / "metadata.json"
        kinds[path.parent.name] = str(read_json(metadata).get("kind")) if metadata.is_file() else ""
    demonstrations = artifacts / "demonstrate" / "metrics.json"
    expert = read_json(demonstrations)["returns"] if demonstrations.is_file() else None
    random = [name for name, kind in kinds.items() if kind == "random"]
    return {**found, "kinds": kinds, "random": random, "demonstrations": expert}


def summarise(raw: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Scores of each policy, from ``gather``.

    Returns:
        For each policy: env, episodes, replicas, return_mean, length_mean; return_iqm, normalised_iqm (None without a D4RL
        reference), expert_fraction (None without demonstrations' returns, or without a random policy and a reference) and
        success_rate (None if the environment never says), each with ``_low`` and ``_high``, its 95 % interval; and
        motion_distance, the mean over episodes (None without a motion).
    """
    reference = tuple(raw["reference"]) if raw["reference"] else None
    chance = None if reference is None else float(reference[0])
    if chance is None and raw["random"]:
        chance = float(episode_table(raw["policies"][raw["random"][0]], "returns").mean())
    expert = float(np.mean(raw["demonstrations"])) if raw["demonstrations"] else None
    tells = any(np.isfinite(episode_table(played, "successes")).any() for played in raw["policies"].values())
    return {
        name: _score(raw["env"], played, reference, chance, expert, tells) for name, played in raw["policies"].items()
    }


def _score(
    env: str,
    played: Mapping[str, Any],
    reference: tuple[float, float] | None,
    chance: float | None,
    expert: float | None,
    tells: bool,
) -> dict[str, Any]:
    returns = episode_table(played, "returns")
    distance = float(episode_table(played, "distances").mean())
    score = {
        "env": env,
        "episodes": returns.shape[1],
        "replicas": returns.shape[0],
        "return_mean": float(returns.mean()),
        "length_mean": float(episode_table(played, "lengths").mean()),
        **_iqm("return", returns),
        **_iqm("normalised", None if reference is None else normalised_score(returns, reference)),
    }
    fractions: tuple[float | None, ...] = (None, None, None)
    if expert is not None and chance is not None and expert != chance:
        low, high = mean_interval(returns)
        fractions = tuple(expert_fraction(value, chance, expert) for value in (score["return_mean"], low, high))
    score |= dict(zip(("expert_fraction", "expert_fraction_low", "expert_fraction_high"), fractions, strict=True))
    success = np.nan_to_num(episode_table(played, "successes")) if tells else None
    score["success_rate"] = None if success is None else float(success.mean())
    score["success_low"], score["success_high"] = (None, None) if success is None else mean_interval(success)
    score["motion_distance"] = distance if np.isfinite(distance) else None
    return score


def _iqm(name: str, values: Table | None) -> dict[str, float | None]:
    if values is None:
        return {f"{name}_{part}": None for part in ("iqm", "low", "high")}
    low, high = bootstrap_interval(values)
    return {f"{name}_iqm": interquartile_mean(values), f"{name}_low": low, f"{name}_high": high}


def print_scores(metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table of scores, best first, at most 80 columns wide."""
    from rich.console import Console
    from rich.table import Table as Printed

    first = next(iter(metrics.values()))
    table = Printed(title=f"{first['env']}: {first['replicas']} replicas, {first['episodes']} episodes each")
    table.add_column("policy", overflow="fold")
    columns = [name for name in COLUMNS if any(score[COLUMNS[name][0]] is not None for score in metrics.values())]
    if "normalised" in columns:
        columns.remove("return IQM")
    for column in columns:
        table.add_column(column, justify="right")
    for name in ranking(metrics):
        table.add_row(name, *(_cell(metrics[name], *COLUMNS[column]) for column in columns))
    Console().print(table)


COLUMNS = {
    "normalised": ("normalised_iqm", "normalised_low", "normalised_high", 1),
    "return IQM": ("return_iqm", "return_low", "return_high", 1),
    "success": ("success_rate", "success_low", "success_high", 2),
    "of expert": ("expert_fraction", "expert_fraction_low", "expert_fraction_high", 2),
    OPTIONAL_SCORES["motion_distance"]: ("motion_distance", "", "", 2),
}
"""Columns of the printed table: value, bounds of its interval, digits."""


def _cell(score: Mapping[str, Any], value: str, low: str, high: str, digits: int) -> str:
    if score[value] is None:
        return "-"
    text = number_text(score[value], digits)
    return f"{text} [{number_text(score[low], digits)}, {number_text(score[high], digits)}]" if low else text


def number_text(value: float, digits: int) -> str:
    """A number with so many digits; zero has no sign."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def score_rows(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per episode, for plots: ``policy``, ``replica``, ``episode``, ``return``."""
    return [
        {"policy": name, "replica": replica, "episode": episode, "return": value}
        for name, played in raw["policies"].items()
        for replica, row in enumerate(played["returns"])
        for episode, value in enumerate(row)
    ]


def write_returns(path: Path, raw: Mapping[str, Any]) -> None:
    """Write what ``gather`` gave."""
    path.write_text(json.dumps(raw) + "\n")
