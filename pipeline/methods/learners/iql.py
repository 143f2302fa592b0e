"""Implicit Q-learning: offline reinforcement learning on true or relabelled rewards.

Kostrikov, Nair, Levine, "Offline Reinforcement Learning with Implicit Q-Learning", ICLR 2022, arXiv 2110.06169.

| paper | here |
|---|---|
| L_V = E L2^tau(Q_target(s, a) - V(s)) (eq. 5) | ``value_loss`` |
| L_Q = E (r + gamma V(s') - Q(s, a))^2 (eq. 6) | ``q_loss`` |
| L_pi = -E exp(beta (Q_target - V)) log pi(a|s) (eq. 7) | ``policy_loss`` |

Double Q with the minimum, weights clipped at 100, an actor with mean tanh(f(s)) and a free log-std in [-5, 2], cosine
decay of the actor's rate: as in the authors' code.

LayerNorm in Q and V (``layer_norm``) is not IQL's; it is an option, off by default, that keeps values from growing where
the data end (Ball et al. 2023, arXiv 2302.02948).

Deviations: the three losses share one backward pass, so V in the actor's weight and in Q's target is the value before
this update, not after it (as in CORL); observations are standardised by default.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, Widths, config
from dynarep.pipeline.method import Learner, Needs, Sources, World
from dynarep.pipeline.methods.policies.deterministic import Policy
from dynarep.pipeline.nn.functional import Losses, expectile_loss, gaussian_log_prob, polyak
from dynarep.pipeline.nn.networks import MLP, Normaliser


@config
class IQLConfig:
    """Hyper-parameters of IQL; the defaults are those for MuJoCo locomotion."""

    hidden: Widths = (256, 256)
    normalise: bool = True
    gamma: float = Field(default=0.99, gt=0, lt=1)
    expectile: float = Field(default=0.7, gt=0, lt=1)
    temperature: float = Field(default=3.0, ge=0)
    """beta, multiplies the advantage."""
    max_weight: float = Field(default=100.0, gt=0)
    target_rate: float = Field(default=0.005, gt=0, le=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the actor's hidden activations; 0.1 is used for Adroit."""
    layer_norm: bool = False
    """LayerNorm in Q and V."""
    beside: bool = False
    """With an encoder, read the observation beside its latents."""


@dataclass(frozen=True)
class RewardBatch:
    """Transitions with rewards, each field (R, B, ...)."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    """1 where the transition ended the episode by the MDP's own rule, else 0."""
    next_observations: Tensor


def value_loss(q: Tensor, v: Tensor, expectile: float) -> Tensor:
    """E |tau - 1(q < v)| (q - v)^2 over the batch (eq. 5): (R, B), (R, B) -> (R,)."""
    return expectile_loss(q - v, q - v, expectile).mean(-1)


def q_loss(q: Tensor, reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """Sum over both critics of E (r + gamma (1 - terminated) V(s') - Q_i)^2 (eq. 6): q (R, 2, B), others (R, B) -> (R,)."""
    return (reward + discount * next_value).unsqueeze(1).sub(q).square().mean(-1).sum(1)


def advantage_weight(q: Tensor, v: Tensor, temperature: float, max_weight: float) -> Tensor:
    """min(exp(beta (q - v)), max_weight), elementwise."""
    return (temperature * (q - v)).clamp(max=math.log(max_weight)).exp()


def policy_loss(log_prob: Tensor, weight: Tensor) -> Tensor:
    """-E weight log pi(a|s) (eq. 7): (R, B), (R, B) -> (R,)."""
    return -(weight * log_prob).mean(-1)


class IQL(Learner):
    """Learner of V, two Qs and the policy."""

    kind = "iql"
    Config = IQLConfig
    shown = ("value", "q_loss")

    def __init__(self, c: IQLConfig, policy: Policy) -> None:
        super().__init__()
        self.config, self.policy = c, policy
        if not c.normalise:
            policy.normaliser = Normaliser.identity(policy.architecture.observation_dim)
        policy.network.dropout = c.dropout
        replicas, action_dim, dim = policy.architecture.replicas, len(policy.architecture.action_low), policy.width
        self.log_std = nn.Parameter(torch.zeros(replicas, 1, action_dim))
        self.value = MLP((replicas,), (dim, *c.hidden, 1), layer_norm=c.layer_norm)
        self.critic = MLP((replicas, 2), (dim + action_dim, *c.hidden, 1), layer_norm=c.layer_norm)
        self.target_critic = deepcopy(self.critic).requires_grad_(False)

    @classmethod
    def needs(cls, c: IQLConfig) -> Needs:
        """Rewarded transitions with actions."""
        return Needs(actions=("dataset",), optional_encoder=True, rewards=True)

    @classmethod
    def build(cls, c: IQLConfig, world: World) -> IQL:
        """For the observations and actions of a world."""
        return cls(c, Policy.build(world, c.hidden, beside=c.beside))

    def batch(self, sources: Sources, generator: torch.Generator) -> RewardBatch:
        """Uniform transitions with their rewards."""
        table = sources.table("dataset")
        index = sources.rows(len(table), generator)
        b = table.gather(index)
        rewards = sources.rewards.gather(1, index)
        return RewardBatch(b.observations, b.actions, rewards, b.terminated, b.next_observations)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """V and Q at a constant rate, the actor with cosine decay."""
        rate = self.config.learning_rate
        return [
            {"params": [*self.value.parameters(), *self.critic.parameters()], "lr": rate},
            {"params": [*self.policy.network.parameters(), self.log_std], "lr": rate, "cosine": True},
        ]

    def losses(self, batch: RewardBatch) -> Losses:
        """L_V + L_Q + L_pi; their parameters are disjoint, so one backward pass serves all three."""
        c = self.config
        s, s_next = self.policy.features(batch.observations), self.policy.features(batch.next_observations)
        actions = self.policy.unit(batch.actions)
        pair = torch.cat([s, actions], -1).unsqueeze(1)
        q = self.critic(pair).squeeze(-1)
        v = self.value(s).squeeze(-1)
        with torch.no_grad():
            q_target = self.target_critic(pair).squeeze(-1).amin(1)
            v_next = self.value(s_next).squeeze(-1)
            weight = advantage_weight(q_target, v, c.temperature, c.max_weight)
        mean = torch.tanh(self.policy.network(s))
        log_prob = gaussian_log_prob(actions, mean, self.log_std.clamp(-5.0, 2.0))

        loss_v = value_loss(q_target, v, c.expectile)
        loss_q = q_loss(q, batch.rewards, c.gamma * (1.0 - batch.terminated), v_next)
        loss_pi = policy_loss(log_prob, weight)
        return Losses(
            loss_v + loss_q + loss_pi,
            {
                "value_loss": loss_v.detach(),
                "q_loss": loss_q.detach(),
                "policy_loss": loss_pi.detach(),
                "value": v.detach().mean(-1),
                "weight": weight.mean(-1),
            },
        )

    @torch.no_grad()
    def after_update(self) -> None:
        """Polyak averaging of the target critics."""
        polyak(self.target_critic.parameters(), self.critic.parameters(), self.config.target_rate)

    def export(self) -> Policy:
        """The policy of every replica."""
        return deepcopy(self.policy)
