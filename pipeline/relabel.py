"""The stage that gives every transition of a dataset a reward by comparison with demonstrations."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.data.parallel import IN_PROCESS, EngineConfig, map_shards, one_thread
from dynarep.data.sampling import uniform
from dynarep.data.schema import NAME, Episode
from dynarep.data.shards import Dataset, parts
from dynarep.pipeline.engine import Run, TrainingConfig, digest, keep_freed_memory, run_key, train, training_device
from dynarep.pipeline.methods import ailot, distance, otr
from dynarep.pipeline.methods.ailot import AILOTConfig
from dynarep.pipeline.methods.distance import NearestConfig, SegmentConfig
from dynarep.pipeline.methods.occupancy import OccupancyConfig, expert_weights, occupancy_reward
from dynarep.pipeline.methods.otr import OTRConfig
from dynarep.pipeline.methods.rnd import RND, RNDConfig, novelty_reward, transitions
from dynarep.pipeline.spaces import Space, SpaceName, points_of
from dynarep.pipeline.transport import Labels, pad_with_last

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


@config
class NearestMethodConfig:
    """Rewards from the nearest expert state, and the space in which it is sought; the published one is ``raw``."""

    kind: Literal["nearest"]
    space: SpaceName = "raw"
    method: NearestConfig = NearestConfig()


@config
class SegmentMethodConfig:
    """Rewards from the nearest expert state of the corresponding segment, and the space in which it is sought."""

    kind: Literal["segment"]
    space: SpaceName = "raw"
    method: SegmentConfig = SegmentConfig()


@config
class RNDMethodConfig:
    """Rewards by random network distillation, and the space whose points it reads; the published one is ``raw``."""

    kind: Literal["rnd"]
    space: SpaceName = "raw"
    method: RNDConfig = RNDConfig()
    training: TrainingConfig

    def __post_init__(self) -> None:
        if self.training.snapshots > 1:
            raise ValueError(f"training.snapshots: found {self.training.snapshots}, expected 1: no model is kept")


@config
class OccupancyMethodConfig:
    """Rewards from the expert's occupancy ratio, from phi and mu of the dynamics representation; needs expert actions."""

    kind: Literal["occupancy"]
    method: OccupancyConfig = OccupancyConfig()


ComparisonConfig = AILOTMethodConfig | OTRMethodConfig | NearestMethodConfig | SegmentMethodConfig
AnyMethodConfig = ComparisonConfig | RNDMethodConfig | OccupancyMethodConfig
MethodConfig = Annotated[AnyMethodConfig, Field(discriminator="kind")]


@config
class RelabelConfig:
    """Section ``relabel``: the dataset that gets rewards, the demonstrations, and the methods by name.

    ``examples`` is the number of episodes that are kept for the report, see ``example_episodes``.
    """

    dataset: str
    demonstrations: str
    methods: dict[str, MethodConfig]
    examples: int = Field(default=6, ge=1)

    def __post_init__(self) -> None:
        for name in self.methods:
            if not NAME.fullmatch(name) or name == TRUE_REWARD:
                raise ValueError(f"methods: found the name {name!r}, expected letters, digits, '-' and '_', not 'true'")


def spaces_of(c: AnyMethodConfig) -> tuple[SpaceName, ...]:
    """The spaces that a method reads."""
    return ("phi", "mu") if isinstance(c, OccupancyMethodConfig) else (c.space,)


def smoke(c: RelabelConfig) -> RelabelConfig:
    """A few iterations only, to see that everything fits together."""

    def shortened(method: AnyMethodConfig) -> AnyMethodConfig:
        if isinstance(method, AILOTMethodConfig):
            return replace(method, method=replace(method.method, max_iterations=3))
        if isinstance(method, OTRMethodConfig):
            return replace(method, method=replace(method.method, max_iterations=3))
        if isinstance(method, RNDMethodConfig):
            return replace(method, training=method.training.smoke())
        return method

    return replace(c, methods={name: shortened(method) for name, method in c.methods.items()})


@dataclass(frozen=True)
class Relabelling:
    """What a method made of a dataset.

    Args:
        rewards: per episode id (R, T) float32.
        returns: one row per episode: ``episode``, ``length``, ``relabelled`` (mean over replicas), ``true`` (or None).
        examples: of some episodes, for the first replica: ``rewards`` (Ta,), ``true_rewards`` (Ta,) if known and the id
            ``agent``; where the method couples steps also ``coupling`` and ``cost`` (Ta, Te) with the best expert, and
            its id ``expert``.
        metrics: means over episodes, experts and replicas; None where the true reward is not known.
    """

    rewards: dict[str, np.ndarray]
    returns: list[dict[str, Any]]
    examples: list[dict[str, Any]]
    metrics: dict[str, Any]


def relabel(
    name: str,
    c: AnyMethodConfig,
    dataset: Dataset,
    demonstrations: Dataset,
    spaces: Mapping[SpaceName, Space],
    device: torch.device,
    run: Run,
    engine: EngineConfig = IN_PROCESS,
    examples: Sequence[Episode] = (),
) -> Relabelling:
    """Reward every transition of ``dataset``; rewards of either side are not used, actions where the space reads them.

    An episode is its states s_0..s_{T-1}. It is compared with each demonstration on its own, of which the best one
    counts, or judged by a network that has seen them all.

    Args:
        name: of the method, for messages.
        c: its configuration.
        dataset: the episodes to reward; their true rewards, if any, serve the metrics alone.
        demonstrations: expert episodes.
        spaces: those of ``spaces_of(c)``, for ``dataset``.
        device: where to compute.
        run: names, seeds and folders, for a method that is trained.
        engine: where the episodes are labelled; the rewards do not depend on it.
        examples: episodes of the dataset that are shown in full.

    Raises:
        ValueError: if observations or, where they are read, actions of both datasets differ in size or are missing, if
            replicas disagree, or if a space has values that are not finite.
    """
    where = f"relabel.methods.{name}"
    for space in spaces_of(c):
        _check(where, c, dataset, demonstrations, space, spaces[space])
    try:
        labeller: Labeller
        if isinstance(c, OccupancyMethodConfig):
            labeller = _Occupancy(c.method, spaces["phi"], spaces["mu"], demonstrations.episodes, device)
        elif isinstance(c, RNDMethodConfig):
            labeller = _Distillation(c, spaces[c.space], dataset, demonstrations, device, run)
        else:
            labeller = _Comparison(c, spaces[c.space], demonstrations.episodes, dataset.spec.action_dim, device)
        pieces = parts(dataset)
        labelled = map_shards(partial(_labelled, labeller), pieces, engine)
        found = dict(_progress(labelled, len(dataset.episodes), f"relabel/{name}"))
        rewards = {episode: values for piece in pieces for episode, values in found[piece][0].items()}
        with torch.no_grad():
            shown = [_example(episode, rewards) | labeller.matched(episode) for episode in examples]
            metrics = labeller.metrics(_joined([found[piece][1] for piece in pieces]))
    except ValueError as error:
        raise ValueError(f"{where}: {dataset.name} against {demonstrations.name}: {error}") from error
    rewards = {episode.id: rewards[episode.id] for episode in dataset.episodes}
    return Relabelling(rewards, _returns(dataset, rewards), shown, {**metrics, **agreement(dataset, rewards)})


def _labelled(labeller: Labeller, episodes: Sequence[Episode]) -> Labelled:
    """Rewards of some episodes, and numbers of the problems that they were."""
    rewards: dict[str, np.ndarray] = {}
    numbers = []
    keep_freed_memory()
    with one_thread(), torch.no_grad():
        for chunk in labeller.chunks(episodes):
            found, of_chunk = labeller.rewards(chunk)
            rewards |= found
            numbers.append(of_chunk)
    return rewards, _joined(numbers)


def _joined(numbers: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([part[key] for part in numbers]).cpu() for key in numbers[0]}


def _check(
    where: str, c: AnyMethodConfig, dataset: Dataset, demonstrations: Dataset, name: SpaceName, space: Space
) -> None:
    sizes = demonstrations.spec.observation_dim, dataset.spec.observation_dim
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{where}: observations of {demonstrations.name} have {sizes[0]} numbers, those of {dataset.name} {sizes[1]}"
        )
    if space.reads_actions:
        for side in (demonstrations, dataset):
            if side.spec.action_dim == 0:
                raise ValueError(f"{where}: space {name} needs actions, but {side.name} has none")
        sizes = demonstrations.spec.action_dim, dataset.spec.action_dim
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{where}: actions of {demonstrations.name} have {sizes[0]} numbers, those of {dataset.name} {sizes[1]}"
            )
    divides = isinstance(c, NearestMethodConfig | SegmentMethodConfig) and c.method.divide_by_action_dim
    if divides and dataset.spec.action_dim == 0:
        raise ValueError(f"{where}.method.divide_by_action_dim: {dataset.name} has no actions")


class _Embedding:
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
class _Compared:
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


def _transported(labels: Labels) -> _Compared:
    metrics = {
        "marginal_error": labels.transport.marginal_error,
        "iterations": labels.transport.iterations.float(),
        "dropped_mass": labels.dropped_mass,
    }
    return _Compared(labels.rewards, metrics, lambda: (labels.transport.coupling, labels.cost))


class _Comparison:
    """One method against each demonstration, whose embeddings it keeps."""

    def __init__(
        self, c: ComparisonConfig, space: Space, experts: Sequence[Episode], action_dim: int, device: torch.device
    ) -> None:
        self.config, self.device, self.action_dim = c, device, action_dim
        self.embed = _Embedding(space, c.space, device)
        self.experts = experts
        with torch.no_grad():
            self.embedded_experts = [self.embed(expert) for expert in experts]
        self.replicas = len(self.embedded_experts[0])

    def compare(self, points: Sequence[Tensor], expert: int) -> _Compared:
        """Compare episodes of points (R, T, d) with one expert: problems (E * R), replicas together."""
        c = self.config
        x, lengths = pad_with_last([x for episode in points for x in episode])
        y = self.embedded_experts[expert].repeat(len(points), 1, 1)
        expert_lengths = torch.full_like(lengths, y.shape[1])
        calibration = self.embed.calibration.repeat(len(points))
        arguments = x, lengths, y, expert_lengths, calibration
        if isinstance(c, AILOTMethodConfig):
            return _transported(ailot.label(*arguments, c.method))
        if isinstance(c, OTRMethodConfig):
            return _transported(otr.label(*arguments, c.method))
        matches = distance.label(*arguments, c.method, self.action_dim)

        def coupling() -> tuple[Tensor, Tensor]:
            cost = ailot.squared_distance(*(distance.with_lookahead(points, c.method.lookahead) for points in (x, y)))
            if c.method.units == "calibrated":
                cost.mul_(calibration[:, None, None])
            return distance.hard_coupling(matches.steps, lengths, y.shape[1]), cost

        return _Compared(matches.rewards, {}, coupling)

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
        return rewards, _joined(numbers)

    @property
    def by_state(self) -> bool:
        """Whether each state takes its own best expert; a search always does, because the nearest state is of one pool."""
        if isinstance(self.config, AILOTMethodConfig):
            return self.config.method.best_expert == "state"
        return not isinstance(self.config, OTRMethodConfig)

    def metrics(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """Means over all problems solved, and the largest marginal error."""
        found: dict[str, Any] = {"replicas": self.replicas, "experts": len(self.experts)}
        found |= {key: float(value.mean()) for key, value in values.items()}
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


class _Distillation:
    """Random network distillation, trained on the transitions of all demonstrations."""

    def __init__(
        self,
        c: RNDMethodConfig,
        space: Space,
        dataset: Dataset,
        demonstrations: Dataset,
        device: torch.device,
        run: Run,
    ) -> None:
        self.config, self.replicas, self.experts = c.method, run.replicas, len(demonstrations.episodes)
        self.embed = _Embedding(space, c.space, device)
        with torch.no_grad():
            pairs = torch.cat([transitions(self.embed(expert)) for expert in demonstrations.episodes], 1)
            mean, unit = moments(self.embed(episode) for episode in dataset.episodes)
        if len(pairs) not in (1, run.replicas):
            raise ValueError(f"space {c.space} has {len(pairs)} replicas, this run has {run.replicas}")
        torch.manual_seed(run.seed)
        self.learner = RND(c.method, run.replicas, mean.cpu(), unit.cpu())
        shown = pairs.to(training_device())
        shape = (run.replicas, c.training.batch_size)
        replica = torch.arange(len(shown), device=shown.device).unsqueeze(1)

        def sample(generator: torch.Generator) -> Tensor:
            return shown[replica, uniform(shown.shape[1], shape, generator, shown.device)]

        key = run_key(run, c, dataset.fingerprint, demonstrations.fingerprint, digest(pairs, mean, unit))
        train(self.learner, sample, c.training, run=run, metrics=("loss",), key=key)
        self.learner.to(device)
        with torch.no_grad():
            self.expert_error = float(self.learner.error(pairs).mean())

    def chunks(self, episodes: Sequence[Episode]) -> Iterator[list[Episode]]:
        """One episode at a time."""
        return ([episode] for episode in episodes)

    def rewards(self, episodes: Sequence[Episode]) -> Labelled:
        """Rewards (R, T) per episode id, and the prediction error of each transition."""
        found, errors = {}, []
        for episode in episodes:
            error = self.learner.error(transitions(self.embed(episode)))
            errors.append(error.mean(0))
            found[episode.id] = novelty_reward(error, self.config.scale, self.config.temperature).cpu().numpy()
        return found, {"error": torch.cat(errors)}

    def metrics(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """Mean prediction error over the dataset, and over the transitions that were learned."""
        errors = {"error": float(values["error"].mean()), "expert_error": self.expert_error}
        return {"replicas": self.replicas, "experts": self.experts, **errors}

    def matched(self, agent: Episode) -> dict[str, Any]:
        """Nothing: no step of an episode is coupled with one of an expert's."""
        return {}


class _Occupancy:
    """The expert's occupancy ratio at the state that each transition leads to."""

    def __init__(
        self, c: OccupancyConfig, phi: Space, mu: Space, experts: Sequence[Episode], device: torch.device
    ) -> None:
        self.config, self.device, self.experts = c, device, len(experts)
        self.mu = mu
        embed = _Embedding(phi, "phi", device)
        with torch.no_grad():
            self.weights = expert_weights(torch.cat([embed(expert) for expert in experts], 1), c.gamma)

    def chunks(self, episodes: Sequence[Episode]) -> Iterator[list[Episode]]:
        """One episode at a time."""
        return ([episode] for episode in episodes)

    def rewards(self, episodes: Sequence[Episode]) -> Labelled:
        """Rewards (R, T) per episode id."""
        found = {}
        for episode in episodes:
            mu_next = self.mu.embed(torch.from_numpy(episode.successors).to(self.device), None)
            rewards = occupancy_reward(mu_next, self.weights, self.config.gamma, self.config.scale)
            if not rewards.isfinite().all():
                raise ValueError(f"episode {episode.id}: its occupancy ratios are not finite")
            found[episode.id] = rewards.cpu().numpy()
        return found, {}

    def metrics(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """How many replicas and demonstrations there are."""
        return {"replicas": len(self.weights), "experts": self.experts}

    def matched(self, agent: Episode) -> dict[str, Any]:
        """Nothing: no step of an episode is coupled with one of an expert's."""
        return {}


def example_episodes(dataset: Dataset, count: int) -> list[Episode]:
    """At most ``count`` episodes in the order of their returns (lengths where unknown), the best one last.

    They are evenly spaced over the transitions in that order, so that they look like most of the data, which very short
    episodes do not.
    """
    values = dataset.returns or [float(episode.length) for episode in dataset.episodes]
    order = np.argsort(values, kind="stable")
    passed = np.cumsum([dataset.episodes[i].length for i in order])
    places = np.searchsorted(passed, passed[-1] * np.arange(1, count + 1) / count)
    return [dataset.episodes[order[place]] for place in dict.fromkeys(places.tolist())]


def _example(episode: Episode, rewards: dict[str, np.ndarray]) -> dict[str, Any]:
    """Rewards of an episode, for the first replica."""
    arrays = {"rewards": rewards[episode.id][0], "agent": episode.id}
    return arrays if episode.rewards is None else {**arrays, "true_rewards": episode.rewards}


def write_examples(folder: Path, examples: Sequence[Mapping[str, Any]]) -> None:
    """Write examples as ``<number>.npz``, without costs; of each step's mass, what is below 1e-4 of its largest is dropped."""
    folder.mkdir()
    for number, example in enumerate(examples):
        arrays = {key: value for key, value in example.items() if key != "cost"}
        if "coupling" in arrays:
            mass = arrays["coupling"]
            arrays["coupling"] = np.where(mass >= 1e-4 * mass.max(1, keepdims=True), mass, 0)
        np.savez_compressed(folder / f"{number}.npz", **arrays)


Labeller = _Comparison | _Distillation | _Occupancy
Labelled = tuple[dict[str, np.ndarray], dict[str, Tensor]]


def moments(points: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (R, d), and the root mean square (R,) of what is left over states and coordinates, of points (R, T, d)."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for part in points:
        count += part.shape[1]
        total = total.to(part.device) + part.double().sum(1)
        squares = squares.to(part.device) + part.double().square().sum(1)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).mean(1).clamp(min=0.0).sqrt().float()


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
    labelled: Iterable[tuple[str, Labelled]], total: int, title: str, seconds: float = 15.0
) -> Iterator[tuple[str, Labelled]]:
    """Pass rewards on and show of how many episodes they are: a live bar on a terminal, else a line now and then."""
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
        for name, (rewards, numbers) in labelled:
            yield name, (rewards, numbers)
            done += len(rewards)
            now = time.monotonic()
            rate = f"{done / max(now - started, 1e-9):.1f} episodes/s"
            bar.update(task, completed=done, rate=rate)
            if bar.disable and (now - said > seconds or done == total):
                said = now
                print(f"{title}: {done:,}/{total:,}  {rate}", file=sys.stderr, flush=True)
