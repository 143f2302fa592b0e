"""Intention-conditioned value functions: what psi(s) is learned by.

Ghosh, Bhateja, Levine, "Reinforcement Learning from Passive Data via Latent Intentions", 2023, arXiv 2304.04782.

| paper | here |
|---|---|
| V(s, g, z) = phi(s)^T T(z) psi(g), multilinear (section 4.2) | ``MultilinearValue`` |
| advantage of the intent, A = r_z + gamma V(s', z, z) - V(s, z, z) (section 4.1) | ``intent_advantage`` |
| expectile loss weighted by the sign of A (eq. 6) | ``icvf_loss`` |
| mixture of random, trajectory and current goals (appendix) | ``dynarep.data.sampling.goal_and_intent`` |

A goal is a state of the data and is reached where the indices agree: reward -1 and discount gamma before, 0 and 0 there. With
``final_goals`` the state that an episode ends in can be one. No transition begins in it, so the step that leads there has reward
-1 and discount 0, which is the same value.

The encoder keeps psi, and phi, T and the branches of the first member, so that V can be asked for.

Deviations: observations are standardised by default (``normalise: false`` feeds them raw, as published); targets move
after the gradient step. ``variant: ailot`` has the networks of AILOT (Bobrin et al. 2024): GELU on the outputs and
LayerNorm on both branches; its published depth is ``hidden: [256, 256]``.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, Widths, config
from dynarep.data.sampling import goal_and_intent, lies_ahead
from dynarep.pipeline.measures import Measured, measure_space
from dynarep.pipeline.method import EncoderMethod, Sources, World
from dynarep.pipeline.nn.functional import Losses, expectile_loss, polyak
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.nn.networks import MLP, Normaliser, StackedLinear

if TYPE_CHECKING:
    from dynarep.data.resident import TransitionTable
    from dynarep.data.schema import Episode

Variant = Literal["icvf", "ailot"]

KINDS = ("random", "future", "current")
"""Intents by where their goal lies: elsewhere, later in the episode, or at the state itself."""


@config
class ICVFConfig:
    """Hyper-parameters of ICVF; the defaults are the published ones, for a million updates.

    With some thousand updates use ``learning_rate: 1.0e-3`` and ``target_rate: 0.02``.
    """

    variant: Variant = "icvf"
    hidden: Widths = (256,)
    """Widths before the output of phi, psi and T; AILOT's variant is published with (256, 256)."""
    latent_dim: int = Field(default=256, gt=0)
    """Width of phi, psi and T's outputs."""
    normalise: bool = True
    gamma: float = Field(default=0.99, gt=0, lt=1)
    expectile: float = Field(default=0.9, gt=0, lt=1)
    target_rate: float = Field(default=0.005, gt=0, le=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    p_random: float = Field(default=0.3, ge=0, le=1)
    p_trajectory: float = Field(default=0.5, ge=0, le=1)
    p_current: float = Field(default=0.2, ge=0, le=1)
    p_same: float = Field(default=0.5, ge=0, le=1)
    """Probability that the outcome is the intent's own goal."""
    final_goals: bool = False
    """Let the states that episodes end in be goals, too."""


@config
class IntentArchitecture:
    """Architecture of ``IntentEncoder``."""

    replicas: int
    observation_dim: int
    hidden: tuple[int, ...]
    latent_dim: int
    variant: Variant = "icvf"
    gamma: float | None = None
    """Discount of V; None where the encoder keeps psi alone, as older ones do."""


def value_parts(
    stack: tuple[int, ...], observation_dim: int, hidden: tuple[int, ...], latent_dim: int, variant: Variant
) -> dict[str, nn.Module]:
    """The networks of V, by the names that ``Multilinear`` gives them."""

    def network(inputs: int) -> MLP:
        final = "relu" if variant == "icvf" else "gelu"
        return MLP(stack, (inputs, *hidden, latent_dim), final_activation=final, init="xavier_uniform")

    def branch() -> StackedLinear:
        return StackedLinear(stack, latent_dim, latent_dim, init="xavier_uniform")

    return {
        "phi": network(observation_dim),
        "psi": network(observation_dim),
        "modulation": network(latent_dim),
        "state_branch": branch(),
        "outcome_branch": branch(),
    }


class Multilinear:
    """V(s, g, z) = <A (T(z) * phi(s)), B (T(z) * psi(g))>, with T reading psi(z), of networks with any stack in front.

    ``layer_norm`` says whether both factors have LayerNorm, as in AILOT's networks.
    """

    phi: nn.Module
    psi: nn.Module
    modulation: nn.Module
    state_branch: nn.Module
    outcome_branch: nn.Module
    layer_norm: bool

    def state_factor(self, phi: Tensor, t: Tensor) -> Tensor:
        """A (T(z) * phi(s)) from phi(s) and T(z), all (*stack, B, latent)."""
        a: Tensor = self.state_branch(t * phi)
        return nn.functional.layer_norm(a, a.shape[-1:]) if self.layer_norm else a

    def outcome_factor(self, psi: Tensor, t: Tensor) -> Tensor:
        """B (T(z) * psi(g)) from psi(g) and T(z), all (*stack, B, latent)."""
        b: Tensor = self.outcome_branch(t * psi)
        return nn.functional.layer_norm(b, b.shape[-1:]) if self.layer_norm else b

    def product(self, phi: Tensor, psi: Tensor, t: Tensor) -> Tensor:
        """V (*stack, B) from phi(s), psi(g) and T(z), each (*stack, B, latent)."""
        return (self.state_factor(phi, t) * self.outcome_factor(psi, t)).sum(-1)

    def of_standardised(self, s: Tensor, g: Tensor, z: Tensor) -> Tensor:
        """V (*stack, B) of standardised states with the stack, or ones, in front."""
        return self.product(self.phi(s), self.psi(g), self.modulation(self.psi(z)))


class IntentEncoder(Encoder, Multilinear):
    """psi(s) of an intention-conditioned value function (Ghosh et al. 2023), calibrated in environment steps, and that function.

    ``calibration`` (R,) makes ``calibration * ||psi(s_{t+1}) - psi(s_t)||^2`` one on average over the pretraining data.
    The network ends in ReLU (``icvf``) or GELU (``ailot``).
    """

    kind = "icvf"
    Architecture = IntentArchitecture
    spaces = ("psi",)
    free = ("gamma",)
    architecture: IntentArchitecture
    calibration: Tensor

    def __init__(self, architecture: IntentArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        a = architecture
        self.normaliser = Normaliser.identity(a.observation_dim)
        self.layer_norm = a.variant == "ailot"
        for name, part in value_parts((a.replicas,), a.observation_dim, a.hidden, a.latent_dim, a.variant).items():
            if name == "psi" or a.gamma is not None:
                self.add_module(name, part)
        self.register_buffer("calibration", torch.ones(a.replicas))

    def embed(self, observations: Tensor, actions: Tensor | None = None, space: str | None = None) -> Tensor:
        """Psi of (R or 1, B, obs_dim) for every replica, (R, B, latent_dim)."""
        return self.psi(self.normaliser(observations))  # type: ignore[no-any-return]

    def value(self, observations: Tensor, outcomes: Tensor, intents: Tensor) -> Tensor:
        """V(s, g, z) of (R or 1, B, obs_dim) each, for every replica: (R, B).

        k steps before a goal that is its own intent it is about -(1 - gamma^k) / (1 - gamma).

        Raises:
            ValueError: if the encoder keeps psi alone.
        """
        if self.architecture.gamma is None:
            raise ValueError("value: found an encoder that keeps psi alone, expected one with phi and T")
        return self.of_standardised(*(self.normaliser(x) for x in (observations, outcomes, intents)))

    def networks(self) -> dict[str, MLP]:
        """``psi``; V belongs to the psi that it was trained with."""
        return {"psi": self.psi}  # type: ignore[dict-item]

    def latent_dim(self) -> int:
        """Width of psi."""
        return self.architecture.latent_dim

    def calibration_of(self, space: str) -> Tensor:
        """The calibration that the encoder carries."""
        return self.calibration

    def forward(self, observation: Tensor) -> Tensor:
        """Psi of the first replica: (B, obs_dim) -> (B, latent_dim)."""
        return self.embed(observation[None])[0]

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Calibrated squared distance in steps between observations (B, obs_dim) and (B, obs_dim): (B,)."""
        return (self(a) - self(b)).square().sum(-1) * self.calibration[0]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class GoalBatch:
    """Transitions with an outcome g and an intent z each; all (R, B, ...)."""

    observations: Tensor
    next_observations: Tensor
    outcomes: Tensor
    intents: Tensor
    reached_outcome: Tensor
    """(R, B), 1 where the current state is the outcome (same index), else 0."""
    reached_intent: Tensor
    arrived_outcome: Tensor | None = None
    """(R, B), 1 where the transition ends its episode in the outcome, else 0."""
    arrived_intent: Tensor | None = None
    kind: Tensor | None = None
    """(R, B), where the intent's goal lies: its place in ``KINDS``."""


class MultilinearValue(nn.Module, Multilinear):
    """V with two members per replica."""

    def __init__(self, replicas: int, observation_dim: int, c: ICVFConfig) -> None:
        super().__init__()
        for name, part in value_parts((replicas, 2), observation_dim, c.hidden, c.latent_dim, c.variant).items():
            self.add_module(name, part)
        self.layer_norm = c.variant == "ailot"

    def forward(self, observations: Tensor, outcomes: Tensor, intents: Tensor) -> Tensor:
        """V (R, 2, B) of standardised observations (R, B, obs_dim)."""
        return self.of_standardised(*(x.unsqueeze(1) for x in (observations, outcomes, intents)))


def intent_advantage(reward: Tensor, discount: Tensor, next_value: Tensor, value: Tensor) -> Tensor:
    """A = r_z + gamma m_z min_i V_i(s', z, z) - mean_i V_i(s, z, z), all from target networks.

    Args:
        reward: (R, B), -1, or 0 where the intent is reached.
        discount: (R, B), gamma, or 0 where the intent is reached.
        next_value: V(s', z, z), (R, 2, B).
        value: V(s, z, z), (R, 2, B).

    Returns:
        (R, B).
    """
    return reward + discount * next_value.amin(1) - value.mean(1)


def icvf_loss(value: Tensor, target: Tensor, advantage: Tensor, expectile: float) -> Tensor:
    """sum_i mean_b |tau - 1(A < 0)| (q_i - V_i(s, g, z))^2 (eq. 6); every member has its own target.

    Args:
        value: V_i(s, g, z), (R, 2, B).
        target: q_i = r + gamma m Vbar_i(s', g, z), (R, 2, B), without gradient.
        advantage: (R, B), without gradient.
        expectile: tau in (0, 1).

    Returns:
        (R,).
    """
    return expectile_loss(target - value, advantage.unsqueeze(1), expectile).mean(-1).sum(1)


class ICVF(EncoderMethod):
    """Learner of ``MultilinearValue`` with target copies."""

    kind = "icvf"
    Config = ICVFConfig
    shown = ("loss", "value")

    def __init__(self, c: ICVFConfig, replicas: int, observation_mean: Tensor, observation_std: Tensor) -> None:
        super().__init__()
        self.config = c
        self.replicas = replicas
        dim = observation_mean.shape[-1]
        self.normaliser = Normaliser(observation_mean, observation_std) if c.normalise else Normaliser.identity(dim)
        self.online = MultilinearValue(replicas, dim, c)
        self.target = deepcopy(self.online).requires_grad_(False)

    @classmethod
    def build(cls, c: ICVFConfig, world: World) -> ICVF:
        """For the observations of a world."""
        return cls(c, world.replicas, world.mean, world.std)

    def batch(self, sources: Sources, generator: torch.Generator) -> GoalBatch:
        """Uniform transitions with an outcome and an intent each."""
        c, table = self.config, sources.table("dataset")
        index = sources.rows(len(table), generator)
        g, z = goal_and_intent(
            index,
            table.last[index],
            len(table),
            p_random=c.p_random,
            p_trajectory=c.p_trajectory,
            p_current=c.p_current,
            p_same=c.p_same,
            generator=generator,
            final=c.final_goals,
        )
        b, last, count = table.gather(index), table.last[index], len(table)
        states = table.states_at if c.final_goals else table.observations_at
        reached = (g == index).float(), (z == index).float()
        ends = index == last
        arrived = (ends & (g == last + count)).float(), (ends & (z == last + count)).float()
        ahead = lies_ahead(index, last, count, z)
        kind = torch.where(z == index, KINDS.index("current"), torch.where(ahead, KINDS.index("future"), 0))
        return GoalBatch(b.observations, b.next_observations, states(g), states(z), *reached, *arrived, kind)

    def start_from(self, encoder: IntentEncoder) -> None:  # type: ignore[override]
        """Take the normaliser, psi and what else there is of V, for both members and their targets.

        Of an encoder that keeps psi alone, phi, T and the branches stay as they are.
        """
        self.normaliser.load_state_dict(encoder.normaliser.state_dict())
        for value in (self.online, self.target):
            for name, part in value.named_children():
                if hasattr(encoder, name):
                    kept = getattr(encoder, name).state_dict().items()
                    part.load_state_dict({key: x.unsqueeze(1).expand(-1, 2, *x.shape[1:]) for key, x in kept})

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All online parameters at one learning rate."""
        return [{"params": list(self.online.parameters()), "lr": self.config.learning_rate}]

    def losses(self, batch: GoalBatch) -> Losses:
        """The ICVF loss; each network and each factor reads each input once."""
        c = self.config
        s, s_next, g, z = (
            self.normaliser(x).unsqueeze(1)
            for x in (batch.observations, batch.next_observations, batch.outcomes, batch.intents)
        )
        r, m = batch.reached_outcome - 1.0, c.gamma * (1.0 - batch.reached_outcome)
        r_z, m_z = batch.reached_intent - 1.0, c.gamma * (1.0 - batch.reached_intent)
        if batch.arrived_outcome is not None and batch.arrived_intent is not None:
            m, m_z = m * (1.0 - batch.arrived_outcome), m_z * (1.0 - batch.arrived_intent)
        goals = torch.cat([g, z], 2)

        with torch.no_grad():
            psi = self.target.psi(goals)
            t = self.target.modulation(psi.chunk(2, 2)[1]).repeat(1, 1, 2, 1)
            of_s, of_next = self.target.state_factor(self.target.phi(torch.cat([s, s_next], 2)), t).chunk(2, 2)
            of_g, of_z = self.target.outcome_factor(psi, t).chunk(2, 2)
            target = r.unsqueeze(1) + m.unsqueeze(1) * (of_next * of_g).sum(-1)
            advantage = intent_advantage(r_z, m_z, (of_next * of_z).sum(-1), (of_s * of_z).sum(-1))

        psi_g, psi_z = self.online.psi(goals).chunk(2, 2)
        value = self.online.product(self.online.phi(s), psi_g, self.online.modulation(psi_z))
        accepted = (advantage >= 0).float()
        metrics = {
            "value": value.detach().mean((1, 2)),
            "advantage": advantage.mean(1),
            "accepted": accepted.mean(1),
        }
        if batch.kind is not None:
            for number, name in enumerate(KINDS):
                of_kind = (batch.kind == number).float()
                metrics[f"accepted_{name}"] = (accepted * of_kind).sum(1) / of_kind.sum(1).clamp(min=1.0)
        return Losses(icvf_loss(value, target, advantage, c.expectile), metrics)

    @torch.no_grad()
    def after_update(self) -> None:
        """Polyak averaging of the targets."""
        polyak(self.target.parameters(), self.online.parameters(), self.config.target_rate)

    def export(self) -> IntentEncoder:
        """V of the first ensemble member of every replica; calibration is left at one."""
        c = self.config
        encoder = IntentEncoder(
            IntentArchitecture(
                replicas=self.replicas,
                observation_dim=self.normaliser.mean.shape[-1],
                hidden=c.hidden,
                latent_dim=c.latent_dim,
                variant=c.variant,
                gamma=c.gamma,
            )
        )
        encoder.normaliser.load_state_dict(self.normaliser.state_dict())
        for name, part in self.online.named_children():
            state = {key: tensor[:, 0] for key, tensor in part.state_dict().items()}
            getattr(encoder, name).load_state_dict(state)
        return encoder

    @classmethod
    def measure(
        cls,
        c: ICVFConfig,
        encoder: IntentEncoder,  # type: ignore[override]
        held_out: list[Episode],
        table: TransitionTable,
        whole: TransitionTable,
        episodes: Iterable[Episode],
    ) -> Measured:
        """Also -V(s_t, s_{t+k}, s_{t+k}) by k, on held-out episodes, where V is kept."""
        measured = measure_space(encoder, held_out, episodes)
        if encoder.architecture.gamma is not None:
            rows = value_over_time(encoder, held_out)
            measured.tables["value"] = rows
            measured.metrics["value"] = {str(row["k"]): row["value"] for row in rows}
        return measured


@torch.no_grad()
def value_over_time(encoder: IntentEncoder, episodes: list[Episode]) -> list[dict[str, float]]:
    """What V says of k steps, on episodes; mean over replicas.

    Returns:
        Rows with ``k``, the mean ``value`` of -V(s_t, s_{t+k}, s_{t+k}), and ``ideal``, (1 - gamma^k) / (1 - gamma), which it is
        where no way is shorter. No row where no episode is so long.
    """
    gamma = encoder.architecture.gamma
    assert gamma is not None
    rows = []
    for k in (1, 2, 5, 10, 20, 30, 50, 90):
        values = []
        for episode in episodes:
            states = torch.from_numpy(episode.current)[None]
            if states.shape[1] > k:
                goal = states[:, k:]
                values.append(-encoder.value(states[:, :-k], goal, goal))
        if values:
            ideal = (1 - gamma**k) / (1 - gamma)
            rows.append({"k": k, "value": torch.cat(values, 1).mean().item(), "ideal": ideal})
    return rows
