r"""Actor and critic in the latents of a world model: what learners share that learn a model, act, and learn from windows.

Hansen, Su, Wang, "TD-MPC2: Scalable, Robust World Models for Continuous Control", ICLR 2024, arXiv 2310.16828, and its code.

| paper and published code | here |
|---|---|
| windows of H steps of the replay | ``LatentActorCritic.batch`` |
| z_0 = h(s_0), z_{t+1} = d(z_t, a_t); 20 sum_t rho^t ||z_{t+1} - sg h(s_{t+1})||^2 / (H dim z) | ``consistency_loss`` |
| y_t = r_t + gamma min of two target Qs at (h(s_{t+1}), pi) | ``td_target`` |
| 0.1 sum_t rho^t sum_i CE(Q_i(z_t, a_t), y_t) / (H N) | ``value_loss`` |
| sum_t rho^t E (eta log pi - Q / S) / (H + 1), latents without gradient | ``policy_loss`` |

A subclass says what a step is paid and what the reward's loss is (``reward_losses``), what that loss draws (``reward_batch``),
and which Q the policy climbs (``climbed``).

It acts by the prior, or plans (``planning``): ``dynarep.pipeline.methods.policies.latent_planner``. With an ``encoder`` of kind
``world_model`` latents and dynamics start from those that were pretrained on any recording.

Deviations: all losses share one backward pass, so the policy meets the model as it was before this update. The gradients of
encoder, of the rest of the model, and of the policy are clipped each for itself. Rates are constant. Observations are
standardised by what the replica has seen. There is one update per step, none before the first. The end of an episode has no
meaning for the values, as published, where no task ends early: have the environment go on, such as by
``terminate_when_unhealthy: false``.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.data.replay import ReplayTable
from dynarep.data.resident import Batch, Windows
from dynarep.pipeline.method import Learner, Sources, World
from dynarep.pipeline.methods.policies.latent_gaussian import LatentGaussian, LatentGaussianArchitecture
from dynarep.pipeline.methods.policies.latent_planner import LatentPlanner, LatentPlannerArchitecture
from dynarep.pipeline.nn.distillation import DistillationConfig
from dynarep.pipeline.nn.functional import Losses, polyak
from dynarep.pipeline.nn.latent_policy import LatentPolicy
from dynarep.pipeline.nn.planning import PlanningConfig
from dynarep.pipeline.nn.world_model import (
    ValueEnsemble,
    consistency_loss,
    expected_value,
    moved_scale,
    policy_loss,
    rollout,
    td_target,
    value_loss,
)
from dynarep.pipeline.playing.environments import CollectionConfig


@config
class LatentActorCriticConfig:
    """Hyper-parameters; the defaults are those of the published size of 5 million weights."""

    environment: CollectionConfig
    """What it acts in, and how its steps are collected."""
    planning: PlanningConfig | None = None
    """Plan before every step; null: act by the policy prior."""
    hidden: tuple[int, ...] = (256,)
    """Widths of the encoder."""
    latent_dim: int = Field(default=512, gt=0)
    """Numbers in a latent, a multiple of 8."""
    head_hidden: tuple[int, ...] = (512, 512)
    """Widths of dynamics, values and policy."""
    values: int = Field(default=5, ge=2)
    """N: Qs, of which two are drawn for each target."""
    horizon: int = Field(default=3, gt=0)
    """H: steps of a window."""
    decay: float = Field(default=0.5, gt=0, le=1)
    """rho: weight of a step against the one before it."""
    gamma: float = Field(default=0.99, gt=0, lt=1)
    """Published as (T / 5 - 1) / (T / 5) within [0.95, 0.995] for episodes of T steps."""
    consistency_weight: float = Field(default=20.0, gt=0)
    value_weight: float = Field(default=0.1, gt=0)
    reward_weight: float = Field(default=0.1, gt=0)
    entropy: float = Field(default=1e-4, ge=0)
    """eta."""
    target_rate: float = Field(default=0.01, gt=0, le=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    encoder_rate_scale: float = Field(default=0.3, gt=0)
    """Rate of the encoder, as a share of the others'."""
    clip: float = Field(default=20.0, gt=0)
    """Largest norm of a gradient."""


@dataclass(frozen=True)
class LatentBatch:
    """Windows of B starts of each role, and what is drawn for them.

    Args:
        windows: (R, roles * B, ...), role after role.
        reward: what the loss of a learned reward draws, if anything.
        chosen: two Qs for the targets, and two for the policy, (2, 2).
        returns: (R,) true return of the last episodes, to be shown.
    """

    windows: Windows
    reward: Any
    chosen: Tensor
    returns: Tensor


class LatentActorCritic(Learner):
    """World model, reward, values and policy in one training.

    Class attributes:
        roles: whose windows a batch has.

    Args:
        c: hyper-parameters.
        world: sizes, bounds and perhaps a world model to start from.
        distillation: networks of a reward by distillation; None: a head.

    Raises:
        ValueError: if the networks of the world model have other sizes.
    """

    Config: ClassVar[type] = LatentActorCriticConfig
    roles: ClassVar[tuple[str, ...]] = ("dataset",)
    shown = ("episode_return", "consistency")
    watches_gradients = True
    value_scale: Tensor

    def __init__(
        self, c: LatentActorCriticConfig, world: World, distillation: DistillationConfig | None = None
    ) -> None:
        super().__init__()
        self.config, self.knows_moments = c, False
        self.policy = LatentPlanner(
            LatentPlannerArchitecture(
                replicas=world.replicas,
                observation_dim=world.observation_dim,
                action_low=world.action_low,
                action_high=world.action_high,
                hidden=c.hidden,
                latent_dim=c.latent_dim,
                policy_hidden=c.head_hidden,
                head_hidden=c.head_hidden,
                values=c.values,
                gamma=c.gamma,
                distillation=distillation,
                planning=c.planning,
            )
        )
        self.target_critic = deepcopy(self.critic).requires_grad_(False)
        self.target_critic.network.dropout = 0.0
        self.register_buffer("value_scale", torch.ones(world.replicas))
        if world.encoder is not None:
            self._start_from(world.encoder, world.replicas)

    @classmethod
    def build(cls, c: Any, world: World) -> Self:
        """For the observations, actions and world model of a world."""
        return cls(c, world)

    @property
    def critic(self) -> ValueEnsemble:
        """The Qs that are trained."""
        return self.policy.critic

    def _start_from(self, encoder: Any, replicas: int) -> None:
        """Take encoder, dynamics and moments of a world model.

        Raises:
            ValueError: if its networks have other sizes.
        """
        c, a = self.config, encoder.architecture
        for field, wanted in (("hidden", c.hidden), ("latent_dim", c.latent_dim), ("dynamics_hidden", c.head_hidden)):
            if getattr(a, field) != wanted:
                raise ValueError(f"encoder: found {field} {getattr(a, field)}, expected {wanted} as of this entry")
        part = encoder.replica_rows(list(range(replicas)) if a.replicas > 1 else [0] * replicas)
        self.policy.encoder.load_state_dict(part.encoder.state_dict())
        self.policy.dynamics.load_state_dict(part.dynamics.state_dict())
        known = self.policy.normaliser
        known.mean.copy_(part.normaliser.mean.expand_as(known.mean))
        known.variance.copy_((part.normaliser.std + 1e-3).square().expand_as(known.variance))
        self.knows_moments = True

    def explore(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions to try, (R, E, act_dim) within the bounds."""
        return self.policy.explore(observations, noise)

    def observe(self, batch: Batch, starts: Tensor) -> Batch:
        """Add the states of new steps to the statistics; the steps are kept as they are."""
        if not self.knows_moments:
            self.policy.normaliser.see(batch.observations)
        return batch

    def batch(self, sources: Sources, generator: torch.Generator) -> LatentBatch:
        """Uniform windows, as many of each role."""
        c = self.config
        tables = [sources.table(role) for role in self.roles]
        rows = [table.random_rows(sources.replicas, sources.batch_size, generator) for table in tables]
        windows = [table.windows(row, c.horizon) for table, row in zip(tables, rows, strict=True)]
        reward = self.reward_batch(sources, generator)
        orders = torch.rand(2, c.values, generator=generator, device=sources.device).argsort(1)
        returns = cast(ReplayTable, sources.table("dataset")).returns.clone()
        return LatentBatch(joined(windows), reward, orders[:, :2], returns)

    def reward_batch(self, sources: Sources, generator: torch.Generator) -> Any:
        """What the reward's loss draws for a batch; None by default."""
        return None

    def reward_losses(self, points: Tensor, batch: LatentBatch) -> tuple[Losses, Tensor]:
        """The loss of the reward at points (z_t, a_t), (R, B, H, D), with its metrics; and what is paid, (R, B, H)."""
        raise NotImplementedError

    def climbed(self, values: Tensor) -> Tensor:
        """The value that the policy climbs, of two Qs (R, 2, ...): (R, ...)."""
        raise NotImplementedError

    def losses(self, batch: LatentBatch) -> Losses:
        """The model's three losses and the policy's; the parameters of both are disjoint."""
        c, w = self.config, batch.windows
        actions = self.policy.scale(w.actions)
        start = self.policy.latents(w.start)
        with torch.no_grad():
            following = self.policy.latents(w.following.flatten(1, 2)).view(*w.within.shape, -1)
        rolled = rollout(self.policy.step, start, actions)
        latents = torch.cat([start.unsqueeze(2), rolled], 2)
        points = torch.cat([latents[:, :, :-1], actions], -1)

        consistency = consistency_loss(rolled, following, w.within, c.decay)
        of_reward, rewards = self.reward_losses(points, batch)
        values = self.value_losses(latents[:, :, :-1], actions, rewards, following, batch)
        policy, log_probs = self.policy_losses(latents.detach(), batch)
        model = c.consistency_weight * consistency + c.reward_weight * of_reward.loss + c.value_weight * values
        return Losses(
            model + policy,
            {
                "episode_return": batch.returns,
                "consistency": consistency.detach(),
                "value_loss": values.detach(),
                **of_reward.metrics,
                "entropy": -log_probs.detach().mean((-1, -2)),
                "value_scale": self.value_scale.clone(),
            },
        )

    def value_losses(
        self, latents: Tensor, actions: Tensor, rewards: Tensor, following: Tensor, batch: LatentBatch
    ) -> Tensor:
        """Loss of all Qs at (z_t, a_t): latents (R, B, H, d), ``following`` h(s_{t+1}) likewise; (R,)."""
        c, shape = self.config, rewards.shape
        with torch.no_grad():
            after = following.flatten(1, 2)
            tried, _ = self.policy.prior(after, torch.randn(*after.shape[:2], actions.shape[-1], device=after.device))
            q = expected_value(self.target_critic(after, tried)).view(*shape[:1], -1, *shape[1:])
            targets = td_target(rewards, q, batch.chosen[0], c.gamma)
        logits = self.critic(latents.flatten(1, 2), actions.flatten(1, 2))
        logits = logits.view(*logits.shape[:2], *shape[1:], -1)
        return value_loss(logits, targets, batch.windows.within, c.decay)

    def policy_losses(self, latents: Tensor, batch: LatentBatch) -> tuple[Tensor, Tensor]:
        """Loss of the policy at latents (R, B, H + 1, d), (R,), and the log density of its actions; it moves S first."""
        c, w, shape = self.config, batch.windows, latents.shape[:3]
        flat = latents.flatten(1, 2)
        noise = torch.randn(*flat.shape[:2], w.actions.shape[-1], device=flat.device)
        tried, log_probs = self.policy.prior(flat, noise)
        constant = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        logits = torch.func.functional_call(self.critic, constant, (flat, tried))
        values = self.climbed(expected_value(logits)[:, batch.chosen[1]]).view(shape)
        self.value_scale.copy_(moved_scale(self.value_scale, values[:, :, 0].detach()))
        reached = torch.cat([torch.ones_like(w.within[..., :1]), w.within], -1)
        log_probs = log_probs.view(shape)
        return policy_loss(values, log_probs, reached, self.value_scale.clone(), c.entropy, c.decay), log_probs

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Encoder, the rest of the model, and policy, each at its own constant rate."""
        c, p = self.config, self.policy
        model = [*p.dynamics.parameters(), *p.critic.parameters(), *p.reward.parameters()]
        return [
            {
                "params": list(p.encoder.parameters()),
                "lr": c.encoder_rate_scale * c.learning_rate,
                "clip": c.clip,
            },
            {"params": [x for x in model if x.requires_grad], "lr": c.learning_rate, "clip": c.clip},
            {"params": list(p.prior.parameters()), "lr": c.learning_rate, "eps": 1e-5, "clip": c.clip},
        ]

    @torch.no_grad()
    def after_update(self) -> None:
        """Polyak averaging of the target Qs."""
        polyak(self.target_critic.parameters(), self.critic.parameters(), self.config.target_rate)

    def export(self) -> LatentPolicy:
        """The policy of every replica, with the encoder that it reads, and all that it plans with if it does."""
        if self.config.planning is not None:
            return deepcopy(self.policy)
        sizes = asdict(self.policy.architecture)
        own = {field.name: sizes[field.name] for field in fields(LatentGaussianArchitecture)}
        with torch.random.fork_rng(devices=[]):  # a snapshot draws nothing from the training's noise
            found = LatentGaussian(LatentGaussianArchitecture(**own))
        found.load_state_dict({name: self.policy.state_dict()[name] for name in found.state_dict()})
        return found


def joined(windows: list[Windows]) -> Windows:
    """Windows (R, B_i, ...) side by side, (R, sum B_i, ...); with rewards where all have them."""
    parts = {field.name: [getattr(part, field.name) for part in windows] for field in fields(Windows)}
    return Windows(**{name: torch.cat(part, 1) for name, part in parts.items() if all(x is not None for x in part)})
