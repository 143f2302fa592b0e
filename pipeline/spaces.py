"""Spaces in which steps of episodes are compared: observations, the intent psi(s), and phi(s, a) or mu(s) of the dynamics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset
from dynarep.pipeline.artifacts import ArtifactError, load_dynamics_encoder, load_intent_encoder
from dynarep.pipeline.encoders import DynamicsEncoder, IntentEncoder
from dynarep.pipeline.networks import Normaliser

SpaceName = Literal["intent", "raw", "standardised", "phi", "mu"]


@dataclass(frozen=True)
class Space:
    """Where the steps of episodes are compared.

    Args:
        embed: observations (T, obs_dim) and actions (T, act_dim) or None to points (R, T, d), for R replicas.
        calibration: (R,), makes the squared distance of one step 1 on average.
        reads_actions: whether a point needs an action.
    """

    embed: Callable[[Tensor, Tensor | None], Tensor]
    calibration: Tensor
    reads_actions: bool = False


def observation_space(dataset: Dataset, device: torch.device, *, standardise: bool) -> Space:
    """Observations as they are, or standardised by the dataset's moments, as a space of one replica.

    Raises:
        ValueError: if no observation of the dataset differs from its successor.
    """
    module: torch.nn.Module = torch.nn.Identity()
    if standardise:
        mean, std = (torch.tensor(dataset.statistics[f"observation_{moment}"]) for moment in ("mean", "std"))
        module = Normaliser(mean, std).to(device)

    def embed(observations: Tensor, actions: Tensor | None) -> Tensor:
        return module(observations).unsqueeze(0)  # type: ignore[no-any-return]

    return _calibrated(embed, dataset, device, "standardised" if standardise else "raw", reads_actions=False)


def intent_space(encoder: IntentEncoder) -> Space:
    """psi(s), with the calibration that the encoder carries."""
    return Space(lambda observations, actions: encoder.embed(observations.unsqueeze(0)), encoder.calibration)


def dynamics_space(
    encoder: DynamicsEncoder, which: Literal["phi", "mu"], dataset: Dataset, device: torch.device
) -> Space:
    """phi(s, a) or mu(s), calibrated on the dataset.

    Raises:
        ValueError: if phi reads actions of another size than the dataset has, or no point differs from the next.
    """
    if which == "mu":
        return _calibrated(lambda s, a: encoder.mu(s.unsqueeze(0)), dataset, device, which, reads_actions=False)
    found, expected = dataset.spec.action_dim, encoder.architecture.action_dim
    if found != expected:
        raise ValueError(f"space phi: actions of {dataset.name} have {found} numbers, the encoder reads {expected}")

    def embed(observations: Tensor, actions: Tensor | None) -> Tensor:
        assert actions is not None
        return encoder.phi(observations.unsqueeze(0), actions.unsqueeze(0))

    return _calibrated(embed, dataset, device, which, reads_actions=True)


@torch.no_grad()
def _calibrated(
    embed: Callable[[Tensor, Tensor | None], Tensor],
    dataset: Dataset,
    device: torch.device,
    name: str,
    *,
    reads_actions: bool,
) -> Space:
    """A space in whose unit the squared distance of one step is 1 on average over the dataset's transitions.

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
    return Space(embed, (count / total).float(), reads_actions)


def points_of(embed: Callable[[Tensor, Tensor | None], Tensor], episode: Episode, device: torch.device) -> Tensor:
    """Points (R, T, d) of the steps of an episode, on ``device``."""
    actions = None if episode.actions is None else torch.from_numpy(episode.actions).to(device)
    return embed(torch.from_numpy(episode.current).to(device), actions)


def load_space(name: SpaceName, dataset: Dataset, artifacts: Path, device: torch.device) -> Space:
    """A space for a dataset, with its encoder from ``artifacts/pretrain_intent`` or ``artifacts/pretrain_dynamics``.

    Raises:
        ValueError: if the encoder is missing or does not fit the dataset, or if steps have no length in the space.
    """
    dim = dataset.spec.observation_dim
    try:
        if name == "intent":
            return intent_space(load_intent_encoder(artifacts / "pretrain_intent", observation_dim=dim).to(device))
        if name == "phi" or name == "mu":
            encoder = load_dynamics_encoder(artifacts / "pretrain_dynamics", observation_dim=dim).to(device)
            return dynamics_space(encoder, name, dataset, device)
    except ArtifactError as error:
        stage = "pretrain_intent" if name == "intent" else "pretrain_dynamics"
        raise ValueError(f"relabel.methods: space {name} needs the encoder of {stage}: {error}") from error
    return observation_space(dataset, device, standardise=name == "standardised")
