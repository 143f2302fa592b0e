"""CDRED offline: rewards from how well an expert's predictor knows a step, and how badly the behaviour's does.

Li, Huang, Su, "Coupled Distributional Random Expert Distillation for World Model Online Imitation Learning", 2025,
arXiv 2505.02228, as a label of recorded episodes in the points of any space.

| paper and published code | here |
|---|---|
| f_E and f_B distil K shared random targets, one k for each sample | ``Coupled.losses``, ``CoupledDistillation.errors`` |
| r(z, a) = -zeta b(f_E(z, a)) + (1 - zeta) b(f_B(z, a)) | ``coupled_reward``, ``Coupled.rewards`` |

Deviations:

- Offline. f_B is trained on the whole dataset in place of a replay buffer, and points do not move while the predictors
  learn; in the publication reward and latents are one training.
- Inputs of any space are centred, divided by one number, and have a constant beside them, as in ``rnd``. ``normalise: false``
  feeds points as they come, as published for latents of a world model.
- ``actions: false`` judges points alone, for demonstrations without actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, config
from dynarep.data.schema import Episode
from dynarep.pipeline.labelling import Judgement, Labelled, Reward, at_rows, centred, fitting, moments
from dynarep.pipeline.method import Phase, Sources
from dynarep.pipeline.nn.distillation import CoupledDistillation, DistillationConfig, bonus, coupled_reward
from dynarep.pipeline.nn.functional import Losses
from dynarep.pipeline.nn.networks import ActionScale


@config
class CDREDConfig(DistillationConfig):
    """Hyper-parameters of CDRED; the defaults are the published ones."""

    actions: bool = True
    """Judge a step with its action."""
    normalise: bool = True
    """Centre the points, divide them by their overall scale, and add a constant coordinate."""
    learning_rate: float = Field(default=3e-4, gt=0)


@dataclass(frozen=True)
class StepBatch:
    """Steps of the expert and of the dataset, (R, B, inputs) each, and the target of each, (R, B, 2)."""

    expert: Tensor
    behaviour: Tensor
    drawn: Tensor


class Coupled(nn.Module):
    """What is trained: both predictors. The fixed targets are part of its state.

    Args:
        c: hyper-parameters.
        replicas: R.
        mean: of the points, (R or 1, d).
        unit: root mean square of the centred points over states and coordinates, (R or 1,), greater than 0.
        bounds: lower and upper bounds of actions; empty where they are not read.
    """

    mean: Tensor
    unit: Tensor

    def __init__(
        self, c: CDREDConfig, replicas: int, mean: Tensor, unit: Tensor, bounds: tuple[Sequence[float], Sequence[float]]
    ) -> None:
        super().__init__()
        self.config = c
        self.scale = ActionScale(*bounds) if bounds[0] else None
        inputs = mean.shape[-1] + c.normalise + len(bounds[0])
        self.networks = CoupledDistillation(replicas, inputs, c)
        self.register_buffer("mean", mean.unsqueeze(1))
        self.register_buffer("unit", unit.view(-1, 1, 1))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The predictors at a constant rate."""
        return [{"params": list(self.networks.predictors.parameters()), "lr": self.config.learning_rate}]

    def inputs(self, points: Tensor, actions: Tensor | None) -> Tensor:
        """What the networks read of points (R or 1, B, d) and actions (B, act_dim), where they are read."""
        x = centred(points, self.mean, self.unit) if self.config.normalise else points
        if self.scale is None:
            return x
        return torch.cat([x, self.scale(actions).expand(len(x), -1, -1)], -1)

    def losses(self, batch: StepBatch) -> Losses:
        """E ||f_E - g_k||^2 / D over the expert's steps, and the same of f_B over the dataset's."""
        error = self.networks.errors(batch.expert, batch.behaviour, batch.drawn).mean(-1)
        expert, behaviour = error.unbind(1)
        return Losses(expert + behaviour, {"expert": expert.detach(), "behaviour": behaviour.detach()})

    def after_update(self) -> None:
        """Nothing, because the targets are fixed."""

    def rewards(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """r, b(f_E) and b(f_B) of steps (R or 1, B, inputs): (R, B) each."""
        c = self.config
        expert, behaviour, targets = self.networks.predictions(inputs)
        reward = coupled_reward(expert, behaviour, targets, c.share, c.coupling)
        return reward, bonus(expert, targets, c.share), bonus(behaviour, targets, c.share)


class CDRED(Reward):
    """Rewards by two predictors, one of all demonstrations and one of the dataset.

    The points of the whole dataset are in memory while the predictors are trained.
    """

    kind = "cdred"
    Config = CDREDConfig
    trains = True

    def __init__(self, c: CDREDConfig, world: Judgement) -> None:
        super().__init__()
        self.config, self.replicas, self.experts = c, world.replicas, len(world.experts)
        self.embed = world.embedding()
        low, high = self.bounds(c, world)
        mean, unit = moments(self.embed(episode) for episode in world.dataset.episodes)
        if not (unit > 0).all():
            raise ValueError(f"space {self.embed.name}: found points that are all the same, expected ones that differ")
        torch.manual_seed(world.seed)
        self.learner = Coupled(c, world.replicas, mean.cpu(), unit.cpu(), (low, high))
        with torch.no_grad():
            self.expert, self.behaviour = (
                fitting(torch.cat([self.inputs(e) for e in side], 1), world.replicas, self.embed.name)
                for side in (world.experts, world.dataset.episodes)
            )

    @staticmethod
    def bounds(c: CDREDConfig, world: Judgement) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Those of the dataset's actions, empty where they are not read.

        Raises:
            ValueError: if they are to be read and a dataset has none, or both have other numbers.
        """
        if not c.actions:
            return (), ()
        sides = world.demonstrations, world.dataset
        for side in sides:
            if side.spec.action_dim == 0:
                raise ValueError(f"actions: found none in {side.name}, expected some; actions: false does without")
        expert, behaviour = (side.spec.action_dim for side in sides)
        if expert != behaviour:
            raise ValueError(
                f"actions: found {expert} numbers in those of {sides[0].name}, expected {behaviour} as in {sides[1].name}"
            )
        return world.dataset.spec.action_low, world.dataset.spec.action_high

    @classmethod
    def build(cls, c: CDREDConfig, world: Judgement) -> CDRED:  # type: ignore[override]
        """With the demonstrations and the dataset of a world."""
        return cls(c, world)

    def inputs(self, episode: Episode) -> Tensor:
        """What the networks read of an episode's steps, (R or 1, T, inputs)."""
        device = self.embed.device
        learner = self.learner.to(device)
        actions = None
        if self.config.actions:
            assert episode.actions is not None
            actions = torch.from_numpy(episode.actions).to(device)
        return learner.inputs(self.embed(episode), actions)

    def phases(self) -> list[Phase]:
        """One: both predictors."""
        return [Phase(self.learner, self.batch, finish=self.finish)]

    def batch(self, sources: Sources, generator: torch.Generator) -> StepBatch:
        """Uniform steps of the expert and as many of the dataset."""
        expert, behaviour = (
            at_rows(x.to(sources.device), sources.rows(x.shape[1], generator)) for x in (self.expert, self.behaviour)
        )
        drawn = sources.rows(self.config.targets, generator, times=2).view(sources.replicas, -1, 2)
        return StepBatch(expert, behaviour, drawn)

    @torch.no_grad()
    def finish(self, sources: Sources) -> None:
        """Measure what both predictors make of the demonstrations."""
        self.learner.to(self.embed.device)
        known = self.learner.rewards(self.expert.to(self.embed.device))
        self.of_expert = dict(
            zip(
                ("expert_reward", "expert_bonus", "expert_behaviour_bonus"),
                map(float, (x.mean() for x in known)),
                strict=True,
            )
        )

    def rewards(self, episodes: Sequence[Episode]) -> Labelled:
        """Rewards (R, T) per episode id, and both bonuses of each step."""
        found, numbers = {}, []
        for episode in episodes:
            reward, *bonuses = self.learner.rewards(self.inputs(episode))
            found[episode.id] = reward.cpu().numpy()
            numbers.append([x.mean(0) for x in bonuses])
        expert, behaviour = (torch.cat(parts) for parts in zip(*numbers, strict=True))
        return found, {"bonus": expert, "behaviour_bonus": behaviour}

    def summary(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """Mean bonuses over the dataset, and reward and bonuses over the demonstrations."""
        return {"replicas": self.replicas, "experts": self.experts, **super().summary(values), **self.of_expert}
