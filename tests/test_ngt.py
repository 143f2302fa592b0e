"""NGT: golden numbers of the published formulas, what bounds the potential, and the whole in a small environment."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dynarep.configs.params import ParamsError
from dynarep.data.resident import Batch
from dynarep.pipeline.learn import learn
from dynarep.pipeline.methods.encoders.identity import States, StatesArchitecture
from dynarep.pipeline.methods.learners.ngt import (
    NGT,
    NGTConfig,
    exponential_reward,
    hl_gauss_potential,
    huber_potential,
    quantile_reward,
    target_histogram,
    transport_loss,
)
from dynarep.pipeline.nn.spectral import SpectralMLP
from tests.entries import unplugged
from tests.test_sac import LINE, acting, dataset, run, settings, trained, world

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_a_perfect_match_costs_nothing_or_the_entropy_of_the_target() -> None:
    prior = torch.randn(2, 5, 8)
    assert torch.equal(huber_potential(prior, prior), torch.zeros(2, 5))
    assert torch.equal(exponential_reward(huber_potential(prior, prior), 1.0), torch.ones(2, 5))
    target = target_histogram(torch.tensor([[0.3]], dtype=torch.float64), 21, 3.0, 1.5)
    edges = torch.linspace(-3.0, 3.0, 22, dtype=torch.float64)
    assert float((target * (edges[1:] + edges[:-1]) / 2).sum()) == pytest.approx(0.3, abs=1e-5)
    matching = target.log().mT.unsqueeze(0)
    h, floor = hl_gauss_potential(matching, target.unsqueeze(0))
    assert float(h) == pytest.approx(1.8426, abs=1e-4)
    assert float(floor) == pytest.approx(float(h), abs=1e-5)
    assert math.exp(-float(h)) == pytest.approx(0.158407, abs=1e-4)


def test_the_huber_potential_and_the_reward_of_the_paper_by_hand() -> None:
    difference = torch.tensor([[[0.2, -1.9, 0.0, 3.0]]])
    h = huber_potential(difference, torch.zeros_like(difference))
    assert float(h) == pytest.approx(0.98)
    assert float(exponential_reward(h, 1.0)) == pytest.approx(0.375311, abs=1e-6)
    assert float(exponential_reward(h, 2.0)) == pytest.approx(0.375311**2, abs=1e-6)


def test_the_reward_of_the_released_code_by_hand() -> None:
    u = torch.tensor([[0.1, 0.2, 0.4, 0.8]])
    quantiles = torch.tensor([0.1, 0.3, 0.7]).view(3, 1, 1)
    found = quantile_reward(u, quantiles, "symexp")
    torch.testing.assert_close(found, torch.tensor([[0.395612, 0.18136, -0.18136, -1.300976]]), atol=1e-6, rtol=1e-5)
    linear = quantile_reward(u, quantiles, "linear")
    torch.testing.assert_close(linear, torch.tensor([[1 / 3, 1 / 6, -1 / 6, -5 / 6]]))
    assert quantile_reward(torch.tensor([[99.0, -99.0]]), quantiles, "symexp").tolist() == [[-5.0, 5.0]]


def test_a_histogram_meets_logits_in_their_layout() -> None:
    """N first, then m: the cell that a target is in is where its output's logits count."""
    target = torch.zeros(1, 2, 3)
    target[0, 0, 2] = target[0, 1, 0] = 1.0
    logits = torch.zeros(1, 3, 2)
    logits[0, 2, 0] = logits[0, 0, 1] = 50.0
    h, floor = hl_gauss_potential(logits, target)
    assert float(h) < 1e-6
    assert float(floor) == 0.0


def make(observation_dim: int = 1, replicas: int = 2, space: Any = None, **values: Any) -> NGT:
    c = NGTConfig(**{"environment": settings(), "hidden": (8,), "reward_hidden": (32, 32), **values})
    return NGT(c, world(observation_dim, 1, replicas, encoder=space))


def fitted(model: NGT, expert: Tensor, agent: Tensor, updates: int, rate: float = 1e-3) -> NGT:
    optimizer = torch.optim.Adam(model.predictor.parameters(), rate)
    for _ in range(updates):
        optimizer.zero_grad()
        model.reward_loss(expert, agent).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.after_update()
    return model


@pytest.mark.parametrize("potential", ["huber", "hl_gauss"])
def test_equal_distributions_give_no_loss_and_no_gradient_on_average(potential: Any) -> None:
    model = make(3, potential=potential, outputs=4)
    losses, gradients = [], []
    for _ in range(200):
        expert, agent = torch.randn(2, 2, 64, model.space.dim)
        loss = model.reward_loss(expert, agent).loss
        (gradient,) = torch.autograd.grad(loss.sum(), [model.predictor.weights[0]])
        losses.append(loss.detach())
        gradients.append(gradient.flatten())
    for values in (torch.stack(losses), torch.stack(gradients)):
        error = values.std(0) / math.sqrt(len(values))
        assert (values.mean(0).abs() < 4.5 * error + 1e-9).all()
    assert float(transport_loss(torch.ones(1, 3), torch.ones(1, 5), 1.0)) == 0.0
    assert float(transport_loss(torch.ones(1, 3), torch.ones(1, 5), 0.0)) == 1.0


def line_points(values: list[float]) -> Tensor:
    """Points on a line, (2, B, 2): the second number, an action, is 0."""
    x = torch.tensor(values).view(1, -1, 1).expand(2, -1, 1)
    return torch.cat([x, torch.zeros_like(x)], -1)


def test_the_loss_is_bounded_by_the_distance_of_the_distributions() -> None:
    """-L <= (Lipschitz bound of h) W1, by Kantorovich and Rubinstein, and comes close for what h can be."""
    expert, agent = line_points([0.0, 0.2]), line_points([1.0, 1.4])
    distance, outputs = 1.1, 16
    model = fitted(make(outputs=outputs), expert, agent, 600, rate=3e-3)
    gained = -model.reward_loss(expert, agent).loss
    assert (gained <= 2 / math.sqrt(outputs) * distance + 1e-4).all()
    between = line_points(torch.linspace(0.0, 1.4, 200).tolist())
    h = model.potential(between)[0].detach()
    steepest = (h.diff(dim=1) / (1.4 / 199)).amax(1)
    assert (gained <= steepest * distance + 1e-4).all()
    assert (gained >= 0.4 * steepest * distance).all(), "h rises towards the agent nearly as steeply as it can"
    rewards = exponential_reward(model.potential(torch.cat([expert, agent], 1))[0].detach(), 1.0)
    assert (rewards[:, :2].amin(1) > rewards[:, 2:].amax(1)).all()


@pytest.mark.parametrize("initialisation", ["orthogonal", "uniform"])
def test_after_a_thousand_updates_the_networks_are_still_bounded(initialisation: Any) -> None:
    model = make(3, initialisation=initialisation, outputs=16)
    expert, agent = torch.randn(2, 32, model.space.dim), torch.randn(2, 32, model.space.dim) + 1.0
    fitted(model, expert, agent, 1000, rate=5e-4)
    for network in (model.predictor, model.prior):
        for weight in network.effective():
            largest = torch.linalg.matrix_norm(weight, 2)
            assert ((largest - 1).abs() < 0.02).all(), largest
    x, y = torch.randn(2, 2, 300, model.space.dim)
    y = x + 0.01 * y
    rise = (model.potential(x)[0] - model.potential(y)[0]).abs() / (x - y).norm(dim=-1)
    assert (rise <= 2 / math.sqrt(16) * 1.02**4).all()
    assert rise.max() > 0.01


def test_priors_are_orthogonal_and_never_move() -> None:
    model = make(3)
    before = [w.clone() for w in model.prior.effective()]
    for weight in before:
        gram = weight @ weight.mT if weight.shape[1] <= weight.shape[2] else weight.mT @ weight
        torch.testing.assert_close(gram, torch.eye(gram.shape[-1]).expand_as(gram), atol=1e-4, rtol=0)
    fitted(model, torch.randn(2, 8, model.space.dim), torch.randn(2, 8, model.space.dim), 20)
    assert all(torch.equal(a, b) for a, b in zip(before, model.prior.effective(), strict=True))
    assert all(p.requires_grad is False for p in model.prior.parameters())


def test_without_the_norm_weights_are_as_they_are() -> None:
    network = SpectralMLP(2, (3, 8, 4), normalise=False)
    assert network.effective()[0] is network.weights[0]


def test_quantiles_are_used_before_they_follow() -> None:
    model = make(quantile_rate=0.5)
    first, second = torch.randn(2, 2, 64, model.space.dim)
    h = model.potential(first)[0].detach()
    levels = torch.tensor([0.05, 0.5, 0.95])
    own = torch.quantile(h, levels, dim=1).unsqueeze(-1)
    with torch.no_grad():
        torch.testing.assert_close(model.reward_of(first), quantile_reward(h, own, "symexp"))
        torch.testing.assert_close(model.quantiles, own)
        following = model.potential(3 * second)[0]
        torch.testing.assert_close(model.reward_of(3 * second), quantile_reward(following, own, "symexp"))
    new = torch.quantile(following, levels, dim=1).unsqueeze(-1)
    torch.testing.assert_close(model.quantiles, 0.5 * (own + new))


def a_batch(observation_dim: int = 2, size: int = 6) -> Batch:
    s, s_next = torch.randn(2, 2, size, observation_dim)
    zeros = torch.zeros(2, size)
    return Batch(s, torch.rand(2, size, 1), zeros, zeros, s_next)


def test_points_are_those_of_the_pairs_and_the_space() -> None:
    batch = a_batch()
    acts = make(2).space
    acts.see(batch)
    mean, deviation = batch.observations.mean(1, keepdim=True), batch.observations.std(1, keepdim=True, correction=0)
    z, following = ((x - mean) / deviation for x in (batch.observations, batch.next_observations))
    torch.testing.assert_close(acts(batch), torch.cat([z, batch.actions], -1), atol=1e-4, rtol=1e-4)
    states = make(2, pairs="ss").space
    states.see(batch)
    torch.testing.assert_close(states(batch), torch.cat([z, following], -1), atol=1e-4, rtol=1e-4)
    raw = States(StatesArchitecture(replicas=1, observation_dim=2))
    through = make(2, space=raw).space
    through.see(batch)
    torch.testing.assert_close(through(batch), acts(batch))
    with pytest.raises(ValueError, match="points: found 'psi', expected one of states"):
        make(2, space=raw, points="psi")
    with pytest.raises(ValueError, match="points: found 'psi', expected null without an encoder"):
        make(2, points="psi")


SMALL: dict[str, Any] = {"demonstrations": "shown", "reward_hidden": [8, 8], "outputs": 4}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"pairs": "ss", "shape": "exp"},
        {"potential": "hl_gauss", "shape": "linear"},
        {"ascent": 0, "initialisation": "uniform"},
        {"reward_rate": 0},
    ],
)
def test_it_trains(tmp_path: Path, values: Any) -> None:
    shown = dataset(tmp_path, "shown", action_dim=0 if values.get("pairs") == "ss" else 1)
    made = acting("ngt", **SMALL, **values)
    policy, facts = learn(made, None, shown, None, None, run(tmp_path))
    assert torch.isfinite(policy.act(torch.randn(1, 4, 2))).all()
    assert facts["saw"]["other"] == "nothing, then its own steps without rewards"
    curves = (tmp_path / "out" / "curves.tsv").read_text().splitlines()
    assert {"reward_loss", "expert_potential", "agent_potential", "episode_return"} <= set(curves[0].split("\t"))
    if values.get("reward_rate") == 0:
        column = curves[0].split("\t").index("expert_potential")
        assert len({round(float(line.split("\t")[column]), 1) for line in curves[1:]}) >= 1


def test_a_dataset_may_begin_the_replay(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    state = trained(tmp_path / "a", acting("ngt", **SMALL, dataset="data"), data, data)
    assert state["normaliser.count"].flatten().tolist() == [124.0, 124.0]


def test_it_reads_a_space(tmp_path: Path) -> None:
    shown = dataset(tmp_path, "shown")
    raw = States(StatesArchitecture(replicas=1, observation_dim=2))
    inside = trained(tmp_path / "a", acting("ngt", **SMALL, encoder="raw"), None, shown, raw)
    plain = trained(tmp_path / "b", acting("ngt", **SMALL), None, shown)
    assert all(torch.equal(inside[name], plain[name]) for name in plain), "raw states are raw states"
    wrong = States(StatesArchitecture(replicas=1, observation_dim=3))
    with pytest.raises(ValueError, match="encoder: raw has observation_dim 3, this run needs 2"):
        trained(tmp_path / "c", acting("ngt", **SMALL, encoder="raw"), None, shown, wrong)


def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    shown = dataset(tmp_path, "shown", observation_dim=4)
    made = acting("ngt", **SMALL, environment={"env": "InvertedPendulum-v4"}, training={"checkpoint_every": 10})
    whole = trained(tmp_path / "whole", made, None, shown)
    with unplugged(25):
        trained(tmp_path / "resumed", made, None, shown)
    resumed = trained(tmp_path / "resumed", made, None, shown)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    for values, message in (
        ({"action_dim": 0}, "dataset shown has no actions; ngt imitates actions"),
        ({"observation_dim": 5}, f"observation_dim: found 5 in demonstrations shown, expected 2 as in env {LINE}"),
        ({"action_dim": 3}, f"action_dim: found 3 in demonstrations shown, expected 1 as in env {LINE}"),
    ):
        shown = dataset(tmp_path / message[:30].replace(" ", "-").replace(":", ""), "shown", **values)
        with pytest.raises(ValueError, match=message):
            trained(tmp_path / "run", acting("ngt", **SMALL), None, shown)
    with pytest.raises(
        ParamsError, match=r"learn\.name\.demonstrations: found none, expected a dataset; ngt learns from it"
    ):
        acting("ngt")
    with pytest.raises(ParamsError, match=r"learn\.name\.rewards: found 'x', expected none; ngt reads no rewards"):
        acting("ngt", **SMALL, rewards="x")


def test_a_predictor_that_outruns_the_quantiles_is_paid_at_the_limit() -> None:
    """Why ``quantile_rate`` and ``reward_rate`` belong together."""
    points = torch.linspace(0.1, 1.0, 50).expand(2, -1)
    stale = torch.tensor([0.01, 0.05, 0.1]).view(3, 1, 1).expand(3, 2, 1)
    own = torch.quantile(points, torch.tensor([0.05, 0.5, 0.95]), dim=1).unsqueeze(-1)
    assert (quantile_reward(points, stale, "symexp")[:, 15:] == -5.0).all()
    assert quantile_reward(points, own, "symexp").abs().max() < 1.0
