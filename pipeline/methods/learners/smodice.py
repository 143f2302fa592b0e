r"""SMODICE and DemoDICE: offline imitation by cloning arbitrary data with the weights of the best occupancy in them.

Ma, Shen, Jayaraman, Bastani, "Versatile Offline Imitation from Observations and Examples via Regularized State-Occupancy
Matching", ICML 2022, arXiv 2202.02433 (SMODICE); Kim, Seo, Lee, Jeon, Hwang, Yang, Kim, "DemoDICE: Offline Imitation
Learning with Supplementary Imperfect Demonstrations", ICLR 2022 (DemoDICE).

Both look for the occupancy d that maximises E_d[R] - (1 + alpha) D_f(d || d^O) among those of policies, where d^O is the
occupancy of the data and R = log d^E / d^O. SMODICE has alpha = 0 and R of states, and bounds -KL(d^pi || d^E) of states
from below; DemoDICE has R of state-action pairs and the KL divergence, which gives
-KL(d^pi || d^E) - alpha KL(d^pi || d^O).

| paper | here |
|---|---|
| R = log d^E / d^O = logit of the discriminator of expert and data | ``discriminator_loss``, ``Discriminator`` |
| min_V (1 - gamma) E V(s0) + (1 + alpha) E_{d^O} f^*(e / (1 + alpha)), e = R + gamma E V(s') - V(s) | ``dual_loss`` |
| the same for KL, (1 + alpha) log E_{d^O} exp(e / (1 + alpha)) | ``dual_loss`` |
| d / d^O = f^*'(e / (1 + alpha)) at the optimum | ``density_ratio`` |
| policy: -E_{d^O} (d / d^O) log pi(a|s) | ``cloning.Cloning`` on transitions drawn in proportion to d / d^O |

In the dynamics representation, P(s'|s, a) = phi(s, a)^T mu(s') p_n(s'), R is a function of phi(s, a) and, for every V,
E V(s') = phi(s, a)^T omega with omega = E_{p_n} mu V (Ma, Dai, Ren, Wang, Li 2025, arXiv 2508.14383; ``Discriminator``,
``OccupancyValue.omega``). This is the expectation inside of f^*; one sampled s' overestimates E f^*. Its use here is our
own.

Deviations: the three parts are trained one after the other (SMODICE trains V and policy together, DemoDICE all three),
and the policy draws its batches in proportion to the weights of all data, in place of weighing uniform batches.
``noise`` smooths both distributions before the discriminator compares them, because a few expert transitions and much
data are told apart perfectly otherwise; published is the gradient penalty alone. ``initial: data`` takes all states of
the data as initial ones. Weights are bounded. f^* of the chi-square divergence is the conjugate on d >= 0, constant
below -1. ReLU networks, and the actor of ``bc`` (no entropy term). Terminal states are not masked; ``absorbing`` leads
to an absorbing state in their place.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, Widths, config
from dynarep.data.resident import Batch, TransitionTable
from dynarep.pipeline.cloning import Cloning
from dynarep.pipeline.factorisation import Factorisation
from dynarep.pipeline.method import Needs, Phase, Sources, World
from dynarep.pipeline.methods.policies.deterministic import Policy
from dynarep.pipeline.nn.functional import Losses, gradient_penalty, log_mean_exp
from dynarep.pipeline.nn.networks import MLP, ActionScale, Normaliser
from dynarep.pipeline.training.config import TrainingConfig

Divergence = Literal["kl", "chi_square"]


@config
class SMODICEConfig:
    """Hyper-parameters; the defaults are SMODICE's, but for the bound on the weights."""

    hidden: Widths = (256, 256)
    """Of all three networks."""
    observe: Literal["states", "state_actions"] = "states"
    """What the discriminator compares: ``states`` (SMODICE) needs no expert actions, ``state_actions`` is DemoDICE."""
    divergence: Divergence = "kl"
    alpha: float = Field(default=0.0, ge=0)
    """Weight of a further D_f(d || d^O), which keeps the policy closer to the data."""
    gamma: float = Field(default=0.99, gt=0, lt=1)
    initial: Literal["episodes", "data"] = "episodes"
    """Whether initial states are the first ones of episodes or all states of the data."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Of discriminator and policy."""
    value_rate: float = Field(default=3e-4, gt=0)
    gradient_penalty: float = Field(default=10.0, ge=0)
    """Of the discriminator, on mixtures of expert and data; 0 leaves it out."""
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of Gaussian noise on the standardised observations and the actions the discriminator learns from."""
    max_weight: float = Field(default=100.0, gt=1)
    """Largest weight of a transition, in units of the mean weight."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the actor's hidden activations."""
    absorbing: bool = False
    """Lead terminated episodes into an absorbing state; an encoder must have been trained so, too."""
    discriminator: TrainingConfig = TrainingConfig(updates=800)
    """Training of the discriminator. A longer one separates a few expert transitions from the data ever further."""
    value: TrainingConfig = TrainingConfig(updates=2000)
    """Training of V."""

    def __post_init__(self) -> None:
        for name in ("discriminator", "value"):
            if getattr(self, name).snapshots > 1:
                raise ValueError(f"{name}.snapshots: found {getattr(self, name).snapshots}, expected 1")


NOISE = 4
"""States from p_n per transition of a batch of V's training with the dynamics representation."""


@dataclass(frozen=True)
class Comparison:
    """Pairs of expert and data, (R, B, ...); actions may be empty where states are compared."""

    expert_observations: Tensor
    expert_actions: Tensor
    observations: Tensor
    actions: Tensor


@dataclass(frozen=True)
class RatedBatch:
    """Transitions of the data with R, all (R, B, ...), and states."""

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    log_ratio: Tensor
    """R = log d^E / d^O, (R, B)."""
    initial_observations: Tensor
    noise: Tensor
    """States from p_n, (R, N, obs_dim), read with the dynamics representation only."""


def discriminator_loss(expert: Tensor, data: Tensor) -> Tensor:
    """-E_{d^E} log sigmoid(h) - E_{d^O} log(1 - sigmoid(h)), least at h = log d^E / d^O: (R, B), (R, B') -> (R,)."""
    return nn.functional.softplus(-expert).mean(-1) + nn.functional.softplus(data).mean(-1)


def dual_loss(initial: Tensor, e: Tensor, gamma: float, divergence: Divergence, alpha: float = 0.0) -> Tensor:
    """The dual of max_d E_d[R] - (1 + alpha) D_f(d || d^O), whose value it has at its least.

    chi_square is f(x) = (x - 1)^2 / 2, with f^*(y) = (max(y, -1) + 1)^2 / 2 - 1/2; with kl the constraint that d sums to 1
    is kept, which turns E f^* into a log E exp.

    Args:
        initial: V(s0), (R, B).
        e: R + gamma E V(s') - V(s) on the data, (R, B').
        gamma: discount.
        divergence: f.
        alpha: see ``SMODICEConfig``.

    Returns:
        (R,).
    """
    y = e / (1.0 + alpha)
    conjugate = log_mean_exp(y) if divergence == "kl" else ((y + 1.0).clamp(min=0.0).square() * 0.5 - 0.5).mean(-1)
    return (1.0 - gamma) * initial.mean(-1) + (1.0 + alpha) * conjugate


def density_ratio(e: Tensor, divergence: Divergence, alpha: float = 0.0) -> Tensor:
    """Weights d / d^O = f^*'(e / (1 + alpha)) of the data, with kl normalised to a mean of 1: (R, B) -> (R, B)."""
    y = e / (1.0 + alpha)
    return torch.softmax(y, -1) * y.shape[-1] if divergence == "kl" else (y + 1.0).clamp(min=0.0)


def effective_share(weight: Tensor) -> Tensor:
    """(E w)^2 / E w^2, 1 where all weights (R, N) are equal: (R,)."""
    return weight.mean(-1).square() / weight.square().mean(-1).clamp(min=1e-12)


class Discriminator(nn.Module):
    """Learner of R = log d^E / d^O: a perceptron on (s), (s, a) or, with an encoder, on phi(s, a) scaled by LayerNorm."""

    def __init__(
        self,
        c: SMODICEConfig,
        replicas: int,
        observation_mean: Tensor,
        observation_std: Tensor,
        action_dim: int,
        encoder: Factorisation | None = None,
        scale: ActionScale | None = None,
    ) -> None:
        super().__init__()
        self.config = c
        self.scale = scale
        self.normaliser = Normaliser(observation_mean, observation_std)
        self.encoder = None if encoder is None else deepcopy(encoder).requires_grad_(False)
        if encoder is not None:
            inputs = encoder.architecture.feature_dim
        else:
            inputs = observation_mean.shape[-1] + (action_dim if c.observe == "state_actions" else 0)
        self.network = MLP((replicas,), (inputs, *c.hidden, 1))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The perceptron at a constant rate."""
        return [{"params": list(self.network.parameters()), "lr": self.config.learning_rate}]

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """R of (R or 1, B, obs_dim), (R or 1, B, act_dim): (R, B)."""
        return self._logit(self.normaliser(observations), self._compared(actions))

    def _compared(self, actions: Tensor) -> Tensor:
        if self.config.observe == "states":
            return actions[..., :0]
        return actions if self.scale is None else self.scale(actions)

    def _logit(self, x: Tensor, actions: Tensor) -> Tensor:
        """At standardised observations x, and actions in [-1, 1]."""
        if self.encoder is None:
            features = torch.cat([x, actions], -1)
        else:
            observations = x * (self.normaliser.std + 1e-3) + self.normaliser.mean
            features = self.encoder.phi(observations, actions if self.scale is None else self.scale.inverse(actions))
            features = nn.functional.layer_norm(features, features.shape[-1:])
        return self.network(features).squeeze(-1)  # type: ignore[no-any-return]

    def losses(self, batch: Comparison) -> Losses:
        """Cross entropy on noisy pairs + gradient penalty."""
        c = self.config
        x_expert, x = self.normaliser(batch.expert_observations), self.normaliser(batch.observations)
        a_expert, a = self._compared(batch.expert_actions), self._compared(batch.actions)
        if c.noise:
            x_expert, a_expert, x, a = (y + c.noise * torch.randn_like(y) for y in (x_expert, a_expert, x, a))
        expert, data = self._logit(x_expert, a_expert), self._logit(x, a)
        loss = cross_entropy = discriminator_loss(expert, data)
        if c.gradient_penalty:
            u = torch.rand(*x.shape[:2], 1, device=x.device)
            penalty = gradient_penalty(self._logit, torch.lerp(x_expert, x, u), torch.lerp(a_expert, a, u))
            loss = cross_entropy + c.gradient_penalty * penalty
        return Losses(
            loss,
            {
                "cross_entropy": cross_entropy.detach(),
                "expert_log_ratio": expert.detach().mean(-1),
                "data_log_ratio": data.detach().mean(-1),
            },
        )

    def after_update(self) -> None:
        """Nothing follows an update."""

    def export(self) -> Discriminator:
        """Itself."""
        return self


class OccupancyValue(nn.Module):
    """Learner of V, the dual variable of the flow of d."""

    def __init__(
        self,
        c: SMODICEConfig,
        replicas: int,
        observation_mean: Tensor,
        observation_std: Tensor,
        encoder: Factorisation | None = None,
    ) -> None:
        super().__init__()
        self.config = c
        self.normaliser = Normaliser(observation_mean, observation_std)
        self.encoder = None if encoder is None else deepcopy(encoder).requires_grad_(False)
        self.network = MLP((replicas,), (observation_mean.shape[-1], *c.hidden, 1))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """V at a constant rate."""
        return [{"params": list(self.network.parameters()), "lr": self.config.value_rate}]

    def forward(self, observations: Tensor) -> Tensor:
        """V of (R or 1, B, obs_dim): (R, B)."""
        return self.network(self.normaliser(observations)).squeeze(-1)  # type: ignore[no-any-return]

    def omega(self, noise: Tensor) -> Tensor:
        """E_{p_n} mu(s) V(s) over states (R or 1, N, obs_dim) from p_n: (R, k, 1)."""
        assert self.encoder is not None
        omega: Tensor = self.encoder.mu(noise).mT @ self(noise).unsqueeze(-1) / noise.shape[-2]
        return omega

    def advantage(self, batch: RatedBatch, omega: Tensor | None = None) -> Tensor:
        """R + gamma E V(s') - V(s), with V of the sampled s', or phi^T omega where there is an encoder: (R, B)."""
        if self.encoder is None:
            following = self(batch.next_observations)
        else:
            omega = self.omega(batch.noise) if omega is None else omega
            following = (self.encoder.phi(batch.observations, batch.actions) @ omega).squeeze(-1)
        e: Tensor = batch.log_ratio + self.config.gamma * following - self(batch.observations)
        return e

    def losses(self, batch: RatedBatch) -> Losses:
        """The dual."""
        c = self.config
        e = self.advantage(batch)
        initial = self(batch.observations if c.initial == "data" else batch.initial_observations)
        dual = dual_loss(initial, e, c.gamma, c.divergence, c.alpha)
        weight = density_ratio(e.detach(), c.divergence, c.alpha)
        return Losses(
            dual,
            {
                "dual": dual.detach(),
                "value": initial.detach().mean(-1),
                "effective_share": effective_share(weight),
            },
        )

    def after_update(self) -> None:
        """Nothing follows an update: the dual needs no target network."""

    def export(self) -> OccupancyValue:
        """Itself."""
        return self


def cloning_weights(e: Tensor, c: SMODICEConfig) -> Tensor:
    """Weights d / d^O of all data, bounded: min(d / d^O, b) with the b that is ``max_weight`` times their mean.

    Without the bound a single transition on which V jumps can outweigh all others.

    Args:
        e: of all data, (R, N).
        c: divergence, alpha and bound.

    Returns:
        (R, N), in units of their mean.

    Raises:
        ValueError: if a replica's weights are all zero, which the chi-square divergence allows.
    """
    # At most N / max_weight transitions can be at the bound; what lies far above the next one would only underflow it.
    next_largest = e.topk(min(int(e.shape[-1] / c.max_weight) + 1, e.shape[-1]), -1).values[..., -1:]
    weight = density_ratio(e.double().minimum(next_largest + 40.0 * (1.0 + c.alpha)), c.divergence, c.alpha)
    for _ in range(100):  # each round lowers the bound towards the fixed point
        weight = weight.minimum(c.max_weight * weight.mean(-1, keepdim=True))
    mean = weight.mean(-1, keepdim=True)
    if not (mean > 0).all():
        raise ValueError("all weights of a replica are zero; train V for longer, or use divergence: kl")
    return (weight / mean).float()


class SMODICE(Cloning):
    """Trains the discriminator, then V, then the policy on transitions drawn in proportion to the weights.

    With an encoder, discriminator and V read the dynamics representation.
    """

    kind = "smodice"
    Config = SMODICEConfig

    def __init__(self, c: SMODICEConfig, world: World) -> None:
        super().__init__(c, Policy.build(replace(world, encoder=None), c.hidden))  # type: ignore[arg-type]
        encoder: Any = world.encoder
        if encoder is not None and c.observe == "states":
            raise ValueError("observe: found states, expected state_actions; with an encoder phi(s, a) is compared")
        scale = ActionScale(world.action_low, world.action_high)
        form = world.replicas, world.mean, world.std
        self.discriminator = (Discriminator(c, *form, world.action_dim, encoder, scale),)
        self.value = (OccupancyValue(c, *form, encoder),)
        self.factorised = encoder is not None

    @classmethod
    def build(cls, c: SMODICEConfig, world: World) -> SMODICE:
        """For a world, with or without an encoder."""
        return cls(c, world)

    @classmethod
    def needs(cls, c: SMODICEConfig) -> Needs:
        """Actions of the dataset, and those of the demonstrations where they are compared."""
        actions = ("dataset",) if c.observe == "states" else ("dataset", "demonstrations")
        absorbing = "discounted" if c.absorbing else None
        return Needs(actions, encoder=("phi", "mu"), optional_encoder=True, absorbing=absorbing, gamma=c.gamma)

    @classmethod
    def saw(cls, c: SMODICEConfig, expert: str, data: str, rewards: str | None) -> dict[str, str]:
        """Both; the expert's actions only where they are compared."""
        shown = (
            expert if c.observe == "state_actions" else expert.replace("observations and actions", "observations only")
        )
        return {"expert": shown, "other": f"{data} without rewards"}

    def phases(self) -> list[Phase]:
        """Discriminator, V, policy."""
        (discriminator,), (value,), c = self.discriminator, self.value, self.config
        compared, dual = ("expert_log_ratio", "data_log_ratio"), ("dual", "effective_share")
        return [
            Phase(discriminator, self.compare, c.discriminator, "discriminator", compared, self.rate),
            Phase(value, self.rated, c.value, "value", dual, self.weigh),
            *super().phases(),
        ]

    def compare(self, sources: Sources, generator: torch.Generator) -> Comparison:
        """Pairs of expert and data."""
        shown, seen = sources.draw("demonstrations", generator), sources.draw("dataset", generator)
        return Comparison(shown.observations, shown.actions, seen.observations, seen.actions)

    @torch.no_grad()
    def rate(self, sources: Sources) -> None:
        """R of all transitions of the data, (R, N)."""
        (discriminator,), data = self.discriminator, sources.table("dataset")
        batches = (data.gather(rows) for rows in data.blocks(len(self.log_std)))
        self.log_ratio = torch.cat([discriminator(b.observations, b.actions) for b in batches], 1)

    def rated(self, sources: Sources, generator: torch.Generator) -> RatedBatch:
        """Transitions with R, initial states, and with an encoder states from p_n."""
        data = sources.table("dataset")
        start = data.initial[sources.rows(len(data.initial), generator)]
        rows = sources.rows(len(data), generator)
        noise = start
        if self.factorised:
            noise = data.gather(sources.rows(len(data), generator, NOISE)).next_observations
        return self.with_ratio(data, rows, start, noise)

    def with_ratio(self, data: TransitionTable, rows: Tensor, initial: Tensor, noise: Tensor) -> RatedBatch:
        """Transitions with R."""
        b = data.gather(rows)
        ratio = self.log_ratio.gather(1, rows)
        return RatedBatch(b.observations, b.actions, b.next_observations, ratio, initial, noise)

    @torch.no_grad()
    def weigh(self, sources: Sources) -> None:
        """The weight of every transition of the data, (R, N) with a mean of at most 1."""
        (value,), data = self.value, sources.table("dataset")
        omega = None
        if self.factorised:
            parts = [
                value.omega(data.gather(rows).next_observations) * rows.shape[1]
                for rows in data.blocks(len(self.log_std))
            ]
            omega = torch.stack(parts).sum(0) / len(data)
        none = data.initial[:0].expand(len(self.log_std), -1, -1)
        e = [value.advantage(self.with_ratio(data, rows, none, none), omega) for rows in data.blocks(len(self.log_std))]
        self.weights = cloning_weights(torch.cat(e, 1), self.config)
        self.cumulative = self.weights.double().cumsum(1)

    def batch(self, sources: Sources, generator: torch.Generator) -> Batch:
        """Transitions of the data in proportion to their weights."""
        data, c = sources.table("dataset"), self.cumulative
        shape = (sources.replicas, sources.batch_size)
        u = torch.rand(shape, generator=generator, device=c.device, dtype=torch.float64) * c[:, -1:]
        return data.gather(torch.searchsorted(c, u, right=True).clamp(max=len(data) - 1))

    def facts(self) -> dict[str, Any]:
        """The effective share of the data that is cloned."""
        return {"effective_share": effective_share(self.weights).tolist()}
