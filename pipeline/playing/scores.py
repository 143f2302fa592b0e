"""Scores of policies: normalised score, interquartile mean and its bootstrap interval.

Normalised score: Fu et al. 2020, D4RL: Datasets for Deep Data-Driven Reinforcement Learning, section 5, with the reference
returns of ``dynarep.data.d4rl``. Interquartile
mean and stratified bootstrap: Agarwal et al. 2021, Deep Reinforcement Learning at the Edge of the Statistical
Precipice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import mannwhitneyu, trim_mean

OPTIONAL_SCORES = {"success_rate": "success rate", "motion_distance": "distance to the motion"}
"""Scores that all policies of an evaluation have, or none -> their column."""


def normalised_score(returns: ArrayLike, reference: tuple[float, float]) -> NDArray[np.float64]:
    """D4RL score of each return: 0 for the random reference, 100 for the expert reference."""
    random, expert = reference
    return 100.0 * (np.asarray(returns, dtype=np.float64) - random) / (expert - random)


def expert_fraction(return_mean: float, random_mean: float, expert_mean: float) -> float | None:
    """Position of a mean return between a random policy's (0) and the demonstrations' (1); None if those are equal."""
    if expert_mean == random_mean:
        return None
    return (return_mean - random_mean) / (expert_mean - random_mean)


def interquartile_mean(values: ArrayLike) -> float:
    """Mean of the middle half: a quarter of the n values, rounded down, is dropped at either end."""
    return float(trim_mean(np.asarray(values, dtype=np.float64), 0.25, axis=None))


def bootstrap_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the interquartile mean by a two-stage bootstrap: replicas, then episodes within each.

    It covers the chance of the training seeds as well as of the episodes. A few replicas say little about other seeds:
    with three, the interval is wide and still somewhat too narrow. With one it covers the episodes alone.

    Args:
        values: (R, E) one score per replica and episode.
        confidence: mass between the bounds, in (0, 1).
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Returns:
        Lower and upper bound.
    """
    return stratified_interval([values], confidence=confidence, resamples=resamples, seed=seed)


def mean_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """As ``bootstrap_interval``, of the mean."""
    means = _resampled([values], resamples, np.random.default_rng(seed)).mean(1)
    return _percentiles(means, confidence)


def stratified_interval(
    strata: Sequence[ArrayLike], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """``bootstrap_interval`` over several tasks: replicas and episodes are drawn within each task.

    Args:
        strata: per task (R, E) scores; the sizes may differ.
        confidence: mass between the bounds, in (0, 1).
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Returns:
        Lower and upper bound of the interquartile mean of all scores.
    """
    means = _resampled_means(strata, resamples, np.random.default_rng(seed))
    return _percentiles(means, confidence)


def rate_interval(
    hits: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Interval of a share of episodes, such as a success rate.

    The bounds are those of ``mean_interval``, or of Wilson's interval over all episodes where these are wider: a bootstrap
    of ten successes in ten says that the rate is 1 for certain.

    Args:
        hits: (R, E) 1 or 0 per replica and episode.
        confidence: mass between the bounds, in (0, 1).
        resamples: number of bootstrap samples.
        seed: of the resampling.
    """
    hits = np.asarray(hits, dtype=np.float64)
    low, high = mean_interval(hits, confidence=confidence, resamples=resamples, seed=seed)
    n, rate, z = hits.size, float(hits.mean()), NormalDist().inv_cdf((1 + confidence) / 2)
    centre, spread = rate + z**2 / (2 * n), z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    low, high = min(low, (centre - spread) / (1 + z**2 / n)), max(high, (centre + spread) / (1 + z**2 / n))
    return max(0.0, low), min(1.0, high)


def fraction_interval(
    values: ArrayLike,
    chance: ArrayLike,
    expert: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Interval of ``expert_fraction``, with the chance of the episodes of all three.

    Args:
        values: (R, E) returns of a policy.
        chance: (R, E) returns of a random policy; one number, such as a reference, is taken as certain.
        expert: (n,) returns of the demonstrations; with one, that is taken as certain.
        confidence: mass between the bounds, in (0, 1).
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Returns:
        Lower and upper bound; None if the demonstrations and the random policy are not told apart, so that their distance is
        no unit.
    """
    generator = np.random.default_rng(seed)
    bottom, top = np.atleast_2d(np.asarray(chance, np.float64)), np.atleast_2d(np.asarray(expert, np.float64))
    drawn, low, high = (_resampled([part], resamples, generator).mean(1) for part in (values, bottom, top))
    unit = high - low
    if (unit > 0).all() or (unit < 0).all():
        return _percentiles((drawn - low) / unit, confidence)
    return None


def difference_interval(
    values: ArrayLike,
    others: ArrayLike,
    *,
    paired: bool = False,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the interquartile mean of ``values`` less that of ``others``.

    Both are resampled as ``bootstrap_interval`` does it.

    Args:
        values: (R, E) one score per replica and episode.
        others: the same of another policy or run; the sizes may differ unless they are paired.
        paired: replica r and episode e of both belong together, because they have the same seeds: every sample draws the
            same replicas and episodes of both, so what they share cancels out. Else each is resampled on its own.
        confidence: mass between the bounds, in (0, 1).
        resamples: number of bootstrap samples.
        seed: of the resampling.

    Returns:
        Lower and upper bound; if both have one sign, the difference is told apart from chance.

    Raises:
        ValueError: if paired scores have different shapes.
    """
    shapes = np.shape(values), np.shape(others)
    if paired and shapes[0] != shapes[1]:
        raise ValueError(f"paired scores have shapes {shapes[0]} and {shapes[1]}, expected equal ones")
    generator = np.random.default_rng(seed)
    means = _resampled_means([values], resamples, generator)
    if paired:
        generator = np.random.default_rng(seed)
    return _percentiles(means - _resampled_means([others], resamples, generator), confidence)


def probability_of_improvement(values: Sequence[ArrayLike], others: Sequence[ArrayLike]) -> float:
    """Mean over tasks of P(X > Y) + P(X = Y) / 2, X a score of one policy and Y one of another (Agarwal et al. 2021).

    Args:
        values: per task (R, E) scores.
        others: of the other policy in the same tasks.
    """
    pairs = zip(values, others, strict=True)
    return float(
        np.mean([mannwhitneyu(np.ravel(x), np.ravel(y)).statistic / (np.size(x) * np.size(y)) for x, y in pairs])
    )


def _resampled_means(
    strata: Sequence[ArrayLike], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Interquartile means (resamples,) of replicas and episodes drawn within each stratum."""
    return np.asarray(trim_mean(_resampled(strata, resamples, generator), 0.25, axis=1))


def _resampled(strata: Sequence[ArrayLike], resamples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Replicas and episodes drawn within each stratum, (resamples, scores)."""
    samples = []
    for values in (np.asarray(values, dtype=np.float64) for values in strata):
        replicas, episodes = values.shape
        rows = generator.integers(replicas, size=(resamples, replicas, 1))
        columns = generator.integers(episodes, size=(resamples, replicas, episodes))
        samples.append(values[rows, columns].reshape(resamples, -1))
    return np.concatenate(samples, 1)


def _percentiles(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def ranking(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Policies of an evaluation's ``metrics.json``, best first.

    By the distance to a motion if one was asked for, else by normalised score, success rate, the interquartile mean of the
    return or its mean, fitted Q or the error of the actions, the first there is.
    """

    def score(name: str) -> float:
        found = metrics[name]
        if found["motion_distance"] is not None:
            return -float(found["motion_distance"])
        keys = ("normalised_iqm", "success_rate", "return_iqm", "return_mean", "fitted_q")
        known = [float(found[key]) for key in keys if found.get(key) is not None]
        return known[0] if known else -float(found["action_error"])

    return sorted(metrics, key=score, reverse=True)
