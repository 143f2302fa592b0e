r"""What follows from a factorised transition kernel, P(s'|s, a) = <phi(s, a), mu(s')> p_n(s'), whoever learned it.

Ma, Dai, Ren, Wang, Li, "Offline Imitation Learning upon Arbitrary Demonstrations by Pre-Training Dynamics
Representations", 2025, arXiv 2508.14383: the occupancy of a policy is linear in mu, with weights theta = gamma E_{d^pi} phi.

A kind of encoder that factorises makes a ``Factorisation`` by a ``FactorisationMethod``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from dynarep.pipeline.measures import Measured, action_resolution
from dynarep.pipeline.method import EncoderMethod, Needs, World
from dynarep.pipeline.nn.functional import effective_rank
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.nn.networks import ActionScale, Normaliser

if TYPE_CHECKING:
    from dynarep.data.resident import TransitionTable
    from dynarep.data.schema import Episode

NoiseStates = Literal["current", "next"]
"""p_n, uniform over the states of a dataset: those before, or those after its transitions."""


class Factorisation(Encoder):
    """phi(s, a) and mu(s') with P(s'|s, a) = <phi(s, a), mu(s')> p_n(s').

    With ``absorbing`` it reads observations with the absorbing bit appended; a missing bit is taken as 0. Actions are
    mapped from their bounds to [-1, 1].

    Args:
        architecture: with ``replicas``, ``observation_dim``, ``action_dim``, ``feature_dim``, ``absorbing`` and the bounds
            ``action_low`` and ``action_high``, or None.
    """

    spaces = ("phi", "mu")
    reads_actions = ("phi",)
    normaliser: Normaliser

    def __init__(self, architecture: Any) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.normaliser = Normaliser.identity(a.observation_dim + a.absorbing)
        self.actions = None
        if a.action_low is not None and a.action_high is not None:
            self.actions = ActionScale(a.action_low, a.action_high)

    @abstractmethod
    def phi(self, observations: Tensor, actions: Tensor) -> Tensor:
        """phi(s, a): (R or 1, B, obs_dim), (R or 1, B, act_dim) -> (R, B, k)."""

    @abstractmethod
    def mu(self, observations: Tensor) -> Tensor:
        """mu(s'): (R or 1, B, obs_dim) -> (R, B, k)."""

    def with_bit(self, observations: Tensor) -> Tensor:
        """Observations as the normaliser reads them: (..., obs_dim), with the absorbing bit appended if there is one."""
        if self.architecture.absorbing and observations.shape[-1] == self.architecture.observation_dim:
            observations = nn.functional.pad(observations, (0, 1))
        return observations

    def standardised(self, observations: Tensor) -> Tensor:
        """What the networks read of observations."""
        return self.normaliser(self.with_bit(observations))  # type: ignore[no-any-return]

    def pairs(self, observations: Tensor, actions: Tensor) -> Tensor:
        """What the networks read of observations and actions, side by side."""
        unit = actions if self.actions is None else self.actions(actions)
        return torch.cat([self.standardised(observations), unit], -1)

    def embed(self, observations: Tensor, actions: Tensor | None = None, space: str | None = None) -> Tensor:
        """phi(s, a), or mu(s) in the space ``mu``: (R, B, feature_dim)."""
        if space == "mu":
            return self.mu(observations)
        assert actions is not None, "phi reads actions"
        return self.phi(observations, actions)

    def latent_dim(self) -> int:
        """Width of phi."""
        return int(self.architecture.feature_dim)

    def inputs(self) -> tuple[Tensor, ...]:
        """Two rows of observations and actions."""
        return *super().inputs(), torch.zeros(2, self.architecture.action_dim)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Phi of the first replica: (B, obs_dim), (B, act_dim) -> (B, feature_dim)."""
        return self.phi(observation[None], action[None])[0]

    def ratio(self, observation: Tensor, action: Tensor, next_observation: Tensor) -> Tensor:
        """P(s'|s, a) / p_n(s') of the first replica for B triples: (B,)."""
        return (self(observation, action) * self.mu(next_observation[None])[0]).sum(-1)  # type: ignore[no-any-return]


class FactorisationMethod(EncoderMethod):
    """Learner of a ``Factorisation``, whose configuration has ``hidden``, ``feature_dim``, ``noise`` and ``absorbing``.

    Args:
        c: hyper-parameters.
        replicas: R.
        observation_mean: of the data, with the absorbing bit if there is one.
        observation_std: likewise.
        action_dim: numbers in an action.
        absorbing: whether observations have the bit.
        action_low: bounds of actions; None: they are read as they are.
        action_high: likewise.
    """

    encoder: Factorisation

    def __init__(
        self,
        c: Any,
        replicas: int,
        observation_mean: Tensor,
        observation_std: Tensor,
        action_dim: int,
        *,
        absorbing: bool = False,
        action_low: tuple[float, ...] | None = None,
        action_high: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.config = c
        self.encoder = self.model(
            c,
            replicas=replicas,
            observation_dim=observation_mean.shape[-1] - absorbing,
            action_dim=action_dim,
            hidden=c.hidden,
            feature_dim=c.feature_dim,
            absorbing=absorbing,
            action_low=action_low,
            action_high=action_high,
        )
        self.encoder.normaliser = Normaliser(observation_mean, observation_std)

    @classmethod
    @abstractmethod
    def model(cls, c: Any, **sizes: Any) -> Factorisation:
        """An untrained encoder, for all fields of the architecture that kinds share."""

    @classmethod
    def needs(cls, c: Any) -> Needs:
        """Actions, and absorbing states where they are asked for."""
        return Needs(actions=("dataset",), absorbing="steps" if c.absorbing else None)

    @classmethod
    def build(cls, c: Any, world: World) -> Self:
        """For the observations and actions of a world."""
        bounds = {"action_low": world.action_low, "action_high": world.action_high}
        return cls(c, world.replicas, world.mean, world.std, world.action_dim, absorbing=world.absorbing, **bounds)

    def start_from(self, encoder: Encoder) -> None:
        """Take all that an encoder of the same architecture holds."""
        self.encoder.load_state_dict(encoder.state_dict())

    def after_update(self) -> None:
        """Nothing follows an update."""

    def export(self) -> Factorisation:
        """Phi and mu of every replica."""
        return self.encoder

    @classmethod
    def check_held_out(cls, held_out: list[Episode]) -> None:
        """Every transition can be measured on."""

    @classmethod
    def measure(
        cls,
        c: Any,
        encoder: Factorisation,  # type: ignore[override]
        held_out: list[Episode],
        table: TransitionTable,
        whole: TransitionTable,
        episodes: Iterable[Episode],
    ) -> Measured:
        """Quality of the factorisation on held-out transitions and on those that were trained on."""
        noise = noise_states(whole, c.noise).cpu()
        kept = type(table).from_episodes(held_out)
        a = encoder.architecture

        def ratio(observations: Tensor, actions: Tensor, following: Tensor) -> Tensor:
            return (encoder.phi(observations, actions) * encoder.mu(following)).sum(-1)

        return Measured(
            {
                "held_out": measure(encoder, kept, noise),
                "train": measure(encoder, table, noise),
                "action_resolution": action_resolution(ratio, kept, a.action_low, a.action_high),
            }
        )


def noise_states(table: TransitionTable, which: NoiseStates) -> Tensor:
    """The states (N, obs_dim) over which p_n is uniform."""
    return table.next_observations if which == "next" else table.observations


def expert_weights(phi: Tensor, gamma: float) -> Tensor:
    """theta_E = gamma E phi over the demonstrated pairs: (R, N, k) -> (R, k)."""
    return gamma * phi.mean(1)


def occupancy_reward(mu_next: Tensor, weights: Tensor, gamma: float, scale: float) -> Tensor:
    """Log ratio above its floor, alpha log((max(mu^T theta_E, 0) + 1 - gamma) / (1 - gamma)).

    Args:
        mu_next: mu of the states that follow, (R, T, k).
        weights: theta_E, (R, k).
        gamma: discount.
        scale: alpha.

    Returns:
        (R, T), at least 0.
    """
    ratio = torch.bmm(mu_next, weights.unsqueeze(-1)).squeeze(-1).clamp(min=0.0)
    return scale * torch.log1p(ratio / (1.0 - gamma))


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


@torch.no_grad()
def measure(encoder: Factorisation, table: TransitionTable, noise: Tensor, *, limit: int = 4096) -> dict[str, float]:
    """Quality of a factorisation on transitions, mean over replicas.

    Returns:
        ``normalisation``, E_{p_n} phi^T mu, 1 for a true ratio; ``positive_ratio``, E phi^T mu(s') over transitions;
        ``retrieval_accuracy`` of the true next state among 255 others, and ``retrieval_chance``; ``effective_rank`` of
        phi over the transitions, at most feature_dim.
    """
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(len(table), generator=generator)[:limit]
    noise = noise[torch.randperm(len(noise), generator=generator)[:limit]]
    batch = table.gather(index[None].to(table.packed.device))
    phi = encoder.phi(batch.observations.cpu(), batch.actions.cpu())
    mu_next = encoder.mu(batch.next_observations.cpu())
    negatives = min(255, len(index) - 1)
    return {
        "normalisation": (phi.mean(1) * encoder.mu(noise[None]).mean(1)).sum(-1).mean().item(),
        "positive_ratio": (phi * mu_next).sum(-1).mean().item(),
        "retrieval_accuracy": retrieval_accuracy(phi, mu_next, negatives).mean().item(),
        "retrieval_chance": 1.0 / (negatives + 1),
        "effective_rank": effective_rank(phi).mean().item(),
    }
