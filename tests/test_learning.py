"""What the learners find in processes with known answers, each test a statement about independent replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra
from scipy.stats import spearmanr
from synthetic import Chain, Corridor, record
from torch import Tensor, nn

from dynarep.data.resident import Batch, TransitionTable
from dynarep.data.sampling import goal_and_intent, uniform
from dynarep.data.schema import Episode
from dynarep.pipeline.encoders import DynamicsEncoder, IntentEncoder, Policy
from dynarep.pipeline.engine import Run, Sample, TrainingConfig, run_key, train, training_device
from dynarep.pipeline.methods import ailot, otr
from dynarep.pipeline.methods.bc import BC, BCConfig
from dynarep.pipeline.methods.dynamics import ContrastiveBatch, Dynamics, DynamicsConfig
from dynarep.pipeline.methods.icvf import ICVF, GoalBatch, ICVFConfig
from dynarep.pipeline.methods.iql import IQL, IQLConfig, RewardBatch
from dynarep.pipeline.methods.value_dice import (
    ImitationBatch,
    ReprValueDICEConfig,
    Transitions,
    ValueDICE,
    ValueDICEConfig,
)

torch.set_num_threads(1)

REPLICAS, SEED = 8, 0
LossName = Literal["quadratic", "ranking", "binary"]
UNIT = (-1.0,), (1.0,)
PLANE = (-1.0, -1.0), (1.0, 1.0)
MOMENTS = torch.zeros(2), torch.full((2,), 0.5)
"""About the mean and deviation of points in the corridor, the same in both directions: distances keep their order."""


class OwnData:
    """Episodes of R replicas, each of which has as many transitions as the others and draws from its own ones alone.

    Indices (R, B) count a replica's own transitions from 0.
    """

    def __init__(self, episodes: Sequence[Sequence[Episode]]) -> None:
        device = training_device()
        self.table = TransitionTable.from_episodes([e for own in episodes for e in own], device=device)
        self.size = len(self.table) // len(episodes)
        self.offset = self.size * torch.arange(len(episodes), device=device).unsqueeze(1)

    def index(self, batch: int, generator: torch.Generator) -> Tensor:
        return uniform(self.size, (len(self.offset), batch), generator, self.offset.device)

    def gather(self, index: Tensor) -> Batch:
        return self.table.gather(index + self.offset)

    def observations_at(self, index: Tensor) -> Tensor:
        return self.table.observations_at(index + self.offset)

    def last(self, index: Tensor) -> Tensor:
        return self.table.last[index + self.offset] - self.offset

    def draw(self, batch: int, generator: torch.Generator) -> Batch:
        return self.gather(self.index(batch, generator))


def generators(seed: int, purpose: int) -> list[np.random.Generator]:
    """One for each replica."""
    return [np.random.default_rng([seed, purpose, replica]) for replica in range(REPLICAS)]


def fit(learner: nn.Module, sample: Sample, updates: int, folder: Path, seed: int) -> None:
    folder.mkdir(parents=True)
    run = Run("learning", seed, REPLICAS, folder, folder / "checkpoints")
    train(learner, sample, TrainingConfig(updates=updates), run=run, metric="loss", key=run_key(run))


# Dynamics


def random_actions(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1.0, 1.0, len(state))


def learn_dynamics(
    data: OwnData, states: int, updates: int, config: DynamicsConfig, folder: Path, seed: int
) -> DynamicsEncoder:
    """With the next states of the data as noise."""
    torch.manual_seed(seed)
    learner = Dynamics(config, REPLICAS, torch.zeros(states), torch.ones(states), 1)

    def sample(generator: torch.Generator) -> ContrastiveBatch:
        batch, noise = data.draw(128, generator), data.draw(128, generator).next_observations
        return ContrastiveBatch(batch.observations, batch.actions, batch.next_observations, noise)

    fit(learner, sample, updates, folder, seed)
    return learner.export()


@dataclass(frozen=True)
class RatioErrors:
    """Root mean square over (s, a) of the data and s' of p_n, in units of that of P / p_n - 1; (R,) if not a number.

    Args:
        learned: of phi^T mu.
        blind: of the best ratio that does not depend on the action.
        normalisation: E_{p_n} phi^T mu, the mean over (s, a), which is 1 for the ratio.
    """

    learned: np.ndarray
    blind: float
    normalisation: np.ndarray


def ratio_errors(loss: LossName, folder: Path, seed: int) -> RatioErrors:
    chain, steps = Chain(5), 10
    episodes = [
        chain.episodes(f"chain-{r}", rng, random_actions, count=300, steps=steps, start=0)
        for r, rng in enumerate(generators(seed, 0))
    ]
    config = DynamicsConfig(loss=loss, hidden=(64,), feature_dim=16, learning_rate=1e-2)
    encoder = learn_dynamics(OwnData(episodes), chain.states, 600, config, folder, seed)

    actions = np.linspace(-0.8, 0.8, 5)  # the midpoints of five equally likely intervals
    visits = chain.visits(np.zeros(chain.states), steps, 0)
    noise = visits @ chain.kernel(np.zeros(chain.states))
    kernel = chain.kernel(np.repeat(actions[:, None], chain.states, 1))
    ratio, blind = kernel / noise, kernel.mean(0) / noise
    states = torch.eye(chain.states)
    s, a = states.repeat(len(actions), 1), torch.from_numpy(actions).float().repeat_interleave(chain.states)
    with torch.no_grad():
        found = (encoder.phi(s[None], a[None, :, None]) @ encoder.mu(states[None]).mT).double().numpy()
    found = found.reshape(REPLICAS, len(actions), chain.states, chain.states)

    def mean(x: np.ndarray) -> np.ndarray:
        return np.einsum("...ast,s,t->...", x, visits, noise) / len(actions)  # type: ignore[no-any-return]

    unit = mean(np.square(ratio - 1.0))
    learned = np.sqrt(mean(np.square(found - ratio)) / unit)
    return RatioErrors(learned, float(np.sqrt(mean(np.square(blind - ratio)) / unit)), mean(found))


# Intents


INTENT_UPDATES = 1000


def learn_intents(folder: Path, seed: int) -> tuple[ICVF, np.ndarray]:
    """An ICVF of wandering points, and the points it was learned from, (R, E, T + 1, 2)."""
    corridor = Corridor()
    walks = [corridor.wander(rng, 50, 120) for rng in generators(seed, 1)]
    data = OwnData([record(f"walk-{r}", *walk) for r, walk in enumerate(walks)])
    c = ICVFConfig(hidden=(64,), latent_dim=32, gamma=0.95, learning_rate=2e-3, target_rate=0.05)
    torch.manual_seed(seed)
    learner = ICVF(c, REPLICAS, *MOMENTS)

    def sample(generator: torch.Generator) -> GoalBatch:
        index = data.index(128, generator)
        g, z = goal_and_intent(
            index,
            data.last(index),
            data.size,
            p_random=c.p_random,
            p_trajectory=c.p_trajectory,
            p_current=c.p_current,
            p_same=c.p_same,
            generator=generator,
        )
        batch = data.gather(index)
        outcomes, intents = data.observations_at(g), data.observations_at(z)
        reached = (g == index).float(), (z == index).float()
        return GoalBatch(batch.observations, batch.next_observations, outcomes, intents, *reached)

    fit(learner, sample, INTENT_UPDATES, folder, seed)
    return learner, np.stack([points for points, _ in walks])


def correlations(x: Any, y: Any) -> np.ndarray:
    """Spearman's, of each row."""
    return np.array([spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])


def everywhere(points: np.ndarray) -> Tensor:
    """The same points (N, 2) for every replica, (R, N, 2)."""
    return torch.from_numpy(points).float().expand(REPLICAS, -1, -1)


@torch.no_grad()
def agreement_with_geodesic(learner: ICVF) -> dict[str, np.ndarray]:
    """Rank correlation with the shortest way over pairs of points, by what is taken for the distance: (R,)."""
    corridor, rng = Corridor(), np.random.default_rng(99)
    p, q = corridor.points(rng, 2000), corridor.points(rng, 2000)
    encoder, (s, g) = learner.export(), (learner.normaliser(everywhere(x)) for x in (p, q))
    distances = {
        "euclidean": (everywhere(p) - everywhere(q)).norm(dim=-1),
        "psi": (encoder.embed(everywhere(p)) - encoder.embed(everywhere(q))).square().sum(-1),
        "value": -learner.online(s, g, g).mean(1),
    }
    geodesic = [corridor.geodesic(p, q)] * REPLICAS
    return {name: correlations(distance.numpy(), geodesic) for name, distance in distances.items()}


# Imitation

CHAIN, TARGET = Chain(8), 5


def transitions(batch: Batch) -> Transitions:
    return Transitions(batch.observations, batch.actions, batch.next_observations)


@dataclass(frozen=True)
class Lesson:
    """Demonstrations and arbitrary data of the chain, and the dynamics of the latter."""

    expert: OwnData
    other: OwnData
    encoder: DynamicsEncoder


def prepare_lesson(folder: Path, seed: int) -> Lesson:
    def demonstrate(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.clip(CHAIN.towards(TARGET)[state] + 0.1 * rng.normal(size=len(state)), -1.0, 1.0)  # type: ignore[no-any-return]

    expert, other = (
        OwnData(
            [
                CHAIN.episodes(f"chain-{r}", rng, behaviour, count=count, steps=50)
                for r, rng in enumerate(generators(seed, purpose))
            ]
        )
        for purpose, behaviour, count in ((2, demonstrate, 10), (3, random_actions, 40))
    )
    config = DynamicsConfig(hidden=(64,), feature_dim=16, learning_rate=1e-2)
    return Lesson(expert, other, learn_dynamics(other, CHAIN.states, 400, config, folder, seed))


GAME: dict[str, Any] = {
    "hidden": (32, 32),
    "gamma": CHAIN.gamma,
    "actor_rate": 3e-3,
    "critic_rate": 3e-3,
    "gradient_penalty": 1.0,
}


def imitate(method: str, lesson: Lesson, folder: Path, seed: int) -> Policy:
    moments = torch.zeros(CHAIN.states), torch.ones(CHAIN.states)
    torch.manual_seed(seed)
    if method == "bc":
        learner: nn.Module = BC(BCConfig(hidden=(32, 32), learning_rate=1e-2), REPLICAS, *moments, *UNIT)
        fit(learner, lambda generator: lesson.expert.draw(64, generator), 300, folder, seed)
    else:
        name, _, cloning = method.partition("+")
        values = {**GAME, "cloning_weight": 100.0 if cloning else 0.0}
        if name == "value_dice":
            learner = ValueDICE(ValueDICEConfig(**values), REPLICAS, *moments, *UNIT)
        else:
            learner = ValueDICE(ReprValueDICEConfig(**values), REPLICAS, *moments, *UNIT, lesson.encoder)

        def sample(generator: torch.Generator) -> ImitationBatch:
            return ImitationBatch(*(transitions(data.draw(64, generator)) for data in (lesson.expert, lesson.other)))

        fit(learner, sample, 400, folder, seed)
    return learner.export()  # type: ignore[operator,no-any-return]


@torch.no_grad()
def distance_to_expert(policy: Policy) -> np.ndarray:
    """Total variation between the exact occupancies of the states, (R,)."""
    actions = policy.act(torch.eye(CHAIN.states)[None]).squeeze(-1).double().numpy()
    return np.abs(CHAIN.occupancy(actions) - CHAIN.occupancy(CHAIN.towards(TARGET))).sum(-1) / 2  # type: ignore[no-any-return]


UNIFORM = float(
    np.abs(CHAIN.occupancy(np.zeros(CHAIN.states)) - CHAIN.occupancy(CHAIN.towards(TARGET))).sum() / 2
)


# Rewards and offline reinforcement learning


@dataclass(frozen=True)
class Journeys:
    """Episodes in the corridor, each from and to a random place, and one demonstration from the left end to the right end.

    Args:
        data: what policies learn from.
        points: (R, E, T + 1, 2).
        expert: (R, T + 1, 2).
        progress: minus the mean distance from the right end by the shortest way, (R, E).
    """

    data: OwnData
    points: np.ndarray
    expert: np.ndarray
    progress: np.ndarray


def travel(seed: int, *, count: int = 60, steps: int = 20) -> Journeys:
    corridor = Corridor()
    episodes, points, experts = [], [], []
    for r, rng in enumerate(generators(seed, 4)):
        p, a = corridor.travel(rng, corridor.points(rng, count), corridor.points(rng, count), steps, 0.3)
        episodes.append(record(f"journey-{r}", p, a))
        points.append(p)
        experts.append(corridor.travel(rng, corridor.left_end[None], corridor.right_end, steps, 0.05)[0][0])
    every = np.stack(points)
    progress = -corridor.geodesic(every[:, :, :-1], corridor.right_end).mean(-1)
    return Journeys(OwnData(episodes), every, np.stack(experts), progress)


@torch.no_grad()
def label(
    journeys: Journeys, method: Literal["ailot", "otr"], encoder: IntentEncoder | None, walks: np.ndarray
) -> Tensor:
    """Rewards (R, E, T) in (0, 1], in the intents of each replica or, without an encoder, by coordinates.

    ``walks`` (R, E', T' + 1, 2) are the points of the data whose mean squared step is the unit of squared distances.
    """

    def embed(points: np.ndarray) -> Tensor:
        x = torch.from_numpy(points).float()
        return x if encoder is None else encoder.embed(x.flatten(1, -2)).view(*x.shape[:-1], -1)

    replicas, count = journeys.points.shape[:2]
    agent, expert, walk = embed(journeys.points[:, :, :-1]), embed(journeys.expert[:, None, :-1]), embed(walks)
    calibration = 1.0 / (walk[:, :, 1:] - walk[:, :, :-1]).square().sum(-1).mean((1, 2))
    lengths = torch.full((replicas * count,), agent.shape[2])
    experts = expert.expand(-1, count, -1, -1).flatten(0, 1)
    arguments = agent.flatten(0, 1), lengths, experts, lengths, calibration.repeat_interleave(count)
    if method == "ailot":
        c = ailot.AILOTConfig(scale=1.0, temperature=0.1, max_iterations=100, tolerance=1e-3)
        labels = ailot.label(*arguments, c)
    else:
        labels = otr.label(*arguments, otr.OTRConfig(scale=1.0))
    return labels.rewards.view(replicas, count, -1)


def ranking(journeys: Journeys, rewards: Tensor) -> np.ndarray:
    """Rank correlation over episodes of the return with the progress, (R,)."""
    return correlations(rewards.sum(-1).numpy(), journeys.progress)


def learn_from_rewards(journeys: Journeys, rewards: Tensor, folder: Path, seed: int) -> Policy:
    values = rewards.flatten(1).to(training_device()) - 1.0
    c = IQLConfig(
        hidden=(64, 64), gamma=0.9, expectile=0.8, temperature=15.0, learning_rate=4e-3, target_rate=0.05
    )
    torch.manual_seed(seed)
    learner = IQL(c, REPLICAS, *MOMENTS, *PLANE)

    def sample(generator: torch.Generator) -> RewardBatch:
        index = journeys.data.index(128, generator)
        b = journeys.data.gather(index)
        return RewardBatch(b.observations, b.actions, values.gather(1, index), b.terminated, b.next_observations)

    fit(learner, sample, 800, folder, seed)
    return learner.export()


def clone(journeys: Journeys, folder: Path, seed: int) -> Policy:
    torch.manual_seed(seed)
    c = BCConfig(hidden=(64, 64), learning_rate=2e-3)
    learner = BC(c, REPLICAS, *MOMENTS, *PLANE)
    fit(learner, lambda generator: journeys.data.draw(64, generator), 400, folder, seed)
    return learner.export()


@torch.no_grad()
def arrivals(policy: Policy, *, episodes: int = 40, steps: int = 40) -> np.ndarray:
    """Share of episodes from around the left end that are within 0.3 of the right end after ``steps``, (R,)."""
    corridor, rng = Corridor(), np.random.default_rng(7)
    p = corridor.left_end + 0.1 * rng.uniform(-1.0, 1.0, (REPLICAS, episodes, 2))
    for _ in range(steps):
        p = corridor.step(p, policy.act(torch.from_numpy(p).float()).double().numpy(), rng)
    return (np.linalg.norm(p - corridor.right_end, axis=-1) < 0.3).mean(-1)  # type: ignore[no-any-return]
