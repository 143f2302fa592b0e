"""Absorbing states, so that ending early is visible to a method that compares state distributions.

Kostrikov et al., "Discriminator-Actor-Critic", 2019, arXiv 1809.02925, section 4.2; ValueDICE (arXiv 1912.05032) uses
them too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from dynarep.data.schema import Episode


def with_absorbing_states(episodes: Iterable[Episode], repeats: int = 10) -> list[Episode]:
    """Append the absorbing bit to every observation and lead terminated episodes into the absorbing state.

    A state s becomes (s, 0); the absorbing state is (0, ..., 0, 1). In a terminated episode it takes the place of the
    last successor, and ``repeats`` transitions from it to itself with zero action and zero reward follow. The episode
    then goes on for ever and is only cut off by the recording: it is truncated, no longer terminated. Other episodes
    only gain the bit.

    Args:
        episodes: observations of d numbers.
        repeats: absorbing transitions per terminated episode, >= 0.

    Returns:
        Episodes with observations of d + 1 numbers, same ids and order.
    """
    return [_with_absorbing_state(episode, repeats) for episode in episodes]


def _with_absorbing_state(episode: Episode, repeats: int) -> Episode:
    observations = _with_bit(episode.observations)
    successors = None if episode.next_observations is None else _with_bit(episode.next_observations)
    if not episode.terminated:
        return replace(episode, observations=observations, next_observations=successors)
    absorbing = np.zeros((repeats, observations.shape[1]), np.float32)
    absorbing[:, -1] = 1.0
    last = (observations if successors is None else successors)[-1]
    last[:-1], last[-1] = 0.0, 1.0
    return replace(
        episode,
        observations=np.concatenate([observations, absorbing]),
        next_observations=None if successors is None else np.concatenate([successors, absorbing]),
        actions=_padded(episode.actions, repeats),
        rewards=_padded(episode.rewards, repeats),
        terminated=False,
        truncated=True,
    )


def _with_bit(states: np.ndarray) -> np.ndarray:
    return np.pad(states, ((0, 0), (0, 1)))


def _padded(values: np.ndarray | None, rows: int) -> np.ndarray | None:
    return None if values is None else np.pad(values, ((0, rows), *((0, 0),) * (values.ndim - 1)))
