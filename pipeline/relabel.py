"""The stage that gives every transition of a dataset a reward by optimal transport to demonstrations without actions."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from dynarep.data.schema import NAME, Episode
from dynarep.data.shards import Dataset
from dynarep.pipeline.methods import ailot, otr
from dynarep.pipeline.methods.ailot import AILOTConfig
from dynarep.pipeline.methods.otr import OTRConfig
from dynarep.pipeline.networks import Normaliser
from dynarep.pipeline.params import Field, config
from dynarep.pipeline.transport import Labels, pad_with_last

SpaceName = Literal["intent", "raw", "standardised"]

TRUE_REWARD = "true"
"""A name that methods cannot have: it stands for the dataset's own reward."""

BATCH_ELEMENTS = 2**26
"""Entries of all cost matrices that a GPU holds at once; a CPU holds those of one episode."""


@config
class AILOTMethodConfig:
    """Rewards by AILOT, and the space in which it compares states."""

    kind: Literal["ailot"]
    space: SpaceName = "intent"
    method: AILOTConfig = AILOTConfig()


@config
class OTRMethodConfig:
    """Rewards by OTR, and the space in which it compares states; the published one is ``raw``."""

    kind: Literal["otr"]
    space: SpaceName = "raw"
    method: OTRConfig = OTRConfig()


MethodConfig = Annotated[AILOTMethodConfig | OTRMethodConfig, Field(discriminator="kind")]


@config
class RelabelConfig:
    """Section ``relabel``: the dataset that gets rewards, the demonstrations, and the methods by name."""

    dataset: str
    demonstrations: str
    methods: dict[str, MethodConfig]

    def __post_init__(self) -> None:
        for name in self.methods:
            if not NAME.fullmatch(name) or name == TRUE_REWARD:
                raise ValueError(f"methods: found the name {name!r}, expected letters, digits, '-' and '_', not 'true'")


def smoke(c: RelabelConfig) -> RelabelConfig:
    """A few iterations only, to see that everything fits together."""

    def shortened(method: AILOTMethodConfig | OTRMethodConfig) -> AILOTMethodConfig | OTRMethodConfig:
        if isinstance(method, AILOTMethodConfig):
            return replace(method, method=replace(method.method, max_iterations=3))
        return replace(method, method=replace(method.method, max_iterations=3))

    return replace(c, methods={name: shortened(method) for name, method in c.methods.items()})


@dataclass(frozen=True)
class Space:
    """Where states are compared.

    Args:
        embed: observations (T, obs_dim) to points (R, T, d), for R replicas.
        calibration: (R,), makes the squared distance of one step 1 on average.
    """

    embed: Callable[[Tensor], Tensor]
    calibration: Tensor


@dataclass(frozen=True)
class Relabelling:
    """What a method made of a dataset.

    Args:
        rewards: per episode id (R, T) float32.
        returns: one row per episode: ``episode``, ``length``, ``relabelled`` (mean over replicas), ``true`` (or None).
        example: of one episode and its best expert, for the first replica: ``coupling`` and ``cost`` (Ta, Te),
            ``rewards`` (Ta,), ``true_rewards`` (Ta,) if known, ``agent`` and ``expert`` ids.
        metrics: means over episodes, experts and replicas; None where the true reward is not known.
    """

    rewards: dict[str, np.ndarray]
    returns: list[dict[str, Any]]
    example: dict[str, Any]
    metrics: dict[str, Any]


def observation_space(dataset: Dataset, device: torch.device, *, standardise: bool) -> Space:
    """Observations as they are, or standardised by the dataset's moments, as a space of one replica.

    Raises:
        ValueError: if no observation of the dataset differs from its successor.
    """
    embed: torch.nn.Module = torch.nn.Identity()
    if standardise:
        mean, std = (torch.tensor(dataset.statistics[f"observation_{moment}"]) for moment in ("mean", "std"))
        embed = Normaliser(mean, std).to(device)
    total, count = 0.0, 0
    for episode in dataset.episodes:
        now, following = (embed(torch.from_numpy(x).to(device)) for x in (episode.current, episode.successors))
        total += float((following - now).double().square().sum())
        count += episode.length
    if total == 0.0:
        raise ValueError(f"dataset {dataset.name}: no observation differs from its successor, so a step has no length")
    return Space(lambda observations: embed(observations).unsqueeze(0), torch.tensor([count / total]))


@torch.no_grad()
def relabel(
    name: str,
    c: AILOTMethodConfig | OTRMethodConfig,
    dataset: Dataset,
    demonstrations: Dataset,
    intent: Space | None,
    device: torch.device,
) -> Relabelling:
    """Reward every transition of ``dataset``; actions and rewards of either side are not used.

    An episode is its states s_0..s_{T-1}. It is compared with each demonstration on its own, of which the best one counts.

    Args:
        name: of the method, for messages.
        c: its configuration.
        dataset: the episodes to reward; their true rewards, if any, serve the metrics alone.
        demonstrations: expert episodes.
        intent: the space of the intent encoder; needed where ``c.space`` is ``intent``.
        device: where to compute.

    Raises:
        ValueError: if the observations of both datasets differ in size, the intent space is missing, or a space has
            values that are not finite.
    """
    where = f"relabel.methods.{name}"
    sizes = demonstrations.spec.observation_dim, dataset.spec.observation_dim
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{where}: observations of {demonstrations.name} have {sizes[0]} numbers, those of {dataset.name} {sizes[1]}"
        )
    space = intent if c.space == "intent" else observation_space(dataset, device, standardise=c.space == "standardised")
    if space is None:
        raise ValueError(f"{where}.space: intent needs an intent encoder")
    try:
        solver = _Solver(c, space, demonstrations.episodes, device)
        rewards: dict[str, np.ndarray] = {}
        for chunk in _progress(solver.chunks(dataset.episodes), len(dataset.episodes), f"relabel/{name}"):
            rewards.update(solver.rewards(chunk))
        example = solver.example(dataset.episodes, rewards)
    except ValueError as error:
        raise ValueError(f"{where}: {dataset.name} against {demonstrations.name}: {error}") from error
    rewards = {episode.id: rewards[episode.id] for episode in dataset.episodes}
    metrics = {**solver.metrics(), **agreement(dataset, rewards)}
    return Relabelling(rewards, _returns(dataset, rewards), example, metrics)


class _Solver:
    """One method against all demonstrations, whose embeddings it keeps."""

    def __init__(
        self, c: AILOTMethodConfig | OTRMethodConfig, space: Space, experts: Sequence[Episode], device: torch.device
    ) -> None:
        self.config, self.device = c, device
        self.embed = space.embed
        self.calibration = space.calibration.to(device)
        if not (self.calibration.isfinite() & (self.calibration > 0)).all():
            raise ValueError(
                f"space {c.space}: found the calibration {self.calibration.tolist()}, expected positive numbers"
            )
        self.experts = experts
        self.embedded_experts = [self._embed(expert) for expert in experts]
        self.replicas = len(self.embedded_experts[0])
        self.totals: dict[str, list[Tensor]] = {"marginal_error": [], "iterations": [], "dropped_mass": []}

    def _embed(self, episode: Episode) -> Tensor:
        points = self.embed(torch.from_numpy(episode.current).to(self.device))
        if not points.isfinite().all():
            raise ValueError(f"episode {episode.id}: its points in space {self.config.space} are not finite")
        return points

    def label(self, points: Sequence[Tensor], expert: int) -> Labels:
        """Label episodes of points (R, T, d) against one expert: problems (E * R), replicas together."""
        agent, agent_lengths = pad_with_last([x for episode in points for x in episode])
        experts = self.embedded_experts[expert].repeat(len(points), 1, 1)
        expert_lengths = torch.full_like(agent_lengths, experts.shape[1])
        calibration = self.calibration.repeat(len(points))
        arguments = agent, agent_lengths, experts, expert_lengths, calibration
        if isinstance(self.config, AILOTMethodConfig):
            return ailot.label(*arguments, self.config.method)
        return otr.label(*arguments, self.config.method)

    def chunks(self, episodes: Sequence[Episode]) -> Iterator[list[Episode]]:
        """Episodes of similar length, together at most ``BATCH_ELEMENTS``; one at a time on a CPU."""
        ordered = sorted(episodes, key=lambda episode: -episode.length)
        longest = max(expert.length for expert in self.experts)
        while ordered:
            fitting = BATCH_ELEMENTS // (ordered[0].length * longest * self.replicas)
            size = 1 if self.device.type == "cpu" else max(1, fitting)
            chunk, ordered = ordered[:size], ordered[size:]
            yield chunk

    def rewards(self, episodes: Sequence[Episode]) -> dict[str, np.ndarray]:
        """Rewards (R, T) of the best expert, per episode id."""
        points = [self._embed(episode) for episode in episodes]
        by_state = isinstance(self.config, AILOTMethodConfig) and self.config.method.best_expert == "state"
        best: Tensor | None = None
        for expert in range(len(self.experts)):
            labels = self.label(points, expert)
            self.totals["marginal_error"].append(labels.transport.marginal_error)
            self.totals["iterations"].append(labels.transport.iterations.float())
            self.totals["dropped_mass"].append(labels.dropped_mass)
            best = labels.rewards if best is None else better(best, labels.rewards, by_state=by_state)
        assert best is not None
        table = best.view(len(episodes), self.replicas, -1).cpu().numpy()
        return {episode.id: row[:, : episode.length].copy() for episode, row in zip(episodes, table, strict=True)}

    def metrics(self) -> dict[str, Any]:
        """Means over all problems solved, and the largest marginal error."""
        values = {key: torch.cat(parts) for key, parts in self.totals.items()}
        return {
            "replicas": self.replicas,
            "experts": len(self.experts),
            **{key: float(value.mean()) for key, value in values.items()},
            "marginal_error_max": float(values["marginal_error"].max()),
        }

    def example(self, episodes: Sequence[Episode], rewards: dict[str, np.ndarray]) -> dict[str, Any]:
        """The coupling of an episode of median length among the longest third with its best expert."""
        ordered = sorted(episodes, key=lambda episode: -episode.length)
        agent = ordered[math.ceil(len(ordered) / 3) // 2]
        points = [self._embed(agent)]
        labels = [self.label(points, expert) for expert in range(len(self.experts))]
        best = max(range(len(labels)), key=lambda expert: float(labels[expert].rewards[0].sum()))
        arrays = {
            "coupling": labels[best].transport.coupling[0].cpu().numpy(),
            "cost": labels[best].cost[0].cpu().numpy(),
            "rewards": rewards[agent.id][0],
            "agent": agent.id,
            "expert": self.experts[best].id,
        }
        return arrays if agent.rewards is None else {**arrays, "true_rewards": agent.rewards}


def better(rewards: Tensor, others: Tensor, *, by_state: bool) -> Tensor:
    """Of two rewards (B, T) of each episode those with the larger sum, the first if equal, or the larger of each state."""
    if by_state:
        return torch.maximum(rewards, others)
    return torch.where((others.sum(-1) > rewards.sum(-1)).unsqueeze(-1), others, rewards)


def agreement(dataset: Dataset, rewards: dict[str, np.ndarray]) -> dict[str, Any]:
    """How the rewards relate to the true ones.

    Returns:
        ``reward_mean``; ``spearman_true_return``, the rank correlation of returns over episodes, mean over replicas;
        ``spearman_true_reward``, the rank correlation of rewards within an episode, mean over episodes and replicas. A
        correlation is None where the truth is not known, or where either side is constant everywhere.
    """
    labelled = [rewards[episode.id] for episode in dataset.episodes]
    returns = np.stack([values.sum(-1) for values in labelled], -1)
    over_episodes = [] if dataset.returns is None else [_spearman(row, dataset.returns) for row in returns]
    within = [
        _spearman(row, episode.rewards)
        for episode, values in zip(dataset.episodes, labelled, strict=True)
        if episode.rewards is not None
        for row in values
    ]
    return {
        "reward_mean": float(np.concatenate(labelled, -1).mean(dtype=np.float64)),
        "spearman_true_return": _mean_where_defined(over_episodes),
        "spearman_true_reward": _mean_where_defined(within),
    }


def _spearman(x: Any, y: Any) -> float | None:
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic) if np.ptp(x) > 0 and np.ptp(y) > 0 else None


def _mean_where_defined(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def _returns(dataset: Dataset, rewards: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    true = dataset.returns if dataset.returns is not None else [None] * len(dataset.episodes)
    return [
        {"episode": e.id, "length": e.length, "relabelled": float(rewards[e.id].sum(-1).mean()), "true": value}
        for e, value in zip(dataset.episodes, true, strict=True)
    ]


def _progress(
    chunks: Iterator[list[Episode]], total: int, title: str, seconds: float = 15.0
) -> Iterator[list[Episode]]:
    """Pass chunks on and show how many episodes are done: a live bar on a terminal, else a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    started = said = time.monotonic()
    done = 0
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(title, total=total, rate="")
        for chunk in chunks:
            yield chunk
            done += len(chunk)
            now = time.monotonic()
            rate = f"{done / max(now - started, 1e-9):.1f} episodes/s"
            bar.update(task, completed=done, rate=rate)
            if bar.disable and (now - said > seconds or done == total):
                said = now
                print(f"{title}: {done:,}/{total:,}  {rate}", file=sys.stderr, flush=True)
