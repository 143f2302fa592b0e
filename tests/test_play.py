"""Recordings of an expert at play: benchmarks/play.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box

from benchmarks.play import MazeExpert, PendulumExpert, record, write
from dynarep.data.card import make_card
from dynarep.data.readers import read


class Line:
    """A point on a line, and someone who walks to its goals 1, 2, 3, ..."""

    here, goal = 0.0, 1.0

    action_space = Box(-1.0, 1.0, (1,), np.float64)

    def reset(self, seed: int) -> tuple[Any, dict[str, Any]]:
        self.here, self.goal = 0.0, 1.0
        return np.array([self.here]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.here += float(action[0])
        return np.array([self.here]), -1.0, self.here >= 3, False, {}

    def aim(self) -> None:
        self.goal += 1

    def action(self, observation: Any, info: dict[str, Any]) -> Any:
        return np.array([0.5 * np.sign(self.goal - observation[0])])

    def arrived(self) -> bool:
        return self.here >= self.goal


def test_play_goes_on_to_the_next_goal_until_the_environment_ends_it():
    line = Line()
    columns = record(line, line, episodes=2, steps=100, noise=0.0, seed=0)
    np.testing.assert_allclose(columns["observations"][:, 0], 2 * [0, 0.5, 1, 1.5, 2, 2.5])
    np.testing.assert_allclose(columns["next_observations"][:, 0], 2 * [0.5, 1, 1.5, 2, 2.5, 3])
    assert columns["terminals"].nonzero()[0].tolist() == [5, 11]
    assert not columns["timeouts"].any()


def test_a_demonstration_ends_where_its_goal_is_reached():
    line = Line()
    columns = record(line, line, episodes=1, steps=100, noise=0.0, seed=0, once=True)
    np.testing.assert_allclose(columns["next_observations"][:, 0], [0.5, 1])
    assert columns["timeouts"].tolist() == [False, True]


def test_an_episode_that_is_too_long_is_cut_and_read_as_such(tmp_path):
    line = Line()
    columns = record(line, line, episodes=3, steps=4, noise=0.1, seed=0)
    again = record(line, line, episodes=3, steps=4, noise=0.1, seed=0)
    np.testing.assert_array_equal(columns["actions"], again["actions"])
    assert columns["timeouts"].nonzero()[0].tolist() == [3, 7, 11]
    path = tmp_path / "line.hdf5"
    write(path, columns)
    episodes = read(path, make_card("line", {"path": str(path), "format": "d4rl"}, "test"))
    assert [len(episode.actions) for episode in episodes] == [4, 4, 4]


def test_the_expert_of_ogbench_reaches_its_goals():
    pytest.importorskip("ogbench")
    import gymnasium

    env = gymnasium.make("pointmaze-medium-singletask-task1-v0")
    columns = record(env, MazeExpert(env), episodes=1, steps=500, noise=0.0, seed=0, once=True)
    assert 100 < len(columns["actions"]) < 300
    assert env.unwrapped.compute_success()


def test_the_pendulum_is_swung_up_and_held() -> None:
    import gymnasium

    env = gymnasium.make("Pendulum-v1")
    found = record(env, PendulumExpert(env), episodes=10, steps=200, noise=0.0, seed=0)
    upright = found["next_observations"].reshape(10, 200, 3)[:, -50:, 0]
    assert upright.min() > 0.99
    assert found["timeouts"].sum() == 10
    assert np.abs(found["actions"]).max() <= 2
