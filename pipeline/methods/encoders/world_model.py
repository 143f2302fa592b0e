r"""Latents that predict latents: a world model pretrained on any recorded episodes, without rewards.

Hansen, Su, Wang, "TD-MPC2: Scalable, Robust World Models for Continuous Control", ICLR 2024, arXiv 2310.16828: its encoder h,
its latent dynamics d and its consistency loss. Its reward, values and policy belong to a learner.

| paper and published code | here |
|---|---|
| z = h(s), in simplices of 8 numbers (SimNorm) | ``WorldModelEncoder``, ``latent_network`` |
| z_0 = h(s_0), z_{t+1} = d(z_t, a_t) | ``WorldModelEncoder.step``, ``rollout`` |
| c sum_t rho^t ||z_t - sg h(s_t)||^2 / (H dim z) | ``consistency_loss`` |
| anchor, ours: sum_t rho^t ||k(z_t) - s_t||^2 / (H dim s), or ||k(h(s_t), h(s_{t+1})) - a_t||^2 | ``WorldModel.anchored`` |

Deviations:

- An anchor, because latents that only predict themselves may forget everything; METHODS.md says what was measured. In the
  publication reward and value hold the latents. ``anchor: none`` leaves it out.
- Windows begin at every transition. Where one reaches the end of its episode, what lies beyond has no weight.
- Observations are standardised.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.data.resident import Windows
from dynarep.pipeline.measures import Measured, action_resolution, measure_space
from dynarep.pipeline.method import EncoderMethod, Needs, Sources, World
from dynarep.pipeline.nn.functional import Losses, effective_rank
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.nn.networks import ActionScale, Normaliser
from dynarep.pipeline.nn.world_model import consistency_loss, discounted, latent_network, normed_network, rollout

if TYPE_CHECKING:
    from dynarep.data.resident import TransitionTable
    from dynarep.data.schema import Episode


@config
class WorldModelConfig:
    """Hyper-parameters of the world model; the defaults are those of the published size of 5 million weights."""

    hidden: tuple[int, ...] = (256,)
    """Widths of the encoder."""
    dynamics_hidden: tuple[int, ...] = (512, 512)
    """Widths of the dynamics and of the anchor's head."""
    latent_dim: int = Field(default=512, gt=0)
    """Numbers in a point, a multiple of 8."""
    horizon: int = Field(default=3, gt=0)
    """H: steps that are predicted one after another."""
    decay: float = Field(default=0.5, gt=0, le=1)
    """rho: weight of a step against the one before it."""
    consistency_weight: float = Field(default=20.0, gt=0)
    """c."""
    anchor: Literal["reconstruction", "inverse", "none"] = "reconstruction"
    """What keeps the latents from forgetting: tell the state from each of them, or the action from two in a row."""
    anchor_weight: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=3e-4, gt=0)
    encoder_rate_scale: float = Field(default=0.3, gt=0)
    """Rate of the encoder, as a share of the others'."""


@config
class WorldModelArchitecture:
    """Architecture of ``WorldModelEncoder``."""

    replicas: int
    observation_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    hidden: tuple[int, ...]
    latent_dim: int
    dynamics_hidden: tuple[int, ...] = (512, 512)

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return len(self.action_low)


class WorldModelEncoder(Encoder):
    """z = h(s), and the latent that is predicted to follow an action, d(h(s), a)."""

    kind = "world_model"
    Architecture = WorldModelArchitecture
    spaces = ("z", "next")
    reads_actions = ("next",)
    architecture: WorldModelArchitecture

    def __init__(self, architecture: WorldModelArchitecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.normaliser = Normaliser.identity(a.observation_dim)
        self.scale = ActionScale(a.action_low, a.action_high)
        self.encoder = latent_network((a.replicas,), (a.observation_dim, *a.hidden, a.latent_dim))
        sizes = (a.latent_dim + a.action_dim, *a.dynamics_hidden, a.latent_dim)
        self.dynamics = latent_network((a.replicas,), sizes)

    def embed(self, observations: Tensor, actions: Tensor | None = None, space: str | None = None) -> Tensor:
        """h(s), or d(h(s), a) in the space ``next``: (R or 1, B, obs_dim), (R or 1, B, act_dim) -> (R, B, latent_dim)."""
        latents: Tensor = self.encoder(self.normaliser(observations))
        if space != "next":
            return latents
        assert actions is not None, "next reads actions"
        return self.step(latents, actions)

    def step(self, latents: Tensor, actions: Tensor) -> Tensor:
        """d(z, a) of (R, B, latent_dim) and actions within their bounds, (R or 1, B, act_dim): (R, B, latent_dim)."""
        unit = self.scale(actions).expand(len(latents), -1, -1)
        return self.dynamics(torch.cat([latents, unit], -1))  # type: ignore[no-any-return]

    def latent_dim(self) -> int:
        """Numbers in a point."""
        return self.architecture.latent_dim

    def forward(self, observation: Tensor) -> Tensor:
        """Points of the first replica: (B, obs_dim) -> (B, latent_dim)."""
        return self.embed(observation[None])[0]


class WorldModel(EncoderMethod):
    """Learner of ``WorldModelEncoder`` and of the head that anchors it."""

    kind = "world_model"
    Config = WorldModelConfig
    shown = ("consistency", "spread")

    def __init__(self, c: WorldModelConfig, world: World) -> None:
        super().__init__()
        self.config = c
        self.encoder = WorldModelEncoder(
            WorldModelArchitecture(
                replicas=world.replicas,
                observation_dim=world.observation_dim,
                action_low=tuple(world.action_low),
                action_high=tuple(world.action_high),
                hidden=c.hidden,
                latent_dim=c.latent_dim,
                dynamics_hidden=c.dynamics_hidden,
            )
        )
        self.encoder.normaliser = Normaliser(world.mean, world.std)
        states = 2 if c.anchor == "inverse" else 1
        outputs = world.action_dim if c.anchor == "inverse" else world.observation_dim
        self.head = None
        if c.anchor != "none":
            self.head = normed_network((world.replicas,), (states * c.latent_dim, *c.dynamics_hidden, outputs))

    @classmethod
    def needs(cls, c: WorldModelConfig) -> Needs:
        """Actions."""
        return Needs(actions=("dataset",))

    @classmethod
    def build(cls, c: WorldModelConfig, world: World) -> WorldModel:
        """For the observations and actions of a world."""
        return cls(c, world)

    def start_from(self, encoder: WorldModelEncoder) -> None:  # type: ignore[override]
        """Take normaliser, encoder and dynamics; the head of the anchor is none of them."""
        self.encoder.load_state_dict(encoder.state_dict())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The encoder at a rate of its own."""
        c = self.config
        others = list(self.encoder.dynamics.parameters()) + (list(self.head.parameters()) if self.head else [])
        return [
            {"params": list(self.encoder.encoder.parameters()), "lr": c.encoder_rate_scale * c.learning_rate},
            {"params": others, "lr": c.learning_rate},
        ]

    def batch(self, sources: Sources, generator: torch.Generator) -> Windows:
        """Windows from uniform transitions on."""
        table = sources.table("dataset")
        return table.windows(sources.rows(len(table), generator), self.config.horizon)

    def losses(self, batch: Windows) -> Losses:
        """Consistency, and the anchor."""
        c = self.config
        states = torch.cat([batch.start.unsqueeze(2), batch.following], 2)
        encoded = self.encoder.embed(states.flatten(1, 2)).view(*states.shape[:3], -1)
        rolled = rollout(self.encoder.step, encoded[:, :, 0], batch.actions)
        consistency = consistency_loss(rolled, encoded[:, :, 1:].detach(), batch.within, c.decay)
        anchor = self.anchored(encoded, rolled, states, batch)
        metrics = {
            "consistency": consistency.detach(),
            "anchor": anchor.detach(),
            "spread": encoded.detach()[:, :, 0].var(1).sum(-1),
        }
        return Losses(c.consistency_weight * consistency + c.anchor_weight * anchor, metrics)

    def anchored(self, encoded: Tensor, rolled: Tensor, states: Tensor, batch: Windows) -> Tensor:
        """Squared error of what the head tells, (R,): the state of h(s_0) and of each prediction, or actions; 0 without one.

        Args:
            encoded: h(s_0)..h(s_H), (R, B, H + 1, d).
            rolled: z_1..z_H, (R, B, H, d).
            states: s_0..s_H, (R, B, H + 1, obs_dim).
            batch: the windows.
        """
        decay = self.config.decay
        if self.head is None:
            return encoded.new_zeros(len(encoded))
        if self.config.anchor == "inverse":
            latents = torch.cat([encoded[:, :, :-1], encoded[:, :, 1:]], -1)
            wanted, within = self.encoder.scale(batch.actions), batch.within
        else:
            latents, wanted = torch.cat([encoded[:, :, :1], rolled], 2), self.encoder.normaliser(states)
            within = torch.cat([torch.ones_like(batch.within[..., :1]), batch.within], -1)
        told = self.head(latents.flatten(1, 2)).view(*latents.shape[:3], -1)
        return discounted((told - wanted).square().mean(-1) * within, decay)

    def export(self) -> WorldModelEncoder:
        """Encoder and dynamics of every replica."""
        return self.encoder

    @classmethod
    def measure(
        cls,
        c: WorldModelConfig,
        encoder: WorldModelEncoder,  # type: ignore[override]
        held_out: list[Episode],
        table: TransitionTable,
        whole: TransitionTable,
        episodes: Iterable[Episode],
    ) -> Measured:
        """Also how far predictions stray over the horizon, on held-out episodes, and whether the latents collapsed."""
        measured = measure_space(encoder, held_out, episodes)
        rows = model_error(encoder, held_out)
        measured.tables["model_error"] = rows
        measured.metrics["model_error"] = {str(row["k"]): row["error"] for row in rows}
        states = torch.cat([torch.from_numpy(episode.current) for episode in held_out])
        chosen = states[torch.randperm(len(states), generator=torch.Generator().manual_seed(0))[:4096]]
        measured.metrics["effective_rank"] = effective_rank(centred(encoder.embed(chosen[None]))).mean().item()
        a = encoder.architecture

        def nearness(observations: Tensor, actions: Tensor, following: Tensor) -> Tensor:
            return -(encoder.embed(observations, actions, "next") - encoder.embed(following)).square().sum(-1)

        kept = type(table).from_episodes(held_out)
        measured.metrics["action_resolution"] = action_resolution(nearness, kept, a.action_low, a.action_high)
        return measured


def centred(points: Tensor) -> Tensor:
    """Points less their mean: (R, N, d) -> (R, N, d)."""
    return points - points.mean(1, keepdim=True)


@torch.no_grad()
def model_error(encoder: WorldModelEncoder, episodes: list[Episode]) -> list[dict[str, float]]:
    """Squared error of latents predicted k steps ahead, over the variance of latents; mean over replicas.

    Returns:
        Rows with ``k``, the ``error`` of the model, and ``staying``, that of predicting no change; 1 is that of the mean latent.
        No row where no episode has so many steps.
    """
    errors: dict[int, list[Tensor]] = {k: [] for k in HORIZONS}
    staying: dict[int, list[Tensor]] = {k: [] for k in HORIZONS}
    points = []
    for episode in episodes:
        assert episode.actions is not None
        encoded = encoder.embed(torch.from_numpy(episode.observations)[None])
        actions = torch.from_numpy(episode.actions)[None]
        points.append(encoded)
        rolled = encoded
        for k in range(1, min(max(HORIZONS), episode.length) + 1):
            rolled = encoder.step(rolled[:, :-1], actions[:, k - 1 :])
            if k in errors:
                errors[k].append((rolled - encoded[:, k:]).square().sum(-1))
                staying[k].append((encoded[:, :-k] - encoded[:, k:]).square().sum(-1))
    variance = centred(torch.cat(points, 1)).square().sum(-1).mean(1)
    return [
        {
            "k": k,
            "error": (torch.cat(errors[k], 1).mean(1) / variance).mean().item(),
            "staying": (torch.cat(staying[k], 1).mean(1) / variance).mean().item(),
        }
        for k in HORIZONS
        if errors[k]
    ]


HORIZONS = (1, 2, 3, 5, 10, 20, 50)
"""Numbers of steps over which the model is measured."""
