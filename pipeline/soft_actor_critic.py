"""Soft actor-critic: what all learners share that act in an environment and learn from their own steps.

Haarnoja, Zhou, Abbeel, Levine, "Soft Actor-Critic: Off-Policy Maximum Entropy Deep Reinforcement Learning with a Stochastic
Actor", ICML 2018, arXiv 1801.01290; temperature and two critics: Haarnoja et al., "Soft Actor-Critic Algorithms and
Applications", 2018, arXiv 1812.05905. Networks and constants: the code of Noise-Guided Transport (arXiv 2509.26294).

| source | here |
|---|---|
| y = r + gamma (1 - terminated) (min_i Q_target,i(s', a') - alpha log pi(a'|s')) | ``critic_target`` |
| L_Q = sum_i E (y - Q_i(s, a))^2 | ``critic_loss`` |
| L_pi = E (alpha log pi(a|s) - min_i Q_i(s, a)) | ``actor_loss`` |
| L_alpha = -alpha E (log pi(a|s) + H), H = -|A|, alpha = softplus(l) + 1e-10 | ``temperature_loss``, ``temperature_of`` |
| log pi of a = tanh(u) | ``squashed_gaussian.squashed_log_prob`` |

There is one update per step of the environment. ``terminated`` is the environment's own end; at a limit of steps the value of
the next state counts on. Observations are standardised by the mean and deviation of all that the replica has seen so far.

A subclass with another reward overrides ``reward``, which is asked about every batch anew, so that a reward that is learned is
never stored. Its own losses come from ``reward_losses``.

Deviations: actor, critics, temperature and a learned reward share one backward pass, so each meets the others as they were
before this update, not after it. Every replica acts in an environment of its own, in step u + 1 with the policy before
update u, so that environments and updates need not wait for each other.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, config
from dynarep.data.replay import ReplayTable
from dynarep.data.resident import Batch
from dynarep.pipeline.method import Learner, Needs, Sources, World
from dynarep.pipeline.methods.policies.squashed_gaussian import SquashedGaussian, SquashedGaussianArchitecture
from dynarep.pipeline.nn.functional import Losses, polyak
from dynarep.pipeline.nn.networks import MLP
from dynarep.pipeline.playing.environments import CollectionConfig


@config
class SoftActorCriticConfig:
    """Hyper-parameters of soft actor-critic; the defaults are those of the code of Noise-Guided Transport."""

    environment: CollectionConfig
    """What it acts in, and how its steps are collected."""
    hidden: tuple[int, ...] = (256, 256)
    gamma: float = Field(default=0.99, gt=0, lt=1)
    actor_rate: float = Field(default=1e-4, gt=0)
    critic_rate: float = Field(default=2e-4, gt=0)
    temperature_rate: float = Field(default=3e-4, gt=0)
    initial_temperature: float = Field(default=0.2, gt=0)
    """alpha starts at log(1 + this)."""
    target_rate: float = Field(default=0.005, gt=0, le=1)
    clip: float = Field(default=20.0, gt=0)
    """Largest norm of the gradient of the actor, and of both critics together."""


@dataclass(frozen=True)
class ActingBatch(Batch):
    """Transitions (R, B, ...) as the replay keeps them.

    Args:
        returns: (R,) true return of the last episodes, to be shown.
        drawn: what the losses of a learned reward read, if there is one.
    """

    returns: Tensor
    drawn: Any = None


def temperature_of(logarithm: Tensor) -> Tensor:
    """The temperature alpha = softplus(l) + 1e-10, elementwise."""
    return nn.functional.softplus(logarithm) + 1e-10


def critic_target(
    reward: Tensor, discount: Tensor, next_q: Tensor, next_log_prob: Tensor, temperature: Tensor
) -> Tensor:
    """The target r + gamma (1 - terminated) (min_i Q_i - alpha log pi): next_q (R, 2, B), temperature (R, 1), others (R, B)."""
    return reward + discount * (next_q.amin(1) - temperature * next_log_prob)


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Sum over both critics of E (y - Q_i)^2: (R, 2, B), (R, B) -> (R,)."""
    return (target.unsqueeze(1) - q).square().mean(-1).sum(1)


def actor_loss(log_prob: Tensor, q: Tensor, temperature: Tensor) -> Tensor:
    """E (alpha log pi - min_i Q_i): (R, B), (R, 2, B), (R, 1) -> (R,)."""
    return (temperature * log_prob - q.amin(1)).mean(-1)


def temperature_loss(temperature: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """-alpha E (log pi + H), log pi a constant: (R, 1), (R, B) -> (R,)."""
    return -(temperature * (log_prob.detach() + target_entropy)).mean(-1)


class SoftActorCritic(Learner):
    """Learner of a squashed Gaussian policy, two critics and the temperature."""

    Config: ClassVar[type] = SoftActorCriticConfig
    shown = ("episode_return", "q")

    def __init__(self, c: SoftActorCriticConfig, world: World) -> None:
        super().__init__()
        self.config = c
        self.replicas = world.replicas
        self.policy = SquashedGaussian(
            SquashedGaussianArchitecture(
                replicas=world.replicas,
                observation_dim=world.observation_dim,
                action_low=world.action_low,
                action_high=world.action_high,
                hidden=c.hidden,
            )
        )
        self.critic = MLP(
            (world.replicas, 2),
            (world.observation_dim + world.action_dim, *c.hidden, 1),
            hidden_activation="silu",
            normed=True,
            hidden_gain=1.0,
            final_gain=1e-3,
        )
        self.target_critic = deepcopy(self.critic).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.full((world.replicas, 1), math.log(c.initial_temperature)))

    @classmethod
    def needs(cls, c: Any) -> Needs:
        """An environment."""
        return Needs(actions=("dataset",), environment=c.environment, without=("dataset",))

    @classmethod
    def build(cls, c: Any, world: World) -> Self:
        """For the observations, actions and encoder of a world."""
        return cls(c, world)

    def explore(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions to try, (R, E, act_dim) within the bounds."""
        mean, log_std = self.policy.distribution(observations)
        return self.policy.scale.inverse(torch.tanh(mean + log_std.exp() * noise))

    def observe(self, batch: Batch, starts: Tensor) -> Batch:
        """Add the states of new steps to the statistics; the steps are kept as they are."""
        self.policy.normaliser.see(batch.observations)
        return batch

    def reward(self, batch: Batch) -> Tensor:
        """What a batch (R, B, ...) is paid at this moment, (R, B): what was kept with it."""
        assert batch.rewards is not None
        return batch.rewards

    def reward_batch(self, sources: Sources, generator: torch.Generator) -> Any:
        """What ``reward_losses`` reads of this update; None without a learned reward."""
        return None

    def reward_losses(self, drawn: Any) -> Losses:
        """Losses of what is learned of the reward."""
        return Losses(torch.zeros_like(self.log_temperature[:, 0]))

    def batch(self, sources: Sources, generator: torch.Generator) -> ActingBatch:
        """Uniform transitions of the replay."""
        drawn = self.reward_batch(sources, generator)
        b = sources.draw("dataset", generator)
        returns = cast(ReplayTable, sources.table("dataset")).returns.clone()
        return ActingBatch(b.observations, b.actions, b.rewards, b.terminated, b.next_observations, returns, drawn)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Critics, actor and temperature, each at its own constant rate."""
        c = self.config
        return [
            {"params": list(self.critic.parameters()), "lr": c.critic_rate, "clip": c.clip},
            {"params": list(self.policy.network.parameters()), "lr": c.actor_rate, "clip": c.clip},
            {"params": [self.log_temperature], "lr": c.temperature_rate},
        ]

    def losses(self, batch: ActingBatch) -> Losses:
        """L_Q + L_pi + L_alpha, and the losses of a learned reward; their parameters are disjoint."""
        c, policy = self.config, self.policy
        s, s_next = policy.normaliser(batch.observations), policy.normaliser(batch.next_observations)
        noise, next_noise = torch.randn(2, *batch.actions.shape, device=batch.actions.device)
        temperature = temperature_of(self.log_temperature)
        fixed = temperature.detach()
        with torch.no_grad():
            rewards = self.reward(batch)
            next_action, next_log_prob = policy.sample(batch.next_observations, next_noise)
            next_q = self.target_critic(_pair(s_next, next_action)).squeeze(-1)
            target = critic_target(rewards, c.gamma * (1.0 - batch.terminated), next_q, next_log_prob, fixed)
        q = self.critic(_pair(s, policy.scale(batch.actions))).squeeze(-1)
        action, log_prob = policy.sample(batch.observations, noise)
        constant = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        q_policy = torch.func.functional_call(self.critic, constant, _pair(s, action)).squeeze(-1)
        of_critic, of_actor = critic_loss(q, target), actor_loss(log_prob, q_policy, fixed)
        of_reward = self.reward_losses(batch.drawn)
        loss = of_critic + of_actor + temperature_loss(temperature, log_prob, -float(batch.actions.shape[-1]))
        return Losses(
            loss + of_reward.loss,
            {
                "episode_return": batch.returns,
                "critic_loss": of_critic.detach(),
                "q": q.detach().mean((1, 2)),
                "reward": rewards.mean(-1),
                "entropy": -log_prob.detach().mean(-1),
                "temperature": fixed.squeeze(-1),
                **of_reward.metrics,
            },
        )

    @torch.no_grad()
    def after_update(self) -> None:
        """Polyak averaging of the target critics."""
        polyak(self.target_critic.parameters(), self.critic.parameters(), self.config.target_rate)

    def export(self) -> SquashedGaussian:
        """The policy of every replica."""
        return deepcopy(self.policy)


def _pair(observations: Tensor, actions: Tensor) -> Tensor:
    return torch.cat([observations, actions], -1).unsqueeze(1)
