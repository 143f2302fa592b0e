"""Evaluation: episodes of every policy in a Gymnasium environment, and the scores made of their returns.

Every policy plays the same episodes: episode e of every replica starts from environment seed ``seed + e``. Episodes are
played in blocks of fixed size that do not depend on the number of workers, and a policy is always asked about a whole
block, finished episodes included, because the last bits of a matrix product depend on its shape and control problems
amplify them. So a return depends on the policy, the environment and the seed alone.

Scores are D4RL's normalised scores (``dynarep.pipeline.playing.scores``). D4RL's recordings and references come from Gym's
``-v2`` tasks; ``-v4`` defines the same observations and rewards for Hopper, HalfCheetah and Walker2d. Beside them stand the
share of episodes that reach their goal, where the environment says what that is, and the distance to a motion, where one is
named. ``dynarep.pipeline.playing.environments`` makes the environments.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.data.parallel import IN_PROCESS, ClusterConfig, ClusterError, map_shards, one_thread
from dynarep.pipeline.playing.environments import (
    EvaluationError,
    check_observations,
    check_recording,
    d4rl_reference,
    family,
    make_environment,
    simulator_versions,
    succeeded,
)
from dynarep.pipeline.playing.motion import Motion, MotionConfig, load_motion
from dynarep.pipeline.playing.scores import (
    OPTIONAL_SCORES,
    bootstrap_interval,
    expert_fraction,
    interquartile_mean,
    normalised_score,
    ranking,
)

BLOCK = 5
RANDOM = "random"
BOUNDS_TOLERANCE = 1e-5


class Architecture(Protocol):
    """What evaluation reads of a policy's architecture."""

    @property
    def observation_dim(self) -> int: ...  # noqa: D102


class Actor(Protocol):
    """What plays episodes."""

    @property
    def replicas(self) -> int: ...  # noqa: D102

    def act(self, observations: Tensor) -> Tensor:
        """Actions (R, B, act_dim) within the bounds for observations (R, B, obs_dim)."""


class Policy(Actor, Protocol):
    """What evaluation asks of a policy, as ``dynarep.pipeline.encoders.Policy`` has it."""

    @property
    def architecture(self) -> Architecture: ...  # noqa: D102


Load = Callable[[Path], Policy]


@config
class ClipsConfig:
    """Short films of every policy and of the expert, which ``dynarep.pipeline.playing.clips`` makes.

    Args:
        seconds: of the environment's time, from the start of an episode.
        fps: frames per second of the environment's time.
        width: of a frame, in pixels.
    """

    seconds: float = Field(default=3.0, gt=0)
    fps: float = Field(default=12.5, gt=0)
    width: int = Field(default=240, ge=16)


@config
class EvaluateConfig:
    """Settings of the evaluation.

    Args:
        env: Gymnasium id, e.g. ``Hopper-v4``; ``module:Id-v0`` imports the module that registers it.
        env_options: keyword arguments of the environment, beside those that ``docs/environments.md`` lists.
        observations: entries of dictionary observations, side by side in this order; null: those of
            ``docs/environments.md``.
        episodes: per replica of a policy.
        seed: episode e starts from environment seed ``seed + e``, for every policy and replica.
        workers: processes to play in, where the section ``engine`` names neither Ray nor a number; null: one per available
            core. Results do not depend on it.
        max_steps: end episodes after this many steps; null: only the environment's own limit ends them.
        snapshots: play the snapshots of every policy, too, as ``<policy>@<update>``.
        motion: measure how far episodes are from a motion, too.
        clips: film the start of each policy's first episode; null: no films.
    """

    env: str
    env_options: dict[str, Any] = Field(default_factory=dict)
    observations: tuple[str, ...] | None = Field(default=None, min_length=1)
    episodes: int = Field(default=20, ge=1)
    seed: int = Field(default=0, ge=0)
    workers: int | None = Field(default=None, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    snapshots: bool = False
    motion: MotionConfig | None = None
    clips: ClipsConfig | None = None

    def make(self) -> Any:
        """The environment, as ``make_environment`` makes it."""
        return make_environment(self.env, self.env_options, self.observations)


@dataclass(frozen=True)
class Rollouts:
    """What is kept of a policy's episodes.

    Args:
        returns: (R, E).
        lengths: (R, E).
        successes: (R, E), 1 where a step of the episode was a success, 0 where none was, NaN where the environment said
            nothing of it.
        distances: (R, E) to a motion; NaN without one.
        states: of each replica's episodes, the states s_0..s_{T-1} (T, obs_dim) in which the policy was asked; none where
            they are not needed any more.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    successes: NDArray[np.float64]
    distances: NDArray[np.float64]
    states: list[list[NDArray[np.float32]]] = field(default_factory=list)

    def compared(self, motion: Motion) -> Rollouts:
        """With the distances of the episodes to a motion, and without their states."""
        distances = [[motion.distance(states) for states in episodes] for episodes in self.states]
        return replace(self, distances=np.array(distances), states=[])


class RandomPolicy:
    """Uniform actions within the bounds (one replica), a stream of its own for each block of episodes."""

    replicas = 1

    def __init__(self, space: Any, seed: tuple[int, int]) -> None:
        self._space = space
        self._generator = np.random.default_rng(seed)

    def act(self, observations: Tensor) -> Tensor:
        """Draw (1, B, act_dim) actions for (1, B, obs_dim) observations."""
        shape = (*observations.shape[:2], *self._space.shape)
        return torch.from_numpy(self._generator.uniform(self._space.low, self._space.high, shape))


def rollout(policy: Actor, name: str, settings: EvaluateConfig, first: int) -> Rollouts:
    """Play one block: episodes ``first`` to ``first + BLOCK - 1`` (at most ``settings.episodes``) of all replicas.

    Args:
        policy: asked once per step for (R, BLOCK, obs_dim) observations.
        name: of the policy, for messages.
        settings: of the evaluation.
        first: index of the block's first episode.

    Returns:
        Those of the block, with the states of the episodes if a motion is to be compared.

    Raises:
        EvaluationError: if actions are not finite, out of bounds or of the wrong shape, or a return is not finite.
    """
    replicas, episodes = policy.replicas, min(BLOCK, settings.episodes - first)
    environments = {(replica, episode): settings.make() for replica in range(replicas) for episode in range(episodes)}
    sample = environments[0, 0]
    low, high = sample.action_space.low - BOUNDS_TOLERANCE, sample.action_space.high + BOUNDS_TOLERANCE
    limit = settings.max_steps or sample.spec.max_episode_steps
    if limit is None:
        raise EvaluationError(f"env {settings.env!r} has no limit of steps of its own; set evaluate.max_steps")
    observations = np.zeros((replicas, BLOCK, *sample.observation_space.shape), dtype=np.float32)
    returns = np.zeros((replicas, episodes))
    lengths = np.zeros((replicas, episodes), dtype=np.int64)
    successes = np.full((replicas, episodes), np.nan)
    states: dict[tuple[int, int], list[NDArray[np.float32]]] = {where: [] for where in environments}
    for (replica, episode), environment in environments.items():
        observations[replica, episode], _ = environment.reset(seed=settings.seed + first + episode)
    running = list(environments)
    with torch.inference_mode():
        while running:
            actions = policy.act(torch.from_numpy(observations)).numpy()
            if actions.shape != (replicas, BLOCK, *low.shape):
                expected = (replicas, BLOCK, *low.shape)
                raise EvaluationError(f"policy {name!r}: actions have shape {actions.shape}, expected {expected}")
            within = ((actions >= low) & (actions <= high)).all(-1)
            still_running = []
            for replica, episode in running:
                action, environment = actions[replica, episode], environments[replica, episode]
                if not within[replica, episode]:
                    where = f"replica {replica}, episode {first + episode}, step {lengths[replica, episode]}"
                    raise EvaluationError(
                        f"policy {name!r}, {where}: action {action.tolist()} is not within the bounds of "
                        f"{settings.env}, {sample.action_space}"
                    )
                if settings.motion is not None:
                    states[replica, episode].append(observations[replica, episode].copy())
                observations[replica, episode], reward, terminated, truncated, info = environment.step(action)
                returns[replica, episode] += reward
                if (success := succeeded(info)) is not None:
                    successes[replica, episode] = np.fmax(successes[replica, episode], success)
                lengths[replica, episode] += 1
                if terminated or truncated or lengths[replica, episode] >= limit:
                    environment.close()
                else:
                    still_running.append((replica, episode))
            running = still_running
    if not np.isfinite(returns).all():
        replica, episode = np.argwhere(~np.isfinite(returns))[0]
        raise EvaluationError(
            f"policy {name!r}, replica {replica}, episode {first + episode}: the return is not finite"
        )
    if family(settings.env).sparse:
        successes = np.fmax(successes, returns > 0)
    visited = []
    if settings.motion is not None:
        visited = [[np.stack(states[replica, e]) for e in range(episodes)] for replica in range(replicas)]
    return Rollouts(returns, lengths, successes, np.full_like(returns, np.nan), visited)


@dataclass(frozen=True)
class _Job:
    name: str
    folder: Path | None
    load: Load
    settings: EvaluateConfig
    first: int


def _play(job: _Job) -> Rollouts:
    with one_thread():
        policy: Actor
        if job.folder is None:
            policy = RandomPolicy(job.settings.make().action_space, (job.settings.seed, job.first))
        else:
            policy = job.load(job.folder)
        return rollout(policy, job.name, job.settings, job.first)


def play(
    folders: Mapping[str, Path | None],
    settings: EvaluateConfig,
    load: Load,
    motion: Motion | None = None,
    engine: ClusterConfig = IN_PROCESS,
) -> dict[str, Rollouts]:
    """Play all episodes of some policies, in worker processes.

    Args:
        folders: of the policies by name; None stands for uniform random actions.
        settings: of the evaluation.
        load: reads a policy from its folder; worker processes import it by name.
        motion: that of ``settings.motion``, if it names one.
        engine: where to play; ``settings.workers`` counts where it says nothing of processes of this machine.

    Returns:
        Rollouts by name, all episodes of each, without states.
    """
    from rich.console import Console
    from rich.progress import track

    jobs = {
        f"policy {name!r}, episodes {first} to {min(first + BLOCK, settings.episodes) - 1}": _Job(
            name, folder, load, settings, first
        )
        for name, folder in folders.items()
        for first in range(0, settings.episodes, BLOCK)
    }
    played = map_shards(_play, jobs, engine.or_workers(min(settings.workers or available_cores(), len(jobs))))
    shown = track(played, "evaluate", total=len(jobs), console=Console(stderr=True), transient=True)
    try:
        found = {where: block if motion is None else block.compared(motion) for where, block in shown}
    except ClusterError as error:
        raise EvaluationError(str(error)) from error
    blocks: dict[str, list[Rollouts]] = {name: [] for name in folders}
    for where, job in jobs.items():
        blocks[job.name].append(found[where])
    return {
        name: Rollouts(
            np.concatenate([part.returns for part in parts], axis=1),
            np.concatenate([part.lengths for part in parts], axis=1),
            np.concatenate([part.successes for part in parts], axis=1),
            np.concatenate([part.distances for part in parts], axis=1),
        )
        for name, parts in blocks.items()
    }


def find_policies(artifacts: Path, *, snapshots: bool = False) -> dict[str, Path]:
    """Folders of all policies, ``imitate/*`` then ``offline_rl/*``, by name; each followed by its snapshots if asked for.

    Raises:
        EvaluationError: if there is none, two have one name, or one is called ``random``.
    """
    policies: dict[str, Path] = {}
    for stage in ("imitate", "offline_rl"):
        for path in sorted((artifacts / stage).glob("*/config.json")):
            name = path.parent.name
            if name == RANDOM:
                raise EvaluationError(f"{path.parent}: the name {RANDOM!r} is kept for the uniform random policy")
            if name in policies:
                raise EvaluationError(f"two policies are called {name!r}: {policies[name]} and {path.parent}")
            policies[name] = path.parent
            if snapshots:
                for config in sorted(path.parent.glob("snapshots/*/config.json")):
                    policies[f"{name}@{int(config.parent.name)}"] = config.parent
    if not policies:
        raise EvaluationError(
            f"no policy to evaluate: neither {artifacts}/imitate/* nor {artifacts}/offline_rl/* has one"
        )
    return policies


def expert_returns(policies: Mapping[str, Path], artifacts: Path) -> dict[str, float | None]:
    """Mean return of the demonstrations each policy saw; a policy without any is given the first other policy's.

    None where no policy names demonstrations or these carry no returns.

    Raises:
        EvaluationError: if a policy's metadata or the dataset that it names is missing.
    """
    named: dict[str, float | None] = {}
    for name, folder in policies.items():
        home = folder.parents[1] if "@" in name else folder
        dataset = read_json(home / "metadata.json").get("demonstrations")
        if dataset is not None:
            returns = read_json(artifacts / "shards" / dataset / "index.json").get("returns")
            named[name] = float(np.mean(returns)) if returns else None
    fallback = next(iter(named.values()), None)
    return {name: named.get(name, fallback) for name in policies} | {RANDOM: fallback}


def cards_behind(folder: Path, artifacts: Path) -> list[dict[str, Any]]:
    """Cards of the prepared datasets that a policy's metadata names, and of those they are made of."""
    metadata = folder / "metadata.json"
    named = read_json(metadata).get("datasets", {}) if metadata.is_file() else {}
    indices = [artifacts / "shards" / name / "index.json" for name in named]
    provenances = [read_json(index).get("provenance", {}) for index in indices if index.is_file()]
    return [card for provenance in provenances for card in provenance.get("cards", {}).values()]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        EvaluationError: if the file is missing or holds something else.
    """
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise EvaluationError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise EvaluationError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def summarise(
    env: str,
    rollouts: Mapping[str, Rollouts],
    expert: Mapping[str, float | None],
    reference: tuple[float, float] | None,
) -> dict[str, dict[str, Any]]:
    """Scores of each policy.

    Args:
        env: Gymnasium id.
        rollouts: of each policy, with ``random`` among them.
        expert: mean return of each policy's demonstrations, None where unknown.
        reference: random and expert return of D4RL's score, None if there is none.

    Returns:
        For each policy: env, episodes, replicas, return_mean, length_mean, normalised_iqm with normalised_low and
        normalised_high (95 % interval; all None without a D4RL reference), expert_fraction, from D4RL's random
        return if there is one, else from the measured one (None without demonstrations' returns), success_rate, the share
        of episodes in which the environment reported success (None if it never says), and motion_distance, the mean over
        episodes (None without a motion).
    """
    random_mean = reference[0] if reference else float(rollouts[RANDOM].returns.mean())
    tells = any(np.isfinite(played.successes).any() for played in rollouts.values())
    scores: dict[str, dict[str, Any]] = {}
    for name, played in rollouts.items():
        replicas, episodes = played.returns.shape
        return_mean = float(played.returns.mean())
        iqm = low = high = None
        if reference:
            normalised = normalised_score(played.returns, reference)
            iqm, (low, high) = interquartile_mean(normalised), bootstrap_interval(normalised)
        expert_mean = expert[name]
        distance = float(played.distances.mean())
        scores[name] = {
            "env": env,
            "episodes": episodes,
            "replicas": replicas,
            "return_mean": return_mean,
            "length_mean": float(played.lengths.mean()),
            "normalised_iqm": iqm,
            "normalised_low": low,
            "normalised_high": high,
            "expert_fraction": None if expert_mean is None else expert_fraction(return_mean, random_mean, expert_mean),
            "success_rate": float(np.nan_to_num(played.successes).mean()) if tells else None,
            "motion_distance": distance if np.isfinite(distance) else None,
        }
    return scores


def evaluate(
    settings: EvaluateConfig, artifacts: Path, load: Load | None = None, engine: ClusterConfig = IN_PROCESS
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Play and score every policy under ``artifacts`` and a uniform random one.

    Args:
        settings: of the evaluation.
        artifacts: root of the stages' folders.
        load: reads a policy from its folder; ``dynarep.pipeline.artifacts.storage.load_policy`` if None. Worker processes
            import it by name.
        engine: where to play.

    Returns:
        What ``metrics.json`` holds (see ``summarise``), and what ``returns.json`` holds: env and its options, seed, D4RL's
        reference returns or None, versions of the simulator, under ``demonstrations`` the mean return of those that each
        policy is compared with, and under ``policies`` the returns and lengths of each, where
        there are some also successes and distances, as lists of replicas of lists of episodes.

    Raises:
        ValueError: if the environment cannot be made, a policy or the motion does not fit it, or an input is missing.
    """
    if load is None:
        from dynarep.pipeline.artifacts.storage import load_policy

        load = load_policy
    environment = settings.make()
    policies = find_policies(artifacts, snapshots=settings.snapshots)
    expert = expert_returns(policies, artifacts)
    observation_dim = environment.observation_space.shape[0]
    for folder in policies.values():
        check_observations(f"{folder}", settings.env, load(folder).architecture.observation_dim, observation_dim)
        for card in cards_behind(folder, artifacts):
            check_recording(f"{folder}", settings.env, card)
    motion = None if settings.motion is None else load_motion(settings.motion, artifacts, observation_dim)
    rollouts = play({**policies, RANDOM: None}, settings, load, motion, engine)
    reference = d4rl_reference(settings.env, settings.env_options)
    raw = {
        "env": settings.env,
        "env_options": {**family(settings.env).options, **settings.env_options},
        "seed": settings.seed,
        "max_steps": settings.max_steps,
        "reference": reference,
        "versions": simulator_versions(settings.env),
        "demonstrations": expert,
        "policies": {name: _raw(played) for name, played in rollouts.items()},
    }
    return summarise(settings.env, rollouts, expert, reference), raw


def _raw(played: Rollouts) -> dict[str, list[list[float | None]]]:
    """Lists of what is known of the episodes, JSON has no NaN."""
    values = {key: getattr(played, key) for key in ("returns", "lengths", "successes", "distances")}
    return {
        key: [[None if np.isnan(value) else value.item() for value in row] for row in table]
        for key, table in values.items()
        if np.isfinite(table).any()
    }


def return_rows(returns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What ``returns.json`` holds as one row per episode, for plots: ``policy``, ``replica``, ``episode``, ``return``."""
    return [
        {"policy": name, "replica": replica, "episode": episode, "return": value}
        for name, played in returns["policies"].items()
        for replica, row in enumerate(played["returns"])
        for episode, value in enumerate(row)
    ]


def available_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def print_scores(metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table of scores, best first."""
    from rich.console import Console
    from rich.table import Table

    first = next(iter(metrics.values()))
    table = Table(title=f"{first['env']}, episodes per replica: {first['episodes']}")
    table.add_column("policy")
    optional = [key for key in OPTIONAL_SCORES if first[key] is not None]
    for column in (
        "return",
        "normalised IQM",
        "95 % interval",
        "expert fraction",
        *(OPTIONAL_SCORES[key] for key in optional),
    ):
        table.add_column(column, justify="right")
    for name in ranking(metrics):
        score = metrics[name]
        iqm, fraction = score["normalised_iqm"], score["expert_fraction"]
        table.add_row(
            name,
            f"{score['return_mean']:.1f}",
            "-" if iqm is None else f"{iqm:.1f}",
            "-" if iqm is None else f"[{score['normalised_low']:.1f}, {score['normalised_high']:.1f}]",
            "-" if fraction is None else f"{fraction:.2f}",
            *(f"{score[key]:.2f}" for key in optional),
        )
    Console().print(table)
