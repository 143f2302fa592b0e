from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, write_dataset
from dynarep.pipeline.cloning import best_episodes
from dynarep.pipeline.learn import learn
from dynarep.pipeline.method import World
from dynarep.pipeline.methods.learners.bc import BC, BCConfig
from dynarep.pipeline.training.config import TrainingConfig
from tests.entries import a_run, entry

torch.set_num_threads(1)

LOW, HIGH = (-2.0, 0.0), (2.0, 10.0)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def demonstrations(batch: int, noise: float) -> SimpleNamespace:
    """A linear expert within the bounds, on states far from the unit scale."""
    s = torch.tensor([100.0, -3.0, 0.0]) + torch.tensor([10.0, 1.0, 0.1]) * (2 * torch.rand(2, batch, 3) - 1)
    x = (s - torch.tensor([100.0, -3.0, 0.0])) / torch.tensor([10.0, 1.0, 0.1])
    mean = torch.stack([0.6 * x[..., 0] - 0.4 * x[..., 1], 5 + 2 * x[..., 2] - x[..., 0]], -1)
    return SimpleNamespace(observations=s, actions=mean + noise * torch.randn_like(mean), mean=mean)


def test_a_linear_expert_is_recovered_with_its_noise() -> None:
    config, updates = BCConfig(hidden=(32, 32), learning_rate=1e-2), 1200  # Adam moves log-std by 6 at most
    learner = BC.build(config, World(2, torch.tensor([100.0, -3.0, 0.0]), torch.tensor([5.8, 0.58, 0.058]), LOW, HIGH))
    optimizer = torch.optim.Adam([p for group in learner.parameter_groups() for p in group["params"]], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        optimizer.zero_grad()
        learner.losses(demonstrations(128, 0.1)).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    test = demonstrations(500, 0.0)
    error = (learner.export().act(test.observations) - test.mean).square().mean((1, 2))
    assert (error < 2e-3).all()
    # log_std is that of actions in [-1, 1]; half the width of the bounds brings it back to recorded ones
    spread = torch.tensor([2.0, 5.0]) * learner.log_std.exp()
    torch.testing.assert_close(spread, torch.full((2, 1, 2), 0.1), atol=0.02, rtol=0)


def test_loss_is_the_negative_log_likelihood_of_actions_in_their_own_unit() -> None:
    learner = BC.build(BCConfig(hidden=(8,)), World(2, torch.randn(3), torch.rand(3) + 0.5, LOW, HIGH))
    torch.nn.init.normal_(learner.log_std)
    batch = SimpleNamespace(observations=torch.randn(2, 6, 3), actions=torch.randn(2, 6, 2))
    result = learner.losses(batch)
    centre, half = torch.tensor([0.0, 5.0]), torch.tensor([2.0, 5.0])  # of LOW and HIGH
    mean = learner.policy.act(batch.observations)
    # a density over recorded actions is the one over actions in [-1, 1], divided by the half widths
    density = torch.distributions.Normal(mean, half * learner.log_std.exp().expand_as(mean))
    log_prob = (density.log_prob(batch.actions) + half.log()).sum(2)
    torch.testing.assert_close(result.loss, -log_prob.mean(1))
    unit_error = (mean - centre) / half - (batch.actions - centre) / half
    torch.testing.assert_close(result.metrics["squared_error"], unit_error.square().mean((1, 2)).detach())
    assert not result.metrics["squared_error"].requires_grad


def test_the_unit_of_actions_does_not_matter() -> None:
    scale, shift = torch.tensor([1000.0, 0.01]), torch.tensor([-300.0, 0.07])
    low, high = (tuple((torch.tensor(x) * scale + shift).tolist()) for x in (LOW, HIGH))
    s, a = torch.randn(2, 6, 3), torch.tensor(LOW) + torch.rand(2, 6, 2) * torch.tensor([4.0, 10.0])
    found = []
    for bounds, actions in (((LOW, HIGH), a), ((low, high), a * scale + shift)):
        torch.manual_seed(0)
        learner = BC.build(BCConfig(hidden=(8,)), World(2, torch.zeros(3), torch.ones(3), *bounds))
        torch.nn.init.normal_(learner.policy.network.layers[-1].weight)
        found.append(learner.losses(SimpleNamespace(observations=s, actions=actions)).loss)
    torch.testing.assert_close(found[0], found[1])


def test_the_spread_stays_within_its_bounds() -> None:
    learner = BC.build(BCConfig(hidden=(8,)), World(1, torch.zeros(3), torch.ones(3), LOW, HIGH))
    batch = SimpleNamespace(observations=torch.randn(1, 6, 3), actions=torch.randn(1, 6, 2))
    losses = []
    for value in (-5.0, -9.0, 2.0, 7.0):
        torch.nn.init.constant_(learner.log_std, value)
        losses.append(learner.losses(batch).loss)
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[2], losses[3])
    assert not torch.equal(losses[0], losses[2])


def test_dropout_of_hidden_activations_while_training() -> None:
    batch = SimpleNamespace(observations=torch.randn(1, 6, 3), actions=torch.randn(1, 6, 2))
    for dropout, same in ((0.0, True), (0.5, False)):
        learner = BC.build(BCConfig(hidden=(8,), dropout=dropout), World(1, torch.zeros(3), torch.ones(3), LOW, HIGH))
        torch.nn.init.normal_(learner.policy.network.layers[-1].weight)
        assert torch.equal(learner.losses(batch).loss, learner.losses(batch).loss) == same
        # stages switch what they export to evaluation, in which nothing is dropped
        policy = learner.export().eval()
        assert torch.equal(policy.act(batch.observations), policy.act(batch.observations))
        first, last = policy.network.layers
        hidden = torch.relu(first(batch.observations / 1.001))
        expected = torch.tensor([0.0, 5.0]) + torch.tensor([2.0, 5.0]) * torch.tanh(last(hidden))
        torch.testing.assert_close(policy.act(batch.observations), expected)
        if dropout:
            torch.manual_seed(3)
            kept = torch.nn.functional.dropout(hidden, dropout)
            torch.manual_seed(3)
            torch.testing.assert_close(learner.policy.mean(batch.observations), last(kept))


def test_everything_is_trained_with_cosine_decay() -> None:
    learner = BC.build(BCConfig(hidden=(8,), learning_rate=0.02), World(1, torch.zeros(3), torch.ones(3), LOW, HIGH))
    (group,) = learner.parameter_groups()
    assert group["lr"] == 0.02
    assert {id(p) for p in group["params"]} == {id(p) for p in learner.parameters()}
    assert group["cosine"] is True


def test_export_is_a_copy() -> None:
    learner = BC.build(BCConfig(hidden=(8,)), World(1, torch.zeros(3), torch.ones(3), LOW, HIGH))
    torch.nn.init.normal_(learner.policy.network.layers[-1].weight)
    policy, s = learner.export(), torch.randn(1, 4, 3)
    before = policy.act(s)
    torch.nn.init.normal_(learner.policy.network.layers[-1].weight)
    assert torch.equal(policy.act(s), before)


@pytest.mark.parametrize(
    ("returns", "lengths", "share", "expected"),
    [
        ([1.0, 5.0, 3.0, 4.0], [10, 10, 10, 10], 0.5, [1, 3]),  # the best half
        ([1.0, 5.0, 3.0, 4.0], [10, 10, 10, 10], 0.74, [1, 3]),  # a third would exceed the share
        ([1.0, 5.0, 3.0, 4.0], [10, 10, 10, 10], 1.0, [0, 1, 2, 3]),
        ([1.0, 5.0, 3.0, 4.0], [10, 90, 10, 10], 0.1, [1]),  # at least one, however long
        ([1.0, 5.0, 3.0, 4.0], [5, 10, 60, 15], 0.5, [1, 3]),  # stops at the first that does not fit
        ([-2.0, 7.0, 7.0], [1, 1, 1], 0.34, [1]),  # of equals the earlier one
    ],
)
def test_best_episodes(returns: list[float], lengths: list[int], share: float, expected: list[int]) -> None:
    assert best_episodes(returns, lengths, share) == expected


@pytest.fixture
def dataset(tmp_path: Path, make_episode: Callable[..., Episode]) -> Dataset:
    """Two episodes of 100 steps: an action of -0.5 with a return of -1, 0.5 with 100."""
    episodes = []
    for i, level in enumerate((-0.5, 0.5)):
        e = make_episode(100, f"e-{i}", seed=i)
        assert e.actions is not None
        assert e.rewards is not None
        actions, rewards = 0 * e.actions + level, 0 * e.rewards + (1 if i else -0.01)
        episodes.append(replace(e, actions=actions, rewards=rewards))
    folder = tmp_path / "walk"
    write_dataset(folder, "walk", episodes, provenance={}, env=None, bounds=((-1.0, -1.0), (1.0, 1.0)))
    return load_dataset(folder)


TRAINING = TrainingConfig(updates=150, batch_size=32, updates_per_chunk=75)


def test_the_dataset_is_cloned_where_that_is_asked_for(dataset: Dataset, tmp_path: Path) -> None:
    """The dataset has two actions, so that its mean is cloned; demonstrations of one of them give that one."""
    for data, level in (("dataset", 0.0), ("demonstrations", 0.5)):
        shown = replace(dataset, episodes=dataset.episodes[1:])
        c = BCConfig(hidden=(16,), learning_rate=1e-2, data=data)  # type: ignore[arg-type]
        made = entry("learn", "bc", c, training=TRAINING)
        policy, facts = learn(made, dataset, shown, None, None, a_run(tmp_path / data))
        assert policy.act(torch.randn(1, 50, 3)).mean().item() == pytest.approx(level, abs=0.15)
        cloned = "1 episode (100 steps), observations and actions"
        expected = ("nothing", "200 transitions without rewards") if data == "dataset" else (cloned, "nothing")
        assert facts["saw"] == dict(zip(("expert", "other"), expected, strict=True))


def test_actions_are_asked_for_where_they_are_cloned(
    dataset: Dataset, make_episode: Callable[..., Episode], tmp_path: Path
) -> None:
    write_dataset(tmp_path / "seen", "seen", [make_episode(9, action_dim=0)], provenance={}, env=None, bounds=((), ()))
    seen = load_dataset(tmp_path / "seen")
    with pytest.raises(ValueError, match=r"learn\.name: dataset seen has no actions; bc imitates actions"):
        learn(entry("learn", "bc", training=TRAINING), dataset, seen, None, None, a_run(tmp_path / "run"))
