r"""Weighted cloning of single transitions: behaviour cloning in proportion to exp of an advantage, without a critic of actions.

Peng, Kumar, Zhang, Levine, "Advantage-Weighted Regression", 2019, arXiv 1910.00177, offline, with a label as the reward.

| here | what |
|---|---|
| G_t = sum_k gamma^k r_{t+k} within the episode; r_t itself with gamma = 0 | ``nn.functional.suffix_returns`` |
| V = argmin E (V(s) - G)^2 | ``Baseline.losses`` |
| w_t = exp(beta (min(A_t, q) - q) / std A), A = G - V(s), q the quantile 1 - 1 / b of A | ``cloning_weights`` |
| -E_w log pi(a|s) | ``cloning.Cloning.losses`` on transitions drawn in proportion to w |

A whole episode need not be good for a part of it to be worth cloning, so this also works on play data, in which episodes are
no units. Without V (``baseline: null``) G itself takes the place of A: what pays little is hardly cloned, even where nothing near
pays more. With V a transition is compared with others of similar states. A is divided by its deviation over all transitions, so
the unit of the rewards does not matter. At least a share 1 / b of the transitions has the largest weight, so none weighs more
than b times the mean.

Rewards that are the same for all steps of an episode judge episodes (``judges_episodes``). Then V is left out: it would compare
a poor episode with others at the states that only poor ones reach, and have them cloned as much as the best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, config
from dynarep.data.resident import Batch
from dynarep.pipeline.cloning import Cloning, CloningConfig
from dynarep.pipeline.method import Needs, Phase, Sources
from dynarep.pipeline.methods.policies.deterministic import Policy
from dynarep.pipeline.nn.functional import Losses, suffix_returns
from dynarep.pipeline.nn.networks import MLP
from dynarep.pipeline.training.config import TrainingConfig


@config
class WeightedBCConfig(CloningConfig):
    """Hyper-parameters of weighted cloning."""

    temperature: float = Field(default=5.0, gt=0)
    """beta."""
    gamma: float = Field(default=0.99, ge=0, lt=1)
    """Discount of the sum over the rest of the episode; 0 takes the reward of the transition alone."""
    max_weight: float = Field(default=1000.0, gt=1)
    """b: bound on the weight of a transition, in units of the mean weight."""
    baseline: TrainingConfig | None = None
    """Training of V; None compares G over the whole dataset, as rewards that judge episodes always are."""

    def __post_init__(self) -> None:
        if self.baseline is not None and self.baseline.snapshots > 1:
            raise ValueError(f"baseline.snapshots: found {self.baseline.snapshots}, expected 1")


@dataclass(frozen=True)
class ReturnBatch:
    """States, (R, B, obs_dim), and what followed them, (R, B)."""

    observations: Tensor
    returns: Tensor


def cloning_weights(advantage: Tensor, temperature: float, max_weight: float) -> Tensor:
    """exp(beta (min(A, q) - q) / std A) with N / b values of A at q or above: (R, N) -> (R, N), in units of their mean."""
    advantage = advantage.double()
    std = advantage.std(1, keepdim=True)
    most = advantage.topk(max(1, math.ceil(advantage.shape[1] / max_weight)), 1).values[:, -1:]
    weight = torch.exp(temperature * (advantage.minimum(most) - most) / std)
    return weight / weight.mean(1, keepdim=True)


def judges_episodes(returns: Tensor, lengths: list[int]) -> bool:
    """Whether G (R, N) is the same for all steps of each episode; ``lengths`` of them, some above 1."""
    return max(lengths) > 1 and all(bool((part == part[:, :1]).all()) for part in torch.split(returns, lengths, 1))


class Baseline(nn.Module):
    """Learner of V(s), the mean of G at a state, which reads what a policy reads; G and V in deviations of G from its mean."""

    def __init__(self, policy: Policy, c: WeightedBCConfig) -> None:
        super().__init__()
        self.policy, self.learning_rate = policy, c.learning_rate
        self.network = MLP((policy.architecture.replicas,), (policy.width, *c.hidden, 1), layer_norm=True)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The perceptron with cosine decay."""
        return [{"params": list(self.network.parameters()), "lr": self.learning_rate, "cosine": True}]

    def forward(self, observations: Tensor) -> Tensor:
        """V of (R or 1, B, obs_dim): (R, B)."""
        return self.network(self.policy.features(observations)).squeeze(-1)  # type: ignore[no-any-return]

    def losses(self, batch: ReturnBatch) -> Losses:
        """E (V(s) - G)^2."""
        error = (self(batch.observations) - batch.returns).square().mean(-1)
        return Losses(error, {"unexplained": error.detach()})

    def after_update(self) -> None:
        """Nothing follows an update."""

    def export(self) -> Baseline:
        """Itself."""
        return self


class WeightedBC(Cloning):
    """Clones all transitions, in proportion to their weights."""

    kind = "weighted_bc"
    Config = WeightedBCConfig

    @classmethod
    def needs(cls, c: WeightedBCConfig) -> Needs:
        """Rewards to weigh by, and actions to clone."""
        return Needs(actions=("dataset",), optional_encoder=True, rewards=True)

    def prepare(self, sources: Sources) -> None:
        """What followed each transition, in deviations from the mean."""
        lengths = sources.table("dataset").lengths.tolist()
        returns = suffix_returns(sources.rewards, lengths, self.config.gamma).double()
        std = returns.std(1, keepdim=True)
        if not (std > 0).all():
            raise ValueError("rewards: found the same for every transition, which leaves no weights")
        self.returns = ((returns - returns.mean(1, keepdim=True)) / std).float()
        self.compares = self.config.baseline is not None and not judges_episodes(returns, lengths)
        if not self.compares:
            self.weigh(self.returns)

    def phases(self) -> list[Phase]:
        """V, policy."""
        if not self.compares:
            return super().phases()
        baseline = Baseline(self.policy, self.config)

        def compare(sources: Sources) -> None:
            self.weigh(self.returns - self.expected(baseline, sources))

        return [
            Phase(baseline, self.rewarded, self.config.baseline, "baseline", ("unexplained",), compare),
            *super().phases(),
        ]

    def rewarded(self, sources: Sources, generator: torch.Generator) -> ReturnBatch:
        """Uniform states and what followed."""
        table = sources.table("dataset")
        rows = sources.rows(len(table), generator)
        return ReturnBatch(table.observations_at(rows), self.returns.gather(1, rows))

    @torch.no_grad()
    def expected(self, baseline: Baseline, sources: Sources) -> Tensor:
        """V of all states of the data, (R, N)."""
        table = sources.table("dataset")
        return torch.cat([baseline(table.observations_at(rows)) for rows in table.blocks(sources.replicas)], 1)

    def weigh(self, advantage: Tensor) -> None:
        """The weight of every transition, (R, N)."""
        self.weights = cloning_weights(advantage, self.config.temperature, self.config.max_weight)
        self.cumulative = self.weights.cumsum(1)

    def batch(self, sources: Sources, generator: torch.Generator) -> Batch:
        """Transitions in proportion to their weights."""
        table, c = sources.table("dataset"), self.cumulative
        shape = (sources.replicas, sources.batch_size)
        u = torch.rand(shape, generator=generator, device=c.device, dtype=torch.float64) * c[:, -1:]
        return table.gather(torch.searchsorted(c, u, right=True).clamp(max=len(table) - 1))

    def facts(self) -> dict[str, Any]:
        """The effective share of the data that is cloned, 1 where all weights are equal."""
        share = self.weights.mean(1).square() / self.weights.square().mean(1)
        return {"effective_share": share.tolist()}
