import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from dynarep.data.resident import TransitionTable
from dynarep.data.schema import Episode
from dynarep.pipeline.factorisation import measure, retrieval_accuracy
from dynarep.pipeline.methods.encoders.contrastive import (
    ContrastiveBatch,
    Dynamics,
    DynamicsArchitecture,
    DynamicsConfig,
    DynamicsEncoder,
    binary_loss,
    quadratic_loss,
    ranking_loss,
)

torch.set_num_threads(1)

LossName = Literal["quadratic", "ranking", "binary"]
STATES, ACTIONS = 6, 3
PAIRS = STATES * ACTIONS


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Tabular:
    """A random MDP whose probabilities are multiples of 1/20 and 1/12, so that one batch holds exact expectations.

    ``kernel`` (18, 6) is P(s'|s, a), ``noise`` (6,) is p_n, and the distribution of (s, a) is uniform. ``pair``,
    ``following`` (360,) and ``noise_states`` (12,) are indices in which everything occurs as often as it is likely.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        counts = 1 + np.stack([rng.multinomial(14, rng.dirichlet(np.ones(STATES))) for _ in range(PAIRS)])
        noise_counts = 1 + rng.multinomial(6, np.full(STATES, 1 / STATES))
        self.kernel, self.noise = torch.from_numpy(counts / 20), torch.from_numpy(noise_counts / 12)
        self.ratio = self.kernel / self.noise
        pair, following = np.nonzero(counts)
        repeats = counts[pair, following]
        self.pair, self.following = (torch.from_numpy(x.repeat(repeats)) for x in (pair, following))
        self.noise_states = torch.from_numpy(np.arange(STATES).repeat(noise_counts))
        self.chi_square = float((self.noise * (self.ratio - 1).square()).sum(1).mean())
        weighted = self.ratio * (self.noise.sqrt() / math.sqrt(PAIRS))
        self.left, self.singular_values, self.right = torch.linalg.svd(weighted, full_matrices=False)

    def terms(self, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Positives (1, 360) and negatives (1, 360, 12) of a table of ratios."""
        return ratio[self.pair, self.following][None], ratio[self.pair][:, self.noise_states][None]

    def low_rank(self, k: int) -> tuple[Tensor, Tensor]:
        """phi (18, k) and mu (6, k) of the best factorisation of rank k."""
        root = self.singular_values[:k].sqrt()
        phi = math.sqrt(PAIRS) * self.left[:, :k] * root
        return phi, self.right[:k].T * root / self.noise.sqrt().unsqueeze(1)

    def batch(self, replicas: int, noise_states: Tensor | None = None) -> ContrastiveBatch:
        """All transitions in one-hot coding."""
        noise_states = self.noise_states if noise_states is None else noise_states
        state, action = self.pair // ACTIONS, self.pair % ACTIONS
        s, following, noise = (
            torch.eye(STATES)[i].expand(replicas, -1, -1) for i in (state, self.following, noise_states)
        )
        return ContrastiveBatch(s, torch.eye(ACTIONS)[action].expand(replicas, -1, -1), following, noise)


@pytest.fixture(scope="module")
def mdp() -> Tabular:
    return Tabular()


def gradient(loss: Tensor, *tables: Tensor) -> float:
    """Largest entry of the gradient."""
    return max(float(g.abs().max()) for g in torch.autograd.grad(loss.sum(), tables))


def test_quadratic_loss_is_least_at_the_ratio(mdp: Tabular) -> None:
    ratio = mdp.ratio.clone().requires_grad_()
    loss = quadratic_loss(*mdp.terms(ratio))
    torch.testing.assert_close(loss, torch.tensor([-(1 + mdp.chi_square)]).double())
    assert mdp.chi_square > 0.1
    assert gradient(loss, ratio) < 1e-12
    other = (mdp.ratio + 0.1 * torch.randn_like(mdp.ratio)).requires_grad_()
    assert gradient(quadratic_loss(*mdp.terms(other)), other) > 1e-4
    assert quadratic_loss(*mdp.terms(other)) > loss


def test_binary_loss_is_least_at_the_ratio(mdp: Tabular) -> None:
    ratio = mdp.ratio.clone().requires_grad_()
    loss = binary_loss(*mdp.terms(ratio))
    kernel, r = mdp.kernel, mdp.ratio
    by_hand = (kernel * torch.log((1 + r) / r)).sum(1).mean() + (mdp.noise * torch.log(1 + r)).sum(1).mean()
    torch.testing.assert_close(loss, by_hand[None])
    assert gradient(loss, ratio) < 1e-12
    for scale in (0.8, 1.2):
        other = (scale * mdp.ratio).requires_grad_()
        assert gradient(binary_loss(*mdp.terms(other)), other) > 1e-4
        assert binary_loss(*mdp.terms(other)) > loss


def every_noise_pair(mdp: Tabular, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Each transition with each of the 144 equally likely sets of two noise states: (1, 51840), (1, 51840, 2)."""
    sets = torch.cartesian_prod(mdp.noise_states, mdp.noise_states)
    pair, following = mdp.pair.repeat_interleave(len(sets)), mdp.following.repeat_interleave(len(sets))
    return ratio[pair, following][None], ratio[pair.unsqueeze(1), sets.repeat(len(mdp.pair), 1)][None]


def test_ranking_loss_is_least_at_the_ratio_up_to_its_scale(mdp: Tabular) -> None:
    scale = torch.rand(PAIRS, 1).double() + 0.5
    least = ranking_loss(*every_noise_pair(mdp, mdp.ratio), 0.0)
    scaled = (scale * mdp.ratio).requires_grad_()
    loss = ranking_loss(*every_noise_pair(mdp, scaled), 0.0)
    torch.testing.assert_close(loss, least)
    assert gradient(loss, scaled) < 1e-12
    other = (mdp.ratio * (1 + 0.2 * torch.rand_like(mdp.ratio))).requires_grad_()
    assert gradient(ranking_loss(*every_noise_pair(mdp, other), 0.0), other) > 1e-5
    assert ranking_loss(*every_noise_pair(mdp, other), 0.0) > least


def test_the_penalty_of_the_ranking_loss_sets_its_scale(mdp: Tabular) -> None:
    scale = torch.linspace(0.5, 2.0, PAIRS).double().unsqueeze(1)
    penalty = ranking_loss(*mdp.terms(scale * mdp.ratio), 3.0) - ranking_loss(*mdp.terms(scale * mdp.ratio), 0.0)
    torch.testing.assert_close(penalty, 3.0 * scale.log().square().mean()[None])
    torch.testing.assert_close(ranking_loss(*mdp.terms(mdp.ratio), 3.0), ranking_loss(*mdp.terms(mdp.ratio), 0.0))


@pytest.mark.parametrize("k", [1, 2, 4, STATES])
def test_best_value_of_a_rank(mdp: Tabular, k: int) -> None:
    phi, mu = (x.requires_grad_() for x in mdp.low_rank(k))
    loss = quadratic_loss(*mdp.terms(phi @ mu.T))
    torch.testing.assert_close(loss, -mdp.singular_values[:k].square().sum()[None])
    assert gradient(loss, phi, mu) < 1e-12
    for _ in range(5):
        other = (phi + 0.1 * torch.randn_like(phi)) @ (mu + 0.1 * torch.randn_like(mu)).T
        assert quadratic_loss(*mdp.terms(other)) > loss
    if k == STATES:
        torch.testing.assert_close(mdp.singular_values.square().sum().item(), 1 + mdp.chi_square)


def learn(learner: Dynamics, batch: Any, updates: int) -> None:
    """Minimise; ``batch`` is called for each update."""
    optimizer = torch.optim.Adam(learner.parameter_groups())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        optimizer.zero_grad()
        learner.losses(batch()).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def correlation(x: Tensor, y: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1])


def dynamics(k: int, loss: LossName = "quadratic", replicas: int = 2, learning_rate: float = 3e-3) -> Dynamics:
    config = DynamicsConfig(loss=loss, hidden=(64, 64), feature_dim=k, learning_rate=learning_rate)
    return Dynamics(config, replicas, torch.zeros(STATES), torch.ones(STATES), ACTIONS)


def learned_ratio(learner: Dynamics) -> Tensor:
    """(R, 18, 6)."""
    pair = torch.arange(PAIRS)
    phi = learner.export().phi(torch.eye(STATES)[pair // ACTIONS][None], torch.eye(ACTIONS)[pair % ACTIONS][None])
    return (phi @ learner.export().mu(torch.eye(STATES)[None]).mT).double().detach()


def test_networks_reach_the_floor_and_normalise_themselves(mdp: Tabular) -> None:
    learner, batch = dynamics(16), mdp.batch(2)
    learn(learner, lambda: batch, 600)
    result, floor = learner.losses(batch), 1 + mdp.chi_square
    torch.testing.assert_close(result.loss, torch.full((2,), -floor).float(), rtol=0.02, atol=0)
    assert (result.loss >= -floor - 1e-5).all()
    ratio = learned_ratio(learner)
    torch.testing.assert_close(ratio @ mdp.noise, torch.ones(2, PAIRS).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(result.metrics["normalisation"].double(), (ratio @ mdp.noise).mean(1))
    expected = (mdp.kernel * ratio).sum(2).mean(1)
    torch.testing.assert_close(result.metrics["positive_ratio"].double(), expected)


def test_networks_of_too_small_a_rank_reach_the_best_value_of_that_rank(mdp: Tabular) -> None:
    learner, batch = dynamics(2), mdp.batch(2)
    learn(learner, lambda: batch, 600)
    best = float(mdp.singular_values[:2].square().sum())
    assert best < 0.95 * (1 + mdp.chi_square)
    torch.testing.assert_close(learner.losses(batch).loss, torch.full((2,), -best), rtol=0.03, atol=0)


@pytest.mark.parametrize("loss", ["ranking", "binary"])
def test_noise_contrastive_losses_learn_the_ratio(mdp: Tabular, loss: Literal["ranking", "binary"]) -> None:
    learner = dynamics(16, loss, replicas=1, learning_rate=1e-2)
    learn(learner, lambda: mdp.batch(1, mdp.noise_states[torch.randint(12, (64,))]), 800)
    ratio = learned_ratio(learner)[0]
    assert (ratio > 0).all()
    assert correlation(ratio.log(), mdp.ratio.log()) > 0.95
    torch.testing.assert_close(ratio @ mdp.noise, torch.ones(PAIRS).double(), atol=0.15, rtol=0)


def test_every_pair_meets_every_noise_state_of_its_replica(mdp: Tabular) -> None:
    learner = dynamics(4)
    s, a = torch.randn(2, 5, STATES), torch.randn(2, 5, ACTIONS)
    s_next, noise = torch.randn(2, 5, STATES), torch.randn(2, 7, STATES)
    phi, mu, mu_noise = (
        x.detach() for x in (learner.encoder.phi(s, a), learner.encoder.mu(s_next), learner.encoder.mu(noise))
    )
    expected = []
    for r in range(2):
        positive = sum(float(phi[r, i] @ mu[r, i]) for i in range(5)) / 5
        negative = sum(float(phi[r, i] @ mu_noise[r, j]) ** 2 for i in range(5) for j in range(7)) / 35
        expected.append(-2 * positive + negative)
    loss = learner.losses(ContrastiveBatch(s, a, s_next, noise)).loss
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_features_standardise_what_they_read() -> None:
    mean, std = torch.tensor([10.0, -3.0]), torch.tensor([4.0, 0.1])
    learner = Dynamics(DynamicsConfig(hidden=(8,), feature_dim=4), 1, mean, std, 1)
    s, a = torch.randn(1, 5, 2), torch.randn(1, 5, 1)
    network = learner.encoder.mu_network
    torch.testing.assert_close(learner.encoder.mu(s * (std + 1e-3) + mean), network(s) / 2, atol=1e-5, rtol=1e-4)
    assert learner.export().phi(s, a).shape == (1, 5, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "updates"), [("quadratic", 3000), ("ranking", 1000), ("binary", 1000)])
def test_ratio_of_a_linear_gaussian_system(loss: LossName, updates: int) -> None:
    """s' = 0.6 s + 0.5 a + 0.6 e with standard normal s, a, e: both densities are known."""
    config = DynamicsConfig(loss=loss, hidden=(64, 64), feature_dim=32, learning_rate=3e-3)
    learner = Dynamics(config, 1, torch.zeros(1), torch.ones(1), 1)

    def draw(count: int) -> ContrastiveBatch:
        s, a, e = torch.randn(3, 1, count, 1)
        s_next = 0.6 * s + 0.5 * a + 0.6 * e
        return ContrastiveBatch(s, a, s_next, s_next[:, torch.randperm(count)])

    learn(learner, lambda: draw(256), updates)
    test = draw(4000)
    s, a, s_next = test.observations[0], test.actions[0], test.next_observations[0]
    conditional = torch.distributions.Normal(0.6 * s + 0.5 * a, 0.6).log_prob(s_next)
    truth = (conditional - torch.distributions.Normal(0.0, math.sqrt(0.97)).log_prob(s_next)).squeeze(1)
    found = learner.export().ratio(s, a, s_next).detach().clamp(min=1e-2).log()
    assert correlation(found, truth) > 0.95
    assert (found - truth).abs().median() < 0.15


def test_retrieval_accuracy_known_answers() -> None:
    identity = torch.eye(8)[None]
    assert retrieval_accuracy(identity, identity, 7).tolist() == [1.0]
    assert retrieval_accuracy(-identity, identity, 7).tolist() == [0.0]
    assert retrieval_accuracy(identity, torch.ones(1, 8, 8), 7).tolist() == [0.0]  # a tie is no success
    half = torch.cat([identity[:, :4], -identity[:, 4:]], 1)
    both = retrieval_accuracy(torch.cat([identity, half]), torch.cat([identity, identity]), 3)
    assert both.tolist() == [1.0, 0.5]


def test_retrieval_accuracy_over_blocks_is_the_plain_loop() -> None:
    count, negatives = 1500, 4  # more than one block of 1024
    phi, mu = torch.randn(2, 2, count, 3)
    hits = torch.zeros(2)
    for r in range(2):
        scores = phi[r] @ mu[r].T
        for i in range(count):
            others = [(i + j) % count for j in range(1, negatives + 1)]
            hits[r] += bool(scores[i, i] > scores[i, others].max())
    torch.testing.assert_close(retrieval_accuracy(phi, mu, negatives), hits / count)


@torch.no_grad()
def test_measure() -> None:
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            id=f"e-{i}",
            observations=rng.normal(size=(11, 2)).astype(np.float32),
            actions=rng.normal(size=(10, 1)).astype(np.float32),
            terminated=False,
            truncated=True,
        )
        for i in range(3)
    ]
    table = TransitionTable.from_episodes(episodes)
    encoder = DynamicsEncoder(
        DynamicsArchitecture(replicas=2, observation_dim=2, action_dim=1, hidden=(8,), feature_dim=4)
    )
    noise = torch.randn(20, 2)
    batch = table.gather(torch.arange(30)[None])
    phi, mu_next = encoder.phi(batch.observations, batch.actions), encoder.mu(batch.next_observations)
    result = measure(encoder, table, noise)
    assert result["normalisation"] == pytest.approx(float((phi @ encoder.mu(noise[None]).mT).mean()), abs=1e-6)
    assert result["positive_ratio"] == pytest.approx(float((phi * mu_next).sum(-1).mean()), abs=1e-6)
    assert result["retrieval_chance"] == 1 / 30
    best = (phi @ mu_next.mT).argmax(2) == torch.arange(30)
    assert result["retrieval_accuracy"] == pytest.approx(float(best.float().mean()))
    assert 1 <= result["effective_rank"] <= 4
