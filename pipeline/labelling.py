"""What every reward has in common: a method that gives every transition of an episode a reward.

An episode is its states s_0..s_{T-1}. It is compared with each demonstration on its own, of which the best one counts
(``Comparison``), or judged as it is. Rewards of either side are not used, actions where the space reads them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset
from dynarep.pipeline.method import Method
from dynarep.pipeline.spaces import Space, points_of
from dynarep.pipeline.transport import Labels, pad_with_last

BATCH_ELEMENTS = 2**26
"""Entries of all cost matrices that a GPU holds at once; a CPU holds those of one episode."""

Labelled = tuple[dict[str, np.ndarray], dict[str, Tensor]]
"""Rewards (R, T) per episode id, and numbers of the problems that the episodes were."""


class Embedding:
    """A space, on a device, that refuses points that are not finite."""

    def __init__(self, space: Space, name: str, device: torch.device) -> None:
        self.space, self.name, self.device = space, name, device
        self.calibration = space.calibration.to(device)
        if not (self.calibration.isfinite() & (self.calibration > 0)).all():
            raise ValueError(
                f"space {name}: found the calibration {self.calibration.tolist()}, expected positive numbers"
            )

    def __call__(self, episode: Episode) -> Tensor:
        """Points (R, T, d) of the steps of an episode."""
        points = points_of(self.space.embed, episode, self.device)
        if not points.isfinite().all():
            raise ValueError(f"episode {episode.id}: its points in space {self.name} are not finite")
        return points


@dataclass(frozen=True)
class Judgement:
    """What a reward is built for.

    Args:
        replicas: of this run.
        space: in which steps are compared, if the entry names one.
        spaces: all spaces of the encoder that the method reads, by name.
        dataset: the episodes to reward.
        demonstrations: expert episodes.
        device: where to compute.
        seed: of what is drawn when it is built.
    """

    replicas: int
    space: Space | None
    spaces: Mapping[str, Space]
    dataset: Dataset
    demonstrations: Dataset
    device: torch.device
    seed: int = 0

    @property
    def experts(self) -> Sequence[Episode]:
        """The demonstrations' episodes."""
        return self.demonstrations.episodes

    def embedding(self, name: str | None = None) -> Embedding:
        """A space on the device; the one in which steps are compared by default."""
        space = self.space if name is None else self.spaces[name]
        if space is None:
            raise ValueError("space: found none, expected an entry of pretrain")
        return Embedding(space, space.name, self.device)


class Reward(Method):
    """A method that rewards episodes. One that is a closed form has no updates.

    Class attributes:
        reads: spaces of the encoder that it reads beside the one that the entry names.
        tempered: whether its rewards are exponentials of costs at a temperature, so that they can saturate.
    """

    room = "rewards"
    trains = False
    reads: ClassVar[tuple[str, ...]] = ()
    tempered: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def build(cls, c: Any, world: Judgement) -> Self:  # type: ignore[override]
        """The reward for a judgement."""

    def chunks(self, episodes: Sequence[Episode]) -> Iterator[list[Episode]]:
        """Episodes that are labelled together: one at a time."""
        return ([episode] for episode in episodes)

    @abstractmethod
    def rewards(self, episodes: Sequence[Episode]) -> Labelled:
        """Rewards (R, T) per episode id, and numbers of each problem."""

    def summary(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """Metrics made of the numbers of all problems: their means."""
        return {key: float(value.mean()) for key, value in values.items()}

    def matched(self, agent: Episode) -> dict[str, Any]:
        """Coupling (Ta, Te), cost and id of the best expert, where steps are coupled."""
        return {}


@dataclass(frozen=True)
class Compared:
    """What every method of comparison says of B agent episodes, each against one expert episode.

    Args:
        rewards: (B, n), 0 on padding.
        metrics: numbers of each problem, (B,) each.
        coupling: how much of each of the agent's steps goes to each of the expert's, and what that costs: (B, n, m)
            both, made when asked for.
    """

    rewards: Tensor
    metrics: dict[str, Tensor]
    coupling: Callable[[], tuple[Tensor, Tensor]]


def transported(labels: Labels) -> Compared:
    """What optimal transport says."""
    metrics = {
        "marginal_error": labels.transport.marginal_error,
        "iterations": labels.transport.iterations.float(),
        "dropped_mass": labels.dropped_mass,
    }
    return Compared(labels.rewards, metrics, lambda: (labels.transport.coupling, labels.cost))


class Comparison(Reward):
    """A reward from comparison with each demonstration, whose points it keeps.

    Args:
        c: hyper-parameters.
        world: what it is built for.
    """

    def __init__(self, c: Any, world: Judgement) -> None:
        super().__init__()
        self.config, self.device, self.experts = c, world.device, world.experts
        self.action_dim = world.dataset.spec.action_dim
        self.embed = world.embedding()
        with torch.no_grad():
            self.embedded_experts = [self.embed(expert) for expert in world.experts]
        self.replicas = len(self.embedded_experts[0])

    @classmethod
    def build(cls, c: Any, world: Judgement) -> Self:  # type: ignore[override]
        """With the demonstrations of a world."""
        return cls(c, world)

    @property
    def by_state(self) -> bool:
        """Whether each state takes its own best expert, and not each episode."""
        return False

    @abstractmethod
    def against(
        self, agent: Tensor, agent_lengths: Tensor, expert: Tensor, expert_lengths: Tensor, calibration: Tensor
    ) -> Compared:
        """Compare B agent episodes (B, n, d) with one expert episode (B, m, d) each.

        Args:
            agent: points, shorter episodes continued with their last one.
            agent_lengths: (B,).
            expert: points, likewise.
            expert_lengths: (B,).
            calibration: (B,), makes the mean squared distance of one step 1.
        """

    def compare(self, points: Sequence[Tensor], expert: int) -> Compared:
        """Compare episodes of points (R, T, d) with one expert: problems (E * R), replicas together."""
        x, lengths = pad_with_last([x for episode in points for x in episode])
        y = self.embedded_experts[expert].repeat(len(points), 1, 1)
        expert_lengths = torch.full_like(lengths, y.shape[1])
        return self.against(x, lengths, y, expert_lengths, self.embed.calibration.repeat(len(points)))

    def chunks(self, episodes: Sequence[Episode]) -> Iterator[list[Episode]]:
        """Episodes of similar length, together at most ``BATCH_ELEMENTS``; one at a time on a CPU."""
        ordered = sorted(episodes, key=lambda episode: -episode.length)
        longest = max(expert.length for expert in self.experts)
        while ordered:
            fitting = BATCH_ELEMENTS // (ordered[0].length * longest * self.replicas)
            size = 1 if self.device.type == "cpu" else max(1, fitting)
            chunk, ordered = ordered[:size], ordered[size:]
            yield chunk

    def rewards(self, episodes: Sequence[Episode]) -> Labelled:
        """Rewards (R, T) of the best expert, per episode id, and numbers of each problem solved."""
        points = [self.embed(episode) for episode in episodes]
        best: Tensor | None = None
        numbers = []
        for expert in range(len(self.experts)):
            compared = self.compare(points, expert)
            numbers.append(compared.metrics)
            best = compared.rewards if best is None else better(best, compared.rewards, by_state=self.by_state)
        assert best is not None
        table = best.view(len(episodes), self.replicas, -1).cpu().numpy()
        rewards = {episode.id: row[:, : episode.length].copy() for episode, row in zip(episodes, table, strict=True)}
        return rewards, joined(numbers)

    def summary(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """Means over all problems solved, and the largest marginal error."""
        found: dict[str, Any] = {"replicas": self.replicas, "experts": len(self.experts), **super().summary(values)}
        if "marginal_error" in values:
            found["marginal_error_max"] = float(values["marginal_error"].max())
        return found

    def matched(self, agent: Episode) -> dict[str, Any]:
        """Coupling and costs of an episode with its best expert, and the expert's id."""
        points = [self.embed(agent)]
        compared = [self.compare(points, expert) for expert in range(len(self.experts))]
        best = max(range(len(compared)), key=lambda expert: float(compared[expert].rewards[0].sum()))
        coupling, cost = compared[best].coupling()
        return {
            "coupling": coupling[0].cpu().numpy(),
            "cost": cost[0].cpu().numpy(),
            "expert": self.experts[best].id,
        }


def joined(numbers: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Numbers of all parts, one after another."""
    return {key: torch.cat([part[key] for part in numbers]).cpu() for key in numbers[0]}


def moments(points: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (R, d), and the root mean square (R,) of what is left over states and coordinates, of points (R, T, d)."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for part in points:
        count += part.shape[1]
        total = total.to(part.device) + part.double().sum(1)
        squares = squares.to(part.device) + part.double().square().sum(1)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).mean(1).clamp(min=0.0).sqrt().float()


def centred(points: Tensor, mean: Tensor, unit: Tensor) -> Tensor:
    """(x - mean) / unit, and a constant coordinate of the same length on average: (..., d) -> (..., d + 1).

    Without the constant a network with layer normalisation and no biases sees the direction of a point alone.
    """
    return nn.functional.pad((points - mean) / unit, (0, 1), value=math.sqrt(points.shape[-1]))


def fitting(points: Tensor, replicas: int, space: str) -> Tensor:
    """Points (R or 1, N, d) as they are.

    Raises:
        ValueError: if they are of another number of replicas than the run.
    """
    if len(points) not in (1, replicas):
        raise ValueError(f"space {space} has {len(points)} replicas, this run has {replicas}")
    return points


def at_rows(points: Tensor, rows: Tensor) -> Tensor:
    """Each replica's points at rows of its own: (R or 1, N, d), (R, B) -> (R, B, d)."""
    return points[torch.arange(len(points), device=points.device).unsqueeze(1), rows]


def better(rewards: Tensor, others: Tensor, *, by_state: bool) -> Tensor:
    """Of two rewards (B, T) of each episode those with the larger sum, the first if equal, or the larger of each state."""
    if by_state:
        return torch.maximum(rewards, others)
    return torch.where((others.sum(-1) > rewards.sum(-1)).unsqueeze(-1), others, rewards)
