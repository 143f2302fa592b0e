"""Rewards from the distance to the nearest state of an expert's episode, or of the part of it that is due at the time.

Both take the place of transport by a search: a state is compared with one expert state, whatever the other states do.

``nearest``. Lyu, Ma, Wan, Liu, Li, Lu, "SEABO: A Simple Search-Based Method for Offline Imitation Learning", ICLR 2024,
arXiv 2402.03807; also the Minimum-Distance Reward of Dong, Omori, Ross, "Is Optimal Transport Necessary for Inverse
Reinforcement Learning?", 2025, arXiv 2506.06793. ``segment``. The Segment-Matching Reward of the latter.

| paper and published code | here |
|---|---|
| d = the distance of (s, s') to the nearest expert pair, Euclidean | ``with_lookahead``, ``nearest_steps`` |
| r = alpha exp(-beta d / dim A), dim A the size of an action | ``distance_reward`` |
| the nearest one among the expert states of the corresponding segment | ``segment_bounds``, ``nearest_steps`` |

SEABO on states alone is ``{lookahead: 1, units: raw, power: 1, divide_by_action_dim: true, scale: 1, temperature: 0.5}``;
its code sets beta 5 for AntMaze and does not divide by dim A for Adroit. The defaults are the form that is comparable with
AILOT: r = alpha exp(-tau c d^2), c the calibration of the space. With the same lookahead k > 0, c d^2 is AILOT's cost C_ij,
and each step takes its cheapest expert step in place of the coupling; for k = 0 AILOT's cost is twice that.

Deviations: SEABO's default pairs hold the action too, these do not, because demonstrations need not have any; only the
nearest neighbour counts (SEABO's k = 1). Its pair of an episode's last step holds the state after it, here the last state
stands twice, as in AILOT. Several experts are searched as one pool, as in SEABO.

Open: the abstract of arXiv 2506.06793 matches a state with the corresponding segment of the expert's trajectory. How many
segments there are, where they end and which function of the distance is taken is not known from it, so those are our own.
Here both episodes are cut into ``segments`` parts of equal duration, as fractions of each episode's own length; an expert
step that two parts share belongs to both, so no part is empty. One segment is ``nearest``; as many as there are steps
compare steps of the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dynarep.configs.params import Field, config


@config
class NearestConfig:
    """Hyper-parameters of the reward from the nearest expert state."""

    scale: float = Field(default=5.0, gt=0)
    """alpha: the reward at distance 0."""
    temperature: float = Field(default=0.5, gt=0)
    """tau, or SEABO's beta: multiplies the distance to the power ``power``."""
    power: Literal[1, 2] = 2
    """1: the Euclidean distance, as SEABO; 2: its square, as AILOT's cost."""
    units: Literal["calibrated", "raw"] = "calibrated"
    """``calibrated``: a squared distance of 1 is the mean over one step of the data; ``raw``: as the space has it."""
    divide_by_action_dim: bool = False
    """Divide the temperature by the size of an action, as SEABO."""
    lookahead: int = Field(default=0, ge=0)
    """k: compare (s_t, s_{t+k}) with the same of the expert; 0 compares s_t alone, 1 is SEABO's pair."""


@config
class SegmentConfig(NearestConfig):
    """Hyper-parameters of the reward from the nearest expert state of the corresponding segment."""

    segments: int = Field(default=10, ge=1)
    """Parts of equal duration into which both episodes are cut."""


@dataclass(frozen=True)
class Matches:
    """Rewards of B agent episodes against one expert episode each, and which of its steps they were compared with.

    Args:
        rewards: (B, n), 0 on padding.
        steps: (B, n) int64, the expert's step, counted from 0; arbitrary on padding.
    """

    rewards: Tensor
    steps: Tensor


def with_lookahead(points: Tensor, lookahead: int) -> Tensor:
    """(x_i, x_min(i+k,n)) side by side: (B, n, d) -> (B, n, 2 d), and the points themselves for k = 0.

    The squared distance of two such rows is ||x_i - y_j||^2 + ||x_min(i+k,n) - y_min(j+k,m)||^2.
    """
    if lookahead == 0:
        return points
    ahead = torch.arange(lookahead, points.shape[1] + lookahead, device=points.device).clamp_(max=points.shape[1] - 1)
    return torch.cat([points, points.index_select(1, ahead)], -1)


def segment_bounds(agent_lengths: Tensor, expert_lengths: Tensor, size: int, segments: int) -> tuple[Tensor, Tensor]:
    """The expert's steps that correspond to each of the agent's.

    Step i of Ta is in part p = floor(i K / Ta) of K; the expert's steps whose time overlaps with its part p are
    floor(p Te / K) to ceil((p + 1) Te / K) - 1.

    Args:
        agent_lengths: Ta, (B,) int64.
        expert_lengths: Te, (B,) int64.
        size: n, steps of the agent with padding, which gets the last part.
        segments: K.

    Returns:
        The first of these steps and the one after the last: two (B, size) int64, 0 <= first < end <= Te.
    """
    steps = torch.arange(size, device=agent_lengths.device).minimum(agent_lengths.unsqueeze(1) - 1)
    part = steps * segments // agent_lengths.unsqueeze(1)
    length = expert_lengths.unsqueeze(1)
    return part * length // segments, -(-(part + 1) * length // segments)


def nearest_steps(
    agent: Tensor, expert: Tensor, expert_lengths: Tensor, bounds: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """argmin_j ||x_i - y_j||^2 over the expert's steps, the first of equal ones.

    Found from single-precision products; where two steps are equally far up to their rounding, either may come out.

    Args:
        agent: (B, n, d).
        expert: (B, m, d), with any finite padding.
        expert_lengths: (B,).
        bounds: first and end, (B, n) each, of the steps allowed for each row; all by default.

    Returns:
        (B, n) int64.
    """
    centre = expert.mean(1, keepdim=True)
    x, y = agent - centre, expert - centre
    steps = torch.arange(expert.shape[1], device=expert.device)
    norms = y.square().sum(-1).masked_fill_(steps >= expert_lengths.unsqueeze(1), torch.inf)
    scores = torch.baddbmm(norms.unsqueeze(1), x, y.mT, alpha=-2.0)
    if bounds is not None:
        first, end = (bound.unsqueeze(2) for bound in bounds)
        scores.masked_fill_((steps < first) | (steps >= end), torch.inf)
    return scores.argmin(2)


def distance_reward(squared: Tensor, scale: float, temperature: float, power: int) -> Tensor:
    """The reward alpha exp(-beta d^power) of squared distances d^2, elementwise; in [0, alpha]."""
    return scale * torch.exp(-temperature * (squared.sqrt() if power == 1 else squared))


def label(
    agent: Tensor,
    agent_lengths: Tensor,
    expert: Tensor,
    expert_lengths: Tensor,
    calibration: Tensor,
    c: NearestConfig,
    action_dim: int,
) -> Matches:
    """Rewards of B agent episodes, each against one expert episode.

    Args:
        agent: points (B, n, d), shorter episodes continued with their last one.
        agent_lengths: Ta, (B,).
        expert: points (B, m, d), likewise.
        expert_lengths: Te, (B,).
        calibration: (B,), makes the mean squared distance of one step 1; not used with raw units.
        c: hyper-parameters; those of ``SegmentConfig`` restrict the search.
        action_dim: numbers in an action; used with ``divide_by_action_dim``, then at least 1.
    """
    x, y = with_lookahead(agent, c.lookahead), with_lookahead(expert, c.lookahead)
    bounds = None
    if isinstance(c, SegmentConfig):
        bounds = segment_bounds(agent_lengths, expert_lengths, agent.shape[1], c.segments)
    steps = nearest_steps(x, y, expert_lengths, bounds)
    matched = y.gather(1, steps.unsqueeze(2).expand(-1, -1, y.shape[2]))
    squared = (x - matched).square().sum(2)
    if c.units == "calibrated":
        squared = squared * calibration.unsqueeze(1)
    temperature = c.temperature / (action_dim if c.divide_by_action_dim else 1)
    rewards = distance_reward(squared, c.scale, temperature, c.power)
    return Matches(rewards * (torch.arange(agent.shape[1], device=agent.device) < agent_lengths.unsqueeze(1)), steps)


def hard_coupling(steps: Tensor, agent_lengths: Tensor, size: int) -> Tensor:
    """The coupling that sends 1 / Ta from each of the agent's steps to one of the expert's: (B, n), (B,) -> (B, n, size)."""
    mass = (torch.arange(steps.shape[1], device=steps.device) < agent_lengths.unsqueeze(1)) / agent_lengths.unsqueeze(1)
    return mass.new_zeros(*steps.shape, size).scatter_(2, steps.unsqueeze(2), mass.unsqueeze(2))
