import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynarep.data.resident import TransitionTable
from dynarep.pipeline.dual_game import (
    DualGame,
    ImitationBatch,
    TanhGaussianActor,
    Transitions,
    dual_objective,
    orthogonality,
)
from dynarep.pipeline.method import Sources
from dynarep.pipeline.methods.encoders.contrastive import DynamicsArchitecture, DynamicsEncoder
from dynarep.pipeline.methods.learners.repr_value_dice import (
    RepresentationCritic,
    ReprValueDICE,
    ReprValueDICEConfig,
    Term,
)
from dynarep.pipeline.methods.learners.value_dice import PerceptronCritic, ValueDICE, ValueDICEConfig
from dynarep.pipeline.nn.networks import MLP, Normaliser

torch.set_num_threads(1)

STATES, ACTIONS, GAMMA = 6, 3, 0.9


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Game:
    """A random MDP with a policy and an expert; arrays are indexed by state, action, next state.

    Args:
        start_from_noise: whether the initial distribution is p_n.
    """

    def __init__(self, *, start_from_noise: bool = True) -> None:
        self.rng = np.random.default_rng(0)
        self.kernel = self.rng.dirichlet(np.ones(STATES), size=(STATES, ACTIONS))
        noise = self.rng.random(STATES) + 0.2
        self.noise = noise / noise.sum()
        self.policy = self.rng.dirichlet(np.ones(ACTIONS), size=STATES)
        self.expert_policy = self.rng.dirichlet(np.ones(ACTIONS), size=STATES)
        self.initial = self.noise if start_from_noise else self.rng.dirichlet(np.ones(STATES))
        self.d, self.d_expert = self.occupancy(self.policy), self.occupancy(self.expert_policy)

    def occupancy(self, policy: np.ndarray) -> np.ndarray:
        step = np.einsum("sa,sat->st", policy, self.kernel)
        states = np.linalg.solve(np.eye(STATES) - GAMMA * step.T, (1 - GAMMA) * self.initial)
        return states[:, None] * policy

    def next_value(self, q: np.ndarray) -> np.ndarray:
        """E_{s'} E_{a'~pi} Q(s', a') for every (s, a)."""
        return self.kernel @ (self.policy * q).sum(1)

    def solve(self, reward: np.ndarray) -> np.ndarray:
        """Q of the policy for a reward per (s, a)."""
        step = np.einsum("sat,tb->satb", self.kernel, self.policy).reshape(STATES * ACTIONS, -1)
        return np.linalg.solve(np.eye(STATES * ACTIONS) - GAMMA * step, reward.reshape(-1)).reshape(STATES, ACTIONS)

    def start(self, q: np.ndarray) -> Tensor:
        """E_{s0, a0~pi} Q as a batch of one."""
        return torch.tensor([[(self.initial[:, None] * self.policy * q).sum()]])

    def bellman(self, q: np.ndarray) -> np.ndarray:
        return GAMMA * self.next_value(q) - q


def relative_entropy(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q)).sum())


def objective(game: Game, q: np.ndarray, d_expert: np.ndarray) -> float:
    """J(pi, Q) with exact expectations: the weights of d^exp are added to the exponents of equally likely samples."""
    exponent = game.bellman(q) + np.log(d_expert * d_expert.size)
    return float(dual_objective(game.start(q), torch.from_numpy(exponent.reshape(1, -1)), GAMMA))


def test_the_dual_at_its_optimum_is_the_negative_relative_entropy() -> None:
    game = Game()
    divergence = relative_entropy(game.d, game.d_expert)
    assert divergence == pytest.approx(0.5951490598, abs=1e-10)
    best = game.solve(-np.log(game.d / game.d_expert))
    assert objective(game, best, game.d_expert) == pytest.approx(-divergence, abs=1e-9)
    for _ in range(50):
        assert objective(game, best + 0.1 * game.rng.normal(size=best.shape), game.d_expert) > -divergence
        assert objective(game, game.rng.normal(size=best.shape), game.d_expert) > -divergence


def test_the_mixed_dual_at_its_optimum_is_the_negative_relative_entropy_of_mixtures() -> None:
    game, alpha = Game(), 0.1
    counts = [1 + game.rng.multinomial(size, p.reshape(-1)) for size, p in ((500, game.d_expert), (300, game.d))]
    d_expert, d_replay = ((c / c.sum()).reshape(STATES, ACTIONS) for c in counts)
    mixture, expert_mixture = ((1 - alpha) * d + alpha * d_replay for d in (game.d, d_expert))

    def mixed(q: np.ndarray) -> float:
        expert, replay = (torch.from_numpy(game.bellman(q).repeat(c)[None]) for c in counts)
        value = dual_objective(game.start(q), expert, GAMMA, bellman_replay=replay, replay_ratio=alpha)
        return float(value)

    best = game.solve(-np.log(mixture / expert_mixture))
    divergence = relative_entropy(mixture, expert_mixture)
    assert divergence > 0.1
    assert mixed(best) == pytest.approx(-divergence, abs=1e-9)
    for _ in range(50):
        assert mixed(best + 0.1 * game.rng.normal(size=best.shape)) > -divergence


class TabularEncoder(DynamicsEncoder):
    """phi and mu as tables, read with one-hot states and actions."""

    def __init__(self, phi: np.ndarray, mu: np.ndarray) -> None:
        k = phi.shape[-1]
        super().__init__(
            DynamicsArchitecture(replicas=1, observation_dim=STATES, action_dim=ACTIONS, hidden=(), feature_dim=k)
        )
        self.phi_table, self.mu_table = torch.from_numpy(phi), torch.from_numpy(mu)

    def phi(self, observations: Tensor, actions: Tensor) -> Tensor:
        return torch.einsum("rbs,rba,sak->rbk", observations, actions, self.phi_table)

    def mu(self, observations: Tensor) -> Tensor:
        return observations @ self.mu_table


class Table(nn.Module):
    """f(s, a) as a table."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__()
        self.values = torch.from_numpy(values)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        return torch.einsum("rbs,rba,sa->rb", observations, actions, self.values)


def factorise(game: Game) -> tuple[np.ndarray, np.ndarray]:
    """phi (6, 3, 6) and mu (6, 6) with P = phi mu p_n."""
    u, s, v = np.linalg.svd((game.kernel / game.noise).reshape(-1, STATES), full_matrices=False)
    return (u * np.sqrt(s)).reshape(STATES, ACTIONS, -1), v.T * np.sqrt(s)


@pytest.mark.parametrize("start_from_noise", [True, False])
def test_exact_form_of_q(start_from_noise: bool) -> None:
    """Q* = f + phi omega - log(mu theta + (1 - gamma) rho / p_n), and plain 1 - gamma only where rho = p_n."""
    game = Game(start_from_noise=start_from_noise)
    phi, mu = factorise(game)
    best = game.solve(-np.log(game.d / game.d_expert))
    omega = GAMMA * mu.T @ (game.noise * (game.policy * best).sum(1))
    theta = GAMMA * np.einsum("sa,sak->k", game.d, phi)
    f = np.log(game.d_expert / (game.noise[:, None] * game.policy))
    exact = f + phi @ omega - np.log(mu @ theta + (1 - GAMMA) * game.initial / game.noise)[:, None]
    np.testing.assert_allclose(exact, best, atol=1e-12)

    critic = RepresentationCritic(1, TabularEncoder(phi, mu), (4,), GAMMA).double()
    critic.f = Table(f)  # type: ignore[assignment]
    before_softplus = np.linalg.solve(mu, np.log(np.expm1(mu @ theta)))
    with torch.no_grad():
        critic.omega.copy_(torch.from_numpy(omega)[None, :, None])
        critic.theta.copy_(torch.from_numpy(before_softplus)[None, :, None])
    states, actions = torch.eye(STATES).repeat_interleave(ACTIONS, 0), torch.eye(ACTIONS).repeat(STATES, 1)
    found = critic(states[None].double(), actions[None].double()).detach().numpy().reshape(STATES, ACTIONS)
    error = np.abs(found - best).max()
    assert error < 1e-9 if start_from_noise else error > 0.1


def encoder(replicas: int = 2, observation_dim: int = 3, action_dim: int = 2) -> DynamicsEncoder:
    architecture = DynamicsArchitecture(
        replicas=replicas, observation_dim=observation_dim, action_dim=action_dim, hidden=(16,), feature_dim=8
    )
    model = DynamicsEncoder(architecture)
    model.normaliser = Normaliser(torch.randn(observation_dim), torch.rand(observation_dim) + 0.5)
    return model


def test_representation_critic_is_its_formula() -> None:
    model = encoder()
    critic = RepresentationCritic(2, model, (16,), GAMMA)
    s, a = torch.randn(2, 5, 3), torch.randn(2, 5, 2)
    assert not critic.omega.any()
    assert not critic.theta.any()
    initially = critic.f(s, a) - math.log(math.log(2.0) + 1 - GAMMA)
    torch.testing.assert_close(critic(s, a), initially)
    nn.init.normal_(critic.omega)
    nn.init.normal_(critic.theta)
    phi, mu = model.phi(s, a), model.mu(s)
    for r in range(2):
        for i in range(5):
            ratio = torch.log1p(torch.exp(mu[r, i] @ critic.theta[r, :, 0])) + 1 - GAMMA
            expected = critic.f(s, a)[r, i] + phi[r, i] @ critic.omega[r, :, 0] - ratio.log()
            torch.testing.assert_close(critic(s, a)[r, i], expected)
    # f reads what the encoder reads
    inputs = torch.cat([(s - model.normaliser.mean) / (model.normaliser.std + 1e-3), a], -1)
    torch.testing.assert_close(critic.f(s, a), critic.f.network(inputs).squeeze(-1))


def test_the_representation_reaches_the_gradient_in_the_action() -> None:
    critic = RepresentationCritic(2, encoder(), (16,), GAMMA)
    s, a = torch.randn(2, 5, 3), torch.randn(2, 5, 2, requires_grad=True)

    def slope() -> Tensor:
        return torch.autograd.grad(critic(s, a).sum(), a)[0]

    before = slope()
    nn.init.normal_(critic.omega)
    through_phi = torch.autograd.grad((critic.encoder.phi(s, a) @ critic.omega).sum(), a)[0]
    assert through_phi.abs().min() > 0
    torch.testing.assert_close(slope(), before + through_phi)


LOW, HIGH = (-1.0, 0.0), (1.0, 4.0)
CENTRE, HALF = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0])  # of these bounds


def unit(actions: Tensor) -> Tensor:
    """Actions between the bounds as the players see them, in [-1, 1]."""
    return (actions - CENTRE) / HALF


def recorded(unit_actions: Tensor) -> Tensor:
    """Actions in [-1, 1] as they are recorded, between the bounds."""
    return CENTRE + HALF * unit_actions


def transitions(batch: int = 6, replicas: int = 2) -> Transitions:
    s, s_next = torch.randn(2, replicas, batch, 3)
    return Transitions(s, torch.rand(replicas, batch, 2), s_next)


def learner(model: DynamicsEncoder | None = None, **values: Any) -> DualGame:
    method = ReprValueDICE if model else ValueDICE
    config = method.Config(hidden=(16,), gamma=GAMMA, **values)
    return method(config, 2, torch.randn(3), torch.rand(3) + 0.5, LOW, HIGH, model)


def plain_objective(dice: ValueDICE, batch: ImitationBatch) -> Tensor:
    """J of each replica, term by term, without gradient reversal, with the noise that ``losses`` draws from this seed."""
    c, expert, replay = dice.config, batch.expert, batch.replay
    alpha, n = c.replay_ratio, expert.observations.shape[1]
    noise = torch.randn(2, 3 * n, 2)

    def policy_q(states: Tensor, part: int) -> Tensor:
        return dice.critic(states, dice.actor.sample(states, noise[:, part * n : (part + 1) * n]))  # type: ignore[no-any-return]

    initial, following = policy_q(expert.observations, 0), policy_q(expert.next_observations, 1)
    expert_bellman = c.gamma * following - dice.critic(expert.observations, unit(expert.actions))
    if not alpha:
        return (1 - c.gamma) * initial.mean(1) + expert_bellman.exp().mean(1).log()
    seen = dice.critic(replay.observations, unit(replay.actions))
    replay_bellman = c.gamma * policy_q(replay.next_observations, 2) - seen
    mean_exp = (1 - alpha) * expert_bellman.exp().mean(1) + alpha * replay_bellman.exp().mean(1)
    return mean_exp.log() + (1 - alpha) * (1 - c.gamma) * initial.mean(1) - alpha * replay_bellman.mean(1)


@pytest.mark.parametrize("model", [None, encoder])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_one_backward_pass_descends_in_q_and_ascends_in_the_policy(
    model: Callable[[], DynamicsEncoder] | None, alpha: float
) -> None:
    dice = learner(model and model(), gradient_penalty=0.0, orthogonality=0.0, replay_ratio=alpha)
    if isinstance(dice.critic, RepresentationCritic):
        nn.init.normal_(dice.critic.omega)
        nn.init.normal_(dice.critic.theta)
    batch = ImitationBatch(transitions(), transitions())
    critic = [p for p in dice.critic.parameters() if p.requires_grad]
    actor = list(dice.actor.parameters())

    torch.manual_seed(7)
    value = plain_objective(dice, batch)
    gradients = torch.autograd.grad(value.sum(), [*critic, *actor])
    torch.manual_seed(7)
    result = dice.losses(batch)
    result.loss.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(result.metrics["objective"], value.detach())
    torch.testing.assert_close(result.loss.detach(), value.detach())
    for i, (parameter, gradient) in enumerate(zip([*critic, *actor], gradients, strict=True)):
        torch.testing.assert_close(parameter.grad, gradient if i < len(critic) else -gradient, atol=1e-6, rtol=1e-4)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in actor)

    with torch.no_grad():
        for parameter in actor:
            assert parameter.grad is not None
            parameter -= 1e-3 * parameter.grad
    torch.manual_seed(7)
    assert (plain_objective(dice, batch) > value).all()


def test_regularisers_are_added_with_their_weights() -> None:
    batch = ImitationBatch(transitions(), transitions())
    dice = learner(gradient_penalty=10.0, orthogonality=0.5, cloning_weight=3.0)
    torch.manual_seed(7)
    result = dice.losses(batch)
    torch.manual_seed(7)
    noise = torch.randn(2, 18, 2)
    u = torch.rand(2, 6, 1)
    expert, replay = batch.expert, batch.replay
    acted = dice.actor.sample(torch.cat([expert.next_observations, replay.next_observations], 1), noise[:, 6:])
    observations, actions = (
        torch.cat([(1 - u) * one + u * other for one, other in pairs], 1).detach().requires_grad_()
        for pairs in (
            [(expert.observations, replay.observations), (expert.next_observations, replay.next_observations)],
            [(unit(expert.actions), unit(replay.actions)), acted.chunk(2, 1)],
        )
    )
    # by the chain rule dQ/dx = std dQ/ds for x = (s - mean) / std, and actions are already in [-1, 1]
    by_s, by_a = torch.autograd.grad(
        dice.critic(observations, actions).sum(), (observations, actions), create_graph=True
    )
    std = dice.actor.normaliser.std + 1e-3
    penalty = (((by_s * std).square().sum(-1) + by_a.square().sum(-1)).sqrt() - 1).square().mean(-1)
    residual = unit(batch.expert.actions) - dice.actor.mode(batch.expert.observations)
    # the free log-std starts at 0: a unit Gaussian
    likelihood = (-0.5 * (residual.square() + math.log(2 * math.pi))).sum(-1).mean(-1)
    expected = result.metrics["objective"] + 10 * penalty + 0.5 * orthogonality(dice.actor.network) - 3 * likelihood
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(result.metrics["gradient_penalty"], penalty.detach())
    torch.testing.assert_close(result.metrics["squared_error"], residual.detach().square().mean((1, 2)))


@pytest.mark.parametrize("fine_tune", [False, True])
def test_the_encoder_is_frozen_or_learns_at_the_rate_of_the_critic(fine_tune: bool) -> None:
    model = encoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dice = learner(model, orthogonality=1.0, cloning_weight=1.0, critic_rate=0.1, actor_rate=0.01, fine_tune=fine_tune)
    assert isinstance(dice.critic, RepresentationCritic)
    inside = dict(dice.critic.encoder.named_parameters())
    groups = dice.parameter_groups()
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert set(rates) == {id(p) for p in dice.parameters()} - (set() if fine_tune else set(map(id, inside.values())))
    assert all(rates.get(id(p)) == (0.1 if fine_tune else None) for p in inside.values())
    optimizer = torch.optim.Adam([{k: g[k] for k in ("params", "lr")} for g in groups])
    for _ in range(3):  # omega and theta are 0 at first, phi and mu move once they are not
        optimizer.zero_grad()
        dice.losses(ImitationBatch(transitions(), transitions())).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    moved = {name for name, p in inside.items() if not torch.equal(p, before[name])}
    assert moved == (set(inside) if fine_tune else set())
    assert fine_tune or all(p.grad is None for p in inside.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())  # a copy learned
    assert dice.critic.omega is not None
    assert dice.critic.omega.all()
    assert dice.critic.theta is not None
    assert dice.critic.theta.all()


@pytest.mark.parametrize("terms", [("f",), ("linear",), ("f", "linear"), ("f", "log"), ("linear", "log")])
def test_q_is_the_sum_of_its_terms(terms: tuple[Term, ...]) -> None:
    dice = learner(encoder(), terms=terms)
    critic = dice.critic
    assert isinstance(critic, RepresentationCritic)
    s, a = torch.randn(2, 5, 3), torch.randn(2, 5, 2)
    expected = torch.zeros(2, 5)
    if "f" in terms:
        assert critic.f is not None
        expected += critic.f(s, a)
    if "linear" in terms:
        assert critic.omega is not None
        nn.init.normal_(critic.omega)
        phi = critic.encoder.phi(s, recorded(a))  # the encoder was trained on recorded actions
        expected += torch.einsum("rbk,rk->rb", phi, critic.omega[..., 0])
    if "log" in terms:
        assert critic.theta is not None
        nn.init.normal_(critic.theta)
        product = torch.einsum("rbk,rk->rb", critic.encoder.mu(s), critic.theta[..., 0])
        expected -= torch.log(torch.log1p(product.exp()) + 1 - GAMMA)
    torch.testing.assert_close(critic(s, a), expected)
    own = {name.split(".")[0] for name, p in critic.named_parameters() if p.requires_grad}
    assert own == {{"f": "f", "linear": "omega", "log": "theta"}[term] for term in terms}
    dice.losses(ImitationBatch(transitions(), transitions())).loss.sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in critic.parameters() if p.requires_grad)


def test_with_the_linear_term_alone_q_is_linear_in_phi() -> None:
    critic = learner(encoder(), terms=("linear",)).critic
    assert isinstance(critic, RepresentationCritic)
    nn.init.normal_(critic.omega)  # type: ignore[arg-type]
    s, a = torch.randn(2, 40, 3), torch.randn(2, 40, 2)
    phi, q = critic.encoder.phi(s, recorded(a)), critic(s, a).unsqueeze(-1)
    fitted = torch.linalg.lstsq(phi[:, :20], q[:, :20]).solution
    torch.testing.assert_close(phi[:, 20:] @ fitted, q[:, 20:], atol=1e-3, rtol=1e-3)


def test_the_initial_states_are_those_of_the_expert() -> None:
    """With rho = d^exp the third term has (1 - gamma) max(mu^T E phi, 0), the expectation over the demonstrations."""
    model = encoder()
    dice = learner(model, terms=("f", "log"), initial="expert")
    shown = transitions(batch=20, replicas=1)
    packed = torch.cat(
        [shown.observations, recorded(shown.actions), shown.next_observations, torch.zeros(1, 20, 1)], -1
    )
    table = TransitionTable(packed[0], torch.tensor([20]), observation_dim=3, action_dim=2)
    dice.prepare(Sources({"demonstrations": lambda: table, "dataset": lambda: table}, 2, 4, torch.device("cpu")))
    critic = dice.critic
    assert isinstance(critic, RepresentationCritic)
    weights = model.phi(shown.observations, recorded(shown.actions)).mean(1)
    s, a = torch.randn(2, 50, 3), torch.rand(2, 50, 2)
    ratio = torch.einsum("rbk,rk->rb", model.mu(s), weights)
    assert (ratio < 0).any()
    assert (ratio > 0).any()
    expected = critic.f(s, a) - (math.log(2.0) + (1 - GAMMA) * ratio.clamp(min=1e-3)).log()  # type: ignore[misc]
    torch.testing.assert_close(critic(s, a), expected)


def test_no_critic_tells_interpolating_policies_apart() -> None:
    """Along one path, with pi(s_t) = a_t, J(Q) >= gamma (Q_T - Q_0) / T for any values Q_0..Q_T."""
    for _ in range(200):
        q = 5 * torch.randn(1, 31, dtype=torch.float64)
        value = dual_objective(q[:, :-1], GAMMA * q[:, 1:] - q[:, :-1], GAMMA)
        assert float(value) >= GAMMA * float(q[0, -1] - q[0, 0]) / 30 - 1e-12


@pytest.mark.parametrize("terms", [("log",), ("f", "f")])
def test_terms_that_leave_no_q_of_the_action_are_refused(terms: tuple[Term, ...]) -> None:
    with pytest.raises(ValueError, match=f"terms: found {', '.join(terms)}; expected"):
        learner(encoder(), terms=terms)


def test_value_dice_reads_no_encoder() -> None:
    with pytest.raises(ValueError, match="value_dice reads no encoder; repr_value_dice does"):
        ValueDICE(ValueDICEConfig(hidden=(16,)), 2, torch.zeros(3), torch.ones(3), LOW, HIGH, encoder())


def test_repr_value_dice_needs_an_encoder() -> None:
    with pytest.raises(ValueError, match="needs a dynamics encoder"):
        ReprValueDICE(ReprValueDICEConfig(hidden=(16,)), 2, torch.zeros(3), torch.ones(3), LOW, HIGH)


@pytest.mark.parametrize("with_encoder", [False, True])
def test_absorbing_states(with_encoder: bool) -> None:
    architecture = DynamicsArchitecture(
        replicas=2, observation_dim=3, action_dim=2, hidden=(16,), feature_dim=8, absorbing=True
    )
    model = DynamicsEncoder(architecture) if with_encoder else None
    method = ReprValueDICE if model else ValueDICE
    dice = method(method.Config(hidden=(16,)), 2, torch.randn(4), torch.rand(4) + 0.5, LOW, HIGH, model, absorbing=True)
    bit = (torch.rand(2, 6, 1) < 0.5).float()

    def flagged() -> Transitions:
        plain = transitions()
        s, s_next = (torch.cat([x, bit], -1) for x in (plain.observations, plain.next_observations))
        return Transitions(s, plain.actions, s_next)

    assert dice.losses(ImitationBatch(flagged(), flagged())).loss.isfinite().all()
    nn.init.normal_(dice.actor.network.layers[-1].weight)
    policy, s = dice.export(), torch.randn(2, 5, 3)
    alive, absorbed = (torch.cat([s, torch.full((2, 5, 1), bit)], -1) for bit in (0.0, 1.0))
    assert policy.architecture.observation_dim == 3
    torch.testing.assert_close(policy.act(s), recorded(dice.actor.mode(alive)))
    assert not torch.allclose(policy.act(s), recorded(dice.actor.mode(absorbed)))
    if model is not None:  # observations without the bit are alive
        critic, a = dice.critic, torch.rand(2, 5, 2)
        torch.testing.assert_close(critic(s, a), critic(alive, a))


def test_replicas_of_the_game_are_independent() -> None:
    dice = learner(encoder())
    expert, replay = transitions(), transitions()
    torch.manual_seed(7)
    dice.losses(ImitationBatch(expert, replay)).loss[0].backward()  # type: ignore[no-untyped-call]
    for parameter in dice.parameters():
        assert parameter.grad is None or not parameter.grad[1].any()


def test_orthogonality() -> None:
    network = MLP((2,), (2, 2, 2))
    with torch.no_grad():
        network.layers[0].weight.copy_(torch.tensor([[[1.0, 1.0], [0.0, 1.0]], [[0.0, 2.0], [2.0, 0.0]]]))
        network.layers[1].weight.copy_(torch.tensor([[[3.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]))
    # W^T W off the diagonal: 1 twice, 3 twice; and orthogonal columns
    torch.testing.assert_close(orthogonality(network), torch.tensor([2.0 + 18.0, 0.0]))


def test_actor() -> None:
    actor = TanhGaussianActor(2, Normaliser(torch.zeros(3), torch.ones(3)), 2, (16,))
    with torch.no_grad():
        actor.network.layers[-1].weight.mul_(1e4)
    s = torch.randn(2, 200, 3)
    mean, log_std = actor(s)
    assert log_std.min() >= -5
    assert log_std.max() <= 2
    noise = torch.randn(2, 200, 2)
    actions = actor.sample(s, noise)
    torch.testing.assert_close(actions, torch.tanh(mean + noise * log_std.exp()), atol=1e-5, rtol=1e-4)
    assert actions.abs().max() <= 1
    assert torch.equal(actor.sample(s, torch.zeros_like(noise)), actor.mode(s))


def test_export_acts_as_the_mode() -> None:
    dice = learner()
    nn.init.normal_(dice.actor.network.layers[-1].weight)
    nn.init.normal_(dice.actor.network.layers[-1].bias)
    policy, s = dice.export(), torch.randn(2, 5, 3)
    torch.testing.assert_close(policy.act(s), recorded(dice.actor.mode(s)))
    with torch.no_grad():
        dice.actor.network.layers[0].weight.zero_()
    assert not torch.allclose(policy.act(s), recorded(dice.actor.mode(s)))  # a copy


def test_perceptron_critic_reads_standardised_observations() -> None:
    critic = PerceptronCritic(2, Normaliser(torch.tensor([5.0]), torch.tensor([1.999])), 1, (8,))
    s, a = torch.randn(2, 4, 1), torch.randn(2, 4, 1)
    torch.testing.assert_close(critic(s, a), critic.network(torch.cat([(s - 5) / 2, a], -1)).squeeze(-1))


def test_the_game_alone_finds_the_expert() -> None:
    """A problem of one step: any policy visits the same states, so the divergence is that of the actions."""
    config = ValueDICEConfig(
        hidden=(32, 32), gamma=GAMMA, gradient_penalty=1.0, orthogonality=0.0, actor_rate=1e-3, critic_rate=1e-3
    )
    dice = ValueDICE(config, 2, torch.zeros(2), torch.ones(2), (-1.0,), (1.0,))
    optimizer = torch.optim.Adam([{k: g[k] for k in ("params", "lr")} for g in dice.parameter_groups()])

    def draw() -> ImitationBatch:
        s, s_next, other, other_next = torch.randn(4, 2, 128, 2)
        expert = Transitions(s, torch.tanh(s[..., :1] - 0.5) + 0.1 * torch.randn(2, 128, 1), s_next)
        return ImitationBatch(expert, Transitions(other, 2 * torch.rand(2, 128, 1) - 1, other_next))

    assert (dice.losses(draw()).metrics["squared_error"] > 0.3).all()
    for _ in range(600):
        optimizer.zero_grad()
        dice.losses(draw()).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert (dice.losses(draw()).metrics["squared_error"] < 0.05).all()  # 0.01 is the expert's own noise
