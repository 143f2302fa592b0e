r"""The dual of KL(d^pi || d^exp) as a game of an actor and a critic: what ValueDICE and ReprValueDICE share.

Kostrikov, Nachum, Tompson, "Imitation Learning via Off-Policy Distribution Matching", ICLR 2020, arXiv 1912.05032.

| paper | here |
|---|---|
| J(pi, Q), minimised over Q, maximised over pi, and its mixture with replay | ``dual_objective`` |
| gradient penalty, weight 10 | ``functional.gradient_penalty`` |
| orthogonal regulariser on the actor's weights | ``orthogonality`` |

Expert states serve as initial states, so rho = d^exp. With an ``environment`` the game is online, as published: the data are the
actor's own steps, one per update, after those of the dataset if there is one. Observations are then standardised by the
demonstrations, as in the authors' code.

Deviations: one backward pass for both players through gradient reversal on the sampled actions; optionally a cloning
term, ``cloning_weight`` * E_{d^exp} log N(a; tanh m(s), sigma^2) with a free sigma, the likelihood that ``bc`` maximises,
because the dual game on a single demonstration determines the policy slowly and loosely (0 is the published objective);
the gradient penalty, at mixtures of expert and replay (s, a) and of (s', a' ~ pi) as in the authors' code, differentiates by
standardised observations and by actions in [-1, 1], so that it binds all of them alike whatever their units.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, Widths, config
from dynarep.data.replay import ReplayTable
from dynarep.pipeline.method import Learner, Needs, Sources, World
from dynarep.pipeline.methods.policies.deterministic import Policy, PolicyArchitecture
from dynarep.pipeline.nn.functional import Losses, gaussian_log_prob, gradient_penalty, log_mean_exp, reverse_gradient
from dynarep.pipeline.nn.models import Model
from dynarep.pipeline.nn.networks import MLP, ActionScale, Normaliser
from dynarep.pipeline.playing.environments import CollectionConfig

if TYPE_CHECKING:
    from dynarep.data.resident import Batch


@config
class DualGameConfig:
    """Hyper-parameters of the dual game; the defaults are ValueDICE's."""

    hidden: Widths = (256, 256)
    gamma: float = Field(default=0.99, gt=0, lt=1)
    critic_rate: float = Field(default=1e-3, gt=0)
    actor_rate: float = Field(default=1e-5, gt=0)
    gradient_penalty: float = Field(default=10.0, ge=0)
    orthogonality: float = Field(default=1e-4, ge=0)
    replay_ratio: float = Field(default=0.0, ge=0, lt=1)
    """alpha: share of the arbitrary data in both occupancies; 0 leaves it out of the game."""
    cloning_weight: float = Field(default=0.0, ge=0)
    """Of the expert actions' log-likelihood; 1 weighs them as ``bc`` does."""
    absorbing: bool = False
    """Lead terminated episodes into an absorbing state."""
    environment: CollectionConfig | None = None
    """What it acts in while it learns; null: it learns from the dataset alone."""

    def __post_init__(self) -> None:
        if self.environment is not None and self.absorbing:
            raise ValueError("absorbing: found true, expected false with an environment")


@dataclass(frozen=True)
class Transitions:
    """State-action pairs and what follows, each (R, B, ...)."""

    observations: Tensor
    actions: Tensor
    next_observations: Tensor


@dataclass(frozen=True)
class ImitationBatch:
    """Expert transitions, and replay transitions for the gradient penalty's mixtures and, with alpha > 0, for the game."""

    expert: Transitions
    replay: Transitions
    cloned: Transitions | None = None
    """What the cloning term takes in place of ``expert``."""
    returns: Tensor | None = None
    """True returns of the last episodes where it acts, to be shown, (R,)."""


def transitions(batch: Batch) -> Transitions:
    """What the game reads of a batch."""
    return Transitions(batch.observations, batch.actions, batch.next_observations)


def dual_objective(
    initial: Tensor,
    bellman_expert: Tensor,
    gamma: float,
    *,
    bellman_replay: Tensor | None = None,
    replay_ratio: float = 0.0,
) -> Tensor:
    r"""The Donsker-Varadhan dual of -KL(d^pi || d^exp) after the Bellman change of variables (Kostrikov et al. 2020).

    J(pi, Q) = (1 - gamma) E_{s0, a0~pi} Q(s0, a0) + log E_{d^exp} exp(gamma Q(s', a'~pi) - Q(s, a)),
    minimised over Q and maximised over pi; at the inner optimum J = -KL(d^pi || d^exp).

    With ``replay_ratio`` alpha > 0 both distributions are mixed with the replay occupancy d^B,
    J = log E_{(1-alpha) d^exp + alpha d^B} exp(bellman) + (1-alpha)(1-gamma) E Q(s0, a0) - alpha E_{d^B} bellman,
    whose optimum is -KL of the two mixtures.

    Args:
        initial: Q(s0, a0), (R, B).
        bellman_expert: gamma Q(s', a') - Q(s, a) on expert transitions, (R, B).
        gamma: discount in (0, 1).
        bellman_replay: the same on replay transitions, (R, B'); needed where ``replay_ratio`` > 0.
        replay_ratio: alpha in [0, 1).

    Returns:
        (R,), one objective per replica.
    """
    if bellman_replay is None and replay_ratio != 0.0:
        raise ValueError(f"replay_ratio is {replay_ratio}, but there are no replay transitions")
    linear = (1.0 - replay_ratio) * (1.0 - gamma) * initial.mean(-1)
    if bellman_replay is None:
        return linear + log_mean_exp(bellman_expert)
    n, m = bellman_expert.shape[-1], bellman_replay.shape[-1]
    weights = torch.cat([initial.new_full((n,), (1.0 - replay_ratio) / n), initial.new_full((m,), replay_ratio / m)])
    nonlinear = log_mean_exp(torch.cat([bellman_expert, bellman_replay], -1), weights.log())
    return linear + nonlinear - replay_ratio * bellman_replay.mean(-1)


class PerceptronCritic(nn.Module):
    """Q(s, a) as a perceptron on standardised observations and actions in [-1, 1]."""

    def __init__(self, replicas: int, normaliser: Normaliser, action_dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.normaliser = normaliser
        self.network = MLP((replicas,), (normaliser.mean.shape[-1] + action_dim, *hidden, 1))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q of (R, B, obs_dim), (R, B, act_dim): (R, B)."""
        return self.network(torch.cat([self.normaliser(observations), actions], -1)).squeeze(-1)  # type: ignore[no-any-return]


class TanhGaussianActor(nn.Module):
    """tanh(u) in [-1, 1], u ~ N(m(s), diag exp(2 l(s))), l in [-5, 2]; one perceptron gives m and l."""

    def __init__(
        self,
        replicas: int,
        normaliser: Normaliser,
        action_dim: int,
        hidden: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.normaliser = normaliser
        self.network = MLP((replicas,), (normaliser.mean.shape[-1], *hidden, 2 * action_dim), final_gain=0.01)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-std before tanh of (R, B, obs_dim): two of (R, B, act_dim)."""
        mean, log_std = self.network(self.normaliser(observations)).chunk(2, -1)
        return mean, -5.0 + 3.5 * (1.0 + torch.tanh(log_std))

    def sample(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Reparameterised actions in [-1, 1] from standard normal ``noise`` (R, B, act_dim)."""
        mean, log_std = self(observations)
        return torch.tanh(mean + noise * log_std.exp())

    def mode(self, observations: Tensor) -> Tensor:
        """Tanh of the mean: (R, B, act_dim)."""
        return torch.tanh(self(observations)[0])


def orthogonality(actor: MLP) -> Tensor:
    """Sum over layers of the squared off-diagonal entries of W^T W (columns are output units): (R,)."""
    grams = [weight.mT @ weight for name, weight in actor.named_parameters() if name.endswith("weight")]
    off_diagonal = [gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1)) for gram in grams]
    return torch.stack([entries.square().sum((-1, -2)) for entries in off_diagonal]).sum(0)


class DualGame(Learner):
    """Learner of an actor against a critic, which a method makes.

    Class attributes:
        spaces: of an encoder that the critic reads.
    """

    shown = ("objective", "squared_error")
    spaces: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        c: DualGameConfig,
        replicas: int,
        observation_mean: Tensor,
        observation_std: Tensor,
        action_low: tuple[float, ...],
        action_high: tuple[float, ...],
        encoder: Model | None = None,
        *,
        absorbing: bool = False,
    ) -> None:
        super().__init__()
        self.config = c
        self.absorbing = absorbing
        self.replicas = replicas
        self.low, self.high = action_low, action_high
        normaliser = Normaliser(observation_mean, observation_std)
        self.scale = ActionScale(action_low, action_high)
        self.actor = TanhGaussianActor(replicas, normaliser, len(action_low), c.hidden)
        self.cloning_log_std = nn.Parameter(torch.zeros(replicas, 1, len(action_low)))
        self.critic = self.make_critic(normaliser, encoder)

    @classmethod
    def needs(cls, c: Any) -> Needs:
        """Actions of both datasets, the encoder of the critic, and perhaps an environment."""
        return Needs(
            actions=("dataset", "demonstrations"),
            encoder=cls.spaces,
            absorbing="steps" if c.absorbing else None,
            environment=c.environment,
            without=() if c.environment is None else ("dataset",),
        )

    def make_critic(self, normaliser: Normaliser, encoder: Model | None) -> nn.Module:
        """Q of (R, B, obs_dim) and actions in [-1, 1], (R, B, act_dim): (R, B)."""
        raise NotImplementedError

    @classmethod
    def build(cls, c: Any, world: World) -> Self:
        """For the observations, actions and encoder of a world."""
        return cls(c, *world.form, world.encoder, absorbing=world.absorbing)

    @torch.no_grad()
    def prepare(self, sources: Sources) -> None:
        """Standardise by the demonstrations where it acts."""
        if self.config.environment is not None:
            shown = sources.table("demonstrations").observations
            self.actor.normaliser.mean.copy_(shown.mean(0))
            self.actor.normaliser.std.copy_(shown.std(0, correction=0))

    def explore(self, observations: Tensor, noise: Tensor) -> Tensor:
        """Actions to try, (R, E, act_dim) within the bounds."""
        return self.scale.inverse(self.actor.sample(observations, noise))

    def observe(self, batch: Batch, starts: Tensor) -> Batch:
        """Steps are kept as they are."""
        return batch

    def batch(self, sources: Sources, generator: torch.Generator) -> ImitationBatch:
        """Uniform transitions of the demonstrations and of the dataset."""
        expert, data = (transitions(sources.draw(role, generator)) for role in ("demonstrations", "dataset"))
        if self.config.environment is None:
            return ImitationBatch(expert, data)
        return ImitationBatch(expert, data, returns=cast(ReplayTable, sources.table("dataset")).returns.clone())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The critic's free parameters and the actor, each at its own rate."""
        c = self.config
        return [
            {"params": [p for p in self.critic.parameters() if p.requires_grad], "lr": c.critic_rate},
            {"params": [*self.actor.parameters(), self.cloning_log_std], "lr": c.actor_rate, "cosine": True},
        ]

    def losses(self, batch: ImitationBatch) -> Losses:
        """J + penalty for the critic, -J + regularisers for the actor."""
        c = self.config
        expert, replay = batch.expert, batch.replay
        mixing = c.replay_ratio > 0
        n = expert.observations.shape[1]
        everything = torch.cat([expert.observations, expert.next_observations, replay.next_observations], 1)
        noise = torch.randn(*everything.shape[:2], len(self.low), device=everything.device)
        acted = self.actor.sample(everything, noise)
        states, sampled = (x if mixing else x[:, : 2 * n] for x in (everything, acted))
        shown, seen = self.scale(expert.actions), self.scale(replay.actions)
        pairs = [shown] + ([seen] if mixing else [])
        q = self.critic(
            torch.cat([states, expert.observations] + ([replay.observations] if mixing else []), 1),
            torch.cat([reverse_gradient(sampled), *pairs], 1),
        )
        m = states.shape[1]
        initial, next_expert, q_expert = q[:, :n], q[:, n : 2 * n], q[:, m : m + n]
        bellman_replay = c.gamma * q[:, 2 * n : m] - q[:, m + n :] if mixing else None
        objective = dual_objective(
            initial,
            c.gamma * next_expert - q_expert,
            c.gamma,
            bellman_replay=bellman_replay,
            replay_ratio=c.replay_ratio,
        )

        normaliser = self.actor.normaliser
        u = torch.rand(*expert.observations.shape[:2], 1, device=states.device)
        following, after = normaliser(expert.next_observations), normaliser(replay.next_observations)
        penalty = gradient_penalty(
            lambda x, a: self.critic(normaliser.inverse(x), a),
            torch.cat(
                [
                    torch.lerp(normaliser(expert.observations), normaliser(replay.observations), u),
                    torch.lerp(following, after, u),
                ],
                1,
            ),
            torch.cat([torch.lerp(shown, seen, u), torch.lerp(acted[:, n : 2 * n], acted[:, 2 * n :], u)], 1),
        )
        loss = objective + c.gradient_penalty * penalty + c.orthogonality * orthogonality(self.actor.network)
        cloned = expert if batch.cloned is None else batch.cloned
        mode = self.actor.mode(cloned.observations)
        actions = self.scale(cloned.actions)
        likelihood = gaussian_log_prob(actions, mode, self.cloning_log_std.clamp(-5.0, 2.0)).mean(-1)
        loss = loss - c.cloning_weight * likelihood
        error = (mode.detach() - actions).square().mean((-1, -2))
        acting = {} if batch.returns is None else {"episode_return": batch.returns}
        return Losses(
            loss,
            {
                **acting,
                "objective": objective.detach(),
                "gradient_penalty": penalty.detach(),
                "expert_q": q_expert.detach().mean(-1),
                "policy_q": initial.detach().mean(-1),
                "squared_error": error,
            },
        )

    def export(self) -> Policy:
        """Tanh of the mean, of every replica."""
        network = self.actor.network
        policy = Policy(
            PolicyArchitecture(
                replicas=self.replicas,
                observation_dim=self.actor.normaliser.mean.shape[-1] - self.absorbing,
                action_low=self.low,
                action_high=self.high,
                hidden=self.config.hidden,
                absorbing=self.absorbing,
            )
        )
        policy.normaliser = deepcopy(self.actor.normaliser)
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        last = len(network.layers) - 1
        for name in (f"layers.{last}.weight", f"layers.{last}.bias"):
            state[name] = state[name][..., : len(self.low)]
        policy.network.load_state_dict(state)
        return policy
