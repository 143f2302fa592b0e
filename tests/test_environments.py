import os
import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import Tensor

from dynarep.configs.params import read_section
from dynarep.pipeline.methods.policies.uniform import Uniform, UniformArchitecture
from dynarep.pipeline.playing import environments
from dynarep.pipeline.playing.environments import (
    EvaluationError,
    check_observations,
    d4rl_reference,
    make_environment,
    simulator_versions,
    succeeded,
)
from dynarep.pipeline.playing.play import EvaluateConfig, play_block

os.environ.setdefault("MUJOCO_GL", "egl")  # dm_control looks when it is imported, Gymnasium when it renders

MUJOCO = {"Hopper": (11, 3), "HalfCheetah": (17, 6), "Walker2d": (17, 6)}
SIZES = {
    **{f"{name}-v{number}": sizes for name, sizes in MUJOCO.items() for number in (4, 5)},
    "Ant-v4": (27, 8),
    "Ant-v5": (105, 8),
    "AntMaze_UMaze-v4": (29, 8),
    "AntMaze_UMaze-v5": (29, 8),
    "AntMaze_Medium-v5": (29, 8),
    "PointMaze_UMaze-v3": (4, 2),
    "AdroitHandPen-v1": (45, 24),
    "AdroitHandDoor-v1": (39, 28),
    "AdroitHandHammer-v1": (46, 26),
    "AdroitHandRelocate-v1": (39, 30),
    "FrankaKitchen-v1": (59, 9),
    "dm_control/cheetah-run-v0": (17, 6),
    "dm_control/walker-walk-v0": (24, 6),
}
"""Observations and actions; those of Hopper to Relocate, but for Ant, are D4RL's."""


def need(env: str) -> None:
    """Skip where the packages of an environment are missing or do not fit each other."""
    package = environments.family(env).package
    if package is not None:
        pytest.importorskip(package)
    if package == "shimmy":
        pytest.importorskip("dm_control")
    try:
        make_environment(env).close()
    except EvaluationError as error:
        if "does not fit mujoco" not in str(error):
            raise
        pytest.skip(str(error))


def random_policy(env: str) -> Uniform:
    environment = make_environment(env)
    low, high = (tuple(bound.tolist()) for bound in (environment.action_space.low, environment.action_space.high))
    (size,) = environment.observation_space.shape
    return Uniform(UniformArchitecture(replicas=1, observation_dim=size, action_low=low, action_high=high))


@pytest.mark.parametrize("env", SIZES)
def test_evaluation(env: str) -> None:
    need(env)
    settings = EvaluateConfig(env=env, episodes=1, max_steps=3)
    environment = settings.make()
    assert (environment.observation_space.shape, environment.action_space.shape) == tuple((n,) for n in SIZES[env])
    starts = [settings.make().reset(seed=seed)[0] for seed in (7, 7, 8)]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert (starts[0] != starts[2]).any()
    played = play_block(random_policy(env), "random", settings, 0)
    assert played.lengths.tolist() == [[3]]
    assert np.isfinite(played.returns).all()
    robotic = environments.family(env).package == "gymnasium_robotics"
    np.testing.assert_array_equal(played.successes, [[0.0]] if robotic else [[np.nan]])


@pytest.mark.parametrize("env", [env for env in SIZES if env not in ("AntMaze_UMaze-v4", "AntMaze_Medium-v5")])
def test_rendering(env: str) -> None:
    need(env)
    environment = make_environment(env, render_mode="rgb_array")
    environment.reset(seed=0)
    try:
        frame = environment.render()
    except Exception as error:  # EGL's libraries fail in as many ways as there are machines
        pytest.skip(f"no renderer: {type(error).__name__}: {error}")
    finally:
        environment.close()
    assert frame.dtype == np.uint8
    assert frame.ndim == 3
    assert frame.shape[2] == 3
    assert frame.std() > 5.0


class Maze(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """Walk along a line to the goal at 3; the first entry of a dictionary by name is not the first one stated."""

    observation_space = Dict(
        {
            "observation": Box(-np.inf, np.inf, (2,), np.float64),
            "achieved_goal": Box(-np.inf, np.inf, (), np.float64),
            "pixels": Box(0, 255, (4, 4), np.uint8),
            "kind": Discrete(2),
        }
    )
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, key: str = "success") -> None:
        self.key = key

    def observe(self) -> dict[str, Any]:
        pixels = np.zeros((4, 4), np.uint8)
        return {"observation": np.array([1.0, 2.0]), "achieved_goal": np.array(self.x), "pixels": pixels, "kind": 0}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.x = 0.0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.x += float(action[0])
        return self.observe(), 0.0, False, False, {self.key: self.x == 3.0}


gymnasium.register("LineMaze-v0", entry_point=f"{__name__}:Maze", max_episode_steps=8)

VECTORS = ("observation", "achieved_goal")


def test_entries_stand_side_by_side_in_the_order_given() -> None:
    for names, expected in (
        (VECTORS, [1.0, 2.0, 0.0]),
        (VECTORS[::-1], [0.0, 1.0, 2.0]),
        (("observation",), [1.0, 2.0]),
    ):
        environment = make_environment("LineMaze-v0", observations=names)
        observation, _ = environment.reset(seed=0)
        assert observation.tolist() == expected
        assert environment.observation_space.shape == (len(expected),)


def test_entries_that_cannot_be_used() -> None:
    with pytest.raises(EvaluationError, match=r"observations: LineMaze-v0 has no 'goal', expected some of .*pixels"):
        make_environment("LineMaze-v0", observations=("goal",))
    with pytest.raises(
        EvaluationError, match=r"env 'LineMaze-v0': observation 'pixels' is .*expected numbers or vectors"
    ):
        make_environment("LineMaze-v0", observations=("pixels",))
    with pytest.raises(EvaluationError, match=r"env 'LineMaze-v0': observation 'kind' is Discrete"):
        make_environment("LineMaze-v0")  # all, by name
    with pytest.raises(EvaluationError, match=r"observations: found x, but the observations of Hopper-v4 are no"):
        make_environment("Hopper-v4", observations=("x",))


def test_an_action_that_lasts_several_steps() -> None:
    settings = EvaluateConfig(
        env="Hopper-v4", env_options={"terminate_when_unhealthy": False}, action_repeat=4, episodes=1
    )
    plain, repeated = make_environment("Hopper-v4", settings.env_options), settings.make()
    for environment in (plain, repeated):
        environment.reset(seed=3)
    action = np.array([0.3, -0.2, 0.1], np.float32)
    steps = [plain.step(action) for _ in range(4)]
    observation, reward, *_ = repeated.step(action)
    np.testing.assert_array_equal(observation, steps[-1][0])
    assert reward == pytest.approx(sum(step[1] for step in steps))
    assert settings.limit_of(repeated, "max_steps") == 250
    assert play_block(random_policy("Hopper-v4"), "random", settings, 0).lengths.tolist() == [[250]]
    odd = replace(settings, action_repeat=3)
    assert play_block(random_policy("Hopper-v4"), "random", odd, 0).lengths.tolist() == [[334]]
    with pytest.raises(ValueError, match="action_repeat"):
        replace(settings, action_repeat=0)


class IgnoresSeed(gymnasium.Env[np.ndarray, np.ndarray]):
    """Draws its start from a generator that a reset does not seed, as Meta-World's do."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float64)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def seed(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return self.generator.normal(size=3), {}


def test_a_reset_reaches_what_does_not_listen_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gymnasium.register("IgnoresSeed-v0", entry_point=IgnoresSeed)
    monkeypatch.setitem(environments.FAMILIES, r"IgnoresSeed-v\d+", environments.Family(ignores_seed=True))
    environment = make_environment("IgnoresSeed-v0")
    first, other, again = (environment.reset(seed=seed)[0] for seed in (1, 2, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_meta_world() -> None:
    pytest.importorskip("metaworld")
    settings = EvaluateConfig(env="Meta-World/MT1", env_options={"env_name": "reach-v3"}, episodes=2, max_steps=3)
    starts = [settings.make().reset(seed=seed)[0] for seed in (7, 7, 8)]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert (starts[0] != starts[2]).any()
    low, high = (-1.0,) * 4, (1.0,) * 4
    policy = Uniform(UniformArchitecture(replicas=1, observation_dim=39, action_low=low, action_high=high))
    played = play_block(policy, "random", settings, 0)
    assert played.lengths.tolist() == [[3, 3]]
    np.testing.assert_array_equal(played.successes, [[0.0, 0.0]])


def test_an_option_that_the_environment_does_not_know() -> None:
    with pytest.raises(EvaluationError, match=r"env 'Hopper-v4' cannot be made: .*no_such_option"):
        make_environment("Hopper-v4", {"no_such_option": 1})


class Steps:
    """Replica r walks by ``values[r]``."""

    def __init__(self, *values: float) -> None:
        self.values, self.replicas = torch.tensor(values), len(values)
        self.architecture = SimpleNamespace(observation_dim=3)

    def reset(self, seed: tuple[int, ...]) -> None:
        pass

    def act(self, observations: Tensor) -> Tensor:
        return self.values[:, None, None].expand(-1, observations.shape[1], 1)


@pytest.mark.parametrize("key", ["success", "is_success"])
def test_an_episode_succeeds_if_one_of_its_steps_does(key: str) -> None:
    settings = EvaluateConfig(env="LineMaze-v0", episodes=2, observations=VECTORS, env_options={"key": key})
    played = play_block(Steps(1.0, 0.3), "p", settings, 0)  # one passes the goal and goes on, one never stands on it
    np.testing.assert_array_equal(played.successes, [[1.0, 1.0], [0.0, 0.0]])
    played = play_block(Steps(1.0), "p", EvaluateConfig(**{**vars(settings), "env_options": {"key": "other"}}), 0)
    assert np.isnan(played.successes).all()


def test_success_of_a_step() -> None:
    assert succeeded({"success": np.bool_(True)}) is True
    assert succeeded({"is_success": np.float32(0.0)}) is False
    assert succeeded({"tasks_to_complete": []}) is True
    assert succeeded({"tasks_to_complete": ["kettle"]}) is False
    assert succeeded({"x_position": 1.0}) is None


def test_the_score_holds_for_the_task_as_d4rl_has_it() -> None:
    for options in ({}, {"continuing_task": False}, {"include_cfrc_ext_in_observation": True}, {"maze_map": [[1]]}):
        assert d4rl_reference("AntMaze_UMaze-v5", options) == (0.0, 1.0)
    for options in ({"continuing_task": True}, {"reward_type": "dense"}, {"anything": 1}):
        assert d4rl_reference("AntMaze_UMaze-v5", options) is None
    assert d4rl_reference("FrankaKitchen-v1") == (0.0, 4.0)
    four = ["microwave", "kettle", "bottom burner", "light switch"]
    assert d4rl_reference("FrankaKitchen-v1", {"tasks_to_complete": four}) == (0.0, 4.0)
    assert d4rl_reference("FrankaKitchen-v1", {"tasks_to_complete": four[:3]}) is None
    assert d4rl_reference("LineMaze-v0") is None


def test_d4rl_ant_observations_fit_nothing_and_the_message_says_what_to_do() -> None:
    with pytest.raises(EvaluationError) as caught:
        check_observations("policy", "Ant-v5", 111, 105)
    for part in ("111 numbers, Ant-v5 gives 105", "84 contact forces", "observations[:, :27]", "Ant-v4"):
        assert part in str(caught.value)
    environment = make_environment("Ant-v4", {"use_contact_forces": True})  # as the message says
    assert environment.observation_space.shape == (111,)
    with pytest.raises(EvaluationError, match=r"60 numbers, FrankaKitchen-v1 gives 59. D4RL's Kitchen"):
        check_observations("policy", "FrankaKitchen-v1", 60, 59)
    with pytest.raises(EvaluationError, match=r"policy: .* 11 numbers, Ant-v4 gives 27$"):
        check_observations("policy", "Ant-v4", 11, 27)
    check_observations("policy", "Ant-v4", 27, 27)


@pytest.mark.parametrize(("env", "extra"), [("AntMaze_UMaze-v5", "robotics"), ("dm_control/cheetah-run-v0", "dmc")])
def test_a_missing_package_is_named(env: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(environments, "import_module", missing)
    with pytest.raises(EvaluationError, match=re.escape(f"env '{env}' needs the package") + rf".*dynarep\[{extra}\]"):
        make_environment(env)


def test_an_environment_that_does_not_fit_the_simulator_says_which_does() -> None:
    pytest.importorskip("gymnasium_robotics")
    if tuple(int(part) for part in version("mujoco").split(".")[:2]) < (3, 12):
        pytest.skip("this mujoco can make it")
    with pytest.raises(
        EvaluationError, match=r"'FrankaKitchen-v1' cannot be made: AssertionError.*install 'mujoco<3.12'"
    ):
        make_environment("FrankaKitchen-v1")


def test_antmaze_has_d4rls_layout_and_ends_at_the_goal() -> None:
    pytest.importorskip("gymnasium_robotics")
    environment = make_environment("AntMaze_UMaze-v5")
    observation, _ = environment.reset(seed=0)
    ant = environment.unwrapped.ant_env.data
    np.testing.assert_allclose(observation, np.concatenate([ant.qpos, ant.qvel]))  # as D4RL's recordings have it
    assert environment.unwrapped.continuing_task is False
    environment.unwrapped.goal = observation[:2]
    *_, reward, terminated, _, info = environment.step(np.zeros(8, np.float32))
    assert (reward, terminated, info["success"]) == (1.0, True, True)
    whole = make_environment(
        "AntMaze_UMaze-v5", {"include_cfrc_ext_in_observation": True}, ("observation", "desired_goal")
    )
    assert whole.observation_space.shape == (107,)


@pytest.mark.parametrize("preset", ["antmaze", "adroit", "kitchen"])
def test_the_environment_of_a_preset_can_be_made(preset: str) -> None:
    path = Path(__file__).parents[1] / "configs" / "presets" / f"{preset}.yaml"
    settings = read_section(path, "evaluate", EvaluateConfig)
    need(settings.env)
    environment = settings.make()
    starts = [environment.reset(seed=seed)[0] for seed in range(3)]
    assert starts[0].shape == {"antmaze": (29,), "adroit": (45,), "kitchen": (59,)}[preset]
    if preset == "antmaze":  # cells are 4 wide, positions within them are drawn; the U opens to the left
        np.testing.assert_allclose([start[:2] for start in starts], [[-4.0, -4.0]] * 3, atol=1.01)
        np.testing.assert_allclose(environment.unwrapped.goal, [-4.0, 4.0], atol=1.01)


def test_versions_name_the_packages() -> None:
    assert set(simulator_versions("Hopper-v4")) == {"gymnasium", "mujoco", "torch"}
    pytest.importorskip("gymnasium_robotics")
    assert "gymnasium-robotics" in simulator_versions("AntMaze_UMaze-v5")
