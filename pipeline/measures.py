"""How good a space of states is: how its distances grow with time, and where the states of episodes lie in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dynarep.data.schema import Episode
from dynarep.pipeline.nn.models import Encoder

if TYPE_CHECKING:
    from dynarep.data.resident import TransitionTable

MAP_EPISODES, MAP_STATES = 60, 1500
"""How many held-out episodes, and states of them, are kept for a map of the latent space."""

HORIZON = 50
"""Largest number of steps over which distances are compared."""

PERTURBATIONS = (0.1, 0.3, 1.0)
"""Deviations of the noise by which actions are perturbed, where their bounds are -1 and 1."""


@dataclass(frozen=True)
class Measured:
    """What was measured of an encoder.

    Args:
        metrics: for ``metrics.json``.
        tables: rows of each table, by file name without ``.tsv``.
        latents: arrays for a map of the space, see ``map_latents``; none without a map.
    """

    metrics: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    latents: dict[str, Any] = field(default_factory=dict)


def check_held_out(held_out: list[Episode]) -> None:
    """Refuse episodes of which none has a step to measure.

    Raises:
        ValueError: if all of them are shorter than two states.
    """
    if all(episode.length < 2 for episode in held_out):
        raise ValueError(
            f"held_out: none of the {len(held_out)} episodes held out of the dataset has two states; hold out more episodes"
        )


def measure_space(encoder: Encoder, held_out: list[Episode], episodes: Iterable[Episode]) -> Measured:
    """Calibrate an encoder of states, and compare its distances with numbers of steps, beside those of raw states.

    ``step_distance`` among the metrics is the squared distance of one step of the episodes in the unit that the encoder
    brought along.

    Args:
        encoder: of states; its calibration, if it has one, becomes that of the episodes.
        held_out: episodes to measure on.
        episodes: that stand for the whole dataset.

    Raises:
        ValueError: if no held-out episode has two states, or psi never changes.
    """
    from scipy.stats import spearmanr

    check_held_out(held_out)
    metrics: dict[str, Any] = {}
    name = encoder.spaces[0]
    calibration = encoder.calibration_of(name)
    if calibration is not None and name not in encoder.in_steps:
        measured = step_calibration(encoder, episodes)
        metrics["step_distance"] = (calibration / measured).mean().item()
        calibration.copy_(measured)
        metrics["calibration"] = calibration.tolist()
    spaces = {name: encoder.embed, "raw": lambda x: x, "standardised": encoder.normaliser}
    rows: list[dict[str, Any]] = []
    for space, embed in spaces.items():
        steps, distances = distances_over_time(held_out, embed)
        metrics[space] = {
            "spearman": float(spearmanr(steps, distances).statistic),
            "r_squared": float(np.corrcoef(steps, distances)[0, 1] ** 2),
        }
        unit = distances[steps == 1].mean()
        for k in range(1, HORIZON + 1):
            values = distances[steps == k] / unit
            if len(values):
                low, high = np.percentile(values, [10, 90])
                rows.append({"k": k, "space": space, "mean": values.mean(), "low": low, "high": high})
    return Measured(metrics, {"distance": rows}, map_latents(encoder, held_out))


@torch.no_grad()
def step_calibration(encoder: Encoder, episodes: Iterable[Episode]) -> Tensor:
    """The scale (R,) that makes the squared distance of one step 1 on average over the episodes' transitions.

    Raises:
        ValueError: if psi of a replica does not change over any step, which leaves the scale undefined.
    """
    total, count = torch.zeros(encoder.architecture.replicas, dtype=torch.float64), 0
    for episode in episodes:
        now = encoder.embed(torch.from_numpy(episode.current)[None])
        following = encoder.embed(torch.from_numpy(episode.successors)[None])
        total += (following - now).square().sum(-1).double().sum(-1)
        count += episode.length
    if not (total > 0).all():
        constant = (total <= 0).nonzero().flatten().tolist()
        raise ValueError(f"psi of replica {constant} is the same for a state and the next, all over the data")
    return (count / total).float()


@torch.no_grad()
def map_latents(encoder: Encoder, episodes: list[Episode]) -> dict[str, Any]:
    """Latents of states along some episodes, for a map of the space.

    Returns:
        ``latents`` (N, latent_dim) float32 of the first replica, with the ``observations`` (N, obs_dim) float32, the
        ``episode`` (N,), an index, and the ``step`` (N,) of each; and per episode its ``return`` (E,), NaN where unknown, and
        ``length`` (E,). The episodes are the first ``MAP_EPISODES``; N is about ``MAP_STATES``, spread evenly over their
        transitions.
    """
    shown = episodes[:MAP_EPISODES]
    stride = max(1, sum(episode.length for episode in shown) // MAP_STATES)
    steps = [np.arange(number % stride, episode.length, stride) for number, episode in enumerate(shown)]
    states = np.concatenate([episode.current[chosen] for episode, chosen in zip(shown, steps, strict=True)])
    returns = [math.nan if episode.return_ is None else episode.return_ for episode in shown]
    return {
        "latents": encoder(torch.from_numpy(states)).numpy(),
        "observations": states.astype(np.float32),
        "episode": np.repeat(np.arange(len(shown)), [len(chosen) for chosen in steps]),
        "step": np.concatenate(steps),
        "return": np.array(returns),
        "length": np.array([episode.length for episode in shown]),
    }


@torch.no_grad()
def distances_over_time(episodes: list[Episode], embed: Any, *, starts: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (k, ||x_{t+k} - x_t||^2) for k = 1..50 along episodes, the distance averaged over replicas.

    Args:
        episodes: those shorter than 2 states give nothing.
        embed: (1, T, obs_dim) -> (R, T, latent).
        starts: states t taken per episode, evenly spaced.

    Returns:
        Two arrays of the same length: k, and squared distances in the units of the space.
    """
    steps, distances = [], []
    for episode in episodes:
        latent = embed(torch.from_numpy(episode.current)[None])
        length = latent.shape[1]
        for t in np.unique(np.linspace(0, length - 2, min(starts, max(length - 1, 0))).astype(int)):
            ahead = latent[:, t + 1 : t + 1 + HORIZON]
            steps.append(np.arange(1, ahead.shape[1] + 1))
            distances.append((ahead - latent[:, t : t + 1]).square().sum(-1).mean(0).numpy())
    return np.concatenate(steps), np.concatenate(distances)


@torch.no_grad()
def action_resolution(
    score: Callable[[Tensor, Tensor, Tensor], Tensor],
    table: TransitionTable,
    low: Sequence[float] | None,
    high: Sequence[float] | None,
    *,
    limit: int = 4096,
) -> dict[str, float]:
    """How well an action is told from a perturbed one: P(score(s, a, s') > score(s, a + sigma e, s')), e standard normal.

    Dynamics that do not see the action give 0.5, because a tie counts one half; those that see every difference give 1.

    Args:
        score: what is high where s' follows s and the action: (1, B, obs_dim), (1, B, act_dim), (1, B, obs_dim) -> (R, B).
        table: transitions with actions; ``limit`` of them are drawn.
        low: bounds of actions, in whose unit sigma is; None: -1 and 1.
        high: likewise.
        limit: transitions that are looked at.

    Returns:
        Mean over transitions and replicas, by sigma, as text. Perturbed actions may lie outside the bounds.
    """
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(len(table), generator=generator)[:limit]
    batch = table.gather(index[None].to(table.packed.device))
    s, a, following = (x.cpu() for x in (batch.observations, batch.actions, batch.next_observations))
    unit = 1.0 if low is None or high is None else 0.5 * (torch.tensor(high) - torch.tensor(low))
    noise = unit * torch.randn(a.shape, generator=generator)
    own = score(s, a, following)
    found = {}
    for sigma in PERTURBATIONS:
        other = score(s, a + sigma * noise, following)
        found[str(sigma)] = float((own > other).float().mean() + 0.5 * (own == other).float().mean())
    return found
