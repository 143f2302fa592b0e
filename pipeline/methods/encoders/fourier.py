r"""The factorisation of dynamics with Gaussian noise: phi and mu are random Fourier features of the predicted and the next state.

Ren, Zhang, Szepesvari, Dai, "A Free Lunch from the Noise: Provable and Practical Exploration for Representation Learning", UAI
2022, arXiv 2111.11485 (dynamics with Gaussian noise are linear); Rahimi, Recht, "Random Features for Large-Scale Kernel
Machines", NeurIPS 2007 (the features); Sugiyama et al., "Least-squares conditional density estimation", AISTATS 2010 (the
weights against p_n).

| equation | here |
|---|---|
| s' = f(s, a) + e, e ~ N(0, diag sigma^2), by maximum likelihood | ``Fourier.losses`` |
| exp(-||(x - y) / h||^2 / 2) = E cos(w (x - y) / h), w standard normal | ``fourier_features`` |
| phi(s, a) = z(f(s, a)), z the features | ``FourierEncoder.phi`` |
| mu(s') = W^T z(s'), W the least of -2 E r + E_{p_n} r^2, r = phi^T mu | ``FourierEncoder.mu``, ``least_squares`` |

The inner product of phi and z(s') is the density of s' under the predicted Gaussian, up to its constant; W turns it into the
ratio to p_n, which the other users of a factorisation expect. f is learned by predicting states, so phi tells actions apart that
lead to different states, while a contrastive phi of the same width spends its rank on what varies most in the data.

Own choices: f predicts the change of the state; h is sigma, wider by ``bandwidth`` and by the root of the size of an observation,
because in many dimensions nothing lies within a few sigma of anything; one frequency is 0, so that the ratio can be 1 everywhere;
W has a ridge.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, Widths, config
from dynarep.data.resident import Batch
from dynarep.pipeline.factorisation import Factorisation, FactorisationMethod, NoiseStates, noise_states
from dynarep.pipeline.method import Phase, Sources
from dynarep.pipeline.nn.functional import Losses, gaussian_log_prob
from dynarep.pipeline.nn.networks import MLP

FITTED = 20_000
"""Transitions, and noise states, to which W is fitted at most."""

SMALLEST = 1e-3
"""Least sigma, in deviations of the data."""


@config
class FourierConfig:
    """Hyper-parameters of the Fourier features of a predicted state."""

    hidden: Widths = (256, 256)
    """Of f."""
    feature_dim: int = Field(default=256, gt=0, multiple_of=2)
    """k, the width of phi and mu: cosines and sines of k / 2 frequencies."""
    bandwidth: float = Field(default=10.0, gt=0)
    """b, the width of the kernel in each number of a state, h = b sqrt(d) sigma: small tells more apart, large generalises."""
    ridge: float = Field(default=1e-3, gt=0)
    """Added to both second moments of features, as a share of their mean eigenvalue."""
    learning_rate: float = Field(default=1e-3, gt=0)
    noise: NoiseStates = "next"
    """p_n, uniform over the states of the whole dataset: those before, or those after its transitions."""
    absorbing: bool = False
    """Append ValueDICE's absorbing-state bit and lead terminated episodes into the absorbing state."""


@config
class FourierArchitecture:
    """Architecture of ``FourierEncoder``."""

    replicas: int
    observation_dim: int
    action_dim: int
    hidden: tuple[int, ...]
    feature_dim: int
    absorbing: bool = False
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None


def fourier_features(x: Tensor, frequencies: Tensor) -> Tensor:
    """sqrt(2 / k) (cos w x, sin w x), of length 1: (R or 1, B, d), (R, d, k / 2) -> (R, B, k)."""
    phase = x @ frequencies
    features: Tensor = torch.cat([phase.cos(), phase.sin()], -1) * frequencies.shape[-1] ** -0.5
    return features


def least_squares(phi: Tensor, following: Tensor, noise: Tensor, ridge: float) -> Tensor:
    """W that minimises -2 E r + E E_{p_n} r^2 for r = phi^T W^T z, that is C^{-1} A B^{-1}.

    A = E z(s') phi^T, B = E phi phi^T and C = E_{p_n} z z^T; B and C have a ridge.

    Args:
        phi: of transitions, (R, N, k).
        following: features z of their next states, (R, N, k).
        noise: features z of states of p_n, (R, M, k).
        ridge: share of the mean eigenvalue that is added.

    Returns:
        (R, k, k).
    """
    phi, following, noise = phi.double(), following.double(), noise.double()
    cross = following.mT @ phi / phi.shape[1]

    def second_moment(x: Tensor) -> Tensor:
        moment = x.mT @ x / x.shape[1]
        size = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        return moment + ridge * size * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)

    left = torch.linalg.solve(second_moment(noise), cross)
    weights: Tensor = torch.linalg.solve(second_moment(phi), left.mT).mT
    return weights.float()


class FourierEncoder(Factorisation):
    """phi(s, a) = z(f(s, a)) and mu(s') = W^T z(s'), with z random Fourier features of standardised states.

    Attributes:
        frequencies: w, (R, d, k / 2).
        width: h, (R, 1, d), in deviations of the data.
        weights: W, (R, k, k).
    """

    kind = "fourier"
    Architecture = FourierArchitecture
    architecture: FourierArchitecture
    frequencies: Tensor
    width: Tensor
    weights: Tensor

    def __init__(self, architecture: FourierArchitecture) -> None:
        super().__init__(architecture)
        a = architecture
        dim = a.observation_dim + a.absorbing
        self.change = MLP((a.replicas,), (dim + a.action_dim, *a.hidden, dim), layer_norm=True, final_gain=0.01)
        frequencies = torch.randn(a.replicas, dim, a.feature_dim // 2)
        frequencies[..., 0] = 0.0  # a constant feature
        self.register_buffer("frequencies", frequencies)
        self.register_buffer("width", torch.ones(a.replicas, 1, dim))
        self.register_buffer("weights", torch.eye(a.feature_dim).repeat(a.replicas, 1, 1))

    def predicted(self, observations: Tensor, actions: Tensor) -> Tensor:
        """f(s, a), standardised: (R or 1, B, obs_dim), (R or 1, B, act_dim) -> (R, B, d)."""
        return self.standardised(observations) + self.change(self.pairs(observations, actions))  # type: ignore[no-any-return]

    def features(self, standardised: Tensor) -> Tensor:
        """Features z of standardised states (R or 1, B, d): (R, B, feature_dim)."""
        return fourier_features(standardised / self.width, self.frequencies)

    def phi(self, observations: Tensor, actions: Tensor) -> Tensor:
        """phi(s, a) of (R or 1, B, obs_dim), (R or 1, B, act_dim) for every replica, (R, B, feature_dim)."""
        return self.features(self.predicted(observations, actions))

    def mu(self, observations: Tensor) -> Tensor:
        """mu(s') of (R or 1, B, obs_dim) for every replica, (R, B, feature_dim)."""
        return self.features(self.standardised(observations)) @ self.weights

    def networks(self) -> dict[str, MLP]:
        """``change``, f less the state."""
        return {"change": self.change}


class Fourier(FactorisationMethod):
    """Learner of f; h and W follow from it."""

    kind = "fourier"
    Config = FourierConfig
    shown = ("loss", "squared_error")
    encoder: FourierEncoder

    def __init__(self, *arguments: Any, **bounds: Any) -> None:
        super().__init__(*arguments, **bounds)
        self.log_std = nn.Parameter(torch.zeros_like(self.encoder.width))

    @classmethod
    def model(cls, c: FourierConfig, **sizes: Any) -> FourierEncoder:
        """An untrained f, with features of unit width."""
        return FourierEncoder(FourierArchitecture(**sizes))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """F and sigma, at rates that decay; that of sigma is ten times as large, so that small budgets do for it."""
        rate = self.config.learning_rate
        return [
            {"params": list(self.encoder.parameters()), "lr": rate, "cosine": True},
            {"params": [self.log_std], "lr": 10 * rate, "cosine": True},
        ]

    def batch(self, sources: Sources, generator: torch.Generator) -> Batch:
        """Uniform transitions."""
        return sources.draw("dataset", generator)

    def losses(self, batch: Batch) -> Losses:
        """-E log N(s'; f(s, a), diag sigma^2)."""
        following = self.encoder.standardised(batch.next_observations)
        mean = self.encoder.predicted(batch.observations, batch.actions)
        error = (following - mean).detach().square().mean((-1, -2))
        loss = -gaussian_log_prob(following, mean, self.log_std.clamp(-5.0, 1.0)).mean(-1)
        return Losses(loss, {"squared_error": error})

    def phases(self) -> list[Phase]:
        """One training, after which h and W are set."""
        return [Phase(self, self.batch, shown=self.shown, finish=self.finish)]

    @torch.no_grad()
    def finish(self, sources: Sources) -> None:
        """Set h by the errors of f and fit W, both on the first transitions and noise states of a fixed shuffle."""
        encoder, c = self.encoder, self.config
        table, states = sources.table("dataset"), noise_states(sources.table("whole"), c.noise)
        device = encoder.width.device

        def chosen(count: int) -> Tensor:
            return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:FITTED]

        rows = table.gather(chosen(len(table)).to(table.packed.device)[None])
        noise = states[chosen(len(states)).to(states.device)][None]
        s, a, following, noise = (
            x.to(device) for x in (rows.observations, rows.actions, rows.next_observations, noise)
        )
        following, noise = encoder.standardised(following), encoder.standardised(noise)
        error = (following - encoder.predicted(s, a)).square().mean(1, keepdim=True).sqrt()
        encoder.width.copy_(c.bandwidth * error.shape[-1] ** 0.5 * error.clamp(min=SMALLEST))
        z, z_noise = encoder.features(following), encoder.features(noise)
        encoder.weights.copy_(least_squares(encoder.phi(s, a), z, z_noise, c.ridge))
