r"""Progress along a demonstration: by how many steps the way through it becomes shorter, per step.

Our own; the idea of steps to go as a value is that of potential-based shaping (Ng, Harada, Russell, ICML 1999).

| here | what |
|---|---|
| j(s) = argmin_j d(s, e_j) | ``search.nearest_steps`` |
| V(s) = (m - 1 - j(s)) + d(s, e_j) / u, u the median step of the demonstration in the space | ``steps_to_go`` |
| r_t = (V(s_t) - V(s_{t+k})) / k, clipped to [-1, 1] | ``Progress.against`` |

The steps that are left on the demonstration, and the distance to it: V leads around walls where d counts steps
(``temporal_metric``), because the demonstration has gone around them. Differences over one step drown in action noise, hence k.
No step makes the way shorter by more than one. A larger difference is a jump of j between parts of the demonstration that are
equally near, which says nothing of the step and would outweigh all that do, so r is clipped.
In a gait that repeats itself j is ambiguous; ``follow`` finds that out and looks at nearness there. A demonstration that ends where its goal
begins lets j saturate around the goal: record some steps more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.pipeline.labelling import Compared, Comparison
from dynarep.pipeline.search import hard_coupling, nearest_steps
from dynarep.pipeline.transport import squared_distance


@config
class ProgressConfig:
    """Hyper-parameters of progress."""

    lookahead: int = Field(default=10, ge=1)
    """k: steps over which progress is measured; at the end of an episode those that are left, still divided by k."""


def step_lengths(expert: Tensor, expert_lengths: Tensor) -> Tensor:
    """u: the median length of a step of each demonstration that moves at all; (B, m, d), (B,) -> (B,).

    Raises:
        ValueError: if a demonstration never moves, which leaves its step without a length.
    """
    units = []
    for points, length in zip(expert, expert_lengths.tolist(), strict=True):
        moves = (points[1:length] - points[: length - 1]).norm(dim=1)
        if not (moves > 0).any():
            raise ValueError("a demonstration never moves in this space, so its step has no length")
        units.append(moves[moves > 0].median())
    return torch.stack(units)


def steps_to_go(agent: Tensor, expert: Tensor, expert_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """V(s) and the expert's step j that it goes through.

    Args:
        agent: points (B, n, d).
        expert: points (B, m, d), shorter episodes continued with their last one.
        expert_lengths: (B,).

    Returns:
        (B, n) in steps of the demonstration, and (B, n) int64.

    Raises:
        ValueError: as ``step_lengths``.
    """
    steps = nearest_steps(agent, expert, expert_lengths)
    matched = expert.gather(1, steps.unsqueeze(2).expand(-1, -1, expert.shape[2]))
    away = (agent - matched).square().sum(2).sqrt()
    left = (expert_lengths.unsqueeze(1) - 1 - steps).to(agent.dtype)
    return left + away / step_lengths(expert, expert_lengths).unsqueeze(1), steps


class Progress(Comparison):
    """Rewards by progress along the demonstration."""

    kind = "progress"
    Config = ProgressConfig

    def against(
        self, agent: Tensor, agent_lengths: Tensor, expert: Tensor, expert_lengths: Tensor, calibration: Tensor
    ) -> Compared:
        """Differences of the steps to go."""
        k = self.config.lookahead
        value, steps = steps_to_go(agent, expert, expert_lengths)
        time = torch.arange(value.shape[1], device=value.device)
        later = torch.minimum(time + k, agent_lengths.unsqueeze(1) - 1).clamp(min=0)
        rewards = ((value - value.gather(1, later)) / k).clamp(-1.0, 1.0) * (time < agent_lengths.unsqueeze(1))

        def coupling() -> tuple[Tensor, Tensor]:
            return hard_coupling(steps, agent_lengths, expert.shape[1]), squared_distance(agent, expert)

        first = value[:, 0]
        return Compared(rewards, {"steps_to_go_at_start": first}, coupling)
