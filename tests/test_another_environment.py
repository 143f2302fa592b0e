"""Another environment with other dimensions, by writing recordings, cards and a params file: no code."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
import yaml

from dynarep.pipeline.run import Stage

ROOT = Path(__file__).parents[1]
ENV = "InvertedPendulum-v4"
GAINS = np.array([0.7, 9.0, 1.1, 1.8])


def record(path: Path, episodes: int, noise: float, steps: int) -> list[float]:
    """Let a linear controller with noise balance the pole; a D4RL file, and the returns."""
    rng = np.random.default_rng(0)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    }
    returns = []
    with gymnasium.make(ENV) as environment:
        for episode in range(episodes):
            observation, _ = environment.reset(seed=episode)
            scale = noise * rng.random()
            total = 0.0
            for step in range(steps):
                action = np.clip(GAINS @ observation + rng.normal(0, scale, 1), -3, 3).astype(np.float32)
                following, reward, terminated, _, _ = environment.step(action)
                row = observation, action, reward, terminated, step == steps - 1 and not terminated, following
                for values, value in zip(columns.values(), row, strict=True):
                    values.append(value)
                observation, total = following, total + float(reward)
                if terminated:
                    break
            returns.append(total)
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            array = np.array(values)
            file[name] = array if array.dtype == np.bool_ else array.astype(np.float32)
    return returns


def replaced(value: Any, names: dict[str, str]) -> Any:
    """A params file's values with other datasets."""
    if isinstance(value, dict):
        return {key: replaced(item, names) for key, item in value.items()}
    return names.get(value, value) if isinstance(value, str) else value


@pytest.mark.slow
def test_a_pendulum_goes_through_all_stages(tmp_path: Path) -> None:
    cards = tmp_path / "configs" / "datasets"
    cards.mkdir(parents=True)
    returns = record(tmp_path / "pendulum.hdf5", 16, 6.0, 80)
    assert min(returns) < 60 < max(returns), returns
    assert min(record(tmp_path / "balanced.hdf5", 2, 0.0, 80)) == 80
    source = {"format": "d4rl", "env": ENV, "action_low": [-3.0], "action_high": [3.0]}
    written = {
        "pendulum": {"path": "pendulum.hdf5", **source},
        "balanced": {"path": "balanced.hdf5", **source},
        "balanced-states": {"from": "balanced", "observations_only": True},
    }
    for name, card in written.items():
        (cards / f"{name}.yaml").write_text(yaml.safe_dump(card))
    names = {
        "hopper-tiny": "pendulum",
        "hopper-expert-1": "balanced",
        "hopper-expert-1-states": "balanced-states",
        "Hopper-v4": ENV,
    }
    preset = yaml.safe_load((ROOT / "configs" / "presets" / "tiny.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(replaced(preset, names)))

    def run(section: str, name: str = "") -> None:
        import_module(f"dynarep.stages.{section}").main(Stage(section, tmp_path / "params.yaml", name))

    run("prepare")
    for section in ("pretrain", "relabel", "learn"):
        for name in preset[section]:
            run(section, name)
    for name in preset["learn"]:
        run("evaluate", name)
    run("demonstrate")
    run("report")

    artifacts = tmp_path / "artifacts"
    scores = json.loads((artifacts / "report" / "metrics.json").read_text())
    assert set(scores) == set(preset["learn"])
    assert all(score["env"] == ENV and score["return_mean"] >= 1 for score in scores.values())
    for model, dims in (("intent", (4,)), ("dynamics", (4, 1))):
        architecture = json.loads((artifacts / "pretrain" / model / "config.json").read_text())["architecture"]
        found = [architecture[key] for key in ("observation_dim", "action_dim") if key in architecture]
        assert tuple(found) == dims, architecture
    assert ENV in (artifacts / "report" / "index.html").read_text()
