"""DAC: losses by hand, the discriminator of two Gaussians, and the whole in a small environment."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dynarep.pipeline.learn import learn
from dynarep.pipeline.methods.learners.dac import DAC, DACConfig, binary_loss, wasserstein_loss
from tests.test_sac import acting, dataset, run, settings, world

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_losses_by_hand() -> None:
    expert, agent = torch.tensor([[0.0, 2.0]]), torch.tensor([[-1.0]])
    by_hand = (math.log(2) + math.log1p(math.exp(-2))) / 2 + math.log1p(math.exp(-1))
    assert float(binary_loss(expert, agent)) == pytest.approx(by_hand)
    assert float(wasserstein_loss(expert, agent)) == pytest.approx(-2.0)


def test_the_logit_is_the_logarithm_of_the_ratio() -> None:
    """Without a penalty the best discriminator of N(0.5, 1) and N(-0.5, 1) has the logit x."""
    c = DACConfig(environment=settings(), hidden=(8,), reward_hidden=(32,), gradient_penalty=0)
    model = DAC(c, world(1, 1))
    optimizer = torch.optim.Adam(model.discriminator.parameters(), 3e-3)
    for _ in range(500):
        expert, agent = torch.randn(2, 2, 256, 2)
        expert[..., 0] += 0.5
        agent[..., 0] -= 0.5
        optimizer.zero_grad()
        model.reward_loss(expert, agent).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    x = torch.linspace(-1, 1, 5).view(1, 5, 1).expand(2, 5, 1)
    found = model.reward_of(torch.cat([x, torch.zeros_like(x)], -1))
    assert (found - x.squeeze(-1)).abs().max() < 0.3


def test_the_penalty_draws_slopes_to_one() -> None:
    """Between two points at a distance l, slope s gains s l and pays 10 (s - 1)^2: the best s is 1 + l / 20."""
    c = DACConfig(environment=settings(), hidden=(8,), reward_hidden=(32,), divergence="wasserstein")
    model = DAC(c, world(1, 1))
    optimizer = torch.optim.Adam(model.discriminator.parameters(), 3e-3)
    expert, agent = torch.ones(2, 3, 2), -torch.ones(2, 64, 2)
    for _ in range(400):
        optimizer.zero_grad()
        model.reward_loss(expert, agent).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    gained = -model.reward_loss(expert, agent).metrics["reward_loss"]
    length = 2 * math.sqrt(2)
    assert (gained - length * (1 + length / 20)).abs().max() < 0.05


@pytest.mark.parametrize("values", [{}, {"pairs": "ss", "divergence": "wasserstein"}])
def test_it_trains(tmp_path: Path, values: Any) -> None:
    shown = dataset(tmp_path, "shown", action_dim=0 if "pairs" in values else 1)
    policy, _ = learn(
        acting("dac", demonstrations="shown", reward_hidden=[8], **values), None, shown, None, None, run(tmp_path)
    )
    assert torch.isfinite(policy.act(torch.randn(1, 4, 2))).all()
