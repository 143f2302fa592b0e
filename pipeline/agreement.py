"""How rewards relate to the true ones, and the episodes that show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset


def example_episodes(dataset: Dataset, count: int) -> list[Episode]:
    """At most ``count`` episodes in the order of their returns (lengths where unknown), the best one last.

    They are evenly spaced over the transitions in that order, so that they look like most of the data, which very short
    episodes do not.
    """
    values = dataset.returns or [float(episode.length) for episode in dataset.episodes]
    order = np.argsort(values, kind="stable")
    passed = np.cumsum([dataset.episodes[i].length for i in order])
    places = np.searchsorted(passed, passed[-1] * np.arange(1, count + 1) / count)
    return [dataset.episodes[order[place]] for place in dict.fromkeys(places.tolist())]


def example(episode: Episode, rewards: dict[str, np.ndarray]) -> dict[str, Any]:
    """Rewards of an episode, for the first replica."""
    arrays = {"rewards": rewards[episode.id][0], "agent": episode.id}
    return arrays if episode.rewards is None else {**arrays, "true_rewards": episode.rewards}


def write_examples(folder: Path, examples: Sequence[Mapping[str, Any]]) -> None:
    """Write examples as ``<number>.npz``, without costs; of each step's mass, what is below 1e-4 of its largest is dropped."""
    folder.mkdir()
    for number, example in enumerate(examples):
        arrays = {key: value for key, value in example.items() if key != "cost"}
        if "coupling" in arrays:
            mass = arrays["coupling"]
            arrays["coupling"] = np.where(mass >= 1e-4 * mass.max(1, keepdims=True), mass, 0)
        np.savez_compressed(folder / f"{number}.npz", **arrays)


SATURATED, DROPPED = 0.9, 0.2
"""Shares of rewards at either end of their range, and of mass whose cost is dropped, from which a label deserves a remark."""


def remarks(metrics: Mapping[str, Any], rewards: Mapping[str, np.ndarray], *, tempered: bool) -> list[str]:
    """What a person should know of a label before a policy learns from it: nothing, or one line for each doubt.

    Args:
        metrics: of the label.
        rewards: per episode id, of any shape.
        tempered: whether the label has a temperature, so that its rewards are exponentials of costs and can saturate.
    """
    values = np.abs(np.concatenate([row.ravel() for row in rewards.values()]))
    found = []
    silent, full = (float((values <= 0.01 * values.max()).mean()), float((values > 0.99 * values.max()).mean()))
    if tempered and silent > SATURATED:
        found.append(
            f"{100 * silent:.0f} % of the rewards are below a hundredth of the largest one; a lower temperature spreads them"
        )
    if tempered and full > SATURATED:
        found.append(
            f"{100 * full:.0f} % of the rewards are within a hundredth of the largest one; a higher temperature spreads them"
        )
    if metrics.get("dropped_mass", 0.0) > DROPPED:
        found.append(
            f"{100 * metrics['dropped_mass']:.0f} % of the mass pays nothing, because it goes to steps before the one where an "
            "episode enters the demonstration; before_entry: rematched has it pay"
        )
    return found


def agreement(dataset: Dataset, rewards: dict[str, np.ndarray]) -> dict[str, Any]:
    """How the rewards relate to the true ones.

    Returns:
        ``reward_mean``; ``spearman_true_return``, the rank correlation of returns over episodes, mean over replicas;
        ``spearman_true_reward``, the rank correlation of rewards within an episode, mean over episodes and replicas. A
        correlation is None where the truth is not known, or where either side is constant everywhere.
    """
    labelled = [rewards[episode.id] for episode in dataset.episodes]
    returns = np.stack([values.sum(-1) for values in labelled], -1)
    over_episodes = [] if dataset.returns is None else [_spearman(row, dataset.returns) for row in returns]
    within = [
        _spearman(row, episode.rewards)
        for episode, values in zip(dataset.episodes, labelled, strict=True)
        if episode.rewards is not None
        for row in values
    ]
    return {
        "reward_mean": float(np.concatenate(labelled, -1).mean(dtype=np.float64)),
        "spearman_true_return": _mean_where_defined(over_episodes),
        "spearman_true_reward": _mean_where_defined(within),
    }


def _spearman(x: Any, y: Any) -> float | None:
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic) if np.ptp(x) > 0 and np.ptp(y) > 0 else None


def _mean_where_defined(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def return_rows(dataset: Dataset, rewards: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row per episode: ``episode``, ``length``, ``relabelled`` (mean over replicas), ``true`` (or None)."""
    true = dataset.returns if dataset.returns is not None else [None] * len(dataset.episodes)
    return [
        {"episode": e.id, "length": e.length, "relabelled": float(rewards[e.id].sum(-1).mean()), "true": value}
        for e, value in zip(dataset.episodes, true, strict=True)
    ]
