"""The factorisation of the transition kernel, P(s'|s, a) = <phi(s, a), mu(s')> p_n(s'), by contrast with noise states.

Ma, Dai, Ren, Wang, Li, "Offline Imitation Learning upon Arbitrary Demonstrations by Pre-Training Dynamics
Representations", 2025, arXiv 2508.14383 (quadratic loss); Zhang et al., "Making Linear MDPs Practical via Contrastive
Representation Learning", ICML 2022 (ranking loss with a linear factorisation); Gutmann and Hyvaerinen 2010 (binary NCE).

| loss | here | minimiser of r = phi^T mu |
|---|---|---|
| -2 E r(s, a, s') + E_{p_n} r(s, a, s_n)^2 | ``quadratic_loss`` | P / p_n; minimum -(1 + E chi^2(P, p_n)) |
| -E log r / (r + sum_j r_j), with E_{p_n} r pulled to 1 | ``ranking_loss`` | P / p_n, the scale set by the penalty |
| -E log r / (1 + r) - E_{p_n} log 1 / (1 + r) | ``binary_loss`` | P / p_n |

In all three the model of the ratio is the inner product itself, not its exponential: an energy model
P ~ p_n exp(phi^T mu) would not make Q linear in phi. The two NCE losses need positive r and use softplus features.

Deviations: every (s, a) of the batch is contrasted with every noise state of the batch, which has the expectation of
one independent noise state each and less variance; no regulariser on log r, which would bias the ratio towards 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, config
from dynarep.pipeline.encoders import DynamicsArchitecture, DynamicsEncoder
from dynarep.pipeline.functional import Losses
from dynarep.pipeline.networks import Normaliser


@config
class DynamicsConfig:
    """Hyper-parameters of the contrastive factorisation."""

    loss: Literal["quadratic", "ranking", "binary"] = "quadratic"
    hidden: tuple[int, ...] = (256, 256)
    feature_dim: int = Field(default=256, gt=0)
    """k, the width of phi and mu."""
    learning_rate: float = Field(default=3e-4, gt=0)
    negatives: Literal["all", "own"] = "all"
    """Where several processes share a batch: contrast with the noise states of all of it, as one process would, or of the
    process's own rows, which is less work for each."""
    normalisation_weight: float = Field(default=1.0, ge=0)
    """Weight of (log E_{p_n} r)^2 in the ranking loss, which alone leaves r's scale open."""


@dataclass(frozen=True)
class ContrastiveBatch:
    """Transitions and noise states, all (R, B, ...)."""

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    noise: Tensor


def quadratic_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """-2 E r + E_{p_n} r^2: positive (R, B), negative (R, B, N) -> (R,)."""
    return -2.0 * positive.mean(-1) + negative.square().mean((-1, -2))


def ranking_loss(positive: Tensor, negative: Tensor, normalisation_weight: float) -> Tensor:
    """-E log r / (r + sum_j r_j) + w E (log mean_j r_j)^2: positive (R, B), negative (R, B, N) -> (R,)."""
    ranking = -torch.log(positive / (positive + negative.sum(-1))).mean(-1)
    return ranking + normalisation_weight * negative.mean(-1).log().square().mean(-1)


def binary_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """-E log r / (1 + r) + E_{p_n} log(1 + r): positive (R, B), negative (R, B, N) -> (R,)."""
    return (torch.log1p(positive) - positive.log()).mean(-1) + torch.log1p(negative).mean((-1, -2))


class Dynamics(nn.Module):
    """Learner of phi and mu."""

    def __init__(
        self,
        c: DynamicsConfig,
        replicas: int,
        observation_mean: Tensor,
        observation_std: Tensor,
        action_dim: int,
        *,
        absorbing: bool = False,
    ) -> None:
        super().__init__()
        self.config = c
        self.encoder = DynamicsEncoder(
            DynamicsArchitecture(
                replicas=replicas,
                observation_dim=observation_mean.shape[-1] - absorbing,
                action_dim=action_dim,
                hidden=c.hidden,
                feature_dim=c.feature_dim,
                positive=c.loss != "quadratic",
                absorbing=absorbing,
            )
        )
        self.encoder.normaliser = Normaliser(observation_mean, observation_std)

    @property
    def whole(self) -> tuple[str, ...]:
        """What every process reads all of."""
        return ("noise",) if self.config.negatives == "all" else ()

    def start_from(self, encoder: DynamicsEncoder) -> None:
        """Take the normaliser, phi and mu from an encoder of the same architecture."""
        self.encoder.load_state_dict(encoder.state_dict())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Phi and mu at one learning rate."""
        return [{"params": list(self.encoder.parameters()), "lr": self.config.learning_rate}]

    def losses(self, batch: ContrastiveBatch) -> Losses:
        """The chosen contrastive loss."""
        phi = self.encoder.phi(batch.observations, batch.actions)
        states = torch.cat([batch.next_observations, batch.noise], 1)
        mu, mu_noise = self.encoder.mu(states).tensor_split([batch.next_observations.shape[1]], 1)
        positive, negative = (phi * mu).sum(-1), phi @ mu_noise.mT
        if self.config.loss == "quadratic":
            loss = quadratic_loss(positive, negative)
        elif self.config.loss == "ranking":
            loss = ranking_loss(positive, negative, self.config.normalisation_weight)
        else:
            loss = binary_loss(positive, negative)
        return Losses(
            loss, {"normalisation": negative.detach().mean((-1, -2)), "positive_ratio": positive.detach().mean(-1)}
        )

    def after_update(self) -> None:
        """Nothing follows an update."""

    def export(self) -> DynamicsEncoder:
        """Phi and mu of every replica."""
        return self.encoder


def retrieval_accuracy(phi: Tensor, mu_next: Tensor, negatives: int) -> Tensor:
    """Share of transitions whose true next state has the largest ratio among itself and ``negatives`` others.

    Args:
        phi: (R, N, k), N > negatives.
        mu_next: mu of the true next states, (R, N, k); the others are the following rows, cyclically.
        negatives: number of other next states each transition is compared with.

    Returns:
        (R,) in [0, 1]; chance is 1 / (negatives + 1).
    """
    count = phi.shape[1]
    offsets = torch.arange(negatives + 1, device=phi.device)
    best = []
    for start in range(0, count, 1024):
        rows = torch.arange(start, min(start + 1024, count), device=phi.device)
        candidates = (rows[:, None] + offsets) % count
        scores = torch.einsum("rbk,rbnk->rbn", phi[:, rows], mu_next[:, candidates])
        best.append(scores[..., 0] > scores[..., 1:].amax(-1))
    return torch.cat(best, 1).float().mean(1)
