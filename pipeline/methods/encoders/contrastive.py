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

from dynarep.configs.params import Field, Widths, config
from dynarep.pipeline.factorisation import Factorisation, FactorisationMethod, NoiseStates, noise_states
from dynarep.pipeline.method import Sources
from dynarep.pipeline.nn.functional import Losses
from dynarep.pipeline.nn.networks import MLP


@config
class DynamicsConfig:
    """Hyper-parameters of the contrastive factorisation."""

    loss: Literal["quadratic", "ranking", "binary"] = "quadratic"
    hidden: Widths = (256, 256)
    feature_dim: int = Field(default=256, gt=0)
    """k, the width of phi and mu."""
    learning_rate: float = Field(default=3e-4, gt=0)
    negatives: Literal["all", "own"] = "all"
    """Where several processes share a batch: contrast with the noise states of all of it, as one process would, or of the
    process's own rows, which is less work for each."""
    normalisation_weight: float = Field(default=1.0, ge=0)
    """Weight of (log E_{p_n} r)^2 in the ranking loss, which alone leaves r's scale open."""
    noise: NoiseStates = "next"
    """p_n, uniform over the states of the whole dataset: those before, or those after its transitions."""
    absorbing: bool = False
    """Append ValueDICE's absorbing-state bit and lead terminated episodes into the absorbing state."""


@config
class DynamicsArchitecture:
    """Architecture of ``DynamicsEncoder``."""

    replicas: int
    observation_dim: int
    action_dim: int
    hidden: tuple[int, ...]
    feature_dim: int
    positive: bool = False
    absorbing: bool = False
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None


class DynamicsEncoder(Factorisation):
    """phi(s, a) and mu(s') with P(s'|s, a) = <phi(s, a), mu(s')> p_n(s').

    Both networks are perceptrons scaled by 1/sqrt(feature_dim), with linear outputs, or softplus where ``positive``; the
    last layer of phi has no bias. With ``absorbing`` they read observations with the absorbing bit appended; a missing
    bit is taken as 0. Actions are mapped from their bounds to [-1, 1].
    """

    kind = "contrastive"
    Architecture = DynamicsArchitecture
    architecture: DynamicsArchitecture

    def __init__(self, architecture: DynamicsArchitecture) -> None:
        super().__init__(architecture)
        a = architecture
        inputs = a.observation_dim + a.absorbing
        self.phi_network = MLP((a.replicas,), (inputs + a.action_dim, *a.hidden, a.feature_dim), final_bias=False)
        self.mu_network = MLP((a.replicas,), (inputs, *a.hidden, a.feature_dim))
        self.scale = a.feature_dim**-0.5

    def _output(self, x: Tensor) -> Tensor:
        return (nn.functional.softplus(x) if self.architecture.positive else x) * self.scale  # type: ignore[no-any-return]

    def phi(self, observations: Tensor, actions: Tensor) -> Tensor:
        """phi(s, a) of (R or 1, B, obs_dim), (R or 1, B, act_dim) for every replica, (R, B, feature_dim)."""
        return self._output(self.phi_network(self.pairs(observations, actions)))

    def mu(self, observations: Tensor) -> Tensor:
        """mu(s') of (R or 1, B, obs_dim) for every replica, (R, B, feature_dim)."""
        return self._output(self.mu_network(self.standardised(observations)))

    def networks(self) -> dict[str, MLP]:
        """``phi`` and ``mu``."""
        return {"phi": self.phi_network, "mu": self.mu_network}


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


class Dynamics(FactorisationMethod):
    """Learner of phi and mu."""

    kind = "contrastive"
    Config = DynamicsConfig
    shown = ("loss", "normalisation")

    @classmethod
    def model(cls, c: DynamicsConfig, **sizes: Any) -> DynamicsEncoder:
        """Untrained phi and mu."""
        return DynamicsEncoder(DynamicsArchitecture(**sizes, positive=c.loss != "quadratic"))

    def batch(self, sources: Sources, generator: torch.Generator) -> ContrastiveBatch:
        """Uniform transitions, and as many noise states."""
        b = sources.draw("dataset", generator)
        states = noise_states(sources.table("whole"), self.config.noise)
        return ContrastiveBatch(
            b.observations, b.actions, b.next_observations, states[sources.rows(len(states), generator)]
        )

    @property
    def whole(self) -> tuple[str, ...]:
        """What every process reads all of."""
        return ("noise",) if self.config.negatives == "all" else ()

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
