"""A source that grows by steps in an environment: a replay table for each replica, filled by the policy that is trained.

Before update u every replica has made ``random_steps`` + u + 1 steps. All replicas step together, each in environments of its
own, so what one does never reaches another. Episode k of an environment starts from a seed that follows from the run's seed,
the replica, the environment and k.

Told how many updates there will be, it makes the steps of the next update while the learner computes this one: their actions
are then those of the policy one update earlier. What it makes does not depend on which of the two is faster.

``terminated`` in the table is the environment's own end alone: where a limit of steps cuts an episode off, the learner goes on
as if it had not been cut.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynarep.data.replay import ReplayTable
from dynarep.data.resident import Batch
from dynarep.data.schema import Episode
from dynarep.pipeline.playing.environments import (
    CollectionConfig,
    restore_simulator,
    seeded,
    simulator_state,
)
from dynarep.pipeline.sources import SourceError

RECENT = 10
"""Finished episodes of a replica whose mean return is told."""


class Explorer(Protocol):
    """What acts: a learner that is trained on its own steps."""

    def explore(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions (R, E, act_dim) within the bounds, from standard normal ``noise`` of that shape."""

    def observe(self, batch: Batch, starts: Tensor) -> Batch:
        """What is kept of steps (R, E, ...), with their rewards; ``starts`` (R, E) says which are the first of an episode."""


class _Simulation:
    """One environment of one replica, its episode at hand and its number."""

    def __init__(self, settings: CollectionConfig, seed: tuple[int, ...], where: str) -> None:
        self.settings, self.seed, self.where = settings, seed, where
        self.environment = settings.make()
        self.limit = settings.limit_of(self.environment, "environment.max_steps")
        self.episode, self.length, self.total = -1, 0, 0.0
        self.observation: NDArray[np.float32] = np.zeros(0, np.float32)

    def begin(self) -> None:
        """Start the next episode."""
        self.episode, self.length, self.total = self.episode + 1, 0, 0.0
        seed = int(np.random.SeedSequence((*self.seed, self.episode)).generate_state(1)[0])
        try:
            with seeded(seed):
                observation, _ = self.environment.reset(seed=seed)
        except Exception as error:
            raise self._failed(f"reset: {type(error).__name__}: {error}") from error
        self.observation = np.asarray(observation, np.float32)
        self._check(self.observation, "the observation at the start of an episode")

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool]:
        """What follows: the next observation, the reward, whether it is terminal, and whether the episode ends.

        Raises:
            SourceError: if the environment raises, or gives numbers that are not finite.
        """
        try:
            observation, reward, terminated, truncated, _ = self.environment.step(action)
        except Exception as error:  # environments raise what they like
            raise self._failed(f"{type(error).__name__}: {error}") from error
        following = np.asarray(observation, np.float32)
        self._check(following, "the observation")
        self._check(np.asarray(reward, np.float32), "the reward")
        self.length, self.total = self.length + 1, self.total + float(reward)
        ends = bool(terminated or truncated or self.length >= self.limit)
        return following, float(reward), bool(terminated), ends

    def _check(self, values: NDArray[np.float32], what: str) -> None:
        if not np.isfinite(values).all():
            raise self._failed(f"{what} is not finite")

    def _failed(self, reason: str) -> SourceError:
        return SourceError(
            f"env {self.settings.env!r}, {self.where}, episode {self.episode}, step {self.length}: {reason}"
        )

    def state(self) -> dict[str, Any]:
        """What ``restore`` takes."""
        physics = simulator_state(self.environment)
        return {
            "episode": self.episode,
            "length": self.length,
            "total": self.total,
            "observation": torch.from_numpy(self.observation.copy()),
            "physics": None if physics is None else torch.from_numpy(physics),
        }

    def restore(self, state: dict[str, Any]) -> bool:
        """Go on in the episode at hand where its simulation can be restored, else begin the next one; whether it could."""
        self.episode = state["episode"] - 1
        if state["physics"] is None:
            self.episode += 1
            self.begin()
            return False
        self.begin()
        restore_simulator(self.environment, state["physics"].numpy())
        self.length, self.total = state["length"], state["total"]
        self.observation = state["observation"].numpy().copy()
        return True


@dataclass(frozen=True)
class _Sweep:
    """A step of every environment that has begun: who acts, in what, how, and what comes of it."""

    policy: Explorer
    observations: Tensor
    actions: Tensor
    stepped: Future[list[NDArray[np.float32]]]


class Replay:
    """The source; see the module docstring.

    Args:
        settings: the environment and how to collect.
        replicas: R.
        seed: of the environments, the random steps and the noise.
        device: of the table.
        updates: in all; None makes no steps ahead of their update.

    Raises:
        EvaluationError: if the environment cannot be made.
    """

    def __init__(
        self,
        settings: CollectionConfig,
        replicas: int,
        seed: int,
        device: torch.device,
        *,
        updates: int | None = None,
    ) -> None:
        self.settings, self.replicas, self.device = settings, replicas, device
        self._updates = updates
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="environments")
        self._begun_sweep: _Sweep | None = None
        self._simulations = [
            [
                _Simulation(settings, (seed, replica, number), f"replica {replica}, environment {number}")
                for number in range(settings.environments)
            ]
            for replica in range(replicas)
        ]
        spaces = self._simulations[0][0].environment
        self.action_low, self.action_high = (
            tuple(float(x) for x in bound) for bound in (spaces.action_space.low, spaces.action_space.high)
        )
        self.observation_dim, self.action_dim = spaces.observation_space.shape[0], len(self.action_low)
        self._generator = torch.Generator().manual_seed(seed)
        self._table = ReplayTable(
            replicas,
            settings.capacity,
            observation_dim=self.observation_dim,
            action_dim=self.action_dim,
            device=device,
            stride=settings.environments,
        )
        self._recent: list[deque[float]] = [deque(maxlen=RECENT) for _ in range(replicas)]
        self._steps = 0
        self._starts = torch.ones(replicas, settings.environments, device=device)
        self._broken = self._begun = False
        self._factor, self._bias = torch.ones(1, 1, device=device), 0.0

    @property
    def table(self) -> ReplayTable:
        """What has been seen lately."""
        return self._table

    @property
    def steps(self) -> int:
        """Steps that each replica has made."""
        return self._steps

    def steps_after(self, updates: int) -> int:
        """Steps that each replica has made after so many updates."""
        sweeps = -(-(self.settings.random_steps + updates) // self.settings.environments)
        return sweeps * self.settings.environments

    def fill(self, batch: Batch, policy: Explorer) -> None:
        """Have the table start with recorded transitions (R, N, ...) with rewards.

        Raises:
            ValueError: if the table is too small.
        """
        kept = policy.observe(batch, torch.zeros_like(batch.terminated))
        self._table.extend(kept, torch.ones_like(batch.terminated))  # rows, not episodes

    def scale_rewards(self, factor: Tensor, bias: float) -> None:
        """Keep ``factor`` (R or 1,) times the environment's rewards plus ``bias``."""
        self._factor, self._bias = factor.to(self.device).unsqueeze(1), bias

    def advance(self, update: int, policy: Any = None) -> None:
        """Make the steps that belong to an update.

        Raises:
            SourceError: if the environment fails; the steps before are in the table.
        """
        if not self._begun:
            self._begin()
        while self._steps < self.steps_after(update + 1):
            if self._begun_sweep is None:
                self._begin_sweep(policy)
            self._end_sweep()
        ahead = self._updates is not None and update + 1 < self._updates
        if ahead and self._steps < self.steps_after(update + 2):
            self._begin_sweep(policy)

    def _begin(self) -> None:
        for simulations in self._simulations:
            for simulation in simulations:
                simulation.begin()
        self._begun = True

    @torch.no_grad()
    def _begin_sweep(self, policy: Explorer) -> None:
        """Choose an action for every environment, and have them step."""
        shape = (self.replicas, self.settings.environments, self.action_dim)
        states = np.stack([[simulation.observation for simulation in row] for row in self._simulations])
        observations = torch.from_numpy(states).to(self.device)
        if self._steps < self.settings.random_steps:
            low, high = torch.tensor(self.action_low), torch.tensor(self.action_high)
            actions = (low + (high - low) * torch.rand(shape, generator=self._generator)).to(self.device)
        else:
            noise = torch.randn(shape, generator=self._generator).to(self.device)
            actions = policy.explore(observations, noise)
        chosen = actions.cpu().numpy()
        if not np.isfinite(chosen).all():
            self._broken = True
            raise SourceError(f"env {self.settings.env!r}, step {self._steps}: the policy's action is not finite")
        stepped = self._thread.submit(self._step, chosen)
        self._begun_sweep = _Sweep(policy, observations, actions, stepped)

    def _step(self, actions: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Next observations, rewards, ends of the environment's own, and ends, each (R, E, ...)."""
        found = [
            [simulation.step(actions[r, e]) for e, simulation in enumerate(row)]
            for r, row in enumerate(self._simulations)
        ]
        return [np.array([[step[i] for step in row] for row in found], np.float32) for i in range(4)]

    @torch.no_grad()
    def _end_sweep(self) -> None:
        """Put the steps that were begun into the table, and start new episodes where some ended.

        Raises:
            SourceError: if the environment failed, also when it is called again.
        """
        sweep = self._begun_sweep
        assert sweep is not None
        try:
            following, rewards, terminated, ends = sweep.stepped.result()
        except SourceError:
            self._broken = True
            raise
        self._begun_sweep = None
        batch = Batch(
            sweep.observations,
            sweep.actions,
            torch.from_numpy(rewards).to(self.device) * self._factor + self._bias,
            torch.from_numpy(terminated).to(self.device),
            torch.from_numpy(following).to(self.device),
        )
        self._table.extend(sweep.policy.observe(batch, self._starts), self._starts)
        self._steps += self.settings.environments
        self._starts = torch.from_numpy(ends).to(self.device)
        for r, row in enumerate(self._simulations):
            for e, simulation in enumerate(row):
                simulation.observation = following[r, e]
                if ends[r, e]:
                    self._recent[r].append(simulation.total)
                    simulation.begin()
        if ends.any() or not all(self._recent):
            self._table.returns.copy_(torch.tensor([self._recent_return(r) for r in range(self.replicas)]))

    def _recent_return(self, replica: int) -> float:
        finished = self._recent[replica]
        return sum(finished) / len(finished) if finished else self._simulations[replica][0].total

    def state(self) -> dict[str, Any]:
        """The table, the generators and where every simulation is; after a failure no simulation goes on."""
        if self._begun_sweep is not None:
            with contextlib.suppress(SourceError):  # told where its update begins
                self._end_sweep()
        simulations = [[simulation.state() for simulation in row] for row in self._simulations]
        if self._broken:
            simulations = [[{**state, "physics": None} for state in row] for row in simulations]
        return {
            "table": self._table.state(),
            "steps": self._steps,
            "starts": self._starts.cpu(),
            "recent": [list(values) for values in self._recent],
            "generator": self._generator.get_state(),
            "simulations": simulations,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a ``state``. Simulations that cannot be restored begin a new episode, and that is said."""
        self._table.restore(state["table"])
        self._steps, self._begun = state["steps"], True
        self._starts = state["starts"].to(self.device)
        self._recent = [deque(values, maxlen=RECENT) for values in state["recent"]]
        self._generator.set_state(state["generator"].cpu())
        for r, row in enumerate(self._simulations):
            for e, simulation in enumerate(row):
                if not simulation.restore(state["simulations"][r][e]):
                    self._starts[r, e] = 1.0
                    print(
                        f"env {self.settings.env!r}, {simulation.where}: the simulation cannot be restored, so a new episode "
                        "begins; the run goes on, but not to the bit",
                        file=sys.stderr,
                    )

    def episodes(self) -> list[Episode]:
        """None: steps are kept, not episodes."""
        return []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        for row in self._simulations:
            for simulation in row:
                simulation.environment.close()
