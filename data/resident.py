"""All transitions of a dataset as one tensor on the training device, from which a batch is one ``index_select``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dynarep.data.sampling import window
from dynarep.data.schema import DataError, Episode

if TYPE_CHECKING:
    from dynarep.data.shards import DatasetInfo


@dataclass(frozen=True)
class Batch:
    """Transitions; every tensor has the shape of the index in front.

    Args:
        observations: (*, observation_dim).
        actions: (*, action_dim); action_dim is 0 without actions.
        rewards: (*), None if the table has none.
        terminated: (*), 1.0 where the transition entered a terminal state, else 0.0.
        next_observations: (*, observation_dim).
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor | None
    terminated: Tensor
    next_observations: Tensor


@dataclass(frozen=True)
class Windows:
    """H transitions in a row, from B starts of R replicas.

    Args:
        start: s_0, (R, B, observation_dim).
        actions: a_0..a_{H-1}, (R, B, H, action_dim).
        following: s_1..s_H, (R, B, H, observation_dim).
        within: (R, B, H), 1.0 where a transition belongs to the episode of the first one, else 0.0.
        rewards: r_0..r_{H-1}, (R, B, H), None if the table has none.
    """

    start: Tensor
    actions: Tensor
    following: Tensor
    within: Tensor
    rewards: Tensor | None = None


class TransitionTable:
    """The transitions of some episodes, packed row by row in the order of the episodes.

    Attributes:
        packed: (N, width) float32; a row is observation, action, next observation, terminated and, if there are any,
            reward.
        lengths: (E,) int64, transitions of each episode.
        first: (N,) int64, row of the first transition of each row's episode.
        last: (N,) int64, row of the last transition of each row's episode.
        observation_dim: numbers in an observation.
        action_dim: numbers in an action, 0 without actions.
        has_rewards: whether rows carry rewards.
    """

    def __init__(self, packed: Tensor, lengths: Tensor, *, observation_dim: int, action_dim: int) -> None:
        """Lay bounds over packed rows.

        Args:
            packed: (N, width), as described for the class.
            lengths: (E,) int64 on any device, transitions per episode, N in total.
            observation_dim: numbers in an observation.
            action_dim: numbers in an action.
        """
        self.packed = packed
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        self.has_rewards = packed.shape[1] == 2 * observation_dim + action_dim + 2
        self.lengths = lengths = lengths.to(packed.device)
        ends = lengths.cumsum(0)
        self._starts = ends - lengths
        self.first = self._starts.repeat_interleave(lengths)
        self.last = (ends - 1).repeat_interleave(lengths)

    @classmethod
    def from_episodes(
        cls,
        episodes: Sequence[Episode],
        *,
        rewards: Mapping[str, np.ndarray] | None = None,
        device: torch.device | str = "cpu",
    ) -> TransitionTable:
        """Pack episodes.

        Args:
            episodes: at least one, all with the same dimensions; either all or none with actions, likewise rewards.
            rewards: (T,) per episode id, used in place of the episodes' own.
            device: where the table lives.

        Raises:
            DataError: if the episodes disagree, or ``rewards`` misses an episode or has a wrong length.
        """
        if not episodes:
            raise DataError("a transition table needs at least one episode, found none")
        form = _form(episodes[0])
        width = 2 * form[0] + form[1] + 1 + (rewards is not None or form[2])
        packed = np.empty((sum(episode.length for episode in episodes), width), np.float32)
        start = 0
        for episode in episodes:
            if _form(episode) != form:
                names = "observation_dim, action_dim, has_rewards"
                raise DataError(
                    f"episode {episode.id}: ({names}): found {_form(episode)}, expected {form} as in {episodes[0].id}"
                )
            terminated = np.zeros((episode.length, 1), np.float32)
            terminated[-1] = episode.terminated
            columns = [episode.current, episode.successors, terminated]
            if episode.actions is not None:
                columns.insert(1, episode.actions)
            own = episode.rewards if rewards is None else _column(rewards, episode)
            if own is not None:
                columns.append(own[:, None])
            np.concatenate(columns, axis=1, out=packed[start : start + episode.length])
            start += episode.length
        lengths = torch.tensor([episode.length for episode in episodes])
        return cls(torch.from_numpy(packed).to(device), lengths, observation_dim=form[0], action_dim=form[1])

    def __len__(self) -> int:
        return len(self.packed)

    def gather(self, index: Tensor) -> Batch:
        """The transitions at ``index``, int64 of any shape in [0, N); the tensors are views of one gathered block."""
        rows = self.packed.index_select(0, index.reshape(-1)).view(*index.shape, self.packed.shape[1])
        dims = [self.observation_dim, self.action_dim, self.observation_dim, 1] + [1] * self.has_rewards
        parts = torch.split(rows, dims, dim=-1)
        return Batch(
            observations=parts[0],
            actions=parts[1],
            rewards=parts[4].squeeze(-1) if self.has_rewards else None,
            terminated=parts[3].squeeze(-1),
            next_observations=parts[2],
        )

    def windows(self, rows: Tensor, steps: int) -> Windows:
        """The ``steps`` transitions from each of ``rows`` (R, B) on; beyond the end of an episode its last one stands."""
        index, within = self._window(rows, steps)
        b = self.gather(index)
        return Windows(b.observations[:, :, 0], b.actions, b.next_observations, within, b.rewards)

    def _window(self, rows: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        return window(rows, self.last[rows], steps)

    def random_rows(self, replicas: int, count: int, generator: torch.Generator) -> Tensor:
        """Independent uniform rows for each replica: (replicas, count) int64."""
        return torch.randint(len(self), (replicas, count), generator=generator, device=self.packed.device)

    def observations_at(self, index: Tensor) -> Tensor:
        """The states s_t of the transitions at ``index`` (any shape): (*, observation_dim)."""
        return self.observations.index_select(0, index.reshape(-1)).view(*index.shape, self.observation_dim)

    def states_at(self, index: Tensor) -> Tensor:
        """The states s_t of rows below N, and those after row i where the index is N + i: (*, observation_dim)."""
        rows = self.gather(index % len(self))
        return torch.where((index < len(self)).unsqueeze(-1), rows.observations, rows.next_observations)

    def blocks(self, replicas: int, rows: int = 8192) -> tuple[Tensor, ...]:
        """All rows in order for every replica, in blocks of (replicas, <= ``rows``) int64."""
        return torch.split(torch.arange(len(self), device=self.packed.device).expand(replicas, -1), rows, 1)

    @property
    def observations(self) -> Tensor:
        """The states s_t of all rows, a view (N, observation_dim)."""
        return self.packed[:, : self.observation_dim]

    @property
    def next_observations(self) -> Tensor:
        """The states s_{t+1} of all rows, a view (N, observation_dim)."""
        start = self.observation_dim + self.action_dim
        return self.packed[:, start : start + self.observation_dim]

    @property
    def initial(self) -> Tensor:
        """First state of each episode, (E, observation_dim)."""
        return self.observations_at(self._starts)


def _form(episode: Episode) -> tuple[int, int, bool]:
    action_dim = 0 if episode.actions is None else episode.actions.shape[1]
    return episode.observations.shape[1], action_dim, episode.rewards is not None


def _column(rewards: Mapping[str, np.ndarray], episode: Episode) -> np.ndarray:
    if episode.id not in rewards:
        raise DataError(f"rewards: none for episode {episode.id}")
    column = np.asarray(rewards[episode.id], np.float32)
    if column.shape != (episode.length,) or not np.isfinite(column).all():
        raise DataError(
            f"rewards of episode {episode.id}: found shape {column.shape}, expected ({episode.length},) finite numbers"
        )
    return column


def observation_moments(dataset: DatasetInfo, *, absorbing: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a dataset's observations, each (observation_dim,) float32.

    With ``absorbing`` both have one more entry, 0 and 1, that leaves the absorbing bit as it is.
    """
    mean = [*dataset.statistics["observation_mean"], *[0.0] * absorbing]
    std = [*dataset.statistics["observation_std"], *[1.0] * absorbing]
    return torch.tensor(mean), torch.tensor(std)
