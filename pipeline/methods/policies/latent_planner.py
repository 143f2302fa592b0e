"""A policy that plans in a world model whenever it acts.

Hansen, Su, Wang, "TD-MPC2", ICLR 2024, arXiv 2310.16828, and its code.

| paper and published code | here |
|---|---|
| model-predictive path integral control around the prior | ``planning.plan``, ``LatentPlanner.plan`` |
| V(z_H): mean of two Qs, drawn anew, at the prior's action | ``LatentPlanner.value`` |
| a plan starts at the mean of the last one, one step later; at 0 in a new episode | ``LatentPlanner.act`` |
| acting: an elite's first action; while collecting with noise of the plan's deviation | ``act``, ``explore`` |

The reward of a step is what a head learned of the recorded one, or that of coupled distillation.

Deviations: while collecting every plan starts at 0, because a learner is not told when an episode begins before it acts.
The Qs are without dropout, as in the published code. The iterations are as configured, also for many numbers in an action.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.pipeline.nn.distillation import CoupledDistillation, DistillationConfig
from dynarep.pipeline.nn.latent_policy import LatentPolicy, LatentPolicyArchitecture
from dynarep.pipeline.nn.planning import Plan, PlanningConfig, plan
from dynarep.pipeline.nn.world_model import RewardHead, ValueEnsemble, expected_value, latent_network

STATES = 64
"""States of a replica that are planned for at once."""


@config
class LatentPlannerArchitecture(LatentPolicyArchitecture):
    """Architecture of ``LatentPlanner``."""

    head_hidden: tuple[int, ...]
    """Widths of dynamics, values and the reward head."""
    values: int = Field(ge=2)
    """N."""
    gamma: float = Field(gt=0, lt=1)
    distillation: DistillationConfig | None = None
    """Networks of the reward; null: a head."""
    planning: PlanningConfig | None = PlanningConfig()
    """Null: it acts by the prior."""


class LatentPlanner(LatentPolicy):
    """Encoder, prior, dynamics d, Qs and reward: all that a plan needs.

    It draws at random, and remembers the plan of the step before. ``reset`` begins an episode; so does another number of
    states.
    """

    kind = "latent_planner"
    Architecture = LatentPlannerArchitecture
    architecture: LatentPlannerArchitecture
    reward: RewardHead | CoupledDistillation

    def __init__(self, architecture: LatentPlannerArchitecture) -> None:
        super().__init__(architecture)
        a, action_dim = architecture, len(architecture.action_low)
        point = a.latent_dim + action_dim
        self.dynamics = latent_network((a.replicas,), (point, *a.head_hidden, a.latent_dim))
        self.critic = ValueEnsemble(a.replicas, a.latent_dim, action_dim, a.head_hidden, a.values)
        if a.distillation is None:
            self.reward = RewardHead(a.replicas, point, a.head_hidden)
        else:
            self.reward = CoupledDistillation(a.replicas, point, a.distillation)
        self.reset((0,))

    def reset(self, seed: tuple[int, ...]) -> None:
        """Begin a block of episodes, with noise of this seed."""
        self._seed, self._steps, self._mean = seed, 0, torch.zeros(0)

    def step(self, latents: Tensor, actions: Tensor) -> Tensor:
        """d(z, a) of (R, B, latent_dim) and actions in [-1, 1], (R, B, act_dim): (R, B, latent_dim)."""
        return self.dynamics(torch.cat([latents, actions], -1))  # type: ignore[no-any-return]

    def tried(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        """Actions of the prior in [-1, 1] at (R, B, latent_dim): (R, B, act_dim)."""
        shape = (*latents.shape[:2], len(self.low))
        noise = torch.randn(shape, generator=generator, device=latents.device, dtype=latents.dtype)
        return self.prior(latents, noise)[0]  # type: ignore[no-any-return]

    def value(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        """V of (R, B, latent_dim): the mean of two Qs at an action of the prior, (R, B)."""
        q = expected_value(self.critic(latents, self.tried(latents, generator)))
        chosen = torch.randperm(q.shape[1], generator=generator, device=q.device)[:2]
        return q[:, chosen].mean(1)

    @torch.no_grad()
    def plan(self, c: PlanningConfig, latents: Tensor, generator: torch.Generator, mean: Tensor | None = None) -> Plan:
        """Plan from latents (R, B, latent_dim); see ``planning.plan``."""
        training = self.critic.training
        self.critic.eval()
        found = plan(
            c,
            self.step,
            lambda z, a: self.reward(torch.cat([z, a], -1)),
            lambda z: self.value(z, generator),
            latents,
            len(self.low),
            self.architecture.gamma,
            generator,
            lambda z: self.tried(z, generator),
            mean,
        )
        self.critic.train(training)
        return found

    def explore(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions to try within the bounds, (R, B, act_dim); all that is drawn follows from ``noise``, of that shape."""
        c = self.architecture.planning
        if c is None:
            return super().explore(observations, noise)
        generator = torch.Generator(noise.device).manual_seed(int(noise.float().view(torch.int32).sum()))
        found = self.plan(c, self.latents(observations), generator)
        return self.scale.inverse((found.first(generator) + found.std[:, :, 0] * noise).clamp(-1.0, 1.0))

    def act(self, observations: Tensor) -> Tensor:
        """Actions of every replica within the bounds: (R or 1, B, obs_dim) -> (R, B, act_dim)."""
        c = self.architecture.planning
        if c is None:
            return super().act(observations)
        latents = self.latents(observations)
        form = (*latents.shape[:2], c.horizon, len(self.low))
        mean = self._mean.to(latents) if self._mean.shape == form else latents.new_zeros(form)
        generator = torch.Generator(latents.device).manual_seed(self._seed_now())
        parts = zip(torch.split(latents, STATES, 1), torch.split(mean, STATES, 1), strict=True)
        plans = [self.plan(c, part, generator, start) for part, start in parts]
        self._steps, self._mean = self._steps + 1, torch.cat([found.shifted for found in plans], 1)
        return self.scale.inverse(torch.cat([found.first(generator) for found in plans], 1))

    def _seed_now(self) -> int:
        return int(np.random.SeedSequence((*self._seed, self._steps)).generate_state(1)[0])
