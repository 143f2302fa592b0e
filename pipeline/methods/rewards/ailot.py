"""AILOT: rewards from optimal transport between intents of an agent's and an expert's episode.

Bobrin, Buzun, Krylov, Dylov, "Align Your Intents: Offline Imitation Learning via Optimal Transport", 2024,
arXiv 2402.13037. The intent of a state is psi(s) of ``dynarep.pipeline.methods.encoders.icvf``; actions and rewards are not used.

| paper | here |
|---|---|
| C_ij = ||psi(s_i^a) - psi(s_j^e)||^2 + ||psi(s_min(i+k,Ta)^a) - psi(s_min(j+k,Te)^e)||^2 | ``intent_cost`` |
| P* = argmin_P sum_ij P_ij C_ij + epsilon sum_ij P_ij log P_ij, rows 1/Ta, columns 1/Te | ``sinkhorn`` |
| j1 = argmin_j C_1j, where the agent enters the expert's episode | ``entry_step`` |
| r(s_i^a) = alpha exp(-tau Ta sum_{j >= j1} P*_ij C_ij) | ``intent_reward`` |

Mass that goes to steps before j1 pays nothing: its cost is dropped, not renormalised. ``Labels.dropped_mass`` says how
much that is. An episode that begins near the goal enters at the expert's end, so that nearly all of its mass is free and leaving
the goal is worth as much as staying. ``before_entry: rematched``, ours, sends all mass to the steps from j1 on;
``truncate: false`` keeps all columns.

Deviations: the squared distance has no natural unit, so by default it is measured in steps of the dataset (``units:
calibrated``); ``raw`` takes psi as it comes, for which alpha and tau are published as (5, 0.5) and (1, 1). The paper's k,
epsilon, number of iterations and its choice among several experts are not known: the values here are our own.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.pipeline.labelling import Compared, Comparison, transported
from dynarep.pipeline.transport import RELAXATION, Labels, mean_cost, sinkhorn, squared_distance, uniform_masses


@config
class AILOTConfig:
    """Hyper-parameters of AILOT."""

    lookahead: int = Field(default=2, ge=0)
    """k: steps ahead at which both episodes are compared as well."""
    scale: float = Field(default=5.0, gt=0)
    """alpha: the reward where nothing is paid."""
    temperature: float = Field(default=0.5, gt=0)
    """tau: multiplies the mean cost of a step."""
    epsilon: float = Field(default=0.01, gt=0)
    """Entropic regularisation, relative to the mean of all costs of a pair of episodes."""
    units: Literal["calibrated", "raw"] = "calibrated"
    """``calibrated``: a squared distance of 1 is the mean over one step of the data; ``raw``: as the space has it."""
    truncate: bool = True
    """Leave out the expert's steps before the one nearest to the agent's first."""
    before_entry: Literal["free", "rematched"] = "free"
    """Of these steps: mass that goes there pays nothing, or goes to those that are left and pays there."""
    best_expert: Literal["episode", "state"] = "episode"
    """With several experts: the rewards of the one whose sum is largest, or the largest reward of each state."""
    max_iterations: int = Field(default=500, ge=1)
    tolerance: float = Field(default=1e-4, ge=0)
    """Marginal error at which the iteration stops."""


def intent_cost(agent: Tensor, expert: Tensor, lookahead: int) -> Tensor:
    """C_ij = ||psi_i - psi_j||^2 + ||psi_min(i+k,n) - psi_min(j+k,m)||^2.

    Args:
        agent: intents (B, n, d), shorter episodes continued with their last one.
        expert: intents (B, m, d), likewise.
        lookahead: k, at least 0.

    Returns:
        (B, n, m), in squared units of the intents.
    """
    now = squared_distance(agent, expert)
    rows, columns = (
        torch.arange(lookahead, size + lookahead, device=now.device).clamp_(max=size - 1) for size in now.shape[1:]
    )
    return now.index_select(1, rows).index_select(2, columns).add_(now)


def entry_step(cost: Tensor, expert_lengths: Tensor) -> Tensor:
    """j1 = argmin_j C_1j, the first of equal ones, counted from 0: (B, n, m), (B,) -> (B,)."""
    padding = torch.arange(cost.shape[2], device=cost.device) >= expert_lengths.unsqueeze(1)
    return cost[:, 0].masked_fill(padding, torch.inf).argmin(1)


def intent_reward(
    coupling: Tensor, cost: Tensor, agent_lengths: Tensor, first: Tensor, scale: float, temperature: float
) -> Tensor:
    """r_i = alpha exp(-tau Ta sum_{j >= j1} P_ij C_ij).

    Args:
        coupling: (B, n, m), rows summing to 1 / Ta.
        cost: (B, n, m).
        agent_lengths: Ta, (B,).
        first: j1, (B,).
        scale: alpha.
        temperature: tau.

    Returns:
        (B, n), in (0, alpha]; 0 on padding.
    """
    paid = (coupling * cost).masked_fill_(_before(first, cost), 0.0).sum(2)
    rewards = scale * torch.exp(-temperature * agent_lengths.unsqueeze(1) * paid)
    return rewards * (torch.arange(cost.shape[1], device=cost.device) < agent_lengths.unsqueeze(1))


def _before(first: Tensor, cost: Tensor) -> Tensor:
    return (torch.arange(cost.shape[2], device=cost.device) < first.unsqueeze(1)).unsqueeze(1)


def label(
    agent: Tensor, agent_lengths: Tensor, expert: Tensor, expert_lengths: Tensor, calibration: Tensor, c: AILOTConfig
) -> Labels:
    """Rewards of B agent episodes, each against one expert episode.

    Args:
        agent: intents (B, n, d), shorter episodes continued with their last one.
        agent_lengths: Ta, (B,).
        expert: intents (B, m, d), likewise.
        expert_lengths: Te, (B,).
        calibration: (B,), makes the mean squared distance of one step 1; not used with raw units.
        c: hyper-parameters.
    """
    cost = intent_cost(agent, expert, c.lookahead)
    if c.units == "calibrated":
        cost.mul_(calibration[:, None, None])
    a, b = uniform_masses(agent_lengths, cost.shape[1]), uniform_masses(expert_lengths, cost.shape[2])
    first = entry_step(cost, expert_lengths) if c.truncate else torch.zeros_like(expert_lengths)
    if c.before_entry == "rematched":
        b = b.masked_fill(_before(first, cost).squeeze(1), 0.0)
        b = b / b.sum(1, keepdim=True)
    epsilon = (c.epsilon * mean_cost(cost, a, b)).clamp_(min=torch.finfo(cost.dtype).tiny)
    transport = sinkhorn(
        cost, a, b, epsilon, max_iterations=c.max_iterations, tolerance=c.tolerance, relaxation=RELAXATION
    )
    rewards = intent_reward(transport.coupling, cost, agent_lengths, first, c.scale, c.temperature)
    dropped = (transport.coupling.sum(1) * _before(first, cost).squeeze(1)).sum(-1)
    return Labels(rewards, cost, transport, dropped)


class AILOT(Comparison):
    """Rewards by AILOT."""

    kind = "ailot"
    tempered = True
    Config = AILOTConfig

    @property
    def by_state(self) -> bool:
        """As configured."""
        return bool(self.config.best_expert == "state")

    def against(
        self, agent: Tensor, agent_lengths: Tensor, expert: Tensor, expert_lengths: Tensor, calibration: Tensor
    ) -> Compared:
        """Transport between intents."""
        return transported(label(agent, agent_lengths, expert, expert_lengths, calibration, self.config))
