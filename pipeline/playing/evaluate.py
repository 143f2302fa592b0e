"""Evaluation of one policy: its episodes in an environment, and what is known of each.

What the episodes are worth beside those of other policies is told where all are known: ``playing.summary``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dynarep.data.parallel import IN_PROCESS, ClusterConfig, ClusterError, map_shards, one_thread
from dynarep.pipeline.nn.models import ActingModel
from dynarep.pipeline.playing.environments import (
    EvaluationError,
    check_observations,
    check_recording,
    d4rl_reference,
    family,
    simulator_versions,
)
from dynarep.pipeline.playing.motion import Motion, load_motion
from dynarep.pipeline.playing.play import BLOCK, EvaluateConfig, Rollouts, play_block
from dynarep.pipeline.progress import episode_progress
from dynarep.pipeline.stored import read_json

Load = Callable[[Path], ActingModel]

DRAWN_NUMBERS = 3
"""Numbers in an observation up to which the path of an episode is kept, to be drawn."""


@dataclass(frozen=True)
class _Job:
    name: str
    folder: Path
    load: Load
    settings: EvaluateConfig
    first: int


class _Watched:
    """A policy whose observations in the first episode of each replica are kept."""

    def __init__(self, policy: ActingModel) -> None:
        self.policy = policy
        self.seen: list[NDArray[np.float32]] = []

    @property
    def replicas(self) -> int:
        return self.policy.replicas

    def reset(self, seed: tuple[int, ...]) -> None:
        self.policy.reset(seed)

    def act(self, observations: Tensor) -> Tensor:
        self.seen.append(observations[:, 0].numpy().copy())
        return self.policy.act(observations)


def _play(job: _Job) -> tuple[Rollouts, list[NDArray[np.float32]]]:
    """A block of episodes, and the path of each replica's first episode where it is in this block and can be drawn."""
    with one_thread():
        policy = job.load(job.folder)
        if job.first > 0 or (job.settings.plane is None and policy.architecture.observation_dim > DRAWN_NUMBERS):
            return play_block(policy, job.name, job.settings, job.first), []
        watched = _Watched(policy)
        block = play_block(watched, job.name, job.settings, job.first)
        seen = np.stack(watched.seen, axis=1)
        return block, [path[:length] for path, length in zip(seen, block.lengths[:, 0], strict=True)]


def play(
    folders: Mapping[str, Path],
    settings: EvaluateConfig,
    load: Load,
    motion: Motion | None = None,
    cluster: ClusterConfig = IN_PROCESS,
    title: str = "",
) -> dict[str, Rollouts]:
    """Play all episodes of some policies, in worker processes.

    Args:
        folders: of the policies by name.
        settings: of the evaluation.
        load: reads a policy from its folder; worker processes import it by name.
        motion: that of ``settings.motion``, if it names one.
        cluster: where to play; ``settings.workers`` counts where it says nothing of processes of this machine.
        title: of the work, for progress lines; by default the first policy's name.

    Returns:
        Rollouts by name, all episodes of each; of the states only those of each replica's first episode, where an observation
        has at most ``DRAWN_NUMBERS`` numbers.
    """
    jobs = {
        f"policy {name!r}, episodes {first} to {min(first + BLOCK, settings.episodes) - 1}": _Job(
            name, folder, load, settings, first
        )
        for name, folder in folders.items()
        for first in range(0, settings.episodes, BLOCK)
    }
    played = map_shards(_play, jobs, cluster.or_workers(min(settings.workers or available_cores(), len(jobs))))
    total = settings.episodes * len(folders)
    shown = episode_progress(played, lambda part: part[0].lengths.shape[1], total, title or next(iter(folders)))
    try:
        found = {
            where: replace(block if motion is None else block.compared(motion), states=[[path] for path in paths])
            for where, (block, paths) in shown
        }
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
            parts[0].states,
        )
        for name, parts in blocks.items()
    }


def snapshots_of(name: str, folder: Path) -> dict[str, Path]:
    """A policy and its snapshots, as ``<policy>@<update>``."""
    paths = sorted(folder.glob("snapshots/*/config.json"))
    return {name: folder, **{f"{name}@{int(path.parent.name)}": path.parent for path in paths}}


def cards_behind(folder: Path, artifacts: Path) -> list[dict[str, Any]]:
    """Cards of the prepared datasets that a policy's metadata names, and of those they are made of."""
    metadata = folder / "metadata.json"
    named = read_json(metadata).get("datasets", {}) if metadata.exists() else {}
    indices = [artifacts / "shards" / name / "index.json" for name in named]
    provenances = [read_json(index).get("provenance", {}) for index in indices if index.exists()]
    return [card for provenance in provenances for card in provenance.get("cards", {}).values()]


def evaluate(
    name: str,
    settings: EvaluateConfig,
    artifacts: Path,
    load: Load | None = None,
    cluster: ClusterConfig = IN_PROCESS,
    paths: Path | None = None,
    title: str = "",
) -> dict[str, Any]:
    """Play a policy, and if asked for its snapshots.

    Args:
        name: of the policy, a folder under ``artifacts/learn``.
        settings: of the evaluation.
        artifacts: root of the stages' folders.
        load: reads a policy from its folder; ``dynarep.pipeline.artifacts.storage.load_policy_model`` if None. Worker
            processes import it by name.
        cluster: where to play.
        paths: file that receives the path of each replica's first episode, where an observation has at most
            ``DRAWN_NUMBERS`` numbers: ``observations`` (N, obs_dim) and the ``replica`` (N,) of each.
        title: of the work, for progress lines; by default the policy's name.

    Returns:
        What ``returns.json`` holds: env and its options, seed, D4RL's reference returns or None, versions of the
        simulator, and under ``policies`` the returns and lengths of the policy and its snapshots, where there are some also
        successes and distances, as lists of replicas of lists of episodes. Without an environment all that is empty.

    Raises:
        ValueError: if the environment cannot be made, the policy or the motion does not fit it, or an input is missing.
    """
    if not settings.plays:
        nothing = dict.fromkeys(("seed", "plane", "max_steps", "action_repeat", "reference"))
        return {"env": settings.env, "env_options": {}, **nothing, "versions": {}, "policies": {}}
    if load is None:
        from dynarep.pipeline.artifacts.storage import load_policy_model

        load = load_policy_model
    environment = settings.make()
    folder = artifacts / "learn" / name
    policies = snapshots_of(name, folder) if settings.snapshots else {name: folder}
    observation_dim = environment.observation_space.shape[0]
    check_observations(f"{folder}", settings.env, load(folder).architecture.observation_dim, observation_dim)
    for card in cards_behind(folder, artifacts):
        check_recording(f"{folder}", settings.env, card)
    motion = load_motion(settings.motion, artifacts, observation_dim) if settings.motion.named else None
    rollouts = play(policies, settings, load, motion, cluster, title)
    if paths is not None and rollouts[name].states:
        drawn = [episodes[0] for episodes in rollouts[name].states]
        replica = np.repeat(np.arange(len(drawn)), [len(path) for path in drawn])
        np.savez_compressed(paths, observations=np.concatenate(drawn), replica=replica)
    return {
        "env": settings.env,
        "env_options": {**family(settings.env).options, **settings.env_options},
        "seed": settings.seed,
        "plane": settings.plane,
        "max_steps": settings.max_steps,
        "action_repeat": settings.action_repeat,
        "reference": d4rl_reference(settings.env, settings.env_options),
        "versions": simulator_versions(settings.env),
        "policies": {policy: _raw(played) for policy, played in rollouts.items()},
    }


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
        for replica, row in enumerate(played.get("returns", ()))
        for episode, value in enumerate(row)
    ]


def available_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
