"""Films: what they show, and that nothing fails where nothing renders."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dynarep.configs.params import ParamsError, validate
from dynarep.data.schema import Episode
from dynarep.data.shards import write_dataset
from dynarep.pipeline.artifacts.storage import save_model
from dynarep.pipeline.methods.policies.deterministic import Policy, PolicyArchitecture
from dynarep.pipeline.methods.policies.uniform import Uniform, UniformArchitecture
from dynarep.pipeline.playing import clips as module
from dynarep.pipeline.playing.clips import (
    RenderingError,
    film_policy,
    film_recording,
    make_clip,
    recorded_positions,
    write_strip,
)
from dynarep.pipeline.playing.environments import make_environment
from dynarep.pipeline.playing.evaluate import evaluate
from dynarep.pipeline.playing.play import LONGEST_STRIP, ClipsConfig, EvaluateConfig

SETTINGS = EvaluateConfig(
    env="Hopper-v4", episodes=7, seed=5, max_steps=30, workers=1, clips=ClipsConfig(fps=12.5, width=64)
)


def recorded(env: str, steps: int = 30, **changes: Any) -> tuple[Episode, np.ndarray]:
    """An episode of random actions, and the positions of the simulator in each of its states."""
    environment = make_environment(env)
    generator = np.random.default_rng(0)
    observation, _ = environment.reset(seed=3)
    states, positions, actions, rewards = [observation], [environment.unwrapped.data.qpos.copy()], [], []
    for _ in range(steps):
        actions.append(generator.uniform(environment.action_space.low, environment.action_space.high))
        observation, reward, *_ = environment.step(actions[-1])
        states.append(observation)
        positions.append(environment.unwrapped.data.qpos.copy())
        rewards.append(reward)
    values = {"observations": states, "actions": actions, "rewards": rewards}
    arrays = {name: np.array(value, dtype=np.float32) for name, value in values.items()}
    fields = {**arrays, "id": "episode", "terminated": False, "truncated": True, **changes}
    return Episode(**fields), np.array(positions)


def write_policy(artifacts: Path, name: str) -> None:
    architecture = PolicyArchitecture(
        replicas=2, observation_dim=11, action_low=(-1.0,) * 3, action_high=(1.0,) * 3, hidden=(8,)
    )
    folder = artifacts / "learn" / name
    save_model(folder, Policy(architecture))
    (folder / "metadata.json").write_text(json.dumps({"kind": "bc"}))


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    root = tmp_path / "artifacts"
    write_policy(root, "bc")
    episode, _ = recorded("Hopper-v4")
    bounds = ([-1.0] * 3, [1.0] * 3)
    write_dataset(
        root / "shards" / "expert-1", "expert-1", [episode], provenance={}, env=None, bounds=bounds, returns=[1.0]
    )
    return root


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """No renderer: a picture is the simulator's state, and these are the states of all pictures taken."""
    taken: list[np.ndarray] = []

    def picture(environment: Any, width: int) -> np.ndarray:
        taken.append(np.concatenate([environment.unwrapped.data.qpos, environment.unwrapped.data.qvel]))
        return np.full((30, 40, 3), len(taken), np.uint8)

    def stage(settings: EvaluateConfig) -> tuple[Any, int]:
        return make_environment(settings.env, settings.env_options, settings.observations), 40

    monkeypatch.setattr(module, "_picture", picture)
    monkeypatch.setattr(module, "_rendering", stage)
    return taken


@pytest.mark.parametrize("env", ["Hopper-v4", "Ant-v4", "InvertedPendulum-v4"])
def test_positions_are_read_off_observations(env: str) -> None:
    episode, positions = recorded(env, 20)
    hidden = {"Hopper-v4": 1, "Ant-v4": 2, "InvertedPendulum-v4": 0}[env]
    found = recorded_positions(make_environment(env), episode, "expert")
    assert found.shape == positions.shape
    np.testing.assert_allclose(found[:, hidden:], positions[:, hidden:], atol=1e-5)
    # summed up once per step, not once per substep of the simulator
    np.testing.assert_allclose(found[:, :hidden] - found[0, :hidden], (positions - positions[0])[:, :hidden], atol=0.1)


def test_observations_that_do_not_tell_the_positions() -> None:
    episode, _ = recorded("Hopper-v4")
    with pytest.raises(RenderingError, match="do not tell the positions"):
        recorded_positions(make_environment("InvertedDoublePendulum-v4"), episode, "expert")
    with pytest.raises(RenderingError, match="observations of expert have 11 numbers, expected 17"):
        recorded_positions(make_environment("Walker2d-v4"), episode, "expert")
    loose, _ = recorded("Hopper-v4", next_observations=np.zeros((31, 11), np.float32), actions=None, rewards=None)
    with pytest.raises(RenderingError, match="do not follow each other"):
        recorded_positions(make_environment("Hopper-v4"), loose, "expert")


def test_a_policys_film_is_an_episode_that_was_scored(artifacts: Path, pictures: list[np.ndarray]) -> None:
    chance = UniformArchitecture(replicas=1, observation_dim=11, action_low=(-1.0,) * 3, action_high=(1.0,) * 3)
    save_model(artifacts / "learn" / "random", Uniform(chance))
    for name in ("bc", "random"):
        raw = evaluate(name, SETTINGS, artifacts)
        pictures.clear()
        clip = film_policy(SETTINGS, name, artifacts / "learn" / name)
        assert clip.facts["steps"] == raw["policies"][name]["lengths"][0][0]
        assert clip.facts["reward"] == pytest.approx(raw["policies"][name]["returns"][0][0], rel=1e-12)
        assert clip.facts["ended"] == (clip.facts["steps"] < 30)
        assert len(clip.frames) == len(pictures) == 1 + int(np.ceil(clip.facts["steps"] / 10))
        assert not np.allclose(pictures[0], pictures[-1])


def test_the_experts_film_shows_its_states(artifacts: Path, pictures: list[np.ndarray]) -> None:
    _, positions = recorded("Hopper-v4")
    clip = film_recording(SETTINGS, artifacts / "shards" / "expert-1")
    np.testing.assert_allclose(np.array(pictures)[:, 1:6], positions[[0, 10, 20, 30], 1:], atol=1e-5)
    episode, _ = recorded("Hopper-v4")
    assert episode.rewards is not None
    assert clip.facts == {
        "steps": 30,
        "reward": pytest.approx(episode.rewards.sum(), rel=1e-5),
        "ended": True,
        "dataset": "expert-1",
        "episode": "episode",
    }


def test_no_renderer_is_a_reason_and_no_failure(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    made = make_clip(SETTINGS, "bc", partial(film_policy, SETTINGS, "bc", artifacts / "learn" / "bc"), tmp_path)
    assert set(made) == {"seconds_per_frame", "notice"}
    assert "no renderer works (nonsense: " in made["notice"]
    assert "nonsense" in made["notice"].split("(nonsense: ")[1]  # the simulator's own words
    assert "apt-get install libegl1" in made["notice"]
    assert list(tmp_path.glob("*.webp")) == []


def test_renderers_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    assert module.renderers() == ["egl", "osmesa"]
    monkeypatch.setenv("DISPLAY", ":0")
    assert module.renderers() == ["egl", "osmesa", "glfw"]
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert module.renderers() == ["glfw"]


@pytest.mark.slow
def test_films_are_pictures_where_something_renders(artifacts: Path, tmp_path: Path) -> None:
    films = {
        "bc": partial(film_policy, SETTINGS, "bc", artifacts / "learn" / "bc"),
        "expert": partial(film_recording, SETTINGS, artifacts / "shards" / "expert-1"),
    }
    for name, film in films.items():
        clip = make_clip(SETTINGS, name, film, tmp_path)
        if "no renderer works" in clip.get("notice", ""):
            pytest.skip(clip["notice"])
        assert "notice" not in clip
        assert clip["seconds_per_frame"] == pytest.approx(0.08)
        with Image.open(tmp_path / clip["file"]) as strip:
            assert strip.size == (64, 64 * clip["frames"]), name
            frames = np.asarray(strip.convert("RGB"), dtype=float).reshape(clip["frames"], 64, 64, 3)
        assert frames.std((1, 2, 3)).min() > 10  # no frame is blank
        assert np.abs(frames[0] - frames[-1]).mean() > 1  # and something moves


def test_a_strip_has_its_frames_below_one_another(tmp_path: Path) -> None:
    frames = [np.full((24, 32, 3), value, np.uint8) for value in (0, 120, 240)]
    write_strip(tmp_path / "strip.webp", frames)
    with Image.open(tmp_path / "strip.webp") as strip:
        assert strip.size == (32, 72)
        found = np.asarray(strip.convert("L"), dtype=float).reshape(3, 24, 32)
    np.testing.assert_allclose(found[:, 4:-4].mean((1, 2)), [0, 120, 240], atol=3)
    with pytest.raises(RenderingError, match=f"fewer seconds|{LONGEST_STRIP}"):
        write_strip(tmp_path / "long.webp", frames * 300)
    assert not (tmp_path / "long.webp").exists()


def test_settings_are_checked() -> None:
    for field, value in (("seconds", 0), ("fps", -1), ("width", 3)):
        with pytest.raises(ParamsError, match=rf"clips\.{field}"):
            validate(EvaluateConfig, {"env": "Hopper-v4", "clips": {field: value}}, "params.yaml: evaluate")
    assert EvaluateConfig(env="Hopper-v4").clips is None


def test_what_goes_wrong_in_one_film_is_its_notice() -> None:
    def fault() -> module.Clip:
        raise KeyError("door")

    found = module._attempt(fault)
    assert isinstance(found, RenderingError)
    assert str(found) == "KeyError: 'door'"
