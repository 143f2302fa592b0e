"""What the episodes of all policies are worth, side by side: scores with intervals, the demonstrations and chance as marks.

Scores are D4RL's normalised scores where it has references (``dynarep.data.d4rl``), and beside them returns, the share of
episodes that reach their goal where the environment says what that is, the position between a random policy and the
demonstrations, and the distance to a motion where one is named.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dynarep.pipeline.playing.scores import (
    OPTIONAL_SCORES,
    bootstrap_interval,
    expert_fraction,
    fraction_interval,
    interquartile_mean,
    mean_interval,
    normalised_score,
    ranking,
    rate_interval,
)
from dynarep.pipeline.stored import read_json
from dynarep.pipeline.tables import count, digits_apart, number_text

if TYPE_CHECKING:
    from rich.console import Console

Table = NDArray[np.float64]

RANDOM_KIND = "random"
"""Kind of the policies that act at random."""

SAME_KEYS = ("env", "env_options", "seed", "max_steps", "action_repeat", "reference", "recording")
"""Of ``returns.json``, what all policies of a run have in common."""

PLAYED_SCORES = (
    *("return_mean", "length_mean", "return_iqm", "return_low", "return_high"),
    *("normalised_iqm", "normalised_low", "normalised_high"),
    *("expert_fraction", "expert_fraction_low", "expert_fraction_high"),
    *("success_rate", "success_low", "success_high", "motion_distance"),
)
"""Scores that are told from episodes in an environment."""

WIDTH = 80
"""Columns of a printed table, at most."""

ABOVE_EXPERT = 1.1
"""An expert fraction from which on a note says so."""


def episode_table(played: Mapping[str, Any], key: str) -> Table:
    """One number per replica and episode (R, E); NaN where it is not known."""
    if key in played:
        return np.array(played[key], dtype=np.float64)
    return np.full(np.shape(played["returns" if "returns" in played else "errors"]), np.nan)


def gather(artifacts: Path, entries: Collection[str] | None = None) -> dict[str, Any]:
    """The returns of all evaluated policies as one, as each ``returns.json`` has them.

    Args:
        artifacts: root of the stages' folders.
        entries: of ``learn`` that count; None: all that were evaluated. What an entry left behind that a params file has no
            more is not part of its run.

    Returns:
        What ``returns.json`` holds, with all policies and snapshots under ``policies``; also ``entries``, the entry of
        ``learn`` behind each, ``kinds`` by entry, ``random``, the policies that act at random, and ``demonstrations``, the
        returns of what the scores are compared with, or None.

    Raises:
        ValueError: if there are none, or they come from different environments.
    """
    paths = sorted((artifacts / "evaluate").glob("*/returns.json"))
    paths = [path for path in paths if entries is None or path.parent.name in entries]
    if not paths:
        raise ValueError(f"{artifacts / 'evaluate'}/*/returns.json: no such file; there are no scores to report")
    found: dict[str, Any] = {}
    owners: dict[str, str] = {}
    kinds: dict[str, str] = {}
    for path in paths:
        entry, returns = path.parent.name, {"recording": None, "action_repeat": 1, **read_json(path)}
        for key in SAME_KEYS:
            if found and returns[key] != found[key]:
                raise ValueError(f"{path}: {key} is {returns[key]!r}, {paths[0]} has {found[key]!r}")
        for policy in returns["policies"]:
            if policy.partition("@")[0] != entry:
                raise ValueError(f"{path}: policies: found {policy!r}, expected {entry} and its snapshots")
        owners |= dict.fromkeys(returns["policies"], entry)
        known = {name: _known(played) for name, played in returns["policies"].items()}
        found = {**returns, "policies": {**found.get("policies", {}), **known}}
        metadata = artifacts / "learn" / entry / "metadata.json"
        kinds[entry] = str(read_json(metadata).get("kind")) if metadata.exists() else ""
    demonstrations = artifacts / "demonstrate" / "metrics.json"
    expert = read_json(demonstrations).get("returns") if demonstrations.exists() else None
    random = [policy for policy, entry in owners.items() if kinds[entry] == RANDOM_KIND]
    return {**found, "entries": owners, "kinds": kinds, "random": random, "demonstrations": expert}


def _known(played: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is null: it says as much as what is not there."""
    return {key: value for key, value in played.items() if value is not None}


def summarise(raw: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Scores of each policy, from ``gather``.

    Returns:
        For each policy: env, episodes, replicas, return_mean, length_mean; return_iqm, normalised_iqm (None without a D4RL
        reference), expert_fraction (None without demonstrations' returns, or without a random policy and a reference) and
        success_rate (None if the environment never says), each with its 95 % interval, ``_low`` and ``_high`` (None where
        there is one episode, or none to compare with); motion_distance, the mean over episodes (None without a motion); and
        action_error and fitted_q, means over the episodes of a recording with their intervals (None where it was not asked for),
        beside recording, its name, recording_episodes, recording_return, the mean discounted return of its own episodes, and
        recording_seen, whether the policy was trained on it.
        Without an environment, what is told from episodes in one is None, and episodes are those of the recording.
    """
    reference = tuple(raw["reference"]) if raw["reference"] else None
    chance = None if reference is None else np.array([[reference[0]]], dtype=np.float64)
    if chance is None and raw["random"] and "returns" in raw["policies"][raw["random"][0]]:
        chance = episode_table(raw["policies"][raw["random"][0]], "returns")
    expert = np.array(raw["demonstrations"], dtype=np.float64) if raw["demonstrations"] else None
    tells = any(
        "successes" in played and np.isfinite(episode_table(played, "successes")).any()
        for played in raw["policies"].values()
    )
    return {
        name: {
            **_score(raw["env"], played, reference, chance, expert, tells),
            **_recorded(raw.get("recording"), played),
        }
        for name, played in raw["policies"].items()
    }


def _recorded(recording: Mapping[str, Any] | None, played: Mapping[str, Any]) -> dict[str, Any]:
    """What a recording says of a policy."""
    known = recording is not None and "errors" in played
    return {
        "recording": recording["dataset"] if recording is not None and known else None,
        "recording_episodes": np.shape(played["errors"])[1] if known else None,
        "recording_return": recording["own"] if recording is not None and known else None,
        "recording_seen": played.get("seen"),
        **_mean("action_error", played, "errors"),
        **_mean("fitted_q", played, "fitted_q"),
    }


def _score(
    env: str,
    played: Mapping[str, Any],
    reference: tuple[float, float] | None,
    chance: Table | None,
    expert: Table | None,
    tells: bool,
) -> dict[str, Any]:
    if "returns" not in played:
        replicas, episodes = np.shape(played["errors"])
        return {"env": env, "episodes": episodes, "replicas": replicas, **dict.fromkeys(PLAYED_SCORES)}
    returns = episode_table(played, "returns")
    distance = float(episode_table(played, "distances").mean())
    fraction, interval = None, None
    if chance is not None and expert is not None:
        fraction = expert_fraction(float(returns.mean()), float(chance.mean()), float(expert.mean()))
        interval = None if fraction is None else fraction_interval(returns, chance, expert)
    success = np.nan_to_num(episode_table(played, "successes")) if tells else None
    return {
        "env": env,
        "episodes": returns.shape[1],
        "replicas": returns.shape[0],
        "return_mean": float(returns.mean()),
        "length_mean": float(episode_table(played, "lengths").mean()),
        **_iqm("return", returns),
        **_iqm("normalised", None if reference is None else normalised_score(returns, reference)),
        "expert_fraction": fraction,
        **_bounds("expert_fraction", returns, interval),
        "success_rate": None if success is None else float(success.mean()),
        **_bounds("success", returns, None if success is None else rate_interval(success)),
        "motion_distance": distance if np.isfinite(distance) else None,
    }


def _mean(name: str, played: Mapping[str, Any], key: str) -> dict[str, float | None]:
    """Mean over replicas and episodes of a recording."""
    if key not in played:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    values = episode_table(played, key)
    return {name: float(values.mean()), **_bounds(name, values, mean_interval(values))}


def _iqm(name: str, values: Table | None) -> dict[str, float | None]:
    if values is None:
        return {f"{name}_iqm": None, f"{name}_low": None, f"{name}_high": None}
    return {f"{name}_iqm": interquartile_mean(values), **_bounds(name, values, bootstrap_interval(values))}


def _bounds(name: str, values: Table, interval: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = (None, None) if interval is None or values.size < 2 else interval
    return {f"{name}_low": low, f"{name}_high": high}


@dataclass(frozen=True)
class Column:
    """One of the scores in a table.

    Args:
        title: of the column.
        value: key of the score.
        low: key of the lower bound of its interval; empty without one.
        high: key of the upper bound.
        form: of the numbers, with the least digits, such as ``,.1f``.
    """

    title: str
    value: str
    low: str
    high: str
    form: str

    def known(self, scores: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether some policy has this score."""
        return any(score.get(self.value) is not None for score in scores.values())

    def texts(self, scores: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """The score of each policy with its interval, with so many digits that different ones read differently."""
        sign, least = self.form.split(".")
        digits = digits_apart((score[self.value] for score in scores.values()), int(least.rstrip("f")))
        return {
            name: self._text(score, f"{sign}.{more}f")
            for (name, score), more in zip(scores.items(), digits, strict=True)
        }

    def _text(self, score: Mapping[str, Any], form: str) -> str:
        if score[self.value] is None:
            return MISSING
        text = number_text(score[self.value], form)
        if not self.low or score[self.low] is None:
            return text
        return f"{text} [{number_text(score[self.low], form)}, {number_text(score[self.high], form)}]"


MISSING = "–"
MOTION = Column(OPTIONAL_SCORES["motion_distance"], "motion_distance", "", "", ".2f")
NORMALISED = Column("normalised IQM", "normalised_iqm", "normalised_low", "normalised_high", ",.1f")
SUCCESS = Column(OPTIONAL_SCORES["success_rate"], "success_rate", "success_low", "success_high", ".2f")
RETURN = Column("return IQM", "return_iqm", "return_low", "return_high", ",.1f")
FRACTION = Column("expert fraction", "expert_fraction", "expert_fraction_low", "expert_fraction_high", ".2f")
FITTED_Q = Column("fitted Q", "fitted_q", "fitted_q_low", "fitted_q_high", ",.2f")
ACTION_ERROR = Column("action error", "action_error", "action_error_low", "action_error_high", ".3f")
RECORDED = (FITTED_Q, ACTION_ERROR)
"""Scores that are told from a recording."""


def headline(scores: Mapping[str, Mapping[str, Any]]) -> Column:
    """The score by which ``ranking`` orders these policies."""
    return next(column for column in (MOTION, NORMALISED, SUCCESS, RETURN, *RECORDED) if column.known(scores))


def columns(scores: Mapping[str, Mapping[str, Any]]) -> list[Column]:
    """The scores worth a column, the one that orders first."""
    first = headline(scores)
    centre = NORMALISED if NORMALISED.known(scores) else RETURN
    others = [
        column for column in (centre, FRACTION, SUCCESS, *RECORDED) if column is not first and column.known(scores)
    ]
    return [first, *others]


def above_expert(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Policies that are so far above the demonstrations that a reader should ask why, best first."""
    return [name for name in ranking(scores) if (scores[name]["expert_fraction"] or 0.0) > ABOVE_EXPERT]


def print_scores(scores: Mapping[str, Mapping[str, Any]], controls: Collection[str] = ()) -> None:
    """Print tables of scores, best first, at most 80 columns wide: of episodes in an environment, and of a recording.

    Args:
        scores: from ``summarise``.
        controls: policies that are marked as such.
    """
    from rich.console import Console

    first = next(iter(scores.values()))
    console = Console(highlight=False)
    console = Console(highlight=False, width=min(console.width, WIDTH))
    shown = columns(scores)
    if any(column not in RECORDED for column in shown):
        title = f"{first['env']}: {count(first['replicas'], 'replica')}, {count(first['episodes'], 'episode')} each"
        _print_table(console, title, [column for column in shown if column not in RECORDED], scores, controls)
    if any(column in RECORDED for column in shown):
        shown_by = f"{count(first['replicas'], 'replica')}, {count(first['recording_episodes'], 'episode')}"
        title = f"recording {first['recording']}: {shown_by}"
        _print_table(console, title, [column for column in shown if column in RECORDED], scores, controls)
        if first["recording_return"] is not None:
            worth = number_text(first["recording_return"], FITTED_Q.form)
            console.print(f"the recording's own episodes: {worth} (mean discounted return as far as they go)")
        seen = [name for name in ranking(scores) if scores[name]["recording_seen"]]
        if seen:
            console.print(f"trained on this recording, so not held out: {', '.join(seen)}")
    if controls:
        console.print("* control: no learned representation takes part")
    far = above_expert(scores)
    if far:
        console.print(
            f"above {ABOVE_EXPERT} of the expert: {', '.join(far)}; the demonstrations are not the best there is"
        )


def _print_table(
    console: Console,
    title: str,
    shown: Sequence[Column],
    scores: Mapping[str, Mapping[str, Any]],
    controls: Collection[str],
) -> None:
    from rich.box import SIMPLE
    from rich.table import Table as Printed

    console.print(title, style="italic", markup=False, highlight=False)  # a title of the table would fold at its width
    table = Printed(box=SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("policy", overflow="fold")
    texts = [column.texts(scores) for column in shown]
    for column in shown:
        table.add_column(column.title, justify="right", overflow="fold")
    for name in ranking(scores):
        table.add_row(f"{name} *" if name in controls else name, *(text[name] for text in texts))
    console.print(table)


def score_rows(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per episode, for plots: ``policy``, ``replica``, ``episode``, ``return``."""
    return [
        {"policy": name, "replica": replica, "episode": episode, "return": value}
        for name, played in raw["policies"].items()
        for replica, row in enumerate(played.get("returns", ()))
        for episode, value in enumerate(row)
    ]


def write_returns(path: Path, raw: Mapping[str, Any]) -> None:
    """Write what ``gather`` gave."""
    path.write_text(json.dumps(raw) + "\n")
