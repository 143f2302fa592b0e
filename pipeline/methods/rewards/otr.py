"""OTR: rewards from optimal transport between raw observations of an agent's and an expert's episode.

Luo, Jiang, Cohen, Grefenstette, Deisenroth, "Optimal Transport for Offline Imitation Learning", ICLR 2023,
arXiv 2303.13971.

| paper and published code | here |
|---|---|
| c(x, y) = 1 - x.y / (||x|| ||y||) on raw observations | ``cosine_cost`` |
| mu* = argmin_mu sum_ij mu_ij c_ij + epsilon sum_ij mu_ij log mu_ij, 100 Sinkhorn iterations | ``sinkhorn`` |
| r_i = alpha exp(beta T / d u_i), u_i = -sum_j mu*_ij c_ij, d the size of an observation | ``observation_reward`` |
| rewards scaled by 1000 / (largest - smallest episode return) | ``functional.return_range_scale``, where a policy is learned |

``mode: paper`` gives every step the mass 1 / T with T = 1000 whatever the episode's length, so that the total masses of
two episodes differ, and an absolute epsilon. Sinkhorn then meets the rows exactly and the columns in proportion: since
the coupling does not depend on the total of the column masses, the rewards are those of equal totals, and the one thing
that ``mode: normalised`` changes is epsilon, which becomes relative to the mean cost. AntMaze is published without the
division by d (``divide_by_observation_dim: false``), with beta = 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.pipeline.labelling import Compared, Comparison, transported
from dynarep.pipeline.transport import Labels, mean_cost, sinkhorn, uniform_masses


@config
class OTRConfig:
    """Hyper-parameters of OTR; the defaults are the published ones for locomotion and Adroit."""

    mode: Literal["paper", "normalised"] = "paper"
    scale: float = Field(default=5.0, gt=0)
    """alpha: the reward where nothing is paid."""
    temperature: float = Field(default=5.0, gt=0)
    """beta: multiplies the mean cost of a step."""
    divide_by_observation_dim: bool = True
    """Divide beta by the size of an observation."""
    horizon: int = Field(default=1000, ge=1)
    """T: with ``paper`` the mass of a step is 1 / T."""
    epsilon: float = Field(default=0.01, gt=0)
    """Entropic regularisation: absolute with ``paper``, relative to the mean cost with ``normalised``."""
    max_iterations: int = Field(default=100, ge=1)
    tolerance: float = Field(default=1e-9, ge=0)
    """Marginal error at which the iteration stops."""


def cosine_cost(x: Tensor, y: Tensor) -> Tensor:
    """1 - x_i.y_j / (||x_i|| ||y_j|| + 1e-8), within [0, 2], for (B, n, d), (B, m, d): (B, n, m)."""
    x, y = x.double(), y.double()
    norms = x.norm(dim=-1).unsqueeze(2) * y.norm(dim=-1).unsqueeze(1)
    return (1.0 - torch.bmm(x, y.mT).div_(norms.add_(1e-8))).clamp_(0.0, 2.0).float()


def observation_reward(paid: Tensor, horizon: Tensor, scale: float, temperature: float) -> Tensor:
    """r_i = alpha exp(-beta T sum_j mu_ij c_ij).

    Args:
        paid: sum_j mu_ij c_ij, (B, n), at least 0.
        horizon: T, (B,), one over the mass of a step.
        scale: alpha.
        temperature: beta, or beta / d.

    Returns:
        (B, n), in (0, alpha].
    """
    return scale * torch.exp(-temperature * horizon.unsqueeze(1) * paid)


def label(
    agent: Tensor, agent_lengths: Tensor, expert: Tensor, expert_lengths: Tensor, calibration: Tensor, c: OTRConfig
) -> Labels:
    """Rewards of B agent episodes, each against one expert episode.

    Args:
        agent: observations (B, n, d), with any finite padding.
        agent_lengths: (B,).
        expert: observations (B, m, d), likewise.
        expert_lengths: (B,).
        calibration: not used: the cosine has no unit.
        c: hyper-parameters.
    """
    cost = cosine_cost(agent, expert)
    horizon = torch.full_like(agent_lengths, c.horizon) if c.mode == "paper" else agent_lengths
    a = uniform_masses(agent_lengths, cost.shape[1], agent_lengths / horizon)
    if c.mode == "paper":
        b = uniform_masses(expert_lengths, cost.shape[2], expert_lengths / c.horizon)
        epsilon = torch.full_like(a[:, 0], c.epsilon)
    else:
        b = uniform_masses(expert_lengths, cost.shape[2])
        epsilon = (c.epsilon * mean_cost(cost, a, b)).clamp_(min=torch.finfo(cost.dtype).tiny)
    transport = sinkhorn(cost, a, b, epsilon, max_iterations=c.max_iterations, tolerance=c.tolerance)
    temperature = c.temperature / (agent.shape[-1] if c.divide_by_observation_dim else 1)
    rewards = observation_reward((transport.coupling * cost).sum(2), horizon, c.scale, temperature)
    return Labels(rewards * (a > 0), cost, transport, torch.zeros_like(epsilon))


class OTR(Comparison):
    """Rewards by OTR."""

    kind = "otr"
    tempered = True
    Config = OTRConfig

    def against(
        self, agent: Tensor, agent_lengths: Tensor, expert: Tensor, expert_lengths: Tensor, calibration: Tensor
    ) -> Compared:
        """Transport between observations."""
        return transported(label(agent, agent_lengths, expert, expert_lengths, calibration, self.config))
