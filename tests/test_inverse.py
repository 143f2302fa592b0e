"""The inverse model keeps what actions control."""

from __future__ import annotations

import pytest
import torch

from dynarep.data.resident import Batch
from dynarep.pipeline.methods.encoders.inverse import InverseConfig, InverseModel, kept_numbers


def test_kept_numbers_by_hand() -> None:
    norms = torch.tensor([[2.0, 0.11, 0.09, 0.0], [1.0, 1.0, 0.04, 0.06]])
    assert kept_numbers(norms, 0.05).tolist() == [[[1, 1, 0, 0]], [[1, 1, 0, 1]]]


def batch(generator: torch.Generator, noise: int) -> Batch:
    """Two numbers that an action moves, and numbers that have nothing to do with it."""
    shape = 2, 128
    s = torch.randn(*shape, 2 + noise, generator=generator)
    a = torch.rand(*shape, 2, generator=generator) * 2 - 1
    following = torch.randn(*shape, 2 + noise, generator=generator)
    following[..., :2] = s[..., :2] + 0.3 * a
    return Batch(s, a, None, torch.zeros(shape), following)


@pytest.mark.slow
def test_what_has_nothing_to_do_with_actions_is_dropped() -> None:
    torch.manual_seed(0)
    noise, generator = 6, torch.Generator().manual_seed(1)
    form = torch.zeros(2 + noise), torch.ones(2 + noise), (-1.0, -1.0), (1.0, 1.0)
    learner = InverseModel(InverseConfig(hidden=(64,)), 2, *form)
    adam = torch.optim.Adam([{"params": g["params"], "lr": g["lr"]} for g in learner.parameter_groups()])
    for update in range(1500):
        for group, rate in zip(adam.param_groups, (3e-3, 1e-3), strict=True):
            group["lr"] = rate * (1 - update / 1500)
        adam.zero_grad()
        losses = learner.losses(batch(generator, noise))
        losses.loss.sum().backward()
        adam.step()
    encoder = learner.export()
    assert encoder.kept.tolist() == [[[1, 1, *[0] * noise]]] * 2
    assert losses.metrics["squared_error"].max() < 0.1
    s = torch.randn(1, 4, 2 + noise)
    latents = encoder.embed(s)
    assert not latents[..., 2:].any()
    torch.testing.assert_close(latents[0, :, :2], encoder.normaliser(s)[0, :, :2])


def test_replicas_are_independent() -> None:
    learner = InverseModel(InverseConfig(hidden=(8,)), 2, torch.zeros(5), torch.ones(5), (-1.0, -1.0), (1.0, 1.0))
    learner.losses(batch(torch.Generator().manual_seed(0), 3)).loss[0].backward()
    for name, parameter in learner.named_parameters():
        assert not parameter.grad[1].any(), name
