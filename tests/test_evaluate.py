import dataclasses
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from dynarep.configs.params import ParamsError, validate
from dynarep.pipeline.artifacts import storage
from dynarep.pipeline.artifacts.storage import load_policy_model, save_model
from dynarep.pipeline.methods.policies.uniform import Uniform, UniformArchitecture
from dynarep.pipeline.playing.environments import (
    EvaluationError,
    check_recording,
    make_environment,
    without_counting,
)
from dynarep.pipeline.playing.evaluate import cards_behind, evaluate, return_rows
from dynarep.pipeline.playing.play import BLOCK, EvaluateConfig, play_block
from dynarep.pipeline.playing.summary import gather, print_scores, summarise
from dynarep.pipeline.run import Stage
from dynarep.stages import evaluate as stage


class Countdown(gymnasium.Env[np.ndarray, np.ndarray]):
    """Observation (seed, steps left); an episode has seed % 7 + 1 steps; reward is the action plus the seed / 100."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        assert seed is not None
        self.seed, self.left = seed, seed % 7 + 1
        return np.array([self.seed, self.left], dtype=np.float64), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.left > 0, "stepped after the end"
        self.left -= 1
        reward = float(action[0]) + self.seed / 100
        return np.array([self.seed, self.left], dtype=np.float64), reward, self.left == 0, False, {}


class Choice(Countdown):
    action_space = Discrete(2)  # type: ignore[assignment]


class Unbounded(Countdown):
    action_space = Box(-np.inf, np.inf, (1,), np.float32)


class Broken(Countdown):
    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float("nan"), terminated, truncated, info


for kind in (Countdown, Choice, Unbounded, Broken):
    gymnasium.register(f"{kind.__name__}-v0", entry_point=f"{__name__}:{kind.__name__}", max_episode_steps=100)
gymnasium.register("CountdownWithoutLimit-v0", entry_point=f"{__name__}:Countdown")


class Constant:
    """Replica r always does action ``values[r]``."""

    def __init__(self, *values: float, observation_dim: int = 2) -> None:
        self.values, self.replicas, self.queries = torch.tensor(values), len(values), 0
        self.architecture = SimpleNamespace(observation_dim=observation_dim)

    def reset(self, seed: tuple[int, ...]) -> None:
        pass

    def act(self, observations: Tensor) -> Tensor:
        self.queries += 1
        assert observations.dtype == torch.float32
        assert observations.shape == (self.replicas, BLOCK, 2)
        return self.values[:, None, None].expand(-1, BLOCK, 1)


class Network(torch.nn.Module):
    """Two replicas of a random two-layer network for Hopper, different for every folder."""

    replicas = 2
    architecture = SimpleNamespace(observation_dim=11)

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.randn(2, 11, 64, generator=generator)
        self.second = torch.randn(2, 64, 3, generator=generator) / 4

    def reset(self, seed: tuple[int, ...]) -> None:
        pass

    def act(self, observations: Tensor) -> Tensor:
        return torch.tanh(torch.tanh(observations @ self.first) @ self.second)


def load_constant(folder: Path) -> Any:
    """Constant actions where the folder names them, else the policy that was saved."""
    values = json.loads((folder / "config.json").read_text())
    return Constant(*values) if isinstance(values, list) else load_policy_model(folder)


def load_network(folder: Path) -> Network:
    return Network(len(folder.name))


def uniform(low: tuple[float, ...] = (-2.0,), high: tuple[float, ...] = (2.0,), observation_dim: int = 2) -> Uniform:
    architecture = UniformArchitecture(replicas=1, observation_dim=observation_dim, action_low=low, action_high=high)
    return Uniform(architecture)


def add_policy(artifacts: Path, name: str, kind: str = "bc", config: Any = (0.5, 1.0)) -> Path:
    folder = artifacts / "learn" / name
    folder.mkdir(parents=True)
    if kind == "random":
        save_model(folder, uniform())
    else:
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "metadata.json").write_text(json.dumps({"kind": kind}))
    return folder


def scores_of(artifacts: Path, settings: EvaluateConfig, load: Any = load_constant) -> tuple[dict[str, Any], Any]:
    """Evaluates all policies, and gathers and summarises what came out."""
    for policy in sorted((artifacts / "learn").iterdir()):
        folder = artifacts / "evaluate" / policy.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "returns.json").write_text(json.dumps(evaluate(policy.name, settings, artifacts, load)))
    raw = gather(artifacts)
    return summarise(raw), raw


def add_demonstrations(artifacts: Path, returns: list[float] | None) -> None:
    folder = artifacts / "demonstrate"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"dataset": "expert", "returns": returns}))


def test_a_block_has_each_episode_once_to_its_end() -> None:
    policy = Constant(0.5, -1.0)
    played = play_block(policy, "constant", EvaluateConfig(env="Countdown-v0", episodes=5, seed=3), 0)
    lengths = np.array([4, 5, 6, 7, 1])  # seeds 3 to 7
    np.testing.assert_array_equal(played.lengths, [lengths, lengths])
    per_step = np.array([[0.5], [-1.0]]) + np.array([3, 4, 5, 6, 7]) / 100
    np.testing.assert_allclose(played.returns, per_step * lengths)
    assert policy.queries == 7


def test_a_part_of_a_block() -> None:
    played = play_block(Constant(0.0), "constant", EvaluateConfig(env="Countdown-v0", episodes=7), 5)
    np.testing.assert_array_equal(played.lengths, [[6, 7]])  # episodes 5 and 6


def test_max_steps_ends_episodes() -> None:
    settings = EvaluateConfig(env="CountdownWithoutLimit-v0", episodes=5, seed=0, max_steps=3)
    np.testing.assert_array_equal(play_block(Constant(0.0), "constant", settings, 0).lengths, [[1, 2, 3, 3, 3]])
    with pytest.raises(EvaluationError, match=r"CountdownWithoutLimit-v0.*no limit.*max_steps"):
        play_block(Constant(0.0), "constant", dataclasses.replace(settings, max_steps=None), 0)


@pytest.mark.parametrize(("own", "max_steps", "longest"), [(4, None, 4), (4, 100, 4), (100, 3, 3)])
def test_the_limit_of_an_environment_counts_as_well_as_max_steps(own: int, max_steps: int | None, longest: int) -> None:
    settings = EvaluateConfig(
        env="Countdown-v0", env_options={"max_episode_steps": own}, episodes=5, seed=0, max_steps=max_steps
    )
    played = play_block(Constant(0.0), "constant", settings, 0)
    np.testing.assert_array_equal(played.lengths, [np.minimum([1, 2, 3, 4, 5], longest)])


def test_episodes_are_to_the_bit_those_of_the_environment_that_counts_its_steps() -> None:
    settings = EvaluateConfig(env="Hopper-v4", episodes=2, seed=3, max_steps=60)
    policy = Network(0)
    played = play_block(policy, "network", settings, 0)
    environments = [[make_environment("Hopper-v4") for _ in range(2)] for _ in range(2)]
    observations = np.zeros((2, BLOCK, 11), np.float32)
    returns, lengths, over = np.zeros((2, 2)), np.zeros((2, 2), int), np.zeros((2, 2), bool)
    for r, e in np.ndindex(2, 2):
        observations[r, e], _ = environments[r][e].reset(seed=3 + e)
    for _ in range(60):
        actions = policy.act(torch.from_numpy(observations)).numpy()
        for r, e in np.argwhere(~over):
            observations[r, e], reward, terminated, truncated, _ = environments[r][e].step(actions[r, e])
            returns[r, e] += reward
            lengths[r, e] += 1
            over[r, e] = terminated or truncated
    assert lengths.min() < 60
    np.testing.assert_array_equal(played.lengths, lengths)
    np.testing.assert_array_equal(played.returns, returns)


def test_only_wrappers_that_count_are_left_out() -> None:
    made = [make_environment("Hopper-v4") for _ in range(2)]
    assert without_counting(made) == ([one.unwrapped for one in made], 1000)
    watched = gymnasium.wrappers.RecordEpisodeStatistics(made[0])
    assert without_counting([watched]) == ([watched], None)
    for env in (Countdown(), made[0]):  # a limit that was set by hand cuts off, too
        limited = gymnasium.wrappers.TimeLimit(env, 3)
        inside, limit = without_counting([limited])
        assert inside == [limited] if limit is None else limit == 3


@pytest.mark.parametrize("value", [2.1, -2.1, float("nan")])
def test_actions_out_of_bounds_are_an_error(value: float) -> None:
    with pytest.raises(EvaluationError, match=r"policy 'wild', replica 1, episode 0, step 0: action .* not within"):
        play_block(Constant(0.0, value), "wild", EvaluateConfig(env="Countdown-v0"), 0)


def test_actions_of_another_shape_are_an_error() -> None:
    policy = Constant(0.0)
    policy.act = lambda observations: torch.zeros(1, BLOCK, 4)  # type: ignore[method-assign]
    with pytest.raises(EvaluationError, match=r"policy 'wide': actions have shape \(1, 5, 4\), expected \(1, 5, 1\)"):
        play_block(policy, "wide", EvaluateConfig(env="Countdown-v0"), 0)


def test_a_return_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(EvaluationError, match=r"policy 'p', replica 0, episode 0: the return is not finite"):
        play_block(Constant(0.0), "p", EvaluateConfig(env="Broken-v0"), 0)


def test_random_policy_fills_the_bounds() -> None:
    policy = uniform((-1.0, 0.0), (1.0, 4.0), 3)
    policy.reset((0, 0))
    actions = policy.act(torch.zeros(1, 2000, 3)).numpy()
    assert actions.shape == (1, 2000, 2)
    np.testing.assert_allclose(actions.min((0, 1)), [-1.0, 0.0], atol=0.02)
    np.testing.assert_allclose(actions.max((0, 1)), [1.0, 4.0], atol=0.02)
    np.testing.assert_allclose(actions.mean((0, 1)), [0.0, 2.0], atol=0.1)
    policy.reset((0, 0))
    np.testing.assert_array_equal(policy.act(torch.zeros(1, 2000, 3)).numpy(), actions)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("NoSuchThing-v1", "env 'NoSuchThing-v1' cannot be made: .*exist"),
        ("Hopper-v2", "env 'Hopper-v2' cannot be made: .*gymnasium-robotics"),
        ("no_such_module:Thing-v0", "env 'no_such_module:Thing-v0' cannot be made: .*no_such_module"),
        ("Choice-v0", r"actions are Discrete\(2\), expected a Box"),
        ("Unbounded-v0", "expected finite bounds"),
    ],
)
def test_environments_that_cannot_be_used(env: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        make_environment(env)


def test_version_deprecation_is_silent_here_only() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_environment("Hopper-v4")
        with pytest.raises(DeprecationWarning, match="out of date"):
            gymnasium.make("Hopper-v4")


def test_every_policy_is_scored_beside_the_random_one(tmp_path: Path) -> None:
    add_policy(tmp_path, "bc", config=(0.5, 1.0))
    add_policy(tmp_path, "iql", "iql", config=(2.0,))
    add_policy(tmp_path, "chance", "random")
    add_demonstrations(tmp_path, [10.0, 6.0])
    metrics, raw = scores_of(tmp_path, EvaluateConfig(env="Countdown-v0", episodes=7, workers=1))
    assert list(metrics) == list(raw["policies"]) == ["bc", "chance", "iql"]
    assert raw["random"] == ["chance"]
    assert raw["kinds"] == {"bc": "bc", "chance": "random", "iql": "iql"}
    assert raw["env"] == "Countdown-v0"
    assert raw["seed"] == 0
    assert set(raw["versions"]) == {"gymnasium", "mujoco", "torch"}
    assert raw["policies"]["bc"]["lengths"] == [[1, 2, 3, 4, 5, 6, 7]] * 2
    seconds = sum(seed / 100 * (seed + 1) for seed in range(7))
    assert metrics["iql"]["return_mean"] == pytest.approx((2.0 * 28 + seconds) / 7)
    assert metrics["bc"]["length_mean"] == 4.0
    assert (metrics["bc"]["replicas"], metrics["iql"]["replicas"], metrics["chance"]["replicas"]) == (2, 1, 1)
    random_mean = float(np.mean(raw["policies"]["chance"]["returns"]))
    expected = (metrics["iql"]["return_mean"] - random_mean) / (8.0 - random_mean)
    assert metrics["iql"]["expert_fraction"] == pytest.approx(expected)
    assert metrics["chance"]["expert_fraction"] == pytest.approx(0.0)
    json.dumps([metrics, raw], allow_nan=False)


def test_returns_have_a_row_per_episode(tmp_path: Path) -> None:
    add_policy(tmp_path, "bc")
    played = evaluate("bc", EvaluateConfig(env="Countdown-v0", episodes=2, workers=1), tmp_path, load_constant)
    values = {(row["replica"], row["episode"]): row["return"] for row in return_rows(played)}
    assert values == pytest.approx({(0, 0): 0.5, (0, 1): 1.02, (1, 0): 1.0, (1, 1): 2.02})


def test_without_demonstrations_or_a_random_policy_nothing_is_compared(tmp_path: Path) -> None:
    add_policy(tmp_path, "bc")
    settings = EvaluateConfig(env="Countdown-v0", episodes=2, workers=1)
    assert scores_of(tmp_path, settings)[0]["bc"]["expert_fraction"] is None
    add_demonstrations(tmp_path, [10.0])
    assert scores_of(tmp_path, settings)[0]["bc"]["expert_fraction"] is None  # nothing says what chance is worth
    add_policy(tmp_path, "chance", "random")
    assert scores_of(tmp_path, settings)[0]["bc"]["expert_fraction"] is not None


def test_random_actions_differ_between_episodes(tmp_path: Path) -> None:
    add_policy(tmp_path, "chance", "random")
    settings = EvaluateConfig(env="Countdown-v0", episodes=12, max_steps=1, workers=1)
    raw = evaluate("chance", settings, tmp_path, load_constant)
    actions = np.array(raw["policies"]["chance"]["returns"][0]) - np.arange(12) / 100
    assert len(np.unique(actions.round(6))) == 12


def test_result_depends_on_neither_workers_nor_number_of_episodes(tmp_path: Path) -> None:
    for name, load in (("short", load_network), ("longer", load_network), ("chance", load_constant)):
        folder = add_policy(tmp_path, name)
        if name == "chance":
            save_model(folder, uniform((-1.0,) * 3, (1.0,) * 3, 11))
        settings = EvaluateConfig(env="Hopper-v4", episodes=7, max_steps=120, workers=1)
        raw = evaluate(name, settings, tmp_path, load)
        assert evaluate(name, dataclasses.replace(settings, workers=2), tmp_path, load) == raw
        more = evaluate(name, dataclasses.replace(settings, episodes=9), tmp_path, load)
        assert [row[:7] for row in more["policies"][name]["returns"]] == raw["policies"][name]["returns"]
        returns = np.array(raw["policies"][name]["returns"])
        assert len(np.unique(returns)) == returns.size  # replicas and episodes differ


def test_seed_moves_the_episodes(tmp_path: Path) -> None:
    add_policy(tmp_path, "bc", config=(0.0,))
    first, second = (
        evaluate("bc", EvaluateConfig(env="Countdown-v0", episodes=6, seed=seed, workers=1), tmp_path, load_constant)[
            "policies"
        ]["bc"]["lengths"][0]
        for seed in (0, 1)
    )
    assert first[1:] == second[:-1]  # episode e + 1 of seed 0 is episode e of seed 1


def test_another_observation_size_is_an_error_naming_both(tmp_path: Path) -> None:
    add_policy(tmp_path, "bc")
    with pytest.raises(EvaluationError, match=r"bc: the policy reads observations of 11 numbers, Countdown-v0 gives 2"):
        evaluate("bc", EvaluateConfig(env="Countdown-v0", workers=1), tmp_path, load_network)


def test_scores_of_no_policy_or_of_different_environments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluate/\*/returns.json: no such file"):
        gather(tmp_path)
    add_policy(tmp_path, "a")
    add_policy(tmp_path, "b")
    settings = EvaluateConfig(env="Countdown-v0", episodes=1, workers=1)
    scores_of(tmp_path, settings)
    for change, message in ((("seed", 5), "seed is 5, .* has 0"), (("env", "Other-v0"), "env is 'Other-v0', .* has")):
        path = tmp_path / "evaluate" / "b" / "returns.json"
        before = path.read_text()
        path.write_text(json.dumps({**json.loads(before), change[0]: change[1]}))
        with pytest.raises(ValueError, match=message):
            gather(tmp_path)
        path.write_text(before)


def test_recordings_with_other_coordinates_are_refused(tmp_path: Path) -> None:
    folder = add_policy(tmp_path, "iql", "iql")
    assert cards_behind(folder, tmp_path) == []
    (folder / "metadata.json").write_text(json.dumps({"kind": "bc", "datasets": {"mix": "f00d", "elsewhere": "f00d"}}))
    cards = {"mix": {"mix": ["maze"]}, "maze": {"dataset": "antmaze-umaze-v2", "format": "d4rl"}}
    (tmp_path / "shards" / "mix").mkdir(parents=True)
    (tmp_path / "shards" / "mix" / "index.json").write_text(
        json.dumps(
            {
                "transitions": 1,
                "shards": [{"episodes": ["a"]}],
                "env": None,
                "returns": None,
                "provenance": {"cards": cards},
            }
        )
    )
    found = cards_behind(folder, tmp_path)
    assert found == list(cards.values())
    for card in found:
        check_recording("iql", "Hopper-v4", card)
    with pytest.raises(EvaluationError, match=r"iql: learned from D4RL's antmaze-umaze-v2, .* than AntMaze_UMaze-v5"):
        check_recording("iql", "AntMaze_UMaze-v5", cards["maze"])
    check_recording("iql", "AntMaze_UMaze-v5", {"dataset": "D4RL/antmaze/umaze-v1", "format": "minari"})


def test_evaluation_does_without_metadata(tmp_path: Path) -> None:
    (add_policy(tmp_path, "bc") / "metadata.json").unlink()
    metrics, raw = scores_of(tmp_path, EvaluateConfig(env="Countdown-v0", episodes=1, workers=1))
    assert list(metrics) == ["bc"]
    assert raw["kinds"] == {"bc": ""}


def raw_of(env: str, reference: Any, policies: dict[str, Any], demonstrations: Any = None) -> dict[str, Any]:
    """What ``gather`` gives."""
    return {
        "env": env,
        "reference": reference,
        "policies": policies,
        "random": [name for name in policies if name == "random"],
        "demonstrations": demonstrations,
    }


def test_summary_uses_the_reference_where_there_is_one() -> None:
    played = {
        "p": {"returns": [[3234.3, 3234.3], [3234.3, 3234.3]], "lengths": [[10, 20], [30, 40]]},
        "random": {"returns": [[5.0]], "lengths": [[9]]},
    }
    reference = [-20.272305, 3234.3]
    scores = summarise(raw_of("Hopper-v4", reference, played, [2 * 3234.3 + 20.272305]))
    interval = {
        f"{name}_{end}": pytest.approx(value)
        for name, value in (("return", 3234.3), ("normalised", 100.0))
        for end in ("iqm", "low", "high")
    }
    assert scores["p"] == {
        "env": "Hopper-v4",
        "episodes": 2,
        "replicas": 2,
        "return_mean": pytest.approx(3234.3),
        "length_mean": 25.0,
        **interval,
        "expert_fraction": pytest.approx(0.5),  # random is D4RL's -20.3, not the measured 5
        "expert_fraction_low": pytest.approx(0.5),
        "expert_fraction_high": pytest.approx(0.5),
        "success_rate": None,
        "success_low": None,
        "success_high": None,
        "motion_distance": None,
        **dict.fromkeys(f"{name}{end}" for name in ("action_error", "fitted_q") for end in ("", "_low", "_high")),
        **dict.fromkeys(f"recording{part}" for part in ("", "_episodes", "_return", "_seen")),
    }
    assert summarise(raw_of("Hopper-v4", reference, played))["random"]["expert_fraction"] is None
    other = summarise(raw_of("Humanoid-v5", None, played, [6463.6]))
    assert other["p"]["normalised_iqm"] is other["p"]["normalised_low"] is other["p"]["normalised_high"] is None
    assert other["p"]["expert_fraction"] == pytest.approx((3234.3 - 5.0) / (6463.6 - 5.0))
    assert other["random"]["expert_fraction"] == 0.0


def test_config_is_strict() -> None:
    assert validate(EvaluateConfig, {"env": "Hopper-v4"}, "evaluate").episodes == 20
    for values in (
        {},
        {"env": "Hopper-v4", "episodes": 0},
        {"env": "Hopper-v4", "workers": 0},
        {"env": "H", "epochs": 1},
    ):
        with pytest.raises(ParamsError):
            validate(EvaluateConfig, values, "evaluate")


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    played = {name: {"returns": [[value] * 2], "lengths": [[1, 1]]} for name, value in (("a", 1.0), ("random", 9.0))}
    print_scores(summarise(raw_of("Hopper-v4", [0.0, 1000.0], played, [100.0])))
    printed = capsys.readouterr().out
    assert "success" not in printed
    assert "motion" not in printed
    assert "Hopper-v4" in printed
    assert printed.index("\nrandom") < printed.index("\na ")
    assert "[0.9, 0.9]" in printed


def test_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_policy(tmp_path / "artifacts", "bc", config=(0.5, 1.0))
    (tmp_path / "params.yaml").write_text("seed: 0\nevaluate:\n  env: Countdown-v0\n  seed: 6\n  episodes: 3\n")
    output = tmp_path / ".dynarep" / "smoke" / "evaluate" / "bc"
    output.mkdir(parents=True)
    (output / "stale").touch()
    monkeypatch.setattr(storage, "load_policy_model", load_constant)
    stage.main(Stage("evaluate", tmp_path / "params.yaml", "bc", smoke=True))
    assert sorted(path.name for path in output.iterdir()) == ["paths.npz", "returns.json", "returns.tsv"]
    found = json.loads((output / "returns.json").read_text())
    assert list(found["policies"]) == ["bc"]
    assert found["policies"]["bc"]["lengths"] == [[7], [7]]


def test_stage_keeps_the_old_result_on_failure(tmp_path: Path) -> None:
    output = tmp_path / "artifacts" / "evaluate" / "bc"
    output.mkdir(parents=True)
    (output / "returns.json").write_text("old")
    (tmp_path / "p.yaml").write_text("evaluate:\n  env: Countdown-v0\n")
    with pytest.raises(ValueError, match=r"learn/bc.config\.json: no such file"):
        stage.main(Stage("evaluate", tmp_path / "p.yaml", "bc"))
    assert (output / "returns.json").read_text() == "old"
