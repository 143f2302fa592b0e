r"""What actions control: the numbers of an observation from which the action of a step can be told.

An inverse model predicts a_t from s_t and s_{t+1}. What has nothing to do with actions does not help, so its weights fade under
a group lasso; what is left is what a policy has to see. Multi-step and one-step inverse models as representations that drop
exogenous noise: Efroni et al., "Provable RL with Exogenous Distractors via Multistep Inverse Dynamics", ICLR 2022,
arXiv 2110.08847; Lamb et al., "Guaranteed Discovery of Control-Endogenous Latent States", 2022, arXiv 2207.08229. The linear
latent and the lasso are our own.

| here | what |
|---|---|
| z = x W, x the standardised observation | ``InverseModel.latent`` |
| E ||h(z_t, 3 (z_{t+1} - z_t)) - a_t||^2 + l sum_i ||W_i|| | ``InverseModel.losses`` |
| number i of the observation is kept where ||W_i|| > threshold max_j ||W_j|| | ``kept_numbers`` |

The encoder hands on the kept numbers, standardised, and zeros in place of the others: a representation to act in. It is no
space to compare states in by itself, because what does not change with the action within one step may still matter for a goal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, Widths, config
from dynarep.data.resident import Batch
from dynarep.pipeline.method import EncoderMethod, Needs, Sources, World
from dynarep.pipeline.nn.functional import Losses
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.nn.networks import MLP, ActionScale, Normaliser

CHANGE = 3.0
"""Weight of the change beside the state, about one over the size of a step in standardised observations."""


@config
class InverseConfig:
    """Hyper-parameters of the inverse model."""

    hidden: Widths = (128, 128)
    """Of the head."""
    latent_dim: int = Field(default=16, gt=0)
    lasso: float = Field(default=1e-3, ge=0)
    """l: weight of the rows' norms, against a squared error of actions in [-1, 1]."""
    threshold: float = Field(default=0.05, ge=0, lt=1)
    """Share of the largest row norm above which a number of the observation is kept."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of the head; W has three times as much."""


@config
class ControlledArchitecture:
    """Architecture of ``Controlled``."""

    replicas: int
    observation_dim: int


class Controlled(Encoder):
    """The numbers of an observation that actions control, standardised; zeros in place of the others."""

    kind = "inverse"
    Architecture = ControlledArchitecture
    spaces = ("controlled",)
    architecture: ControlledArchitecture
    kept: Tensor

    def __init__(self, architecture: ControlledArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.normaliser = Normaliser.identity(architecture.observation_dim)
        self.register_buffer("kept", torch.ones(architecture.replicas, 1, architecture.observation_dim))

    def embed(self, observations: Tensor, actions: Tensor | None = None, space: str | None = None) -> Tensor:
        """(R or 1, B, obs_dim) -> (R, B, obs_dim)."""
        kept: Tensor = self.normaliser(observations) * self.kept
        return kept

    def latent_dim(self) -> int:
        """Numbers in an observation."""
        return self.architecture.observation_dim

    def forward(self, observation: Tensor) -> Tensor:
        """Of the first replica: (B, obs_dim) -> (B, obs_dim)."""
        return self.embed(observation[None])[0]


def kept_numbers(norms: Tensor, threshold: float) -> Tensor:
    """1 where a row's norm is above a share of the largest one, else 0: (R, D) -> (R, 1, D)."""
    return (norms > threshold * norms.amax(-1, keepdim=True)).float().unsqueeze(1)


class InverseModel(EncoderMethod):
    """Learner of a linear latent and a head that tells the action from it."""

    kind = "inverse"
    Config = InverseConfig
    shown = ("squared_error", "kept")

    def __init__(
        self,
        c: InverseConfig,
        replicas: int,
        mean: Tensor,
        std: Tensor,
        low: tuple[float, ...],
        high: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.config, self.replicas = c, replicas
        self.normaliser = Normaliser(mean, std)
        dim = mean.shape[-1]
        self.weight = nn.Parameter(torch.randn(replicas, dim, c.latent_dim) * 0.5 * dim**-0.5)
        self.head = MLP((replicas,), (2 * c.latent_dim, *c.hidden, len(low)), layer_norm=True)
        self.scale = ActionScale(low, high)

    @classmethod
    def needs(cls, c: InverseConfig) -> Needs:
        """Actions."""
        return Needs(actions=("dataset",))

    @classmethod
    def build(cls, c: InverseConfig, world: World) -> InverseModel:
        """For the observations and actions of a world."""
        return cls(c, *world.form)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """W and the head, each at its rate, which decays."""
        rate = self.config.learning_rate
        return [
            {"params": [self.weight], "lr": 3 * rate, "cosine": True},
            {"params": list(self.head.parameters()), "lr": rate, "cosine": True},
        ]

    def batch(self, sources: Sources, generator: torch.Generator) -> Batch:
        """Uniform transitions."""
        return sources.draw("dataset", generator)

    def latent(self, observations: Tensor) -> Tensor:
        """Z = x W: (R or 1, B, obs_dim) -> (R, B, latent_dim)."""
        return self.normaliser(observations) @ self.weight  # type: ignore[no-any-return]

    def losses(self, batch: Batch) -> Losses:
        """Squared error of the action, and the lasso."""
        c = self.config
        now, following = self.latent(torch.cat([batch.observations, batch.next_observations], 1)).chunk(2, 1)
        told = self.head(torch.cat([now, CHANGE * (following - now)], -1))
        error = (told - self.scale(batch.actions)).square().mean((-1, -2))
        norms = (self.weight.square().sum(-1) + 1e-12).sqrt()
        kept = kept_numbers(norms.detach(), c.threshold).sum((-1, -2))
        return Losses(error + c.lasso * norms.sum(-1), {"squared_error": error.detach(), "kept": kept})

    def export(self) -> Controlled:
        """What is kept, for every replica."""
        encoder = Controlled(
            ControlledArchitecture(replicas=self.replicas, observation_dim=self.normaliser.mean.shape[-1])
        )
        encoder.normaliser.load_state_dict(self.normaliser.state_dict())
        encoder.kept.copy_(kept_numbers(self.weight.detach().norm(dim=-1), self.config.threshold))
        return encoder
