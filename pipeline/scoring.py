r"""How good each episode of a recording is, and which of its steps are, by its progress along a demonstration.

Our own, on V(s), the steps that are left through a demonstration of m states (``methods/rewards/progress.py``).

| here | what |
|---|---|
| p(s) = min(max(1 - V(s) / (m - 1), 0), 1) | ``progress`` |
| r_t = (V(s_t) - V(s_{t+k})) / k, the label of kind ``progress`` | ``rewards`` |
| reach = max_t p(s_t) | how far along the demonstration an episode comes |
| forward | the share of steps after which an episode goes on with at least ``PACE`` of the demonstration's pace, over k steps |
| score = reach * forward | an episode that does all of it, and nothing else, has 1 |

Progress is the mean step of the demonstration that a state is coupled with, over its length, less the way to it in steps; so a
difference of progress is the label over as many steps, times k / (m - 1). The last state of an episode counts, too. Of several
demonstrations an episode is measured by the one that gives it the highest score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor

from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset
from dynarep.pipeline.entries import Entry, RelabelInputs
from dynarep.pipeline.methods.rewards.follow import repeats
from dynarep.pipeline.methods.rewards.progress import Progress
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.progress import episode_progress
from dynarep.pipeline.relabel import judgement
from dynarep.pipeline.steps_to_go import steps_to_go
from dynarep.pipeline.training.device import training_device
from dynarep.pipeline.training.run import Run

PACE = 0.1
"""Steps of the demonstration per step from which an episode goes on; below it stands, as far as noise tells."""


@dataclass(frozen=True, eq=False)
class Score:
    """How good an episode of T transitions is.

    Args:
        episode: its id.
        demonstration: id of the one that it is measured by.
        progress: (T + 1,) float32, of each state s_0..s_T, in [0, 1].
        rewards: (T,) float32, of each transition.
        moving: (T,) bool, whether the episode goes on from s_t.
        repeats: share of the demonstration's states that it comes back to, in [0, 1].
    """

    episode: str
    demonstration: str
    progress: np.ndarray
    rewards: np.ndarray
    moving: np.ndarray
    repeats: float = 0.0

    @property
    def steps(self) -> int:
        """T."""
        return len(self.rewards)

    @cached_property
    def reach(self) -> float:
        """In [0, 1]."""
        return float(self.progress.max())

    @cached_property
    def forward(self) -> float:
        """In [0, 1]."""
        return float(self.moving.mean())

    @property
    def score(self) -> float:
        """In [0, 1]."""
        return self.reach * self.forward

    def pauses(self, least: int) -> list[tuple[int, int]]:
        """First step and one past the last of each run of at least ``least`` steps in which it does not go on."""
        edges = np.flatnonzero(np.diff(np.concatenate([[False], ~self.moving, [False]]).astype(np.int8))).tolist()
        return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if stop - start >= least]


def score_episodes(
    entry: Entry[RelabelInputs], dataset: Dataset, demonstrations: Dataset, encoder: Encoder, run: Run
) -> list[Score]:
    """Score every episode of a dataset, best first; of equal ones the earlier.

    Args:
        entry: of kind ``progress``.
        dataset: the episodes.
        demonstrations: what they are measured by; their rewards and actions are not read.
        encoder: in whose space steps are compared, frozen.
        run: names and seeds.

    Raises:
        ValueError: if observations of both differ in size, or a demonstration never moves.
    """
    device = training_device()
    lookahead = entry.config.lookahead
    try:
        shown = replace(demonstrations, episodes=[with_last_state(episode) for episode in demonstrations.episodes])
        world = judgement(entry, dataset, shown, encoder, run, device)
        method = cast(type[Progress], entry.method).build(entry.config, world)

        again = [repeats(points, lookahead).mean().item() for points in method.embedded_experts]

        def scored(episode: Episode) -> Score:
            points = method.embed(with_last_state(episode))
            found = [_against(episode, points, method, expert, lookahead) for expert in range(len(shown.episodes))]
            best_by = max(range(len(found)), key=lambda expert: found[expert].score)
            return replace(found[best_by], repeats=again[best_by])

        with torch.no_grad():
            each = ((episode.id, scored(episode)) for episode in dataset.episodes)
            scores = [score for _, score in episode_progress(each, lambda _: 1, len(dataset.episodes), run.title)]
    except ValueError as error:
        raise ValueError(f"{dataset.name} against {demonstrations.name}: {error}") from error
    return sorted(scores, key=lambda score: -score.score)


def with_last_state(episode: Episode) -> Episode:
    """The states s_0..s_T as an episode of T + 1 steps, of which the last one stays where it is."""
    last = episode.successors[-1:]
    states = np.concatenate([episode.current, last])
    following = np.concatenate([episode.successors, last])
    return replace(episode, observations=states, next_observations=following, actions=None, rewards=None)


def _against(episode: Episode, points: Tensor, method: Progress, expert: int, lookahead: int) -> Score:
    """The score by one demonstration; numbers of replicas are averaged."""
    demonstration = method.embedded_experts[expert]
    lengths = torch.full((len(points),), demonstration.shape[1], device=points.device)
    left, _ = steps_to_go(points, demonstration, lengths)
    going = pace(left, lookahead).mean(0) >= PACE
    rewards = method.compare([points], expert).rewards[:, :-1].mean(0)
    return Score(
        episode.id,
        method.experts[expert].id,
        progress(left, demonstration.shape[1]).mean(0).cpu().numpy(),
        rewards.cpu().numpy(),
        going.cpu().numpy(),
    )


def progress(left: Tensor, states: int) -> Tensor:
    """p(s) in [0, 1] of the steps that are left (...) through a demonstration of ``states`` states."""
    return (1.0 - left / (states - 1)).clamp(0.0, 1.0)


def pace(left: Tensor, lookahead: int) -> Tensor:
    """Steps of the demonstration per step over the next k steps, or those that there are: (R, T + 1) -> (R, T)."""
    time = torch.arange(left.shape[1], device=left.device)
    later = (time + lookahead).clamp(max=left.shape[1] - 1)[:-1]
    return (left[:, :-1] - left[:, later]) / (later - time[:-1])


def best(scores: Sequence[Score], keep: float | None) -> list[Score]:
    """The best of some scores.

    Args:
        scores: best first.
        keep: how many; below 1 the share of them, at least one; None for all.
    """
    if keep is None:
        return list(scores)
    return list(scores[: max(1, round(keep * len(scores))) if keep < 1 else int(keep)])
