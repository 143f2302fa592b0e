r"""SMODICE and DemoDICE: offline imitation by cloning arbitrary data with the weights of the best occupancy in them.

Ma, Shen, Jayaraman, Bastani, "Versatile Offline Imitation from Observations and Examples via Regularized State-Occupancy
Matching", ICML 2022, arXiv 2202.02433 (SMODICE); Kim, Seo, Lee, Jeon, Hwang, Yang, Kim, "DemoDICE: Offline Imitation
Learning with Supplementary Imperfect Demonstrations", ICLR 2022 (DemoDICE).

Both look for the occupancy d that maximises E_d[R] - (1 + alpha) D_f(d || d^O) among those of policies, where d^O is the
occupancy of the data and R = log d^E / d^O. SMODICE has alpha = 0 and R of states, and bounds -KL(d^pi || d^E) of states
from below; DemoDICE has R of state-action pairs and the KL divergence, which gives
-KL(d^pi || d^E) - alpha KL(d^pi || d^O).

| paper | here |
|---|---|
| R = log d^E / d^O = logit of the discriminator of expert and data | ``discriminator_loss`` |
| min_V (1 - gamma) E V(s0) + (1 + alpha) E_{d^O} f^*(e / (1 + alpha)), e = R + gamma V(s') - V(s) | ``dual_loss`` |
| the same for KL, (1 + alpha) log E_{d^O} exp(e / (1 + alpha)) | ``dual_loss`` |
| d / d^O = f^*'(e / (1 + alpha)) at the optimum | ``density_ratio`` |
| policy: -E_{d^O} (d / d^O) log pi(a|s) | ``SMODICE.losses`` |

Deviations: discriminator, V and actor are trained together in one backward pass on disjoint parameters, as in DemoDICE;
SMODICE trains the discriminator first. f^* of the chi-square divergence is the conjugate on d >= 0, constant below -1.
With KL the weights are normalised to a mean of 1 over the batch, as in DemoDICE. ReLU networks, and the actor of
``bc`` (no entropy term), so that cloning and this differ in the weight of each sample alone. Terminal states are not
masked; ``absorbing`` leads to an absorbing state in their place.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynarep.pipeline.encoders import Policy, PolicyArchitecture
from dynarep.pipeline.functional import Losses, gaussian_log_prob, gradient_penalty, log_mean_exp
from dynarep.pipeline.networks import MLP, Normaliser
from dynarep.pipeline.params import Field, config

Divergence = Literal["kl", "chi_square"]


@config
class SMODICEConfig:
    """Hyper-parameters; the defaults are SMODICE's."""

    hidden: tuple[int, ...] = (256, 256)
    observe: Literal["states", "state_actions"] = "states"
    """What the discriminator compares: ``states`` (SMODICE) needs no expert actions, ``state_actions`` is DemoDICE."""
    divergence: Divergence = "kl"
    alpha: float = Field(default=0.0, ge=0)
    """Weight of a further D_f(d || d^O), which keeps the policy closer to the data."""
    gamma: float = Field(default=0.99, gt=0, lt=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    gradient_penalty: float = Field(default=10.0, ge=0)
    """Of the discriminator, on mixtures of expert and data; 0 leaves it out."""
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of Gaussian noise on the standardised observations and the actions the discriminator learns from."""
    initial: Literal["episodes", "data"] = "episodes"
    """Whether rho are the first states of episodes or all states of the data."""
    max_weight: float | None = Field(default=None, gt=0)
    """Largest weight of a sample in the policy's loss; the mean weight is 1."""


@dataclass(frozen=True)
class OccupancyBatch:
    """Expert pairs, transitions of the data and initial states, all (R, B, ...); no expert actions: act_dim 0."""

    expert_observations: Tensor
    expert_actions: Tensor
    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    initial_observations: Tensor


def discriminator_loss(expert: Tensor, data: Tensor) -> Tensor:
    """-E_{d^E} log sigmoid(h) - E_{d^O} log(1 - sigmoid(h)), least at h = log d^E / d^O: (R, B), (R, B') -> (R,)."""
    return nn.functional.softplus(-expert).mean(-1) + nn.functional.softplus(data).mean(-1)


def dual_loss(initial: Tensor, e: Tensor, gamma: float, divergence: Divergence, alpha: float = 0.0) -> Tensor:
    """The dual of max_d E_d[R] - (1 + alpha) D_f(d || d^O), whose value it has at its least.

    chi_square is f(x) = (x - 1)^2 / 2, with f^*(y) = (max(y, -1) + 1)^2 / 2 - 1/2; with kl the constraint that d sums to 1
    is kept, which turns E f^* into a log E exp.

    Args:
        initial: V(s0), (R, B).
        e: R + gamma V(s') - V(s) on the data, (R, B').
        gamma: discount.
        divergence: f.
        alpha: see ``SMODICEConfig``.

    Returns:
        (R,).
    """
    y = e / (1.0 + alpha)
    conjugate = log_mean_exp(y) if divergence == "kl" else ((y + 1.0).clamp(min=0.0).square() * 0.5 - 0.5).mean(-1)
    return (1.0 - gamma) * initial.mean(-1) + (1.0 + alpha) * conjugate


def density_ratio(e: Tensor, divergence: Divergence, alpha: float = 0.0) -> Tensor:
    """Weights d / d^O = f^*'(e / (1 + alpha)) of the data, with kl normalised to a mean of 1: (R, B) -> (R, B)."""
    y = e / (1.0 + alpha)
    return torch.softmax(y, -1) * y.shape[-1] if divergence == "kl" else (y + 1.0).clamp(min=0.0)


class SMODICE(nn.Module):
    """Learner of a discriminator, V and a policy that clones the data with weights."""

    def __init__(
        self,
        c: SMODICEConfig,
        replicas: int,
        observation_mean: Tensor,
        observation_std: Tensor,
        action_low: tuple[float, ...],
        action_high: tuple[float, ...],
        *,
        absorbing: bool = False,
    ) -> None:
        super().__init__()
        self.config = c
        dim, action_dim = observation_mean.shape[-1], len(action_low)
        self.policy = Policy(
            PolicyArchitecture(
                replicas=replicas,
                observation_dim=dim - absorbing,
                action_low=action_low,
                action_high=action_high,
                hidden=c.hidden,
                absorbing=absorbing,
            )
        )
        self.policy.normaliser = Normaliser(observation_mean, observation_std)
        self.log_std = nn.Parameter(torch.zeros(replicas, 1, action_dim))
        inputs = dim + (action_dim if c.observe == "state_actions" else 0)
        self.discriminator = MLP((replicas,), (inputs, *c.hidden, 1))
        self.value = MLP((replicas,), (dim, *c.hidden, 1))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Discriminator and V at a constant rate, the actor with cosine decay."""
        rate = self.config.learning_rate
        return [
            {"params": [*self.discriminator.parameters(), *self.value.parameters()], "lr": rate},
            {"params": [*self.policy.parameters(), self.log_std], "lr": rate, "cosine": True},
        ]

    def log_ratio(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The discriminator's logit at standardised observations (R, B, obs_dim) and the actions it compares: (R, B)."""
        return self.discriminator(torch.cat([observations, actions], -1)).squeeze(-1)  # type: ignore[no-any-return]

    def losses(self, batch: OccupancyBatch) -> Losses:
        """Discriminator loss and penalty + dual + weighted cloning; their parameters are disjoint."""
        c = self.config
        normaliser = self.policy.normaliser
        s_expert, s = normaliser(batch.expert_observations), normaliser(batch.observations)
        a_expert, a = batch.expert_actions, batch.actions
        if c.observe == "states":
            a_expert = a = a[..., :0]
        loss_d, penalty = self._discriminate(s_expert, a_expert, s, a)
        with torch.no_grad():
            log_ratio = self.log_ratio(s, a)

        states = [s, normaliser(batch.next_observations)]
        if c.initial == "episodes":
            states.append(normaliser(batch.initial_observations))
        v, v_next, *v_initial = self.value(torch.cat(states, 1)).squeeze(-1).split([x.shape[1] for x in states], 1)
        e = log_ratio + c.gamma * v_next - v
        loss_v = dual_loss(v_initial[0] if v_initial else v, e, c.gamma, c.divergence, c.alpha)

        weight = density_ratio(e.detach(), c.divergence, c.alpha)
        if c.max_weight is not None:
            weight = weight.clamp(max=c.max_weight)
        mean = self.policy.rescale(torch.tanh(self.policy.network(s)))
        log_prob = gaussian_log_prob(batch.actions, mean, self.log_std.clamp(-5.0, 2.0))
        loss_pi = -(weight * log_prob).mean(-1)
        return Losses(
            loss_d + c.gradient_penalty * penalty + loss_v + loss_pi,
            {
                "discriminator_loss": loss_d.detach(),
                "dual": loss_v.detach(),
                "policy_loss": loss_pi.detach(),
                "log_ratio": log_ratio.mean(-1),
                "effective_share": weight.mean(-1).square() / weight.square().mean(-1).clamp(min=1e-12),
            },
        )

    def _discriminate(self, s_expert: Tensor, a_expert: Tensor, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient penalty of the discriminator."""
        c = self.config
        if c.noise:
            s_expert, a_expert, s, a = (x + c.noise * torch.randn_like(x) for x in (s_expert, a_expert, s, a))
        loss = discriminator_loss(self.log_ratio(s_expert, a_expert), self.log_ratio(s, a))
        if not c.gradient_penalty:
            return loss, torch.zeros_like(loss)
        u = torch.rand(*s.shape[:2], 1, device=s.device)
        return loss, gradient_penalty(self.log_ratio, torch.lerp(s_expert, s, u), torch.lerp(a_expert, a, u))

    def after_update(self) -> None:
        """Nothing follows an update: the dual needs no target network."""

    def export(self) -> Policy:
        """The policy of every replica."""
        return deepcopy(self.policy)
