"""How far episodes are from a motion: optimal transport between their states, where no reward says what is good.

The motion is a recording of states alone, such as a back-flip. Every state of an episode and of the motion has the same
mass, the cost of a pair is its squared distance, and the distance is the root of the Sinkhorn divergence

    S(x, y) = OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2,     OT = min_P sum_ij P_ij C_ij + epsilon KL(P || a b^T)

(Feydy et al. 2019, Interpolating between Optimal Transport and MMD using Sinkhorn Divergences), with one epsilon for the
three problems. It is 0 for the motion itself and |delta| for the motion shifted by delta, whatever epsilon is. It compares
which states are visited and how often, not their order; velocities and psi carry the direction of time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynarep.configs.params import Name, config
from dynarep.pipeline.nn.networks import Normaliser
from dynarep.pipeline.transport import RELAXATION, sinkhorn, squared_distance

EPSILON = 0.01
"""Regularisation, relative to the mean squared distance between states of the episode and of the motion."""
MAX_ITERATIONS = 500
TOLERANCE = 1e-4


@config
class MotionConfig:
    """The motion that episodes are compared with.

    Args:
        dataset: a prepared dataset of observations; of several episodes the nearest one counts; ``none``: no motion.
        space: the entry of ``pretrain`` in whose first space states are compared, in the unit in which the squared distance of
            one step is 1 on average where the encoder is calibrated; ``none``: observations standardised by the motion's own
            moments.
    """

    dataset: Name = "none"
    space: Name = "none"

    @property
    def named(self) -> bool:
        """Whether there is a motion."""
        return self.dataset != "none"


@dataclass(frozen=True)
class Motion:
    """A motion in a space.

    Args:
        embed: observations (n, obs_dim) to points (n, d).
        episodes: points (m, d) of each episode of the motion.
    """

    embed: Callable[[Tensor], Tensor]
    episodes: Sequence[Tensor]

    def distance(self, observations: NDArray[np.float32]) -> float:
        """Distance of an episode's states (n, obs_dim) to the nearest episode of the motion."""
        points = self.embed(torch.from_numpy(observations))
        return min(transport_distance(points, episode) for episode in self.episodes)


def load_motion(c: MotionConfig, artifacts: Path, observation_dim: int) -> Motion:
    """Read a motion and the space in which it is compared.

    Args:
        c: which motion, and in which space.
        artifacts: root of the stages' folders.
        observation_dim: size of the environment's observations.

    Raises:
        ValueError: if a dataset is not prepared or not of this size, or the encoder is missing or does not fit.
    """
    from dynarep.data.shards import load_dataset
    from dynarep.pipeline.artifacts.storage import ArtifactError, load_encoder_model

    motion = load_dataset(artifacts / "shards" / c.dataset)
    found = motion.spec.observation_dim
    if found != observation_dim:
        raise ValueError(
            f"evaluate.motion.dataset: observations of {motion.name} have {found} numbers, those of the environment "
            f"{observation_dim}"
        )
    embed: Callable[[Tensor], Tensor]
    if c.space == "none":
        mean, std = (torch.tensor(motion.statistics[f"observation_{moment}"]) for moment in ("mean", "std"))
        embed = Normaliser(mean, std)
    else:
        try:
            encoder = load_encoder_model(artifacts / "pretrain" / c.space, observation_dim=observation_dim)
        except ArtifactError as error:
            raise ValueError(f"evaluate.motion.space: needs the encoder of pretrain.{c.space}: {error}") from error
        calibration = encoder.calibration_of(encoder.spaces[0])
        unit = torch.ones(()) if calibration is None else calibration[0].sqrt()

        def embed(observations: Tensor) -> Tensor:
            return encoder.embed(observations.unsqueeze(0))[0] * unit

    with torch.no_grad():
        return Motion(embed, [embed(torch.from_numpy(episode.current)) for episode in motion.episodes])


@torch.no_grad()
def transport_distance(x: Tensor, y: Tensor) -> float:
    """Root of the Sinkhorn divergence between the points (n, d) and (m, d), in the unit of the points.

    Raises:
        ValueError: if a point is not finite.
    """
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("motion: found points that are not finite")
    cost = _cost(x, y)
    epsilon = (EPSILON * cost.mean()).clamp_(min=torch.finfo(cost.dtype).tiny).reshape(1)
    divergence = (
        _regularised(cost, epsilon) - (_regularised(_cost(x, x), epsilon) + _regularised(_cost(y, y), epsilon)) / 2
    )
    return math.sqrt(max(divergence, 0.0))


def _cost(x: Tensor, y: Tensor) -> Tensor:
    return squared_distance(x.unsqueeze(0), y.unsqueeze(0))


def _regularised(cost: Tensor, epsilon: Tensor) -> float:
    """sum_ij P_ij C_ij + epsilon KL(P || a b^T) for equal masses on either side of a cost (1, n, m)."""
    a, b = (torch.full((1, size), 1.0 / size) for size in cost.shape[1:])
    transport = sinkhorn(cost, a, b, epsilon, max_iterations=MAX_ITERATIONS, tolerance=TOLERANCE, relaxation=RELAXATION)
    coupling = transport.coupling.double()
    entropy = torch.special.xlogy(coupling, coupling * cost.shape[1] * cost.shape[2]).sum()
    return float((coupling * cost).sum() + epsilon * entropy)
