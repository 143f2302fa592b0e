r"""A metric in steps: a Euclidean space in which no recorded step is longer than 1, and all else is spread apart.

Wang, Torralba, Isola, Zhang, "Optimal Goal-Reaching Reinforcement Learning via Quasimetric Learning", ICML 2023,
arXiv 2304.01203 (the objective); Bae, Park, Lee, "TLDR: Unsupervised Goal-Conditioned RL via Temporal Distance-Aware
Representations", CoRL 2024, arXiv 2407.08464 (with a Euclidean norm).

| paper | here |
|---|---|
| maximise E_{x, y} -softplus_beta(c - d(x, y)) | ``spread_loss`` |
| subject to E_{(s, s')} max(d(s, s') - 1, 0)^2 <= epsilon^2 | ``violation`` |
| min over psi, max over lambda of the Lagrangian | ``TemporalMetric.losses`` |
| d(x, y) = ||psi(x) - psi(y)|| | ``euclidean_distance`` |
| d(x, y) the interval quasimetric embedding (Wang, Isola 2022, arXiv 2211.15120) | ``interval_distance`` |

At the optimum on deterministic dynamics d is the shortest number of recorded steps, as far as the space can hold it: a
Euclidean one is symmetric, so falling and getting up cost the same. It counts moves, not waiting. Between parts of the data
with no recorded path, d goes to c. There are no rewards, goals, discounts or bootstraps, so there is no target network.

Deviations: lambda starts large and the rate decays, because a small budget ends before a small lambda has grown; each input has
a gate, x w^2 with w = 1 at first, through which irrelevant numbers fade.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, Widths, config
from dynarep.pipeline.measures import Measured, measure_space
from dynarep.pipeline.method import EncoderMethod, Sources, World
from dynarep.pipeline.nn.functional import Losses
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.nn.networks import MLP, Normaliser

if TYPE_CHECKING:
    from dynarep.data.resident import TransitionTable
    from dynarep.data.schema import Episode

Head = Literal["euclidean", "interval"]


@config
class TemporalMetricConfig:
    """Hyper-parameters of the temporal metric."""

    hidden: Widths = (128, 128)
    latent_dim: int = Field(default=32, gt=0)
    """Numbers in a point; with ``interval`` a multiple of ``INTERVALS``."""
    head: Head = "euclidean"
    """``euclidean`` is symmetric and what labels compare in; ``interval`` is directed, for distances alone."""
    horizon: float = Field(default=500.0, gt=0)
    """c: above the longest distance that matters."""
    sharpness: float = Field(default=0.01, gt=0)
    """beta: small enough that the gradient does not vanish near c."""
    tolerance: float = Field(default=0.25, gt=0)
    """epsilon: by how much a step may be longer than 1, root mean square."""
    multiplier: float = Field(default=10.0, gt=0)
    """lambda at the start."""
    multiplier_rate: float = Field(default=3e-2, gt=0)
    learning_rate: float = Field(default=3e-3, gt=0)
    gate: bool = True
    """A learned weight for each number of an observation."""


@config
class MetricArchitecture:
    """Architecture of ``MetricEncoder``."""

    replicas: int
    observation_dim: int
    hidden: tuple[int, ...]
    latent_dim: int
    head: Head = "euclidean"
    gate: bool = True


INTERVALS = 8
"""Intervals in a component of the interval quasimetric."""


def euclidean_distance(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(||x - y||^2 + 1e-6): (..., d), (..., d) -> (...)."""
    return ((x - y).square().sum(-1) + 1e-6).sqrt()


def interval_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean over components of the length of the union of intervals [x_i, max(x_i, y_i)]: (..., d), (..., d) -> (...).

    A quasimetric: d(x, x) = 0 and the triangle inequality hold, symmetry does not.
    """
    x, y = (z.view(*z.shape[:-1], -1, INTERVALS) for z in (x, y))
    start, order = x.sort(-1)
    end = torch.maximum(x, y).gather(-1, order)
    covered = torch.cat([start[..., :1], end.cummax(-1).values[..., :-1]], -1)
    return (end - torch.maximum(start, covered)).clamp(min=0.0).sum(-1).mean(-1)


def spread_loss(distance: Tensor, horizon: float, sharpness: float) -> Tensor:
    """E softplus_beta(c - d): (R, B) -> (R,)."""
    return nn.functional.softplus(horizon - distance, beta=sharpness).mean(-1)


def violation(step: Tensor) -> Tensor:
    """E max(d(s, s') - 1, 0)^2: (R, B) -> (R,)."""
    return (step - 1.0).clamp(min=0.0).square().mean(-1)


@dataclass(frozen=True)
class PairBatch:
    """Transitions, and states to spread apart, all (R, B, obs_dim)."""

    observations: Tensor
    next_observations: Tensor
    others: Tensor


class MetricEncoder(Encoder):
    """psi(s), in which the distance of two states is a number of steps."""

    kind = "temporal_metric"
    Architecture = MetricArchitecture
    in_steps = ("psi",)
    architecture: MetricArchitecture
    normaliser: Normaliser

    def __init__(self, architecture: MetricArchitecture) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.normaliser = Normaliser.identity(a.observation_dim)
        self.gate = nn.Parameter(torch.ones(a.replicas, 1, a.observation_dim)) if a.gate else None
        self.psi = MLP((a.replicas,), (a.observation_dim, *a.hidden, a.latent_dim), layer_norm=True)

    def embed(self, observations: Tensor, actions: Tensor | None = None, space: str | None = None) -> Tensor:
        """Psi of (R or 1, B, obs_dim) for every replica, (R, B, latent_dim)."""
        x = self.normaliser(observations)
        return self.psi(x if self.gate is None else x * self.gate.square())  # type: ignore[no-any-return]

    @property
    def offers(self) -> tuple[str, ...]:
        """Psi where the head is Euclidean; labels have no use for a directed distance."""
        return ("psi",) if self.architecture.head == "euclidean" else ()

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        """Steps from points (..., latent_dim) to points (..., latent_dim): (...)."""
        return euclidean_distance(x, y) if self.architecture.head == "euclidean" else interval_distance(x, y)

    def calibration_of(self, space: str) -> Tensor:
        """One: a squared distance is a squared number of steps."""
        return torch.ones(self.architecture.replicas, device=self.normaliser.mean.device)

    def latent_dim(self) -> int:
        """Numbers in a point."""
        return self.architecture.latent_dim

    def forward(self, observation: Tensor) -> Tensor:
        """Psi of the first replica: (B, obs_dim) -> (B, latent_dim)."""
        return self.embed(observation[None])[0]

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Steps from observations (B, obs_dim) to observations (B, obs_dim): (B,)."""
        return self.between(self(a), self(b))


class TemporalMetric(EncoderMethod):
    """Learner of ``MetricEncoder`` and of the multiplier of its constraint."""

    kind = "temporal_metric"
    Config = TemporalMetricConfig
    shown = ("step", "multiplier")

    def __init__(self, c: TemporalMetricConfig, replicas: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        if c.head == "interval" and c.latent_dim % INTERVALS:
            raise ValueError(
                f"latent_dim: found {c.latent_dim}, expected a multiple of {INTERVALS} with head: interval"
            )
        self.config = c
        self.encoder = MetricEncoder(
            MetricArchitecture(
                replicas=replicas,
                observation_dim=mean.shape[-1],
                hidden=c.hidden,
                latent_dim=c.latent_dim,
                head=c.head,
                gate=c.gate,
            )
        )
        self.encoder.normaliser = Normaliser(mean, std)
        start = torch.tensor(c.multiplier).expm1().log() if c.multiplier < 20 else torch.tensor(c.multiplier)
        self.multiplier = nn.Parameter(start.expand(replicas).clone())

    @classmethod
    def build(cls, c: TemporalMetricConfig, world: World) -> TemporalMetric:
        """For the observations of a world."""
        return cls(c, world.replicas, world.mean, world.std)

    def start_from(self, encoder: MetricEncoder) -> None:  # type: ignore[override]
        """Take normaliser, gate and psi."""
        self.encoder.load_state_dict(encoder.state_dict())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Psi with a rate that decays, the multiplier at its own."""
        c = self.config
        return [
            {"params": list(self.encoder.parameters()), "lr": c.learning_rate, "cosine": True},
            {"params": [self.multiplier], "lr": c.multiplier_rate},
        ]

    def batch(self, sources: Sources, generator: torch.Generator) -> PairBatch:
        """Uniform transitions and uniform states."""
        table = sources.table("dataset")
        b = sources.draw("dataset", generator)
        return PairBatch(
            b.observations, b.next_observations, table.observations_at(sources.rows(len(table), generator))
        )

    def losses(self, batch: PairBatch) -> Losses:
        """The Lagrangian, descended by psi and ascended by lambda."""
        c = self.config
        states = torch.cat([batch.observations, batch.next_observations, batch.others], 1)
        s, following, others = self.encoder.embed(states).chunk(3, 1)
        step, far = self.encoder.between(s, following), self.encoder.between(s, others)
        excess = violation(step) - c.tolerance**2
        weight = nn.functional.softplus(self.multiplier)
        loss = spread_loss(far, c.horizon, c.sharpness) + weight.detach() * excess - weight * excess.detach()
        return Losses(
            loss,
            {
                "step": step.detach().mean(-1),
                "violation": violation(step.detach()),
                "multiplier": weight.detach(),
                "spread": far.detach().mean(-1),
            },
        )

    def export(self) -> MetricEncoder:
        """Psi of every replica."""
        return self.encoder

    @classmethod
    def measure(
        cls,
        c: TemporalMetricConfig,
        encoder: MetricEncoder,  # type: ignore[override]
        held_out: list[Episode],
        table: TransitionTable,
        whole: TransitionTable,
        episodes: Iterable[Episode],
    ) -> Measured:
        """Also the length of single steps, and of k steps, on held-out episodes."""
        measured = measure_space(encoder, held_out, episodes)
        measured.metrics["steps"] = steps_over_time(encoder, held_out)
        return measured


@torch.no_grad()
def steps_over_time(encoder: MetricEncoder, episodes: list[Episode]) -> dict[str, float]:
    """Mean distance of states k steps apart, by k, and the 90 % quantile of single steps; NaN where no episode is so long."""
    points = [encoder.embed(torch.from_numpy(episode.current)[None]) for episode in episodes]
    found: dict[str, float] = {}
    for k in (1, 2, 5, 10, 20, 50, 100):
        apart = [encoder.between(x[:, :-k], x[:, k:]).flatten().numpy() for x in points if x.shape[1] > k]
        if apart:
            found[str(k)] = float(np.concatenate(apart).mean())
            if k == 1:
                found["1_q90"] = float(np.quantile(np.concatenate(apart), 0.9))
    return found
