"""Spaces in which steps of episodes are compared: what an encoder makes of states, or of states and actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset
from dynarep.pipeline.nn.models import Encoder


@dataclass(frozen=True)
class Space:
    """Where the steps of episodes are compared.

    Args:
        embed: observations (T, obs_dim) and actions (T, act_dim) or None to points (R, T, d), for R replicas.
        calibration: (R,), makes the squared distance of one step 1 on average.
        reads_actions: whether a point needs an action.
        name: for messages.
        in_steps: whether a distance is a number of steps as it is.
    """

    embed: Callable[[Tensor, Tensor | None], Tensor]
    calibration: Tensor
    reads_actions: bool = False
    name: str = "space"
    in_steps: bool = False


def space_of(encoder: Encoder, which: str, dataset: Dataset, device: torch.device, name: str = "") -> Space:
    """One of an encoder's spaces, with the calibration that it carries, else that of the dataset.

    Args:
        encoder: on ``device``.
        which: one of its ``spaces``.
        dataset: the episodes to compare.
        device: of points.
        name: of the encoder, for messages.

    Raises:
        ValueError: if there is no such space, it reads actions of another size than the dataset has, or no point differs
            from the next.
    """
    title = f"{name}.{which}" if name else which
    if which not in encoder.offers:
        raise ValueError(f"space {name}: found points {which!r}, expected one of {', '.join(encoder.offers) or 'none'}")
    reads_actions = which in encoder.reads_actions
    if reads_actions:
        found, expected = dataset.spec.action_dim, encoder.architecture.action_dim
        if found != expected:
            raise ValueError(
                f"space {title}: actions of {dataset.name} have {found} numbers, the encoder reads {expected}"
            )

    def embed(observations: Tensor, actions: Tensor | None) -> Tensor:
        return encoder.embed(observations.unsqueeze(0), None if actions is None else actions.unsqueeze(0), which)

    calibration = encoder.calibration_of(which)
    if calibration is None:
        calibration = measured_calibration(embed, dataset, device, title, reads_actions=reads_actions)
    return Space(embed, calibration, reads_actions, title, which in encoder.in_steps)


@torch.no_grad()
def measured_calibration(
    embed: Callable[[Tensor, Tensor | None], Tensor],
    dataset: Dataset,
    device: torch.device,
    name: str,
    *,
    reads_actions: bool,
) -> Tensor:
    """The scale (R,) in whose unit the squared distance of one step is 1 on average over the dataset's transitions.

    One step leads from s_t to s_{t+1}; where a point needs an action, from (s_t, a_t) to (s_{t+1}, a_{t+1}), so that the
    last transition of an episode does not count.
    """
    sums, count = [], 0
    for episode in dataset.episodes:
        points = points_of(embed, episode, device)
        if reads_actions:
            now, following = points[:, :-1], points[:, 1:]
        else:
            now, following = points, embed(torch.from_numpy(episode.successors).to(device), None)
        sums.append((following - now).double().square().sum((1, 2)))
        count += now.shape[1]
    total = torch.stack(sums).sum(0)
    if (total == 0).any():
        raise ValueError(
            f"dataset {dataset.name}: no point of space {name} differs from its successor, so a step has no length"
        )
    return (count / total).float()


def points_of(embed: Callable[[Tensor, Tensor | None], Tensor], episode: Episode, device: torch.device) -> Tensor:
    """Points (R, T, d) of the steps of an episode, on ``device``."""
    actions = None if episode.actions is None else torch.from_numpy(episode.actions).to(device)
    return embed(torch.from_numpy(episode.current).to(device), actions)
