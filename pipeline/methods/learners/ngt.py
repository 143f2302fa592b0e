"""NGT: imitation while acting by noise-guided transport, a predictor of a random prior as the potential of a transport.

Blonde, Candido Ramos, Kalousis, "Noise-Guided Transport: Imitation Learning from Random Priors", ICML 2026, arXiv 2509.26294.

| paper and released code | here |
|---|---|
| h(x) = mean_j huber(f_j(x) - f0_j(x)), f0 a frozen random prior | ``huber_potential`` |
| h(x) = mean_j cross-entropy of f's histogram with that of N(f0_j(x), sigma) | ``hl_gauss_potential`` |
| L = E_expert h - scale E_agent h, minimised over f | ``transport_loss`` |
| r = exp(-h) | ``exponential_reward`` |
| u = (h - q50) / (q95 - q5); r = clip(-sign(u) (e^|u| - 1), -5, 5), or clip(-u, -5, 5) | ``quantile_reward`` |
| spectral norm on f and f0 | ``spectral.SpectralMLP`` |
| quantiles follow those of the batches at rate 1e-3, from the first one on | ``NGT.reward_of`` |

Over 1-Lipschitz h the least L is -W1(agent, expert). With spectral norm on both networks the mean over m outputs makes h at
most 2 / sqrt(m)-Lipschitz, so ``exp`` is flat unless ``sharpness`` raises it; that is why the released code rescales. With
``ascent: 0`` the method is RED (Wang et al. 2019, arXiv 1905.06750) under this learner. With ``reward_rate: 0`` the predictor
stays as it begins.

Deviations: with ``initialisation: orthogonal`` weights are orthogonal, as the paper says; in the released code that
initialisation has no effect under spectral norm, and weights are uniform, ``uniform`` here. The prior's singular values are
exact from the start and it never moves; in the released code it drifts for some forwards. With ``hl_gauss`` rewards read h
less the entropy of the target, which is what h is at a perfect match: it depends on the prior's value, not on the match. The
prior's values are cut to the range of the histogram, beyond which it would be empty. Of demonstrations that fit into a batch
every update reads all.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.pipeline.method import World
from dynarep.pipeline.nn.functional import Losses
from dynarep.pipeline.nn.spectral import SpectralMLP
from dynarep.pipeline.online_imitation import OnlineImitationConfig, PointReward


@config
class NGTConfig(OnlineImitationConfig):
    """Hyper-parameters of NGT; the defaults are those of the released code, but for ``initialisation``."""

    reward_hidden: tuple[int, ...] = (128, 128, 128)
    outputs: int = Field(default=64, gt=0)
    """m: numbers that the prior gives."""
    potential: Literal["huber", "hl_gauss"] = "huber"
    bins: int = Field(default=21, ge=2)
    """N: cells of the histogram, with ``hl_gauss``."""
    half_range: float = Field(default=3.0, gt=0)
    """The histogram covers plus and minus this."""
    smoothing: float = Field(default=1.5, gt=0)
    """sigma over the width of a cell."""
    ascent: float = Field(default=1.0, ge=0, le=1)
    """Weight of the agent's term; 0 is RED."""
    reward_rate: float = Field(default=5e-5, ge=0)
    """0 leaves the predictor as it begins."""
    shape: Literal["symexp", "linear", "exp"] = "symexp"
    """How a potential becomes a reward."""
    sharpness: float = Field(default=1.0, gt=0)
    """Multiplies the potential, with ``exp``."""
    quantile_rate: float = Field(default=1e-3, gt=0, le=1)
    spectral_norm: bool = True
    """Without it the loss has no bound."""
    initialisation: Literal["orthogonal", "uniform"] = "orthogonal"


def huber_potential(prediction: Tensor, prior: Tensor) -> Tensor:
    """The potential h = mean over m of huber(f - f0) with delta 1: (..., m), (..., m) -> (...)."""
    return torch.nn.functional.huber_loss(prediction, prior, reduction="none").mean(-1)


def target_histogram(values: Tensor, bins: int, half_range: float, smoothing: float) -> Tensor:
    """Masses of N(t, sigma) on N equal cells of [-half_range, half_range], renormalised to it: (...) -> (..., N).

    Args:
        values: t.
        bins: N.
        half_range: of the histogram.
        smoothing: sigma over the width of a cell.
    """
    edges = torch.linspace(-half_range, half_range, bins + 1, device=values.device, dtype=values.dtype)
    sigma = smoothing * 2.0 * half_range / bins
    below = torch.erf((edges - values.unsqueeze(-1)) / (math.sqrt(2.0) * sigma))
    return torch.diff(below, dim=-1) / (below[..., -1:] - below[..., :1] + 1e-6)


def hl_gauss_potential(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The potential h and its floor, both means over m: (..., N, m), (..., m, N) -> (...), (...).

    h is the cross-entropy of the histograms softmax(logits) with the targets, the floor the entropy of the targets.
    """
    cross = -(target * torch.log_softmax(logits, -2).mT).sum(-1).mean(-1)
    return cross, -torch.special.xlogy(target, target).sum(-1).mean(-1)


def transport_loss(expert: Tensor, agent: Tensor, ascent: float) -> Tensor:
    """L = E_expert h - ascent E_agent h: (R, B'), (R, B) -> (R,)."""
    return expert.mean(-1) - ascent * agent.mean(-1)


def exponential_reward(potential: Tensor, sharpness: float) -> Tensor:
    """exp(-sharpness h), elementwise."""
    return torch.exp(-sharpness * potential)


def quantile_reward(potential: Tensor, quantiles: Tensor, shape: str) -> Tensor:
    """The reward of u = (h - q50) / (q95 - q5), within [-5, 5].

    Args:
        potential: h, (R, B).
        quantiles: q5, q50 and q95, (3, R, 1).
        shape: ``symexp``, -sign(u) (e^|u| - 1), or ``linear``, -u.
    """
    low, middle, high = quantiles
    u: Tensor = (potential - middle) / (high - low).clamp(min=1e-10)
    grown: Tensor = -u if shape == "linear" else -u.sign() * torch.expm1(u.abs())
    return grown.clamp(-5.0, 5.0)


class NGT(PointReward):
    """Soft actor-critic on the potential of a transport between the agent's steps and the demonstrations."""

    kind = "ngt"
    Config = NGTConfig
    shown = ("episode_return", "reward_loss")
    quantiles: Tensor

    def __init__(self, c: NGTConfig, world: World) -> None:
        super().__init__(c, world)
        form: dict[str, Any] = {"init": c.initialisation, "normalise": c.spectral_norm}
        sizes = self.space.dim, *c.reward_hidden
        self.prior = SpectralMLP(world.replicas, (*sizes, c.outputs), **form).requires_grad_(False)
        width = c.outputs * (c.bins if c.potential == "hl_gauss" else 1)
        self.predictor = SpectralMLP(world.replicas, (*sizes, width), **form)
        self.register_buffer("quantiles", torch.full((3, world.replicas, 1), torch.nan))

    def potential(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The potential of points (R, B, D), and what it is at a perfect match: two of (R, B)."""
        c, prediction, prior = self.config, self.predictor(points), self.prior(points)
        if c.potential == "huber":
            return huber_potential(prediction, prior), torch.zeros_like(prior[..., 0])
        within = prior.clamp(-c.half_range, c.half_range)
        target = target_histogram(within, c.bins, c.half_range, c.smoothing)
        return hl_gauss_potential(prediction.unflatten(-1, (c.bins, c.outputs)), target)

    def reward_of(self, points: Tensor) -> Tensor:
        """Rewards of this moment; the quantiles follow, after they have been used."""
        c = self.config
        potential, floor = self.potential(points)
        mismatch = potential - floor
        if c.shape == "exp":
            return exponential_reward(mismatch, c.sharpness)
        levels = torch.tensor([0.05, 0.5, 0.95], device=points.device)
        found = torch.quantile(mismatch, levels, dim=-1).unsqueeze(-1)
        known = torch.where(self.quantiles.isnan(), found, self.quantiles)
        self.quantiles.copy_(known.lerp(found, c.quantile_rate))
        return quantile_reward(mismatch, known, c.shape)

    def reward_loss(self, expert: Tensor, agent: Tensor) -> Losses:
        """L."""
        both = self.potential(torch.cat([expert, agent], 1))[0]
        of_expert, of_agent = both[:, : expert.shape[1]], both[:, expert.shape[1] :]
        loss = transport_loss(of_expert, of_agent, self.config.ascent)
        means = {"expert_potential": of_expert, "agent_potential": of_agent}
        return Losses(loss, {"reward_loss": loss.detach(), **{name: h.detach().mean(-1) for name, h in means.items()}})

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Also the predictor, at a rate of its own."""
        own = {"params": list(self.predictor.parameters()), "lr": self.config.reward_rate}
        return [*super().parameter_groups(), own]

    def after_update(self) -> None:
        """Also follow the predictor's singular values."""
        super().after_update()
        self.predictor.iterate()
