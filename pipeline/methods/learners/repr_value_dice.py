r"""ReprValueDICE: imitation, offline or while acting, by the dual of KL(d^pi || d^exp), whose dual variable is linear in phi.

Ma, Dai, Ren, Wang, Li, "Offline Imitation Learning upon Arbitrary Demonstrations by Pre-Training Dynamics
Representations", 2025, arXiv 2508.14383.

| paper | here |
|---|---|
| J(pi, Q), minimised over Q, maximised over pi, and its mixture with replay | ``dual_game.dual_objective`` |
| Q = f_xi(s, a) + phi(s, a)^T omega - log(mu(s)^T theta + 1 - gamma) | ``RepresentationCritic`` |
| Q with some of these three terms only, or with trained phi and mu (ablations) | ``ReprValueDICEConfig`` |

The parameters of phi and mu are frozen unless ``fine_tune`` is set; their forward pass is not, because
d(phi^T omega)/da reaches the actor. The argument of the logarithm is softplus(mu^T theta) + 1 - gamma, which keeps it
above 1 - gamma, where it must lie since mu^T theta = (d^pi - (1 - gamma) rho) / p_n. That is exact for rho = p_n. The game's
rho is the expert's d^exp, whose ratio to p_n is mu^T E_{d^exp} phi: ``initial: expert`` has (1 - gamma) max(that, 0)
in place of 1 - gamma.

Deviations: those of ``dual_game``; optionally the cloning term also takes the episodes of the data whose expert occupancy
ratio in phi and mu is highest (``top``), every pair weighing the same.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import fields, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, config
from dynarep.data.sampling import uniform_of
from dynarep.pipeline.cloning import best_rows
from dynarep.pipeline.dual_game import (
    DualGame,
    DualGameConfig,
    ImitationBatch,
    PerceptronCritic,
    Transitions,
    transitions,
)
from dynarep.pipeline.factorisation import Factorisation, expert_weights, occupancy_reward
from dynarep.pipeline.method import Sources
from dynarep.pipeline.nn.models import Model
from dynarep.pipeline.nn.networks import ActionScale, Normaliser

Term = Literal["f", "linear", "log"]
ALL_TERMS: tuple[Term, ...] = ("f", "linear", "log")

LEAST_RATIO = 1e-3
"""Of initial states to noise states, so that the logarithm stays finite."""


@config
class ReprValueDICEConfig(DualGameConfig):
    """The same with a critic on the dynamics representation; the defaults are the published form of Q."""

    terms: tuple[Term, ...] = Field(default=ALL_TERMS, min_length=1)
    """Terms of Q: ``f`` is f_xi(s, a), ``linear`` phi(s, a)^T omega, ``log`` -log(softplus(mu(s)^T theta) + 1 - gamma)."""
    fine_tune: bool = False
    """Train phi and mu with the critic, at its rate, in place of freezing them."""
    initial: Literal["noise", "expert"] = "noise"
    """Where episodes are taken to begin in the third term of Q: in the noise states, as published, or in the expert's."""
    top: float = Field(default=0.0, ge=0, le=1)
    """Clone, beside the demonstrations, the episodes of the dataset that hold this share of the transitions and have the
    highest expert occupancy ratio in phi and mu. 0: demonstrations alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.environment is not None and self.top > 0:
            raise ValueError(f"top: found {self.top}, expected 0 with an environment, whose steps are no episodes")


class RepresentationCritic(nn.Module):
    """Q = f_xi(s, a) + phi(s, a)^T omega - log(softplus(mu(s)^T theta) + 1 - gamma), with omega = theta = 0 at first.

    Args:
        replicas: R, as many as the encoder has.
        encoder: phi and mu, copied.
        hidden: widths of f_xi.
        gamma: discount.
        terms: those of the three that Q consists of.
        fine_tune: whether phi and mu learn.
        scale: of the actions that phi reads; those that Q reads lie in [-1, 1]. None: phi reads the same.
        initial_from_expert: whether ``initial_weights``, E phi over the demonstrations, says where episodes begin.

    Raises:
        ValueError: if ``terms`` names a term twice or leaves Q independent of the action.
    """

    def __init__(
        self,
        replicas: int,
        encoder: Factorisation,
        hidden: tuple[int, ...],
        gamma: float,
        terms: tuple[Term, ...] = ALL_TERMS,
        *,
        fine_tune: bool = False,
        scale: ActionScale | None = None,
        initial_from_expert: bool = False,
    ) -> None:
        super().__init__()
        if len(set(terms)) < len(terms) or not {"f", "linear"} & set(terms):
            raise ValueError(
                f"terms: found {', '.join(terms)}; expected different ones, f or linear among them, "
                "because log does not depend on the action"
            )
        a = encoder.architecture
        self.gamma = gamma
        self.scale = scale
        self.encoder = deepcopy(encoder).requires_grad_(fine_tune)
        self.f = PerceptronCritic(replicas, self.encoder.normaliser, a.action_dim, hidden) if "f" in terms else None
        self.omega = nn.Parameter(torch.zeros(replicas, a.feature_dim, 1)) if "linear" in terms else None
        self.theta = nn.Parameter(torch.zeros(replicas, a.feature_dim, 1)) if "log" in terms else None
        self.initial_weights: Tensor | None
        self.register_buffer(
            "initial_weights", torch.zeros(replicas, a.feature_dim, 1) if initial_from_expert else None
        )

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Q of (R, B, obs_dim), (R, B, act_dim): (R, B)."""
        q = observations.new_zeros(())
        if self.f is not None:
            q = q + self.f(self.encoder.with_bit(observations), actions)
        if self.omega is not None:
            raw = actions if self.scale is None else self.scale.inverse(actions)
            q = q + (self.encoder.phi(observations, raw) @ self.omega).squeeze(-1)
        if self.theta is not None:
            mu = self.encoder.mu(observations)
            product = (mu @ self.theta).squeeze(-1)
            q = q - (nn.functional.softplus(product) + (1 - self.gamma) * self.initial_ratio(mu)).log()
        return q

    def initial_ratio(self, mu: Tensor) -> Tensor | float:
        """Ratio rho / p_n: 1, or max(mu^T E_{d^exp} phi, 0), at least ``LEAST_RATIO``: (R, B, k) -> (R, B)."""
        if self.initial_weights is None:
            return 1.0
        return (mu @ self.initial_weights).squeeze(-1).clamp(min=LEAST_RATIO)


class ReprValueDICE(DualGame):
    """The dual game with a critic on the dynamics representation."""

    kind = "repr_value_dice"
    Config = ReprValueDICEConfig
    spaces = ("phi", "mu")

    @classmethod
    def saw(cls, c: ReprValueDICEConfig, expert: str, data: str, rewards: str | None) -> dict[str, str]:
        """Both, the dataset through phi and mu."""
        return {"expert": expert, "other": f"{data} without rewards, {'also ' if c.top else ''}through phi and mu"}

    def make_critic(self, normaliser: Normaliser, encoder: Model | None) -> nn.Module:
        """Q on phi and mu."""
        if encoder is None:
            raise ValueError("repr_value_dice needs a dynamics encoder")
        c = self.config
        self.dynamics = (cast(Factorisation, encoder),)  # in a tuple: the critic holds the copy that is a part
        return RepresentationCritic(
            self.replicas,
            self.dynamics[0],
            c.hidden,
            c.gamma,
            c.terms,
            fine_tune=c.fine_tune,
            scale=self.scale,
            initial_from_expert=c.initial == "expert",
        )

    @torch.no_grad()
    def prepare(self, sources: Sources) -> None:
        """Say where the expert is, and choose the episodes of each replica that its occupancy ratio ranks highest."""
        super().prepare(sources)
        self.like_expert: list[Tensor] = []
        initial = cast(RepresentationCritic, self.critic).initial_weights
        if self.config.top == 0 and initial is None:
            return
        expert, data, gamma = sources.table("demonstrations"), sources.table("dataset"), self.config.gamma
        encoder = deepcopy(self.dynamics[0]).to(sources.device)
        shown = expert.gather(torch.arange(len(expert), device=sources.device)[None])
        weights = expert_weights(encoder.phi(shown.observations, shown.actions), gamma)
        if initial is not None:
            initial.copy_(weights.unsqueeze(-1) / gamma)
        if self.config.top == 0:
            return
        rows = torch.arange(len(data), device=sources.device)[None]
        rewards = [
            occupancy_reward(encoder.mu(data.gather(part).next_observations), weights, gamma, scale=1.0)
            for part in torch.split(rows, 8192, 1)
        ]
        self.like_expert = best_rows(torch.cat(rewards, 1), data.lengths.tolist(), self.config.top)
        shares = [[len(expert) / (len(expert) + len(rows))] for rows in self.like_expert]
        self.share = torch.tensor(shares, device=sources.device)

    def batch(self, sources: Sources, generator: torch.Generator) -> ImitationBatch:
        """Uniform transitions of both, and what is cloned: demonstrations and chosen episodes in proportion to their size."""
        b = super().batch(sources, generator)
        if not self.like_expert:
            return b
        rows = uniform_of(self.like_expert, sources.batch_size, generator)
        chosen = transitions(sources.table("dataset").gather(rows))
        own = torch.rand(rows.shape, generator=generator, device=sources.device) < self.share
        names = (field.name for field in fields(Transitions))
        cloned = (torch.where(own.unsqueeze(-1), getattr(b.expert, name), getattr(chosen, name)) for name in names)
        return replace(b, cloned=Transitions(*cloned))
