"""What is shipped: frozen encoders and policies with their normaliser inside. All replicas are stored; calls use the first.

Each class is built from a small architecture dataclass and nothing else, so that ``config.json`` and
``model.safetensors`` are enough to rebuild it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from dynarep.configs.params import config
from dynarep.pipeline.networks import MLP, Normaliser


@config
class IntentArchitecture:
    """Architecture of ``IntentEncoder``."""

    replicas: int
    observation_dim: int
    hidden: tuple[int, ...]
    latent_dim: int
    variant: Literal["icvf", "ailot"] = "icvf"


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


@config
class PolicyArchitecture:
    """Architecture of ``Policy``."""

    replicas: int
    observation_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    hidden: tuple[int, ...]
    absorbing: bool = False


class IntentEncoder(nn.Module):
    """psi(s) of an intention-conditioned value function (Ghosh et al. 2023), calibrated in environment steps.

    ``calibration`` (R,) makes ``calibration * ||psi(s_{t+1}) - psi(s_t)||^2`` one on average over the pretraining data.
    The network ends in ReLU (``icvf``) or GELU (``ailot``).
    """

    calibration: Tensor

    def __init__(self, architecture: IntentArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        a = architecture
        self.normaliser = Normaliser.identity(a.observation_dim)
        self.psi = MLP(
            (a.replicas,),
            (a.observation_dim, *a.hidden, a.latent_dim),
            final_activation="relu" if a.variant == "icvf" else "gelu",
            init="xavier_uniform",
        )
        self.register_buffer("calibration", torch.ones(a.replicas))

    def embed(self, observations: Tensor) -> Tensor:
        """Psi of (R or 1, B, obs_dim) for every replica, (R, B, latent_dim)."""
        return self.psi(self.normaliser(observations))  # type: ignore[no-any-return]

    def forward(self, observation: Tensor) -> Tensor:
        """Psi of the first replica: (B, obs_dim) -> (B, latent_dim)."""
        return self.embed(observation[None])[0]

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Calibrated squared distance in steps between observations (B, obs_dim) and (B, obs_dim): (B,)."""
        return (self(a) - self(b)).square().sum(-1) * self.calibration[0]  # type: ignore[no-any-return]


class DynamicsEncoder(nn.Module):
    """phi(s, a) and mu(s') with P(s'|s, a) = <phi(s, a), mu(s')> p_n(s').

    Both networks are perceptrons scaled by 1/sqrt(feature_dim), with linear outputs, or softplus where ``positive``; the
    last layer of phi has no bias. With ``absorbing`` they read observations with the absorbing bit appended; a missing
    bit is taken as 0.
    """

    def __init__(self, architecture: DynamicsArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        a = architecture
        inputs = a.observation_dim + a.absorbing
        self.normaliser = Normaliser.identity(inputs)
        self.phi_network = MLP((a.replicas,), (inputs + a.action_dim, *a.hidden, a.feature_dim), final_bias=False)
        self.mu_network = MLP((a.replicas,), (inputs, *a.hidden, a.feature_dim))
        self.scale = a.feature_dim**-0.5

    def with_bit(self, observations: Tensor) -> Tensor:
        """Observations as the normaliser reads them: (..., obs_dim), with the absorbing bit appended if there is one."""
        if self.architecture.absorbing and observations.shape[-1] == self.architecture.observation_dim:
            observations = nn.functional.pad(observations, (0, 1))
        return observations

    def _observation(self, observations: Tensor) -> Tensor:
        return self.normaliser(self.with_bit(observations))  # type: ignore[no-any-return]

    def _output(self, x: Tensor) -> Tensor:
        return (nn.functional.softplus(x) if self.architecture.positive else x) * self.scale  # type: ignore[no-any-return]

    def phi(self, observations: Tensor, actions: Tensor) -> Tensor:
        """phi(s, a) of (R or 1, B, obs_dim), (R or 1, B, act_dim) for every replica, (R, B, feature_dim)."""
        return self._output(self.phi_network(torch.cat([self._observation(observations), actions], -1)))

    def mu(self, observations: Tensor) -> Tensor:
        """mu(s') of (R or 1, B, obs_dim) for every replica, (R, B, feature_dim)."""
        return self._output(self.mu_network(self._observation(observations)))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Phi of the first replica: (B, obs_dim), (B, act_dim) -> (B, feature_dim)."""
        return self.phi(observation[None], action[None])[0]

    def ratio(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """P(s'|s, a) / p_n(s') of the first replica for B triples: (B,)."""
        return (self(observation, action) * self.mu(next_observation[None])[0]).sum(-1)  # type: ignore[no-any-return]


class Policy(nn.Module):
    """A deterministic policy: tanh of a perceptron, scaled to the action bounds."""

    low: Tensor
    high: Tensor

    def __init__(self, architecture: PolicyArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        a = architecture
        inputs = a.observation_dim + a.absorbing
        self.normaliser = Normaliser.identity(inputs)
        self.network = MLP((a.replicas,), (inputs, *a.hidden, len(a.action_low)), final_gain=0.01)
        self.register_buffer("low", torch.tensor(a.action_low, dtype=torch.float32))
        self.register_buffer("high", torch.tensor(a.action_high, dtype=torch.float32))

    @property
    def replicas(self) -> int:
        """Number of independently trained policies."""
        return self.architecture.replicas

    def mean(self, observations: Tensor) -> Tensor:
        """Network output before tanh: (R or 1, B, obs_dim) -> (R, B, act_dim)."""
        if self.architecture.absorbing and observations.shape[-1] == self.architecture.observation_dim:
            observations = nn.functional.pad(observations, (0, 1))
        return self.network(self.normaliser(observations))  # type: ignore[no-any-return]

    def rescale(self, unit_actions: Tensor) -> Tensor:
        """Map actions from [-1, 1] to the bounds."""
        return self.low + (unit_actions + 1.0) * 0.5 * (self.high - self.low)

    def act(self, observations: Tensor) -> Tensor:
        """Actions of every replica within the bounds: (R or 1, B, obs_dim) -> (R, B, act_dim)."""
        return self.rescale(torch.tanh(self.mean(observations)))

    def forward(self, observation: Tensor) -> Tensor:
        """Actions of the first replica: (B, obs_dim) -> (B, act_dim)."""
        return self.act(observation[None])[0]


ARTIFACT_TYPES: dict[str, tuple[type, type]] = {
    "IntentEncoder": (IntentEncoder, IntentArchitecture),
    "DynamicsEncoder": (DynamicsEncoder, DynamicsArchitecture),
    "Policy": (Policy, PolicyArchitecture),
}
