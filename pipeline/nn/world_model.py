"""A world model: latents that predict latents, values as a distribution over bins, and a policy prior, as pure functions.

Hansen, Su, Wang, "TD-MPC2: Scalable, Robust World Models for Continuous Control", ICLR 2024, arXiv 2310.16828, and its code;
the policy loss as in Li, Huang, Su, "Coupled Distributional Random Expert Distillation for World Model Online Imitation
Learning", 2025, arXiv 2505.02228, and its code.

| paper and published code | here |
|---|---|
| h, d, pi, Q: perceptrons with LayerNorm and Mish; h and d end in SimNorm | ``normed_network``, ``latent_network`` |
| z_0 = h(s_0), z_{t+1} = d(z_t, a_t) | ``rollout`` |
| sum_t rho^t ||z_{t+1} - sg h(s_{t+1})||^2 / (H dim z) | ``consistency_loss`` |
| 101 bins in [-10, 10] of symlog x = sign(x) log(1 + |x|) | ``symlog``, ``symexp``, ``two_hot``, ``expected_value`` |
| y_t = r_t + gamma min_{i in I} Q_i(h(s_{t+1}), pi), I two of the target Qs | ``td_target`` |
| sum_t rho^t sum_i CE(Q_i(z_t, a_t), y_t) / (H N) | ``value_loss``, ``ValueEnsemble`` |
| sum_t rho^t CE(R(z_t, a_t), r_t) / H | ``value_loss`` of one, ``RewardHead`` |
| a = tanh(m + e sigma), log sigma in [-10, 2] | ``bounded_log_std``, ``squashed_gaussian`` |
| sum_t rho^t E (eta log pi - min_i Q_i / S) / (H + 1) | ``policy_loss`` |
| S follows the range from the 5 % to the 95 % quantile of Q at t = 0 | ``value_range``, ``moved_scale`` |

Time is the axis after the batch: sequences are (R, B, T, ...).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dynarep.pipeline.nn.networks import MLP, SIMPLEX

BINS, LIMIT = 101, 10.0
"""Bins of a value, and the largest of them; the smallest is its negative."""

LOG_STD = (-10.0, 2.0)
"""Bounds of the prior's log sigma."""


def normed_network(stack: Sequence[int], sizes: Sequence[int]) -> MLP:
    """A perceptron with LayerNorm and Mish on its hidden layers, weights from a normal of deviation 0.02."""
    return MLP(stack, sizes, hidden_activation="mish", normed=True, init="normal")


def latent_network(stack: Sequence[int], sizes: Sequence[int]) -> MLP:
    """The same with LayerNorm and ``simplices`` on the output.

    Raises:
        ValueError: if the output is no whole number of simplices.
    """
    if sizes[-1] % SIMPLEX:
        raise ValueError(f"latent_dim: found {sizes[-1]}, expected a multiple of {SIMPLEX}")
    final = {"final_activation": "simplices", "init": "normal"}
    return MLP(stack, sizes, hidden_activation="mish", normed=True, **final)  # type: ignore[arg-type]


def rollout(dynamics: Callable[[Tensor, Tensor], Tensor], start: Tensor, actions: Tensor) -> Tensor:
    """z_1..z_H of z_0 = start (R, B, d) under actions (R, B, H, act_dim): (R, B, H, d)."""
    points = [start]
    for action in actions.unbind(2):
        points.append(dynamics(points[-1], action))
    return torch.stack(points[1:], 2)


def discounted(steps: Tensor, decay: float) -> Tensor:
    """sum_t rho^t E x_t / T over batch and time: (R, B, T) -> (R,)."""
    weights = decay ** torch.arange(steps.shape[-1], device=steps.device)
    return (steps * weights).mean((-1, -2))


def consistency_loss(predicted: Tensor, encoded: Tensor, within: Tensor, decay: float) -> Tensor:
    """sum_t rho^t E w_t ||z_t - h(s_t)||^2 / (T dim z).

    Args:
        predicted: z_t, (R, B, T, d).
        encoded: h(s_t), (R, B, T, d), without gradient.
        within: w_t, (R, B, T), 1 where step t belongs to the episode, else 0.
        decay: rho in (0, 1].

    Returns:
        (R,).
    """
    return discounted((predicted - encoded).square().mean(-1) * within, decay)


def symlog(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|), elementwise."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of ``symlog``, elementwise."""
    return x.sign() * x.abs().expm1()


def bins(like: Tensor) -> Tensor:
    """The values of the bins in symlog space, (BINS,)."""
    return torch.linspace(-LIMIT, LIMIT, BINS, device=like.device, dtype=like.dtype)


def two_hot(x: Tensor) -> Tensor:
    """Weights of the two bins next to symlog x, whose mean it is; beyond the last bin all on that: (...) -> (..., BINS)."""
    place = (symlog(x).clamp(-LIMIT, LIMIT) + LIMIT) / (2 * LIMIT / (BINS - 1))
    return (1.0 - (place.unsqueeze(-1) - torch.arange(BINS, device=x.device)).abs()).clamp(min=0.0)


def expected_value(logits: Tensor) -> Tensor:
    """Value of the mean bin: (..., BINS) -> (...)."""
    return symexp((logits.softmax(-1) * bins(logits)).sum(-1))


def td_target(rewards: Tensor, next_values: Tensor, chosen: Tensor, discount: float) -> Tensor:
    """The target r + gamma min over the chosen ones of N values.

    Args:
        rewards: (R, ...).
        next_values: of all target Qs at the next encoded latents and the prior's actions there, (R, N, ...).
        chosen: indices of two of them, (2,) int64.
        discount: gamma.

    Returns:
        Like ``rewards``.
    """
    return rewards + discount * next_values[:, chosen].amin(1)


def value_loss(logits: Tensor, targets: Tensor, within: Tensor, decay: float) -> Tensor:
    """sum_t rho^t sum_i E w_t CE(two-hot y_t, Q_i) / (T N).

    Args:
        logits: of N values, (R, N, B, T, BINS).
        targets: y_t, (R, B, T).
        within: w_t, (R, B, T), 1 where step t belongs to the episode, else 0.
        decay: rho.

    Returns:
        (R,).
    """
    entropy = -(two_hot(targets).unsqueeze(1) * logits.log_softmax(-1)).sum(-1)
    return discounted(entropy.mean(1) * within, decay)


def bounded_log_std(x: Tensor) -> Tensor:
    """Log sigma = low + (high - low) (tanh x + 1) / 2, elementwise."""
    low, high = LOG_STD
    return low + 0.5 * (high - low) * (x.tanh() + 1.0)


def squashed_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """An action in [-1, 1] and its log-probability as the published code has it.

    That is ((sum_d -e_d^2 / 2 - log sigma_d) - log(2 pi) / 2) |A| - sum_d log(max(1 - a_d^2, 0) + 1e-6): the density is taken to
    the power |A|, which sets the scale of the entropy.

    Args:
        mean: m, (..., act_dim).
        log_std: log sigma, (..., act_dim).
        noise: e, standard normal, (..., act_dim).

    Returns:
        a = tanh(m + e sigma), (..., act_dim), and (...).
    """
    action = (mean + noise * log_std.exp()).tanh()
    density = (-0.5 * noise.square() - log_std).sum(-1) - 0.5 * math.log(2 * math.pi)
    squash = ((1.0 - action.square()).relu() + 1e-6).log().sum(-1)
    return action, density * mean.shape[-1] - squash


def policy_loss(
    values: Tensor, log_probs: Tensor, reached: Tensor, scale: Tensor, entropy: float, decay: float
) -> Tensor:
    """sum_t rho^t E w_t (eta log pi - Q / S) / T over all latents of a rollout, z_0 included.

    Args:
        values: the smaller of two Qs at the prior's actions, (R, B, T); differentiable in the actions alone.
        log_probs: of those actions, (R, B, T).
        reached: w_t, (R, B, T), 1 where the episode reaches state t, else 0.
        scale: S, (R,).
        entropy: eta.
        decay: rho.

    Returns:
        (R,).
    """
    return discounted((entropy * log_probs - values / scale.view(-1, 1, 1)) * reached, decay)


@torch.no_grad()
def value_range(values: Tensor) -> Tensor:
    """From the 5 % to the 95 % quantile of each replica, at least 1: (R, ...) -> (R,)."""
    low, high = (values.flatten(1).quantile(share, dim=1) for share in (0.05, 0.95))
    return (high - low).clamp(min=1.0)


@torch.no_grad()
def moved_scale(scale: Tensor, values: Tensor, rate: float = 0.01) -> Tensor:
    """S moved by ``rate`` towards the range of the values at t = 0: (R,), (R, B) -> (R,); it starts at 1."""
    return scale.lerp(value_range(values), rate)


def discount_of(length: int) -> float:
    """Discount for episodes of a length: (T / 5 - 1) / (T / 5), within [0.95, 0.995]."""
    return min(max((length / 5 - 1) / (length / 5), 0.95), 0.995)


class ValueEnsemble(nn.Module):
    """N values per replica as logits over bins; they start at 0.

    Args:
        replicas: R.
        latent_dim: numbers in a latent.
        action_dim: numbers in an action.
        hidden: widths.
        members: N.
    """

    def __init__(
        self, replicas: int, latent_dim: int, action_dim: int, hidden: tuple[int, ...] = (512, 512), members: int = 5
    ) -> None:
        super().__init__()
        self.network = normed_network((replicas, members), (latent_dim + action_dim, *hidden, BINS))
        self.network.dropout = 0.01
        nn.init.zeros_(self.network.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Logits of (R, B, latent_dim), (R, B, act_dim): (R, N, B, BINS)."""
        return self.network(torch.cat([latents, actions], -1).unsqueeze(1))  # type: ignore[no-any-return]


class RewardHead(nn.Module):
    """A reward per replica as logits over bins, of points of latents and actions; they start at 0.

    Args:
        replicas: R.
        inputs: numbers in a point.
        hidden: widths.
    """

    def __init__(self, replicas: int, inputs: int, hidden: tuple[int, ...] = (512, 512)) -> None:
        super().__init__()
        self.network = normed_network((replicas,), (inputs, *hidden, BINS))
        nn.init.zeros_(self.network.layers[-1].weight)  # type: ignore[arg-type]

    def logits(self, points: Tensor) -> Tensor:
        """Logits of (R, B, inputs): (R, B, BINS)."""
        return self.network(points)  # type: ignore[no-any-return]

    def forward(self, points: Tensor) -> Tensor:
        """The reward of points (R, B, inputs): (R, B)."""
        return expected_value(self.logits(points))


class PolicyPrior(nn.Module):
    """A tanh-Gaussian policy of latents.

    Args:
        replicas: R.
        latent_dim: numbers in a latent.
        action_dim: numbers in an action.
        hidden: widths.
    """

    def __init__(self, replicas: int, latent_dim: int, action_dim: int, hidden: tuple[int, ...] = (512, 512)) -> None:
        super().__init__()
        self.network = normed_network((replicas,), (latent_dim, *hidden, 2 * action_dim))

    def forward(self, latents: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions in [-1, 1] and their log-probabilities: (R, B, latent_dim), (R, B, act_dim) -> (R, B, act_dim), (R, B)."""
        mean, log_std = self.network(latents).chunk(2, -1)
        return squashed_gaussian(mean, bounded_log_std(log_std), noise)

    def mode(self, latents: Tensor) -> Tensor:
        """The likeliest action, tanh of the mean: (R, B, latent_dim) -> (R, B, act_dim)."""
        mean: Tensor = self.network(latents).chunk(2, -1)[0]
        return mean.tanh()
