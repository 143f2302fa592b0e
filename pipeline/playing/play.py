"""The player: an environment and a policy make episodes. Evaluation and films use it.

Every policy plays the same episodes: episode e of every replica starts from environment seed ``seed + e``. Episodes are
played in blocks of fixed size that do not depend on the number of workers, and a policy is always asked about a whole
block, finished episodes included, because the last bits of a matrix product depend on its shape and control problems
amplify them. So a return depends on the policy, the environment and the seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynarep.configs.params import Field, Name, config
from dynarep.pipeline.fitted_q import FittedQConfig
from dynarep.pipeline.playing.environments import (
    EnvironmentConfig,
    EvaluationError,
    family,
    seeded,
    succeeded,
    without_counting,
)
from dynarep.pipeline.playing.motion import Motion, MotionConfig

NONE = "none"
"""Stands for an environment, dataset or rewards that an evaluation does without."""

BLOCK = 5
LONGEST_STRIP = 16_383
"""Pixels of a WebP image along an axis, at most."""
BOUNDS_TOLERANCE = 1e-5


class Actor(Protocol):
    """What plays episodes, as ``dynarep.pipeline.nn.models.ActingModel`` has it."""

    @property
    def replicas(self) -> int: ...  # noqa: D102

    def reset(self, seed: tuple[int, ...]) -> None:
        """Begin a block of episodes."""

    def act(self, observations: Tensor) -> Tensor:
        """Actions (R, B, act_dim) within the bounds for observations (R, B, obs_dim)."""


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
    width: int = Field(default=240, ge=16, le=LONGEST_STRIP)


@config
class RecordingConfig:
    """Recorded transitions that policies are judged on.

    Args:
        dataset: prepared, with actions, best one that no policy was trained on; ``none``: nothing is judged.
        rewards: an entry of ``relabel`` of that dataset for fitted Q evaluation; ``none``: its recorded rewards.
        fitted_q: estimate what every policy is worth; null: only the error of its actions is measured.
    """

    dataset: str = NONE
    rewards: str = NONE
    fitted_q: FittedQConfig | None = None

    def smoke(self) -> RecordingConfig:
        """Fitted Q evaluation of a few updates."""
        return replace(self, fitted_q=None if self.fitted_q is None else self.fitted_q.smoke())


@config
class EvaluateConfig(EnvironmentConfig):
    """Settings of the evaluation, beside those of its environment; with ``env: none`` policies are judged on a recording only.

    Args:
        episodes: per replica of a policy.
        seed: episode e starts from environment seed ``seed + e``, for every policy and replica.
        workers: processes to play in, where the section ``cluster`` names neither Ray nor a number; null: one per available
            core. Results do not depend on it.
        snapshots: play the snapshots of every policy, too, as ``<policy>@<update>``.
        plane: two numbers of an observation, counted from 0, that are a position; paths in it are kept and drawn.
        demonstrations: prepared dataset of what the scores are compared with; ``none``: nothing.
        motion: measure how far episodes are from a motion, too.
        recording: judge policies on recorded transitions, too.
        clips: film the start of each policy's first episode; null: no films.
    """

    episodes: int = Field(default=20, ge=1)
    seed: int = Field(default=0, ge=0)
    workers: int | None = Field(default=None, ge=1)
    snapshots: bool = False
    plane: tuple[int, int] | None = None
    demonstrations: Name = "none"
    motion: MotionConfig = MotionConfig()
    recording: RecordingConfig = RecordingConfig()
    clips: ClipsConfig | None = None

    def __post_init__(self) -> None:
        if self.plays:
            return
        if self.recording.dataset == NONE:
            raise ValueError(
                "env, recording.dataset: found none twice, expected an environment or a recording to judge by"
            )
        for key, named in (("motion.dataset", self.motion.named), ("clips", self.clips is not None)):
            if named:
                raise ValueError(f"{key}: found with env: none, expected none; it needs an environment")

    @property
    def plays(self) -> bool:
        """Whether there is an environment."""
        return self.env != NONE


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


def play_block(policy: Actor, name: str, settings: EvaluateConfig, first: int) -> Rollouts:
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
    policy.reset((settings.seed, first))
    environments = {(replica, number): settings.make() for replica in range(replicas) for number in range(episodes)}
    sample = environments[0, 0]
    low, high = sample.action_space.low - BOUNDS_TOLERANCE, sample.action_space.high + BOUNDS_TOLERANCE
    limit = settings.limit_of(sample, "evaluate.max_steps")
    observations = np.zeros((replicas, BLOCK, *sample.observation_space.shape), dtype=np.float32)
    returns = np.zeros((replicas, episodes))
    lengths = np.zeros((replicas, episodes), dtype=np.int64)
    successes = np.full((replicas, episodes), np.nan)
    states: dict[tuple[int, int], list[NDArray[np.float32]]] = {place: [] for place in environments}
    for place, environment in environments.items():
        seed = settings.seed + first + place[1]
        with seeded(seed):
            observations[place], _ = environment.reset(seed=seed)
    inside, own_limit = without_counting(list(environments.values()))
    limit = limit if own_limit is None else min(limit, own_limit)
    running = [(place, environment.step) for place, environment in zip(environments, inside, strict=True)]
    steps, asked = 0, torch.from_numpy(observations)
    with torch.inference_mode():
        while running:
            actions = policy.act(asked).numpy()
            if actions.shape != (replicas, BLOCK, *low.shape):
                expected = (replicas, BLOCK, *low.shape)
                raise EvaluationError(f"policy {name!r}: actions have shape {actions.shape}, expected {expected}")
            within = ((actions >= low) & (actions <= high)).all(-1)
            if not within.all():
                for place, _ in running:
                    if not within[place]:
                        where = f"replica {place[0]}, episode {first + place[1]}, step {steps}"
                        raise EvaluationError(
                            f"policy {name!r}, {where}: action {actions[place].tolist()} is not within the bounds of "
                            f"{settings.env}, {sample.action_space}"
                        )
            steps += 1
            still_running = []
            for episode in running:
                place, step = episode
                if settings.motion.named:
                    states[place].append(observations[place].copy())
                observations[place], reward, terminated, truncated, info = step(actions[place])
                returns[place] += reward
                if (success := succeeded(info)) is not None:
                    successes[place] = np.fmax(successes[place], success)
                if terminated or truncated or steps >= limit:
                    lengths[place] = steps
                    environments[place].close()
                else:
                    still_running.append(episode)
            running = still_running
    if not np.isfinite(returns).all():
        replica, episode = np.argwhere(~np.isfinite(returns))[0]
        raise EvaluationError(
            f"policy {name!r}, replica {replica}, episode {first + episode}: the return is not finite"
        )
    if family(settings.env).sparse:
        successes = np.fmax(successes, returns > 0)
    visited = []
    if settings.motion.named:
        visited = [[np.stack(states[replica, e]) for e in range(episodes)] for replica in range(replicas)]
    return Rollouts(returns, lengths, successes, np.full_like(returns, np.nan), visited)
