"""Numbers of small problems that were worked out apart from this code, and that no test of a single method states."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynarep.configs.params import validate
from dynarep.pipeline.dual_game import dual_objective
from dynarep.pipeline.methods.encoders.contrastive import (
    ContrastiveBatch,
    Dynamics,
    DynamicsArchitecture,
    DynamicsConfig,
    DynamicsEncoder,
    quadratic_loss,
)
from dynarep.pipeline.methods.learners.repr_value_dice import RepresentationCritic
from dynarep.pipeline.methods.rewards import ailot, otr
from dynarep.pipeline.transport import Labels

torch.set_num_threads(1)

STATES, ACTIONS, GAMMA = 6, 3, 0.9
PAIRS = STATES * ACTIONS


class Game:
    """The random MDP of seed 0; ``start`` is p_n or the last distribution drawn."""

    def __init__(self, *, start_from_noise: bool) -> None:
        rng = np.random.default_rng(0)
        self.kernel = rng.dirichlet(np.ones(STATES), size=(STATES, ACTIONS))
        noise = rng.random(STATES) + 0.2
        self.noise = noise / noise.sum()
        self.policy, expert = rng.dirichlet(np.ones(ACTIONS), size=(2, STATES))
        self.start = self.noise if start_from_noise else rng.dirichlet(np.ones(STATES))
        self.d, self.d_expert = self.occupancy(self.policy), self.occupancy(expert)
        step = np.einsum("sat,tb->satb", self.kernel, self.policy).reshape(PAIRS, PAIRS)
        reward = -np.log(self.d / self.d_expert).reshape(-1)
        self.q = np.linalg.solve(np.eye(PAIRS) - GAMMA * step, reward).reshape(STATES, ACTIONS)

    def occupancy(self, policy: np.ndarray) -> np.ndarray:
        step = np.einsum("sa,sat->st", policy, self.kernel)
        states = np.linalg.solve(np.eye(STATES) - GAMMA * step.T, (1 - GAMMA) * self.start)
        return np.asarray(states[:, None] * policy)

    def objective(self) -> float:
        """J(pi, Q*), the weights of d^exp being part of the exponents of equally likely samples."""
        bellman = GAMMA * self.kernel @ (self.policy * self.q).sum(1) - self.q + np.log(PAIRS * self.d_expert)
        start = torch.tensor([[(self.start[:, None] * self.policy * self.q).sum()]])
        return float(dual_objective(start, torch.from_numpy(bellman.reshape(1, -1)), GAMMA))


class Table(DynamicsEncoder):
    """phi and mu of one-hot states and actions."""

    def __init__(self, phi: np.ndarray, mu: np.ndarray) -> None:
        sizes = {"observation_dim": STATES, "action_dim": ACTIONS, "feature_dim": phi.shape[-1]}
        super().__init__(DynamicsArchitecture(replicas=1, hidden=(), **sizes))
        self.tables = torch.from_numpy(phi), torch.from_numpy(mu)

    def phi(self, observations: Tensor, actions: Tensor) -> Tensor:
        return torch.einsum("rbs,rba,sak->rbk", observations, actions, self.tables[0])

    def mu(self, observations: Tensor) -> Tensor:
        return observations @ self.tables[1]


class Zero(nn.Module):
    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        return torch.zeros(observations.shape[:2]).double()


@pytest.mark.parametrize(
    ("start_from_noise", "divergence", "error"),
    [(True, 0.5951490597854775, 0.0), (False, 0.5853601496357836, 0.1400390643)],
)
def test_relative_entropy_and_what_plain_one_minus_gamma_costs(
    start_from_noise: bool, divergence: float, error: float
) -> None:
    """Q of ReprValueDICE is exact where rho = p_n, and 0.14 off where it is another random distribution."""
    game = Game(start_from_noise=start_from_noise)
    assert game.objective() == pytest.approx(-divergence, abs=1e-12)

    u, s, v = np.linalg.svd((game.kernel / game.noise).reshape(PAIRS, STATES), full_matrices=False)
    phi, mu = (u * np.sqrt(s)).reshape(STATES, ACTIONS, -1), v.T * np.sqrt(s)
    omega = GAMMA * mu.T @ (game.noise * (game.policy * game.q).sum(1))
    ratio = mu @ (GAMMA * np.einsum("sa,sak->k", game.d, phi))
    critic = RepresentationCritic(1, Table(phi, mu), (4,), GAMMA).double()
    critic.f = Zero()  # type: ignore[assignment]
    assert critic.omega is not None
    assert critic.theta is not None
    with torch.no_grad():
        critic.omega.copy_(torch.from_numpy(omega)[None, :, None])
        critic.theta.copy_(torch.from_numpy(np.linalg.solve(mu, np.log(np.expm1(ratio))))[None, :, None])
    states, actions = torch.eye(STATES).repeat_interleave(ACTIONS, 0), torch.eye(ACTIONS).repeat(STATES, 1)
    found = critic(states[None].double(), actions[None].double()).detach().numpy().reshape(STATES, ACTIONS)
    f = np.log(game.d_expert / (game.noise[:, None] * game.policy))
    assert np.abs(f + found - game.q).max() == pytest.approx(error, abs=1e-9)


def test_with_the_marginal_of_next_states_as_noise_the_best_single_feature_is_constant() -> None:
    """Its singular value is 1: the constant ratio 1 has the loss -1, and nothing of rank one has less."""
    rng = np.random.default_rng(0)
    counts = 1 + np.stack([rng.multinomial(14, rng.dirichlet(np.ones(STATES))) for _ in range(PAIRS)])
    pair, following = (torch.from_numpy(x.repeat(counts[counts > 0])) for x in np.nonzero(counts))
    noise = counts.sum(0) / counts.sum()
    values = np.linalg.svd(counts / 20 / noise * np.sqrt(noise / PAIRS), compute_uv=False)
    assert values[0] == pytest.approx(1.0, abs=1e-12)
    assert values[1] < 0.9

    def loss(phi: Tensor, mu: Tensor) -> Tensor:
        ratio = phi @ mu.mT
        return quadratic_loss(ratio[pair, following][None], ratio[pair][:, following][None])[0]

    constant = [torch.ones(size, 1, dtype=torch.float64, requires_grad=True) for size in (PAIRS, STATES)]
    least = loss(*constant)
    assert float(least.detach()) == pytest.approx(-1.0, abs=1e-12)
    assert max(float(g.abs().max()) for g in torch.autograd.grad(least, constant)) < 1e-12
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0):
        others = [x.detach() + scale * torch.randn(x.shape, generator=generator).double() for x in constant]
        assert loss(*others) > least.detach() + 1e-3


@pytest.mark.slow
def test_sampled_training_reaches_the_floor() -> None:
    """The tabular MDP in one-hot coding, networks of 256 and 256, Adam 3e-4 and at last 3e-5, 256 random transitions."""
    torch.manual_seed(0)
    game = Game(start_from_noise=True)
    kernel, noise = torch.from_numpy(game.kernel.reshape(PAIRS, STATES)), torch.from_numpy(game.noise)
    floor = -float((noise * (kernel / noise).square()).sum(1).mean())
    assert floor == pytest.approx(-2.548279708, abs=1e-9)
    config = DynamicsConfig(loss="quadratic", hidden=(256, 256), feature_dim=16, learning_rate=3e-4)
    learner = Dynamics(config, 1, torch.zeros(STATES), torch.ones(STATES), ACTIONS)
    optimizer = torch.optim.Adam(learner.parameter_groups())
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3000])
    state, action = torch.eye(STATES), torch.eye(ACTIONS)
    for _ in range(3300):
        pair = torch.randint(PAIRS, (256,))
        following = torch.multinomial(kernel[pair], 1).squeeze(1)
        drawn = torch.multinomial(noise, 256, replacement=True)
        inputs = state[pair // ACTIONS], action[pair % ACTIONS], state[following], state[drawn]
        optimizer.zero_grad()
        learner.losses(ContrastiveBatch(*(x[None] for x in inputs))).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    encoder, pair = learner.export(), torch.arange(PAIRS)
    with torch.no_grad():
        phi = encoder.phi(state[pair // ACTIONS][None], action[pair % ACTIONS][None])
        ratio = (phi @ encoder.mu(state[None]).mT)[0].double()
    loss = float((-2 * (kernel * ratio).sum(1) + (noise * ratio.square()).sum(1)).mean())
    assert floor < loss < 0.98 * floor
    assert float((ratio @ noise).mean()) == pytest.approx(1.0, abs=0.04)
    assert float((noise * (ratio - kernel / noise).square()).sum(1).mean().sqrt()) < 0.19


X = torch.tensor([[1.0, 0, 0], [1.0, 0.5, 0], [0, 1.0, 0.2], [0, 0.3, 1.0]])


def otr_label(agent: Tensor, expert: Tensor, **settings: object) -> Labels:
    lengths = torch.tensor([len(agent)]), torch.tensor([len(expert)])
    c = validate(otr.OTRConfig, settings, "otr")
    return otr.label(agent[None], lengths[0], expert[None], lengths[1], torch.ones(1), c)


def test_otr_pays_its_own_episode_in_full() -> None:
    found = otr_label(X, X, horizon=10, epsilon=1e-3, max_iterations=2000)
    torch.testing.assert_close(found.rewards, torch.full((1, 4), 5.0), rtol=0.0, atol=1e-2)


def test_otr_rows_are_a_tenth_where_the_totals_are_four_and_three_tenths() -> None:
    expert = torch.tensor([[1.0, 0, 0.1], [0.2, 1.0, 0], [0, 0.1, 1.0]])
    coupling = otr_label(X, expert, horizon=10).transport.coupling
    torch.testing.assert_close(coupling.sum(2), torch.full((1, 4), 0.1), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(("dim", "temperature"), [(11, 454.545), (17, 294.118)])
def test_otrs_temperature_of_hopper_and_of_halfcheetah_and_walker(dim: int, temperature: float) -> None:
    """What multiplies the paid cost, which carries the mass 1/1000 of a step."""
    agent, expert = torch.randn(2, 8, dim, generator=torch.Generator().manual_seed(0))
    found = otr_label(agent, expert)
    paid = (found.transport.coupling * found.cost).sum(2)
    expected = torch.full_like(paid, temperature)
    torch.testing.assert_close((5.0 / found.rewards).log() / paid, expected, rtol=1e-4, atol=0.0)


LINE = torch.arange(4.0)[:, None]


def ailot_label(agent: Tensor, expert: Tensor, lookahead: int, epsilon: float, **settings: object) -> Labels:
    """Labels at an absolute epsilon, without a tolerance to stop at."""
    relative = epsilon / float(ailot.intent_cost(agent[None], expert[None], lookahead).mean())
    values = {"lookahead": lookahead, "epsilon": relative, "tolerance": 0, "max_iterations": 5000, **settings}
    lengths = torch.tensor([len(agent)]), torch.tensor([len(expert)])
    c = validate(ailot.AILOTConfig, values, "ailot")
    return ailot.label(agent[None], lengths[0], expert[None], lengths[1], torch.ones(1), c)


def test_ailot_pays_its_own_episode_in_full() -> None:
    found = ailot_label(LINE, LINE, 2, 1e-3)
    torch.testing.assert_close(found.rewards, torch.full((1, 4), 5.0), rtol=0.0, atol=1e-3)


def test_ailot_rewards_to_six_digits() -> None:
    expert = torch.tensor([-1.0, 0.0, 1.1, 2.0, 3.2])[:, None]
    found = ailot_label(LINE, expert, 2, 0.01, scale=5, temperature=0.5, max_iterations=2000)
    np.testing.assert_allclose(found.rewards[0], [5.0, 2.716754, 4.168007, 4.364213], rtol=0, atol=5e-6)


@pytest.mark.parametrize(("lookahead", "expected"), [(0, 0.0), (1, 2.499711), (2, 6.499870)])
def test_cost_of_a_reversed_line_to_six_digits(lookahead: int, expected: float) -> None:
    found = ailot_label(LINE, LINE.flip(0), lookahead, 0.01, truncate=False)
    assert float((found.transport.coupling * found.cost).sum()) == pytest.approx(expected, abs=1e-6)
