r"""Hilbert values: psi whose distance is the negated value of reaching a state, by goal-conditioned expectile regression.

Park, Kreiman, Levine, "Foundation Policies with Hilbert Representations", ICML 2024, arXiv 2402.15567.

| paper | here |
|---|---|
| V(s, g) = -||psi(s) - psi(g)|| (eq. 4) | ``hilbert_value`` |
| E l^2_tau(-1(s != g) + gamma Vbar(s', g) - V(s, g)) (eq. 5) | ``HILP.losses`` |
| two members, the smaller value decides the weight, each has its own target (published code) | ``HILP.losses`` |
| goals: 0.3 random, 0.5 of the trajectory, 0.2 the state itself | ``dynarep.data.sampling.goals`` |

V is discounted, so the distance saturates: it cannot exceed 1 / (1 - gamma), and states that are many steps apart are told
apart only up to a fraction of that. ``gamma`` is therefore the horizon of the space.

Deviations: observations are standardised; the expectile's weight takes the mean of the targets' values, as in ICVF.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynarep.configs.params import Field, Widths, config
from dynarep.data.sampling import goals
from dynarep.pipeline.method import EncoderMethod, Sources, World
from dynarep.pipeline.nn.functional import Losses, expectile_loss, polyak
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.nn.networks import MLP, Normaliser


@config
class HILPConfig:
    """Hyper-parameters of HILP."""

    hidden: Widths = (256, 256)
    latent_dim: int = Field(default=32, gt=0)
    gamma: float = Field(default=0.99, gt=0, lt=1)
    expectile: float = Field(default=0.95, gt=0, lt=1)
    target_rate: float = Field(default=0.005, gt=0, le=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    p_random: float = Field(default=0.3, ge=0, le=1)
    p_trajectory: float = Field(default=0.5, ge=0, le=1)
    p_current: float = Field(default=0.2, ge=0, le=1)


@config
class HilbertArchitecture:
    """Architecture of ``HilbertEncoder``."""

    replicas: int
    observation_dim: int
    hidden: tuple[int, ...]
    latent_dim: int


@dataclass(frozen=True)
class GoalBatch:
    """Transitions with a goal each, all (R, B, ...)."""

    observations: Tensor
    next_observations: Tensor
    goals: Tensor
    reached: Tensor
    """(R, B), 1 where the state is the goal (same index), else 0."""


def hilbert_value(x: Tensor, y: Tensor) -> Tensor:
    """-sqrt(||x - y||^2 + 1e-6): (..., d), (..., d) -> (...)."""
    return -((x - y).square().sum(-1) + 1e-6).sqrt()


class HilbertEncoder(Encoder):
    """psi(s), in which the distance of two states is the discounted number of steps between them."""

    kind = "hilp"
    Architecture = HilbertArchitecture
    architecture: HilbertArchitecture

    def __init__(self, architecture: HilbertArchitecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.normaliser = Normaliser.identity(a.observation_dim)
        self.psi = MLP((a.replicas,), (a.observation_dim, *a.hidden, a.latent_dim), layer_norm=True)

    def embed(self, observations: Tensor, actions: Tensor | None = None, space: str | None = None) -> Tensor:
        """Psi of (R or 1, B, obs_dim) for every replica, (R, B, latent_dim)."""
        return self.psi(self.normaliser(observations))  # type: ignore[no-any-return]

    def latent_dim(self) -> int:
        """Numbers in a point."""
        return self.architecture.latent_dim

    def forward(self, observation: Tensor) -> Tensor:
        """Psi of the first replica: (B, obs_dim) -> (B, latent_dim)."""
        return self.embed(observation[None])[0]

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Discounted steps between observations (B, obs_dim) and (B, obs_dim): (B,)."""
        return -hilbert_value(self(a), self(b))


class HILP(EncoderMethod):
    """Learner of two members of psi with target copies."""

    kind = "hilp"
    Config = HILPConfig
    shown = ("loss", "value")

    def __init__(self, c: HILPConfig, replicas: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.config, self.replicas = c, replicas
        self.normaliser = Normaliser(mean, std)
        self.online = MLP((replicas, 2), (mean.shape[-1], *c.hidden, c.latent_dim), layer_norm=True)
        self.target = deepcopy(self.online).requires_grad_(False)

    @classmethod
    def build(cls, c: HILPConfig, world: World) -> HILP:
        """For the observations of a world."""
        return cls(c, world.replicas, world.mean, world.std)

    def start_from(self, encoder: HilbertEncoder) -> None:  # type: ignore[override]
        """Take the normaliser, and psi for both members and their targets."""
        self.normaliser.load_state_dict(encoder.normaliser.state_dict())
        state = {name: x.unsqueeze(1).expand(-1, 2, *x.shape[1:]) for name, x in encoder.psi.state_dict().items()}
        self.online.load_state_dict(state)
        self.target.load_state_dict(state)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Psi at a constant rate."""
        return [{"params": list(self.online.parameters()), "lr": self.config.learning_rate}]

    def batch(self, sources: Sources, generator: torch.Generator) -> GoalBatch:
        """Uniform transitions with a goal each."""
        c, table = self.config, sources.table("dataset")
        index = sources.rows(len(table), generator)
        mixture = {"p_random": c.p_random, "p_trajectory": c.p_trajectory, "p_current": c.p_current}
        g = goals(index, table.last[index], len(table), **mixture, generator=generator)
        b = table.gather(index)
        return GoalBatch(b.observations, b.next_observations, table.observations_at(g), (g == index).float())

    def losses(self, batch: GoalBatch) -> Losses:
        """Expectile regression of both members."""
        c = self.config
        s, s_next, g = (
            self.normaliser(x).unsqueeze(1) for x in (batch.observations, batch.next_observations, batch.goals)
        )
        r, m = (batch.reached - 1.0).unsqueeze(1), c.gamma * (1.0 - batch.reached).unsqueeze(1)
        with torch.no_grad():
            old, following, goal = self.target(torch.cat([s, s_next, g], 2)).chunk(3, 2)
            next_value = hilbert_value(following, goal)
            advantage = r + m * next_value.amin(1, keepdim=True) - hilbert_value(old, goal).mean(1, keepdim=True)
            target = r + m * next_value
        now, goal = self.online(torch.cat([s, g], 2)).chunk(2, 2)
        value = hilbert_value(now, goal)
        loss = expectile_loss(target - value, advantage, c.expectile).mean(-1).sum(1)
        return Losses(loss, {"value": value.detach().mean((1, 2)), "accepted": (advantage >= 0).float().mean((1, 2))})

    @torch.no_grad()
    def after_update(self) -> None:
        """Polyak averaging of the targets."""
        polyak(self.target.parameters(), self.online.parameters(), self.config.target_rate)

    def export(self) -> HilbertEncoder:
        """Psi of the first member of every replica."""
        c = self.config
        dim = self.normaliser.mean.shape[-1]
        encoder = HilbertEncoder(
            HilbertArchitecture(replicas=self.replicas, observation_dim=dim, hidden=c.hidden, latent_dim=c.latent_dim)
        )
        encoder.normaliser.load_state_dict(self.normaliser.state_dict())
        encoder.psi.load_state_dict({name: x[:, 0] for name, x in self.online.state_dict().items()})
        return encoder
