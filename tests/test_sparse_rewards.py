"""Rewards that are 1 at a goal and 0 elsewhere, as AntMaze has them, from relabelling to a policy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, write_dataset
from dynarep.pipeline.entries import Entry, LearnInputs, read_entry
from dynarep.pipeline.learn import learn, scaled_rewards
from dynarep.pipeline.methods.learners.iql import IQLConfig
from dynarep.pipeline.methods.rewards.otr import OTRConfig
from dynarep.pipeline.nn.functional import return_range_scale
from dynarep.pipeline.relabel import relabel
from dynarep.pipeline.training.config import TrainingConfig
from tests.entries import a_run, entry, raw, standardised

ROOT = Path(__file__).parents[1]
GOAL = 3.0


def corridor(name: str, rng: np.random.Generator, *, drift: float) -> Episode:
    """Walk along a line from 1 with moves in [-1, 1] around ``drift``; at the goal the reward is 1 and the episode ends."""
    x, moves = [1.0], []
    while len(moves) < 20 and x[-1] < GOAL:
        moves.append(np.clip(drift + 0.5 * rng.normal(), -1, 1))
        x.append(x[-1] + 0.4 * moves[-1])
    there = x[-1] >= GOAL
    states = np.stack([np.array(x), np.ones(len(x))], 1).astype(np.float32)
    rewards = np.zeros(len(moves), np.float32)
    rewards[-1] = there
    actions = np.array(moves, np.float32)[:, None]
    return Episode(
        id=name, observations=states, actions=actions, rewards=rewards, terminated=bool(there), truncated=not there
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rng = np.random.default_rng(0)
    episodes = [corridor(f"e-{i}", rng, drift=(-0.2, 0.0, 0.3)[i % 3]) for i in range(60)]
    folder = tmp_path_factory.mktemp("sparse") / "corridor"
    write_dataset(folder, "corridor", episodes, provenance={}, env=None, bounds=((-1.0,), (1.0,)))
    return load_dataset(folder)


@pytest.fixture(scope="module")
def expert(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The shortest episode that reaches the goal, observations only."""
    best = min((e for e in data.episodes if e.terminated), key=lambda e: e.length)
    folder = tmp_path_factory.mktemp("sparse") / "expert"
    states = Episode(id=best.id, observations=best.observations, terminated=True, truncated=False)
    write_dataset(folder, "expert", [states], provenance={}, env=None, bounds=((), ()))
    return load_dataset(folder)


def test_published_post_processing_of_antmaze(data: Dataset) -> None:
    """The preset's true rewards are 0 at the goal and -1 elsewhere; relabelled ones are scaled and moved by -2."""
    preset = ROOT / "configs" / "presets" / "antmaze.yaml"
    of_true, of_otr = (read_entry(preset, "learn", name).inputs for name in ("iql_true", "iql_otr"))
    recorded = {e.id: e.rewards[None] for e in data.episodes if e.rewards is not None}
    true = scaled_rewards(data, recorded, 2, of_true)
    assert true.shape == (2, sum(e.length for e in data.episodes))
    flat = torch.from_numpy(np.concatenate(list(recorded.values()), 1))
    assert 0 < flat.sum() < len(data.episodes)
    torch.testing.assert_close(true, (flat - 1.0).expand(2, -1))
    labels = {
        e.id: torch.rand(1, e.length, generator=torch.Generator().manual_seed(i)) for i, e in enumerate(data.episodes)
    }
    flat = torch.cat([labels[e.id] for e in data.episodes], -1)
    scale = return_range_scale([labels[e.id] for e in data.episodes])
    found = scaled_rewards(data, labels, 1, of_otr)
    torch.testing.assert_close(found, flat * scale - 2.0)


def test_scale_and_bias_are_those_of_the_entry(data: Dataset) -> None:
    recorded = {e.id: e.rewards[None] for e in data.episodes if e.rewards is not None}
    names = {"dataset": "data", "demonstrations": "data", "rewards": "recorded"}
    plain = scaled_rewards(data, recorded, 1, LearnInputs(**names, reward_scale="none", reward_bias=-3.0))
    assert sorted(set(plain[0].tolist())) == [-3.0, -2.0]
    moved = scaled_rewards(data, recorded, 1, LearnInputs(**names, reward_scale="none"))
    torch.testing.assert_close(moved, plain + 3.0)
    scaled = scaled_rewards(data, recorded, 1, LearnInputs(**names))
    torch.testing.assert_close(scaled, 1000.0 * moved)  # returns are 0 and 1
    with pytest.raises(ValueError, match="rewards: found 2 replicas, this run has 3"):
        scaled_rewards(data, {name: np.repeat(x, 2, 0) for name, x in recorded.items()}, 3, LearnInputs(**names))


def test_no_success_at_all_leaves_the_scale_undefined(data: Dataset) -> None:
    c = LearnInputs(dataset="data", demonstrations="data", rewards="nothing")
    nothing = {e.id: torch.zeros(1, e.length) for e in data.episodes}
    with pytest.raises(ValueError, match="all episodes have the same return"):
        scaled_rewards(data, nothing, 1, c)


METHODS = [
    entry("relabel", "ailot", space="standardised"),
    entry("relabel", "otr", OTRConfig(temperature=1.0, divide_by_observation_dim=False), space="raw"),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.kind))
def test_relabelled_sparse_data_teach_to_go_to_the_goal(
    method: Entry[Any], data: Dataset, expert: Dataset, tmp_path: Path
) -> None:
    encoder = raw(data) if method.inputs.space == "raw" else standardised(data)
    made = relabel(method, data, expert, encoder, a_run(tmp_path / "label", "relabel/x", 1))
    labels = {name: torch.from_numpy(values) for name, values in made.rewards.items()}
    per_step = {e.terminated: [] for e in data.episodes}  # type: ignore[var-annotated]
    for e in data.episodes:
        per_step[e.terminated].append(float(labels[e.id].mean()))
    assert np.mean(per_step[True]) > np.mean(per_step[False])  # nearer to the expert's states
    iql = IQLConfig(hidden=(32,), expectile=0.9, temperature=10.0, learning_rate=3e-3)
    training = TrainingConfig(updates=300, batch_size=64)
    policy_entry = entry("learn", "iql", iql, rewards="x", reward_bias=-2.0, training=training)
    policy, _ = learn(policy_entry, data, data, None, labels, a_run(tmp_path / "learn", "learn/x", 1))
    states = torch.tensor([[[1.0, 1.0], [1.6, 1.0], [2.2, 1.0]]])
    mean_action = float(np.mean([e.actions.mean() for e in data.episodes if e.actions is not None]))
    assert float(policy.act(states).detach().mean()) > mean_action
