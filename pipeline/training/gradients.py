"""Gradients of a method's losses: eager, or with the losses in one compiled graph; and their clipping."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dynarep.pipeline.nn.functional import Losses

Gradients = Callable[[Any], tuple[tuple[Tensor | None, ...], dict[str, Tensor]]]


def clip_gradients(parameters: list[nn.Parameter], limit: float) -> None:
    """Scale each replica's gradient to a norm of at most ``limit``; the first axis of every parameter is the replica."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    scale = (limit / (gradient_norm(gradients) + 1e-6)).clamp(max=1.0)
    for g in gradients:
        g.mul_(scale.view(-1, *[1] * (g.dim() - 1)))


def gradient_norm(gradients: Iterable[Tensor | None]) -> Tensor:
    """Norm of each replica's gradient, (R,); the first axis of every part is the replica."""
    return torch.stack([g.flatten(1).square().sum(1) for g in gradients if g is not None]).sum(0).sqrt()


def gradients_of(learner: nn.Module, parameters: list[nn.Parameter]) -> Gradients:
    """What maps a batch to gradients, losses and metrics.

    Args:
        learner: see the module docstring.
        parameters: those that are trained.

    Returns:
        A function to the gradient of the summed losses for each parameter, None where it has no part in them, and to
        ``loss`` and the metrics, each (R,); with ``watches_gradients`` of the learner also the norm of the gradient.
    """

    def gradients(batch: Any) -> tuple[tuple[Tensor | None, ...], dict[str, Tensor]]:
        result: Losses = learner.losses(batch)  # type: ignore[operator]
        found = torch.autograd.grad(result.loss.sum(), parameters, allow_unused=True)
        metrics = {"loss": result.loss.detach(), **result.metrics}
        if getattr(learner, "watches_gradients", False):
            metrics["gradient_norm"] = gradient_norm(found)
        return tuple(None if g is None else g.contiguous() for g in found), metrics

    return gradients


def compiled(gradients: Gradients, *, needed: bool, replayed: bool = True) -> Gradients:
    """The same function as one compiled graph.

    Args:
        gradients: from ``gradients_of``.
        needed: raise where it cannot be compiled; else say so and go on without.
        replayed: on CUDA, replay it as a CUDA graph of its own.
    """
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        if needed:
            raise RuntimeError(f"training.compile: found PyTorch {torch.__version__}, expected 2.13 or newer")
        return gradients
    torch._dynamo.reset()  # the graphs of earlier trainings of this process count against a limit
    torch._dynamo.config.trace_autograd_ops = True
    mode = "reduce-overhead" if replayed and torch.cuda.is_available() else "default"
    fast = torch.compile(gradients, fullgraph=True, mode=mode)
    works: bool | None = None

    def call(batch: Any) -> tuple[tuple[Tensor | None, ...], dict[str, Tensor]]:
        nonlocal works
        if works is False:
            return gradients(batch)
        state = torch.get_rng_state() if works is None else None
        try:
            result = fast(batch)
        except Exception as error:
            if needed or works:
                raise
            works = False
            assert state is not None
            torch.set_rng_state(state)
            reason = str(error).strip().partition("\n")[0]
            print(f"not compiled, which only takes longer: {type(error).__name__}: {reason}", file=sys.stderr)
            return gradients(batch)
        works = True
        return result

    return call
