"""The nearest state of an expert's episode: a search that takes the place of transport.

A state is compared with one expert state, whatever the other states do. ``methods/rewards/nearest.py`` and ``segment.py``
make rewards of it.

| here | what |
|---|---|
| ``with_lookahead``, ``nearest_steps`` | the distance of (s, s') to the nearest expert pair |
| ``distance_reward`` | r = alpha exp(-beta d^power) |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.data.schema import Episode
from dynarep.pipeline.labelling import Compared, Comparison, Judgement
from dynarep.pipeline.transport import squared_distance

SAMPLED = 100
"""Episodes of which a temperature of null is made, at most about twice as many."""


@config
class SearchConfig:
    """Hyper-parameters of the reward from the nearest expert state."""

    scale: float = Field(default=5.0, gt=0)
    """alpha: the reward at distance 0."""
    temperature: float | None = Field(default=0.5, gt=0)
    """tau, or SEABO's beta: multiplies the distance to the power ``power``; null: one over its median over the dataset."""
    power: Literal[1, 2] = 2
    """1: the Euclidean distance, as SEABO; 2: its square, as AILOT's cost."""
    units: Literal["calibrated", "raw"] = "calibrated"
    """``calibrated``: a squared distance of 1 is the mean over one step of the data; ``raw``: as the space has it."""
    divide_by_action_dim: bool = False
    """Divide the temperature by the size of an action, as SEABO."""
    lookahead: int = Field(default=0, ge=0)
    """k: compare (s_t, s_{t+k}) with the same of the expert; 0 compares s_t alone, 1 is SEABO's pair."""


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


def distance_reward(squared: Tensor, scale: float, temperature: float | Tensor, power: int) -> Tensor:
    """The reward alpha exp(-beta d^power) of squared distances d^2, elementwise; in [0, alpha]."""
    return scale * torch.exp(-temperature * (squared.sqrt() if power == 1 else squared))


def squared_distances(
    agent: Tensor,
    expert: Tensor,
    expert_lengths: Tensor,
    calibration: Tensor,
    c: SearchConfig,
    bounds: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Squared distances (B, n) to the nearest of the expert's steps, in the units of ``c``, and these steps (B, n)."""
    x, y = with_lookahead(agent, c.lookahead), with_lookahead(expert, c.lookahead)
    steps = nearest_steps(x, y, expert_lengths, bounds)
    matched = y.gather(1, steps.unsqueeze(2).expand(-1, -1, y.shape[2]))
    squared = (x - matched).square().sum(2)
    return (squared * calibration.unsqueeze(1) if c.units == "calibrated" else squared), steps


def label(
    agent: Tensor,
    agent_lengths: Tensor,
    expert: Tensor,
    expert_lengths: Tensor,
    calibration: Tensor,
    c: SearchConfig,
    action_dim: int,
    bounds: tuple[Tensor, Tensor] | None = None,
    temperature: Tensor | None = None,
) -> Matches:
    """Rewards of B agent episodes, each against one expert episode.

    Args:
        agent: points (B, n, d), shorter episodes continued with their last one.
        agent_lengths: Ta, (B,).
        expert: points (B, m, d), likewise.
        expert_lengths: Te, (B,).
        calibration: (B,), makes the mean squared distance of one step 1; not used with raw units.
        c: hyper-parameters.
        action_dim: numbers in an action; used with ``divide_by_action_dim``, then at least 1.
        bounds: first and end, (B, n) each, of the expert's steps that each row may be compared with; all by default.
        temperature: (B, 1), in place of that of ``c``.
    """
    squared, steps = squared_distances(agent, expert, expert_lengths, calibration, c, bounds)
    tau = c.temperature if temperature is None else temperature
    assert tau is not None, "a temperature of null is made of the data"
    rewards = distance_reward(squared, c.scale, tau / (action_dim if c.divide_by_action_dim else 1), c.power)
    return Matches(rewards * (torch.arange(agent.shape[1], device=agent.device) < agent_lengths.unsqueeze(1)), steps)


def hard_coupling(steps: Tensor, agent_lengths: Tensor, size: int) -> Tensor:
    """The coupling that sends 1 / Ta from each of the agent's steps to one of the expert's: (B, n), (B,) -> (B, n, size)."""
    mass = (torch.arange(steps.shape[1], device=steps.device) < agent_lengths.unsqueeze(1)) / agent_lengths.unsqueeze(1)
    return mass.new_zeros(*steps.shape, size).scatter_(2, steps.unsqueeze(2), mass.unsqueeze(2))


class Search(Comparison):
    """A reward from the nearest expert state. Several experts are one pool: each state takes its own best expert."""

    Config = SearchConfig
    tempered = True

    def __init__(self, c: SearchConfig, world: Judgement) -> None:
        if c.divide_by_action_dim and world.dataset.spec.action_dim == 0:
            raise ValueError(f"divide_by_action_dim: {world.dataset.name} has no actions")
        super().__init__(c, world)
        self.temperature: Tensor | None = None
        if c.temperature is None:
            self.temperature = self.median_temperature(world.dataset.episodes)

    @torch.no_grad()
    def median_temperature(self, episodes: Sequence[Episode]) -> Tensor:
        """One over the median of d^power over the steps of some episodes, for each replica: (R, 1)."""
        found = []
        for episode in episodes[:: max(1, len(episodes) // SAMPLED)]:
            x = self.embed(episode)
            lengths, calibration = torch.full((len(x),), x.shape[1], device=x.device), self.embed.calibration
            nearest = torch.full(x.shape[:2], torch.inf, device=x.device)
            for y in self.embedded_experts:
                expert = y.expand(len(x), -1, -1)
                size = torch.full((len(x),), expert.shape[1], device=x.device)
                bounds = self.bounds(lengths, size, x.shape[1])
                nearest = nearest.minimum(squared_distances(x, expert, size, calibration, self.config, bounds)[0])
            found.append(nearest.sqrt() if self.config.power == 1 else nearest)
        median = torch.cat(found, 1).median(1, keepdim=True).values
        if not (median > 0).all():
            raise ValueError("temperature: found null, but half of the steps lie on the demonstration; give a number")
        return 1.0 / median

    @property
    def by_state(self) -> bool:
        """Always."""
        return True

    def bounds(self, agent_lengths: Tensor, expert_lengths: Tensor, size: int) -> tuple[Tensor, Tensor] | None:
        """The expert's steps that each of the agent's may be compared with: all."""
        return None

    def against(
        self, agent: Tensor, agent_lengths: Tensor, expert: Tensor, expert_lengths: Tensor, calibration: Tensor
    ) -> Compared:
        """Search for the nearest state."""
        c = self.config
        bounds = self.bounds(agent_lengths, expert_lengths, agent.shape[1])
        tau = None if self.temperature is None else self.temperature.repeat(len(agent) // len(self.temperature), 1)
        matches = label(agent, agent_lengths, expert, expert_lengths, calibration, c, self.action_dim, bounds, tau)

        def coupling() -> tuple[Tensor, Tensor]:
            cost = squared_distance(*(with_lookahead(points, c.lookahead) for points in (agent, expert)))
            if c.units == "calibrated":
                cost.mul_(calibration[:, None, None])
            return hard_coupling(matches.steps, agent_lengths, expert.shape[1]), cost

        return Compared(matches.rewards, {}, coupling)
