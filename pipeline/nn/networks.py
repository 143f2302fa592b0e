"""Networks with stack axes in front: R independent replicas, and ensembles inside a replica, in one batched product.

A stack is a tuple such as ``(R,)`` or ``(R, 2)``. Inputs are ``(*stack, B, features)``, or have axes of size one where
all members read the same input; outputs are always ``(*stack, B, features)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

SIMPLEX = 8
"""Numbers of a point that together make 1 after ``simplices``."""


def simplices(x: Tensor) -> Tensor:
    """Softmax over each ``SIMPLEX`` neighbours (SimNorm, Hansen et al. 2024, arXiv 2310.16828): (..., d) -> (..., d)."""
    return x.reshape(*x.shape[:-1], -1, SIMPLEX).softmax(-1).view_as(x)


Initialisation = Literal["orthogonal", "xavier_uniform", "normal"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "mish": nn.functional.mish,
    "silu": nn.functional.silu,
    "simplices": simplices,
}

LARGEST = 1 << 28
"""Weights of a model, at most."""

FEW_OUTPUTS = 16
"""Below it, MKL takes up to ten times as long for a product as for the transposed one."""


class StackedLinear(nn.Module):
    """``len(stack)`` axes of independent affine maps, evaluated as one batched matrix product.

    Weights start orthogonal (gain sqrt 2), Xavier-uniform or normal (deviation 0.02), every member drawn on its own;
    biases start at zero.

    Raises:
        ValueError: if there are no weights or more than ``LARGEST``.
    """

    def __init__(
        self,
        stack: Sequence[int],
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        init: Initialisation = "orthogonal",
        gain: float = math.sqrt(2.0),
    ) -> None:
        super().__init__()
        self.stack = tuple(stack)
        shape = (*self.stack, inputs, outputs)
        if min(shape) < 1 or math.prod(shape) > LARGEST:
            raise ValueError(
                f"a layer: found shape {shape}, expected axes of at least 1 with at most {LARGEST:,} weights"
            )
        weight = torch.empty(math.prod(self.stack), inputs, outputs)
        for member in weight:
            if init == "orthogonal":
                nn.init.orthogonal_(member, gain)
            elif init == "xavier_uniform":
                nn.init.xavier_uniform_(member)
            else:
                nn.init.normal_(member, std=0.02)
        self.weight = nn.Parameter(weight.reshape(*self.stack, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(*self.stack, 1, outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (*stack, B, inputs) to (*stack, B, outputs); size-one stack axes of ``x`` are broadcast."""
        y = _product(x, self.weight)
        return y if self.bias is None else y + self.bias


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """(*stack, B, inputs) and (*stack, inputs, outputs) to (*stack, B, outputs), as it is fastest where outputs are few."""
    outputs = weight.shape[-1]
    if weight.is_cpu and outputs == 1:
        return (x * weight.mT).sum(-1, keepdim=True)
    if weight.is_cpu and outputs < FEW_OUTPUTS:
        return (weight.mT @ x.mT).mT
    return x @ weight


class NormedLinear(StackedLinear):
    """A ``StackedLinear`` whose outputs are normalised over the features (LayerNorm), then scaled and shifted.

    Scale and shift are learned for each member and feature, from 1 and 0.
    """

    def __init__(self, stack: Sequence[int], inputs: int, outputs: int, **options: Any) -> None:
        super().__init__(stack, inputs, outputs, **options)
        self.scale = nn.Parameter(torch.ones(*self.stack, 1, outputs))
        self.shift = nn.Parameter(torch.zeros(*self.stack, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (*stack, B, inputs) to (*stack, B, outputs)."""
        y = super().forward(x)
        return nn.functional.layer_norm(y, y.shape[-1:]) * self.scale + self.shift


class MLP(nn.Module):
    """Stacked multi-layer perceptron.

    Args:
        stack: leading axes, see the module docstring.
        sizes: input, hidden and output widths.
        hidden_activation: after each layer but the last.
        final_activation: after the last layer, or None.
        layer_norm: LayerNorm without affine parameters after each hidden activation.
        normed: a ``NormedLinear`` before each activation, the final one included.
        final_bias: whether the last layer has a bias.
        init: weight initialisation of every layer.
        hidden_gain: gain of the orthogonal initialisation of all layers but the last.
        final_gain: gain of the last layer's orthogonal initialisation.
    """

    def __init__(
        self,
        stack: Sequence[int],
        sizes: Sequence[int],
        *,
        hidden_activation: str = "relu",
        final_activation: str | None = None,
        layer_norm: bool = False,
        normed: bool = False,
        final_bias: bool = True,
        init: Initialisation = "orthogonal",
        hidden_gain: float = math.sqrt(2.0),
        final_gain: float = 1.0,
    ) -> None:
        super().__init__()
        last = len(sizes) - 2
        self.layers = nn.ModuleList(
            (NormedLinear if normed and (i < last or final_activation) else StackedLinear)(
                stack,
                inputs,
                outputs,
                bias=final_bias or i < last,
                init=init,
                gain=hidden_gain if i < last else final_gain,
            )
            for i, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
        )
        self.hidden_activation = ACTIVATIONS[hidden_activation]
        self.final_activation = ACTIVATIONS[final_activation] if final_activation else None
        self.layer_norm = layer_norm
        self.dropout = 0.0
        """Share of the hidden activations that are dropped while the network is trained."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (*stack, B, sizes[0]) to (*stack, B, sizes[-1])."""
        *hidden, last = self.layers
        for layer in hidden:
            x = self.hidden_activation(layer(x))
            if self.layer_norm:
                x = nn.functional.layer_norm(x, x.shape[-1:])
            if self.dropout and self.training:
                x = nn.functional.dropout(x, self.dropout)
        x = last(x)
        return self.final_activation(x) if self.final_activation else x


class Normaliser(nn.Module):
    """Standardises observations, (x - mean) / (std + 1e-3), and carries its statistics as buffers."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.to(torch.float32))
        self.register_buffer("std", std.to(torch.float32))

    @classmethod
    def identity(cls, dim: int) -> Normaliser:
        """A normaliser that returns its input, up to the 1e-3 in the denominator."""
        return cls(torch.zeros(dim), torch.full((dim,), 1.0 - 1e-3))

    def forward(self, x: Tensor) -> Tensor:
        """Standardise (..., dim)."""
        return (x - self.mean) / (self.std + 1e-3)

    def inverse(self, x: Tensor) -> Tensor:
        """What ``forward`` made x of."""
        return x * (self.std + 1e-3) + self.mean


class RunningNormaliser(nn.Module):
    """Standardises by what each replica has seen so far, (x - mean) / sqrt(variance + 1e-8), cut to [-10, 10].

    Args:
        replicas: R.
        dim: numbers in a point.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, replicas: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(replicas, 1, dim))
        self.register_buffer("variance", torch.ones(replicas, 1, dim))
        self.register_buffer("count", torch.zeros(replicas, 1, 1))

    @torch.no_grad()
    def see(self, x: Tensor) -> None:
        """Add (R, B, dim) to the statistics (Chan, Golub and LeVeque 1979)."""
        size = x.shape[1]
        total = self.count + size
        difference = x.mean(1, keepdim=True) - self.mean
        squares = self.variance * self.count + x.var(1, keepdim=True, correction=0) * size
        self.variance.copy_((squares + difference.square() * self.count * size / total) / total)
        self.mean.add_(difference * size / total)
        self.count.copy_(total)

    def forward(self, x: Tensor) -> Tensor:
        """Standardise (R or 1, B, dim): (R, B, dim)."""
        return ((x - self.mean) * (self.variance + 1e-8).rsqrt()).clamp(-10.0, 10.0)


class ActionScale(nn.Module):
    """Maps actions from their bounds to [-1, 1] and back, so that the unit of actions does not matter to a network.

    Args:
        low: lower bounds.
        high: upper bounds.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Sequence[float], high: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(low, dtype=torch.float32), persistent=False)
        self.register_buffer("high", torch.tensor(high, dtype=torch.float32), persistent=False)

    def forward(self, actions: Tensor) -> Tensor:
        """From the bounds to [-1, 1]."""
        return (actions - 0.5 * (self.low + self.high)) / (0.5 * (self.high - self.low))

    def inverse(self, unit: Tensor) -> Tensor:
        """From [-1, 1] to the bounds."""
        return 0.5 * (self.low + self.high) + unit * (0.5 * (self.high - self.low))
