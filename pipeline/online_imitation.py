"""Imitation while acting: soft actor-critic on a reward that says how much a step looks like the demonstrations.

A reward of this kind is one file of ``pipeline/methods/learners``. It reads points of steps, which ``PairSpace`` makes: states
and actions, or states and next states, as they are or in a space of an encoder. ``PointReward`` is asked anew about every batch
(``reward_of``), and learns from points of the demonstrations and of the replay (``reward_loss``). A reward that is fixed once a
step is made is kept with it (``observe``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dynarep.configs.params import config
from dynarep.data.resident import Batch
from dynarep.pipeline.method import Needs, Sources, World
from dynarep.pipeline.nn.functional import Losses
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.nn.networks import ActionScale, RunningNormaliser
from dynarep.pipeline.soft_actor_critic import SoftActorCritic, SoftActorCriticConfig


@config
class OnlineImitationConfig(SoftActorCriticConfig):
    """What all rewards of imitation while acting share."""

    pairs: Literal["sa", "ss"] = "sa"
    """What is compared: states and actions, or states and next states, which needs no actions of the demonstrations."""
    points: str | None = None
    """Which of the encoder's spaces; null: its first one."""


@dataclass(frozen=True)
class Drawn:
    """Transitions of the demonstrations (R, B', ...) and of the replay (R, B, ...)."""

    expert: Batch
    agent: Batch


class PairSpace(nn.Module):
    """What of a step is compared: (z(s), a) or (z(s), z(s')), or the point of (s, a) where the encoder's space has one.

    z is the state, or an encoder's point of it, standardised by all that the replica has seen, and cut to [-10, 10].
    Demonstrations are standardised by the same statistics. Actions are in [-1, 1].

    Args:
        c: which pairs and points.
        world: sizes, bounds and the encoder.

    Raises:
        ValueError: if the encoder has no such space, or its points need an action and next states are to be compared.
    """

    def __init__(self, c: OnlineImitationConfig, world: World) -> None:
        super().__init__()
        self.pairs, self.points = c.pairs, c.points
        self.encoder: Encoder | None = None
        self.reads_actions = False
        dim = world.observation_dim
        if world.encoder is not None:
            part = cast(Encoder, world.encoder)
            rows = range(world.replicas) if part.architecture.replicas > 1 else [0] * world.replicas
            self.encoder = part.replica_rows(list(rows))
            self.points = c.points or part.spaces[0]
            if self.points not in part.offers:
                raise ValueError(f"points: found {self.points!r}, expected one of {', '.join(part.offers)}")
            self.reads_actions = self.points in part.reads_actions
            if self.reads_actions and c.pairs == "ss":
                raise ValueError(f"pairs: found ss, expected sa: {self.points} reads actions")
            dim = self._raw(torch.zeros(1, 1, dim), torch.zeros(1, 1, world.action_dim)).shape[-1]
        elif c.points is not None:
            raise ValueError(f"points: found {c.points!r}, expected null without an encoder")
        self.normaliser = RunningNormaliser(world.replicas, dim)
        self.scale = ActionScale(world.action_low, world.action_high)
        self.dim = dim if self.reads_actions else 2 * dim if c.pairs == "ss" else dim + world.action_dim

    @torch.no_grad()
    def _raw(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Points before they are standardised."""
        if self.encoder is None:
            return observations
        return self.encoder.embed(observations, actions if self.reads_actions else None, self.points)

    def see(self, batch: Batch) -> None:
        """Add steps (R, B, ...) to the statistics."""
        self.normaliser.see(self._raw(batch.observations, batch.actions))

    def forward(self, batch: Batch) -> Tensor:
        """Points of steps (R, B, ...): (R, B, D)."""
        return self.joined(batch, self.normaliser)

    def joined(self, batch: Batch, scaled: Callable[[Tensor], Tensor]) -> Tensor:
        """The same with another ``scaled`` z in place of the standardised one."""
        now = scaled(self._raw(batch.observations, batch.actions))
        if self.reads_actions:
            return now
        if self.pairs == "ss":
            return torch.cat([now, scaled(self._raw(batch.next_observations, batch.actions))], -1)
        return torch.cat([now, self.scale(batch.actions)], -1)


class OnlineImitation(SoftActorCritic):
    """Soft actor-critic on a reward that a subclass makes of demonstrations."""

    Config = OnlineImitationConfig
    config: Any

    def __init__(self, c: OnlineImitationConfig, world: World) -> None:
        super().__init__(c, world)
        self.space = PairSpace(c, world)

    @classmethod
    def needs(cls, c: Any) -> Needs:
        """An environment and demonstrations, with actions where they are compared."""
        shown = ("demonstrations",) if c.pairs == "sa" else ()
        return Needs(
            actions=("dataset", *shown), optional_encoder=True, environment=c.environment, without=("dataset",)
        )

    @classmethod
    def saw(cls, c: Any, expert: str, data: str, rewards: str | None) -> dict[str, str]:
        """Demonstrations; of its own steps no reward."""
        read = "" if c.pairs == "sa" else ", of which observations were read"
        return {"expert": expert + read, "other": f"{data}, then its own steps without rewards"}

    def observe(self, batch: Batch, starts: Tensor) -> Batch:
        """Also add the steps to the statistics of the points."""
        self.space.see(batch)
        return super().observe(batch, starts)


class PointReward(OnlineImitation):
    """Soft actor-critic on a reward of points that is learned, and asked anew about every batch."""

    def demonstrated(self, sources: Sources, generator: torch.Generator) -> Batch:
        """A batch of the demonstrations: all transitions where they are no more than a batch, else uniform ones."""
        table = sources.table("demonstrations")
        if len(table) > sources.batch_size:
            return sources.draw("demonstrations", generator)
        return table.gather(torch.arange(len(table), device=sources.device).expand(sources.replicas, -1))

    def reward_batch(self, sources: Sources, generator: torch.Generator) -> Drawn:
        """Transitions of the demonstrations and of the replay."""
        expert = self.demonstrated(sources, generator)
        return Drawn(expert, sources.draw("dataset", generator))

    def reward(self, batch: Batch) -> Tensor:
        """What a batch is paid by the reward of this moment."""
        return self.reward_of(self.space(batch))

    def reward_losses(self, drawn: Drawn) -> Losses:
        """The loss of the reward."""
        return self.reward_loss(self.space(drawn.expert), self.space(drawn.agent))

    def reward_of(self, points: Tensor) -> Tensor:
        """Rewards (R, B) of points (R, B, D)."""
        raise NotImplementedError

    def reward_loss(self, expert: Tensor, agent: Tensor) -> Losses:
        """What is minimised on points of the demonstrations (R, B', D) and of the replay (R, B, D)."""
        raise NotImplementedError
