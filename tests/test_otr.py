import numpy as np
import pytest
import torch
from torch import Tensor

from dynarep.configs.params import validate
from dynarep.pipeline.labelling import better
from dynarep.pipeline.methods.rewards.otr import OTRConfig, cosine_cost, label
from dynarep.pipeline.nn.functional import return_range_scale
from dynarep.pipeline.transport import Labels, pad_with_last

X = torch.tensor([[1.0, 0, 0], [1.0, 0.5, 0], [0, 1.0, 0.2], [0, 0.3, 1.0]])
Y = torch.tensor([[1.0, 0, 0.1], [0.2, 1.0, 0], [0, 0.1, 1.0]])
UNUSED = torch.ones(1)


def rewards(agent: Tensor, expert: Tensor, **settings: object) -> Labels:
    c = validate(OTRConfig, settings, "otr")
    return label(agent[None], torch.tensor([len(agent)]), expert[None], torch.tensor([len(expert)]), UNUSED, c)


def episodes(*lengths: int, dim: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, dim, generator=generator) for length in lengths]


def test_own_episode_pays_nothing() -> None:
    (agent,) = episodes(10, dim=17)
    found = rewards(agent, agent, horizon=10)
    paid = (found.transport.coupling * found.cost).sum(2)
    assert (10.0 * paid).max() < 1e-3
    torch.testing.assert_close(found.rewards, torch.full((1, 10), 5.0), atol=1e-2, rtol=0.0)


@pytest.mark.parametrize(("rows", "columns"), [(7, 9), (9, 4)])
def test_every_step_sends_one_over_the_horizon(rows: int, columns: int) -> None:
    agents, experts = episodes(rows, 12), episodes(columns, 13)
    (agent, n), (expert, m) = pad_with_last(agents), pad_with_last(experts)
    coupling = label(agent, n, expert, m, UNUSED, OTRConfig(horizon=20)).transport.coupling
    torch.testing.assert_close(coupling[0, :rows].sum(1), torch.full((rows,), 1 / 20), rtol=1e-6, atol=0.0)
    assert coupling[0, rows:].sum() == coupling[0, :, columns:].sum() == 0


def test_worked_example() -> None:
    found = rewards(X, Y, horizon=10).rewards[0]
    np.testing.assert_allclose(found, [4.958814, 3.307013, 4.689544, 4.849519], atol=1e-5)


def test_lengths_of_observations_do_not_matter() -> None:
    agent, expert = episodes(20, 30)
    scales = torch.rand(20, 1, generator=torch.Generator().manual_seed(1)) * 10 + 0.1
    one, other = rewards(agent, expert).rewards, rewards(agent * scales, expert / 3.0).rewards
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_same_expert_twice_changes_nothing() -> None:
    agent, expert = episodes(20, 30)
    found = rewards(agent, expert).rewards
    assert torch.equal(better(found, rewards(agent, expert.clone()).rewards, by_state=False), found)


def test_the_episode_with_the_larger_sum_wins() -> None:
    one, other = torch.tensor([[1.0, 5.0], [1.0, 2.0]]), torch.tensor([[3.0, 2.0], [2.0, 2.0]])
    assert better(one, other, by_state=False).tolist() == [[1.0, 5.0], [2.0, 2.0]]
    assert better(one, other, by_state=True).tolist() == [[3.0, 5.0], [2.0, 2.0]]


def test_published_temperature() -> None:
    """beta 5 * 1000 / d on the paid cost, which is 1/1000 of the mean cost of a step."""
    agent, expert = episodes(20, 30, dim=11)
    found = rewards(agent, expert)
    paid = (found.transport.coupling * found.cost).sum(2)
    torch.testing.assert_close(found.rewards, 5.0 * torch.exp(-5000.0 / 11 * paid))
    undivided = rewards(agent, expert, temperature=1.0, divide_by_observation_dim=False)
    torch.testing.assert_close(undivided.rewards, 5.0 * torch.exp(-1000.0 * paid))


def test_normalised_mode_differs_in_epsilon_alone() -> None:
    agent, expert = episodes(20, 30)
    paper = rewards(agent, expert, horizon=50)
    epsilon = 0.01 / float(paper.cost.mean())
    normalised = rewards(agent, expert, mode="normalised", epsilon=epsilon)
    torch.testing.assert_close(normalised.transport.coupling.sum(2), torch.full((1, 20), 1 / 20))
    torch.testing.assert_close(normalised.rewards, paper.rewards, rtol=1e-3, atol=1e-5)


def test_a_batch_is_its_members_and_padding_earns_nothing() -> None:
    agents, experts = episodes(12, 30, 1), episodes(25, 9, 14)
    (agent, n), (expert, m) = pad_with_last(agents), pad_with_last(experts)
    for mode in ("paper", "normalised"):
        found = label(agent, n, expert, m, UNUSED, validate(OTRConfig, {"mode": mode}, "otr"))
        for i, (x, y) in enumerate(zip(agents, experts, strict=True)):
            alone = rewards(x, y, mode=mode).rewards[0]
            torch.testing.assert_close(found.rewards[i, : len(x)], alone, rtol=1e-3, atol=1e-5)
            assert (found.rewards[i, len(x) :] == 0).all()


def test_cosine_cost() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    y = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]]])
    expected = torch.tensor([[0.0, 1.0, 2.0, 1.0 - 0.5**0.5], [1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(cosine_cost(x, y)[0], expected)


def test_return_range_scale() -> None:
    one, other = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0], [4.0]])
    torch.testing.assert_close(return_range_scale([one, other]), torch.tensor([500.0, 250.0]))
    with pytest.raises(ValueError, match="same return"):
        return_range_scale([one, one])
