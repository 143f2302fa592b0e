"""Coupled distillation of random targets: how much better an expert's predictor knows a point than the behaviour's does.

Li, Huang, Su, "Coupled Distributional Random Expert Distillation for World Model Online Imitation Learning", 2025,
arXiv 2505.02228, and its code; the estimate of counts from Yang, Tao, Lyu, Li, "Exploration and Anti-Exploration with
Distributional Random Network Distillation", ICML 2024, arXiv 2401.09750.

| paper and published code | here |
|---|---|
| g_1..g_K: random and fixed, shared by both predictors f_E and f_B | ``CoupledDistillation`` |
| each sample meets one target, k uniform; E ||f - g_k||^2 / D | ``of_drawn``, ``CoupledDistillation.errors`` |
| b(f) = a sum_d (f - mu)^2 + (1 - a) mean_d sqrt(|f^2 - mu^2| / (B2 - mu^2)) | ``bonus`` |
| mu = mean_k g_k, B2 = mean_k g_k^2 | ``bonus`` |
| r = -zeta b(f_E) + (1 - zeta) b(f_B) | ``coupled_reward`` |

If f is the mean of n targets drawn at random, E (f^2 - mu^2) / (B2 - mu^2) = 1 / n. So the second term of b estimates
1 / sqrt(n), n how often a point was seen. The first term sums over the D outputs and the second averages: their balance
depends on D and on the scale of the targets.

Deviations: 1e-8 is added to B2 - mu^2, which the published code divides by as it is. The targets are part of the state; the
published code keeps them in a list that no checkpoint holds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, config
from dynarep.pipeline.nn.networks import MLP


@config
class DistillationConfig:
    """Networks and reward of coupled distillation; the defaults are the published ones."""

    hidden: tuple[int, ...] = (1024, 1024, 1024)
    """Widths of both predictors."""
    target_hidden: tuple[int, ...] = (512, 512)
    """Widths of the targets."""
    embedding_dim: int = Field(default=256, gt=0)
    """D: numbers that a target puts out. The first term of the bonus grows with it."""
    targets: int = Field(default=5, ge=2)
    """K."""
    share: float = Field(default=0.9, ge=0, le=1)
    """a: of the squared error in the bonus; the rest is that of the estimated count."""
    coupling: float = Field(default=0.8, ge=0, le=1)
    """zeta: weight of the expert's bonus; 1 leaves the behaviour out."""


def bonus(prediction: Tensor, targets: Tensor, share: float) -> Tensor:
    """The bonus a sum_d (f - mu)^2 + (1 - a) mean_d sqrt(|f^2 - mu^2| / (B2 - mu^2 + 1e-8)); small where f knows a point.

    Args:
        prediction: f, (R, ..., D).
        targets: g_1..g_K, (R, K, ..., D).
        share: a in [0, 1].

    Returns:
        (R, ...), at least 0.
    """
    mean, variance = targets.mean(1), targets.var(1, correction=0)
    counts = ((prediction.square() - mean.square()).abs() / (variance + 1e-8)).sqrt().mean(-1)
    return share * (prediction - mean).square().sum(-1) + (1.0 - share) * counts


def coupled_reward(expert: Tensor, behaviour: Tensor, targets: Tensor, share: float, coupling: float) -> Tensor:
    """The reward -zeta b(f_E) + (1 - zeta) b(f_B).

    Args:
        expert: f_E, (R, ..., D).
        behaviour: f_B, (R, ..., D).
        targets: (R, K, ..., D).
        share: a.
        coupling: zeta in [0, 1]; 1 leaves the behaviour out.

    Returns:
        (R, ...).
    """
    return (1.0 - coupling) * bonus(behaviour, targets, share) - coupling * bonus(expert, targets, share)


def of_drawn(targets: Tensor, drawn: Tensor) -> Tensor:
    """The target of each sample that was drawn for it: (R, K, B, D), (R, B) int64 -> (R, B, D)."""
    return targets.take_along_dim(drawn[:, None, :, None], 1).squeeze(1)


class CoupledDistillation(nn.Module):
    """K fixed targets and two predictors, R times.

    Args:
        replicas: R.
        inputs: numbers in a point.
        c: widths, D and K, and the weights of the reward.
    """

    def __init__(self, replicas: int, inputs: int, c: DistillationConfig) -> None:
        super().__init__()
        self.share, self.coupling = c.share, c.coupling
        self.targets = MLP(
            (replicas, c.targets),
            (inputs, *c.target_hidden, c.embedding_dim),
            hidden_activation="mish",
            normed=True,
            final_gain=3**-0.5,  # the variance with which PyTorch starts a linear layer, as published
        ).requires_grad_(False)
        sizes = (inputs, *c.hidden, c.embedding_dim)
        self.predictors = MLP((replicas, 2), sizes, hidden_activation="mish", normed=True, init="normal")

    def errors(self, expert: Tensor, behaviour: Tensor, drawn: Tensor) -> Tensor:
        """||f_E - g_k||^2 / D at the expert's points and ||f_B - g_k||^2 / D at the behaviour's.

        Gradients also flow to the points through the predictors, not through the targets.

        Args:
            expert: (R or 1, B, inputs).
            behaviour: (R or 1, B, inputs).
            drawn: k of each sample of both, (R, B, 2) int64.

        Returns:
            (R, 2, B): the expert's, and the behaviour's.
        """
        points = torch.stack([expert, behaviour], 1)
        predicted = self.predictors(points)
        with torch.no_grad():
            known = [
                of_drawn(self.targets(x.unsqueeze(1)), k)
                for x, k in zip(points.unbind(1), drawn.unbind(2), strict=True)
            ]
        error: Tensor = (predicted - torch.stack(known, 1)).square().mean(-1)
        return error

    def predictions(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """f_E and f_B, (R, B, D) each, and the targets, (R, K, B, D), of points (R or 1, B, inputs)."""
        expert, behaviour = self.predictors(points.unsqueeze(1)).unbind(1)
        return expert, behaviour, self.targets(points.unsqueeze(1))

    def forward(self, points: Tensor) -> Tensor:
        """The reward of points (R or 1, B, inputs): (R, B)."""
        return coupled_reward(*self.predictions(points), self.share, self.coupling)
