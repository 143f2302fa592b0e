"""ReLOAD: rewards from how well a network that saw the expert's transitions alone predicts a fixed random one.

Chaudhary, Behera, "From Novelty to Imitation: Self-Distilled Rewards for Offline Reinforcement Learning", TMLR 2025,
arXiv 2507.12815, on random network distillation (Burda, Edwards, Storkey, Klimov, 2019, arXiv 1810.12894).

| paper and published code | here |
|---|---|
| the target f, random and fixed, and the predictor g of the same form read (s, s') | ``Distillation``, ``transitions`` |
| e(s, s') = mean_k (g_k - f_k)^2 | ``prediction_error`` |
| min_g E_expert e(s, s') | ``Distillation.losses`` |
| r = alpha exp(-beta e(s, s')) | ``novelty_reward`` |

The defaults are those of the published code for locomotion; it has beta 0.1 for AntMaze. 200 updates of 32 transitions are
published.

Deviations:

- Inputs are centred and divided by one number, so that they have unit variance over all coordinates together. That takes
  out the unit of a space and keeps its geometry; standardising each coordinate would make the raw and the standardised
  space one. Beside them stands a constant of their length, because a target with layer normalisation and no biases sees
  the direction of its input alone. ``normalise: false`` feeds points as they come, as published.
- Layer normalisation follows the ReLU and has no parameters of its own; in the published code it comes before, and has.
  Both networks start orthogonal, published for the target.
- The pair of an episode's last step holds the last point twice, because not every space has a point for the state after it.
- Every batch is drawn from all of the expert's transitions; in the published code from those of the batch before, which
  leaves fewer and fewer of them.
- The published code gives 0 to terminal transitions; here no reward depends on how an episode ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, Widths, config
from dynarep.data.schema import Episode
from dynarep.pipeline.labelling import Judgement, Labelled, Reward, at_rows, centred, fitting, moments
from dynarep.pipeline.method import Phase, Sources
from dynarep.pipeline.nn.functional import Losses
from dynarep.pipeline.nn.networks import MLP


@config
class RNDConfig:
    """Hyper-parameters of rewards by random network distillation; the defaults are published for locomotion."""

    hidden: Widths = (256, 256)
    """Widths of both networks."""
    embedding_dim: int = Field(default=32, gt=0)
    """Numbers that the target puts out."""
    normalise: bool = True
    """Centre the points, divide them by their overall scale, and add a constant coordinate."""
    learning_rate: float = Field(default=1e-3, gt=0)
    scale: float = Field(default=10.0, gt=0)
    """alpha: the reward of a transition that is predicted without error."""
    temperature: float = Field(default=5.0, gt=0)
    """beta: multiplies the prediction error."""


def transitions(points: Tensor) -> Tensor:
    """(x_t, x_min(t+1,T)) side by side: (R, T, d) -> (R, T, 2 d)."""
    return torch.cat([points, torch.cat([points[:, 1:], points[:, -1:]], 1)], -1)


def prediction_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over the last axis of (g - f)^2: (R, B, k), (R, B, k) -> (R, B)."""
    return (prediction - target).square().mean(-1)


def novelty_reward(error: Tensor, scale: float, temperature: float) -> Tensor:
    """The reward alpha exp(-beta e), elementwise; in [0, alpha]."""
    return scale * torch.exp(-temperature * error)


class Distillation(nn.Module):
    """The fixed target and the predictor that is trained, R times.

    Args:
        c: hyper-parameters.
        replicas: R.
        mean: of the points, (R or 1, d).
        unit: root mean square of the centred points over states and coordinates, (R or 1,), greater than 0.
    """

    mean: Tensor
    unit: Tensor

    def __init__(self, c: RNDConfig, replicas: int, mean: Tensor, unit: Tensor) -> None:
        super().__init__()
        self.config = c
        sizes = (2 * mean.shape[-1] + c.normalise, *c.hidden, c.embedding_dim)
        self.target = MLP((replicas,), sizes, layer_norm=True).requires_grad_(False)
        self.predictor = MLP((replicas,), sizes, layer_norm=True)
        self.register_buffer("mean", torch.cat([mean, mean], -1).unsqueeze(1))
        self.register_buffer("unit", unit.view(-1, 1, 1))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The predictor at a constant rate."""
        return [{"params": list(self.predictor.parameters()), "lr": self.config.learning_rate}]

    def error(self, pairs: Tensor) -> Tensor:
        """The prediction error e of rows from ``transitions``: (R or 1, B, 2 d) -> (R, B)."""
        x = pairs
        if self.config.normalise:
            x = centred(x, self.mean, self.unit)
        return prediction_error(self.predictor(x), self.target(x))

    def losses(self, batch: Tensor) -> Losses:
        """E e over a batch of the expert's transitions, (R or 1, B, 2 d)."""
        return Losses(self.error(batch).mean(-1))

    def after_update(self) -> None:
        """Nothing, because the target is fixed."""


class RND(Reward):
    """Rewards by the error of a predictor trained on the transitions of all demonstrations."""

    kind = "rnd"
    tempered = True
    Config = RNDConfig
    trains = True

    def __init__(self, c: RNDConfig, world: Judgement) -> None:
        super().__init__()
        self.config, self.replicas, self.experts = c, world.replicas, len(world.experts)
        self.embed = world.embedding()
        with torch.no_grad():
            pairs = torch.cat([transitions(self.embed(expert)) for expert in world.experts], 1)
            mean, unit = moments(self.embed(episode) for episode in world.dataset.episodes)
        self.pairs = fitting(pairs, world.replicas, self.embed.name)
        torch.manual_seed(world.seed)
        self.networks = Distillation(c, world.replicas, mean.cpu(), unit.cpu())

    @classmethod
    def build(cls, c: RNDConfig, world: Judgement) -> RND:  # type: ignore[override]
        """With the demonstrations of a world."""
        return cls(c, world)

    def phases(self) -> list[Phase]:
        """One: the predictor on the expert's transitions."""
        return [Phase(self.networks, self.batch, finish=self.finish)]

    def batch(self, sources: Sources, generator: torch.Generator) -> Tensor:
        """Uniform transitions of the expert, (R, B, 2 d)."""
        pairs = self.pairs.to(sources.device)
        return at_rows(pairs, sources.rows(pairs.shape[1], generator))

    @torch.no_grad()
    def finish(self, sources: Sources) -> None:
        """Measure how well the predictor knows the expert."""
        self.networks.to(self.embed.device)
        self.expert_error = float(self.networks.error(self.pairs.to(self.embed.device)).mean())

    def rewards(self, episodes: Sequence[Episode]) -> Labelled:
        """Rewards (R, T) per episode id, and the prediction error of each transition."""
        found, errors = {}, []
        for episode in episodes:
            error = self.networks.error(transitions(self.embed(episode)))
            errors.append(error.mean(0))
            found[episode.id] = novelty_reward(error, self.config.scale, self.config.temperature).cpu().numpy()
        return found, {"error": torch.cat(errors)}

    def summary(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """Mean prediction error over the dataset, and over the transitions that were learned."""
        return {
            "replicas": self.replicas,
            "experts": self.experts,
            **super().summary(values),
            "expert_error": self.expert_error,
        }
