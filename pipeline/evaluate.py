"""Evaluation: episodes of every policy in a Gymnasium environment, and the scores made of their returns.

Every policy plays the same episodes: episode e of every replica starts from environment seed ``seed + e``. Episodes are
played in blocks of fixed size that do not depend on the number of workers, and a policy is always asked about a whole
block, finished episodes included, because the last bits of a matrix product depend on its shape and control problems
amplify them. So a return depends on the policy, the environment and the seed alone.

Scores are D4RL's normalised scores (``dynarep.pipeline.scores``). D4RL's recordings and references come from Gym's
``-v2`` tasks; ``-v4`` defines the same observations and rewards for Hopper, HalfCheetah and Walker2d.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynarep.data.d4rl import environment_reference
from dynarep.pipeline.params import Field, config
from dynarep.pipeline.scores import (
    bootstrap_interval,
    expert_fraction,
    interquartile_mean,
    normalised_score,
    ranking,
)

BLOCK = 5
RANDOM = "random"
BOUNDS_TOLERANCE = 1e-5


class EvaluationError(ValueError):
    """An environment cannot be made, a policy does not fit it, or an input is missing; the message names which."""


class Architecture(Protocol):
    """What evaluation reads of a policy's architecture."""

    @property
    def observation_dim(self) -> int: ...  # noqa: D102


class Policy(Protocol):
    """What evaluation asks of a policy, as ``dynarep.pipeline.encoders.Policy`` has it."""

    @property
    def architecture(self) -> Architecture: ...  # noqa: D102

    @property
    def replicas(self) -> int: ...  # noqa: D102

    def act(self, observations: Tensor) -> Tensor:
        """Deterministic actions (R, B, act_dim) within the bounds for observations (R, B, obs_dim)."""


Load = Callable[[Path], Policy]


@config
class EvaluateConfig:
    """Settings of the evaluation.

    Args:
        env: Gymnasium id, e.g. ``Hopper-v4``; ``module:Id-v0`` imports the module that registers it.
        episodes: per replica of a policy.
        seed: episode e starts from environment seed ``seed + e``, for every policy and replica.
        workers: processes to play in; null: one per available core. Results do not depend on it.
        max_steps: end episodes after this many steps; null: only the environment's own limit ends them.
        snapshots: play the snapshots of every policy, too, as ``<policy>@<update>``.
    """

    env: str
    episodes: int = Field(default=20, ge=1)
    seed: int = Field(default=0, ge=0)
    workers: int | None = Field(default=None, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    snapshots: bool = False


@dataclass(frozen=True)
class Rollouts:
    """Returns and lengths of a policy's episodes, each (R, E)."""

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]


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


def make_environment(env: str) -> Any:
    """Make a Gymnasium environment whose observations and actions are vectors, the actions bounded.

    Raises:
        EvaluationError: if it is unknown, not installed, or has other spaces.
    """
    import gymnasium
    from gymnasium.spaces import Box

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*out of date.*", DeprecationWarning)
            environment = gymnasium.make(env, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        raise EvaluationError(f"env {env!r} cannot be made: {error}") from None
    for name, space in (("observations", environment.observation_space), ("actions", environment.action_space)):
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise EvaluationError(f"env {env!r}: {name} are {space}, expected a Box with one axis")
        if name == "actions" and not space.is_bounded():
            raise EvaluationError(f"env {env!r}: {name} are {space}, expected finite bounds")
    return environment


def rollout(policy: Policy | RandomPolicy, name: str, settings: EvaluateConfig, first: int) -> Rollouts:
    """Play one block: episodes ``first`` to ``first + BLOCK - 1`` (at most ``settings.episodes``) of all replicas.

    Args:
        policy: asked once per step for (R, BLOCK, obs_dim) observations.
        name: of the policy, for messages.
        settings: of the evaluation.
        first: index of the block's first episode.

    Returns:
        Returns and lengths (R, episodes of the block).

    Raises:
        EvaluationError: if actions are not finite, out of bounds or of the wrong shape, or a return is not finite.
    """
    replicas, episodes = policy.replicas, min(BLOCK, settings.episodes - first)
    environments = {
        (replica, episode): make_environment(settings.env) for replica in range(replicas) for episode in range(episodes)
    }
    sample = environments[0, 0]
    low, high = sample.action_space.low - BOUNDS_TOLERANCE, sample.action_space.high + BOUNDS_TOLERANCE
    limit = settings.max_steps or sample.spec.max_episode_steps
    if limit is None:
        raise EvaluationError(f"env {settings.env!r} has no limit of steps of its own; set evaluate.max_steps")
    observations = np.zeros((replicas, BLOCK, *sample.observation_space.shape), dtype=np.float32)
    returns = np.zeros((replicas, episodes))
    lengths = np.zeros((replicas, episodes), dtype=np.int64)
    for (replica, episode), environment in environments.items():
        observations[replica, episode], _ = environment.reset(seed=settings.seed + first + episode)
    running = list(environments)
    with torch.inference_mode():
        while running:
            actions = policy.act(torch.from_numpy(observations)).numpy()
            if actions.shape != (replicas, BLOCK, *low.shape):
                expected = (replicas, BLOCK, *low.shape)
                raise EvaluationError(f"policy {name!r}: actions have shape {actions.shape}, expected {expected}")
            still_running = []
            for replica, episode in running:
                action, environment = actions[replica, episode], environments[replica, episode]
                if not ((action >= low) & (action <= high)).all():
                    where = f"replica {replica}, episode {first + episode}, step {lengths[replica, episode]}"
                    raise EvaluationError(
                        f"policy {name!r}, {where}: action {action.tolist()} is not within the bounds of "
                        f"{settings.env}, {sample.action_space}"
                    )
                observations[replica, episode], reward, terminated, truncated, _ = environment.step(action)
                returns[replica, episode] += reward
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
    return Rollouts(returns, lengths)


@dataclass(frozen=True)
class _Job:
    name: str
    folder: Path | None
    load: Load
    settings: EvaluateConfig
    first: int


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _play(job: _Job) -> Rollouts:
    with _one_thread():
        policy: Policy | RandomPolicy
        if job.folder is None:
            policy = RandomPolicy(make_environment(job.settings.env).action_space, (job.settings.seed, job.first))
        else:
            policy = job.load(job.folder)
        return rollout(policy, job.name, job.settings, job.first)


def _play_all(jobs: list[_Job], workers: int) -> Iterator[Rollouts]:
    if workers == 1:
        yield from map(_play, jobs)
    else:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(_play, jobs)


def play(folders: Mapping[str, Path | None], settings: EvaluateConfig, load: Load) -> dict[str, Rollouts]:
    """Play all episodes of some policies, in worker processes.

    Args:
        folders: of the policies by name; None stands for uniform random actions.
        settings: of the evaluation.
        load: reads a policy from its folder; worker processes import it by name.

    Returns:
        Rollouts by name, all episodes of each.
    """
    from rich.console import Console
    from rich.progress import track

    jobs = [
        _Job(name, folder, load, settings, first)
        for name, folder in folders.items()
        for first in range(0, settings.episodes, BLOCK)
    ]
    workers = min(settings.workers or _available_cores(), len(jobs))
    blocks: dict[str, list[Rollouts]] = {name: [] for name in folders}
    played = track(_play_all(jobs, workers), "evaluate", total=len(jobs), console=Console(stderr=True), transient=True)
    for job, block in zip(jobs, played, strict=True):
        blocks[job.name].append(block)
    return {
        name: Rollouts(
            np.concatenate([part.returns for part in parts], axis=1),
            np.concatenate([part.lengths for part in parts], axis=1),
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
        dataset = _read_json(home / "metadata.json").get("demonstrations")
        if dataset is not None:
            returns = _read_json(artifacts / "shards" / dataset / "index.json").get("returns")
            named[name] = float(np.mean(returns)) if returns else None
    fallback = next(iter(named.values()), None)
    return {name: named.get(name, fallback) for name in policies} | {RANDOM: fallback}


def _read_json(path: Path) -> dict[str, Any]:
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
    env: str, rollouts: Mapping[str, Rollouts], expert: Mapping[str, float | None]
) -> dict[str, dict[str, Any]]:
    """Scores of each policy.

    Args:
        env: Gymnasium id.
        rollouts: of each policy, with ``random`` among them.
        expert: mean return of each policy's demonstrations, None where unknown.

    Returns:
        For each policy: env, episodes, replicas, return_mean, length_mean, normalised_iqm with normalised_low and
        normalised_high (95 % interval; all None without a D4RL reference), and expert_fraction, from D4RL's random
        return if there is one, else from the measured one (None without demonstrations' returns).
    """
    reference = environment_reference(env)
    random_mean = reference[0] if reference else float(rollouts[RANDOM].returns.mean())
    scores: dict[str, dict[str, Any]] = {}
    for name, played in rollouts.items():
        replicas, episodes = played.returns.shape
        return_mean = float(played.returns.mean())
        iqm = low = high = None
        if reference:
            normalised = normalised_score(played.returns, reference)
            iqm, (low, high) = interquartile_mean(normalised), bootstrap_interval(normalised)
        expert_mean = expert[name]
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
        }
    return scores


def evaluate(
    settings: EvaluateConfig, artifacts: Path, load: Load | None = None
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Play and score every policy under ``artifacts`` and a uniform random one.

    Args:
        settings: of the evaluation.
        artifacts: root of the stages' folders.
        load: reads a policy from its folder; ``dynarep.pipeline.artifacts.load_policy`` if None. Worker processes
            import it by name.

    Returns:
        What ``metrics.json`` holds (see ``summarise``), and what ``returns.json`` holds: env, seed, versions of the
        simulator, and under ``policies`` the returns and lengths of each, as lists of replicas of lists of episodes.

    Raises:
        EvaluationError: if the environment cannot be made, a policy does not fit it, or an input is missing.
    """
    if load is None:
        from dynarep.pipeline.artifacts import load_policy

        load = load_policy
    environment = make_environment(settings.env)
    policies = find_policies(artifacts, snapshots=settings.snapshots)
    expert = expert_returns(policies, artifacts)
    observation_dim = environment.observation_space.shape[0]
    for folder in policies.values():
        found = load(folder).architecture.observation_dim
        if found != observation_dim:
            raise EvaluationError(
                f"{folder}: the policy reads observations of {found} numbers, {settings.env} gives {observation_dim}"
            )
    rollouts = play({**policies, RANDOM: None}, settings, load)
    raw = {
        "env": settings.env,
        "seed": settings.seed,
        "max_steps": settings.max_steps,
        "versions": {package: version(package) for package in ("gymnasium", "mujoco", "torch")},
        "policies": {
            name: {"returns": played.returns.tolist(), "lengths": played.lengths.tolist()}
            for name, played in rollouts.items()
        },
    }
    return summarise(settings.env, rollouts, expert), raw


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def print_scores(metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table of scores, best first."""
    from rich.console import Console
    from rich.table import Table

    first = next(iter(metrics.values()))
    table = Table(title=f"{first['env']}, episodes per replica: {first['episodes']}")
    table.add_column("policy")
    for column in ("return", "normalised IQM", "95 % interval", "expert fraction"):
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
        )
    Console().print(table)
