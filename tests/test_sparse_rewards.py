"""Rewards that are 1 at a goal and 0 elsewhere, as AntMaze has them, from relabelling to a policy."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dynarep.configs.params import read_section
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, write_dataset
from dynarep.pipeline.training.loop import Run, TrainingConfig
from dynarep.pipeline.methods.learners.iql import IQLConfig
from dynarep.pipeline.methods.rewards.otr import OTRConfig, return_range_scale
from dynarep.pipeline.offline_rl import OfflinePolicyConfig, OfflineRLConfig, offline_rl, scaled_rewards
from dynarep.pipeline.relabel import AILOTMethodConfig, AnyMethodConfig, OTRMethodConfig, relabel
from dynarep.pipeline.spaces import observation_space

CPU = torch.device("cpu")
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
    c = read_section(ROOT / "configs" / "presets" / "antmaze.yaml", "offline_rl", OfflineRLConfig)
    true = scaled_rewards(data, None, 2, c, c.policies["iql_true"])
    assert true.shape == (2, sum(e.length for e in data.episodes))
    recorded = torch.cat([torch.from_numpy(e.rewards) for e in data.episodes if e.rewards is not None])
    assert 0 < recorded.sum() < len(data.episodes)
    torch.testing.assert_close(true, (recorded - 1.0).expand(2, -1))
    labels = {
        e.id: torch.rand(1, e.length, generator=torch.Generator().manual_seed(i)) for i, e in enumerate(data.episodes)
    }
    flat = torch.cat([labels[e.id] for e in data.episodes], -1)
    scale = return_range_scale([labels[e.id] for e in data.episodes])
    found = scaled_rewards(data, labels, 1, c, c.policies["iql_otr"])
    torch.testing.assert_close(found, flat * scale - 2.0)


def test_a_policy_without_settings_of_its_own_has_those_of_the_section(data: Dataset) -> None:
    c = OfflineRLConfig(
        policies={}, reward_scale="none", reward_bias=-3.0, training=TrainingConfig(updates=1, batch_size=1)
    )
    plain = scaled_rewards(data, None, 1, c)
    assert sorted(set(plain[0].tolist())) == [-3.0, -2.0]
    torch.testing.assert_close(scaled_rewards(data, None, 1, c, OfflinePolicyConfig(rewards="true")), plain)
    moved = scaled_rewards(data, None, 1, c, OfflinePolicyConfig(rewards="true", reward_bias=0.0))
    torch.testing.assert_close(moved, plain + 3.0)


def test_no_success_at_all_leaves_the_scale_undefined(data: Dataset) -> None:
    c = OfflineRLConfig(policies={}, training=TrainingConfig(updates=1, batch_size=1))
    nothing = {e.id: torch.zeros(1, e.length) for e in data.episodes}
    with pytest.raises(ValueError, match="all episodes have the same return"):
        scaled_rewards(data, nothing, 1, c)


METHODS: list[AnyMethodConfig] = [
    AILOTMethodConfig(kind="ailot", space="standardised"),
    OTRMethodConfig(kind="otr", method=OTRConfig(temperature=1.0, divide_by_observation_dim=False)),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.kind))
def test_relabelled_sparse_data_teach_to_go_to_the_goal(
    method: AnyMethodConfig, data: Dataset, expert: Dataset, tmp_path: Path
) -> None:
    spaces = {
        name: observation_space(data, CPU, standardise=name == "standardised") for name in ("raw", "standardised")
    }
    run = Run("relabel/x", 0, 1, tmp_path, tmp_path)
    made = relabel("x", method, data, expert, spaces, CPU, run)  # type: ignore[arg-type]
    labels = {name: torch.from_numpy(values) for name, values in made.rewards.items()}
    per_step = {e.terminated: [] for e in data.episodes}  # type: ignore[var-annotated]
    for e in data.episodes:
        per_step[e.terminated].append(float(labels[e.id].mean()))
    assert np.mean(per_step[True]) > np.mean(per_step[False])  # nearer to the expert's states
    (tmp_path / "out").mkdir()
    c = OfflineRLConfig(
        policies={},
        reward_bias=-2.0,
        iql=IQLConfig(hidden=(32,), expectile=0.9, temperature=10.0, learning_rate=3e-3),
        training=TrainingConfig(updates=300, batch_size=64),
    )
    learn = Run("offline_rl/x", 0, 1, tmp_path / "out", tmp_path / "kept")
    policy = offline_rl(c, OfflinePolicyConfig(rewards="x"), data, scaled_rewards(data, labels, 1, c), learn)
    states = torch.tensor([[[1.0, 1.0], [1.6, 1.0], [2.2, 1.0]]])
    mean_action = float(np.mean([e.actions.mean() for e in data.episodes if e.actions is not None]))
    assert float(policy.act(states).detach().mean()) > mean_action
