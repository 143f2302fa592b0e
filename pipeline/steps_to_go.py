"""Steps to go: how far it is to the end of a demonstration, through the state of it that is nearest.

A value in closed form. ``methods/rewards/progress.py`` and ``follow.py`` make rewards of its differences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynarep.pipeline.labelling import Compared
from dynarep.pipeline.search import hard_coupling, nearest_steps
from dynarep.pipeline.transport import squared_distance


def step_lengths(expert: Tensor, expert_lengths: Tensor) -> Tensor:
    """u: the median length of those steps of each demonstration that move at all; (B, m, d), (B,) -> (B,).

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
    """V(s) = (m - 1 - j(s)) + d(s, e_j) / u, and the expert's step j that it goes through.

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


def progress(agent: Tensor, agent_lengths: Tensor, expert: Tensor, expert_lengths: Tensor, lookahead: int) -> Compared:
    """r_t = (V(s_t) - V(s_{t+k})) / k, clipped to [-1, 1]; arguments as of ``Comparison.against``."""
    value, steps = steps_to_go(agent, expert, expert_lengths)
    time = torch.arange(value.shape[1], device=value.device)
    later = torch.minimum(time + lookahead, agent_lengths.unsqueeze(1) - 1).clamp(min=0)
    rewards = ((value - value.gather(1, later)) / lookahead).clamp(-1.0, 1.0) * (time < agent_lengths.unsqueeze(1))

    def coupling() -> tuple[Tensor, Tensor]:
        return hard_coupling(steps, agent_lengths, expert.shape[1]), squared_distance(agent, expert)

    return Compared(rewards, {"steps_to_go_at_start": value[:, 0]}, coupling)
