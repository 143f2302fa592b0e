"""A motion of states alone: read through a card, imitated by AILOT's label, and the yardstick of the evaluation."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium.spaces import Box
from torch import Tensor

from dynarep.configs.params import ParamsError, validate
from dynarep.data.describe import describe
from dynarep.data.prepare import prepare
from dynarep.data.schema import DataError, Episode
from dynarep.data.shards import Dataset, load_dataset, write_dataset
from dynarep.pipeline.artifacts.storage import save_model
from dynarep.pipeline.methods.encoders.icvf import IntentArchitecture, IntentEncoder
from dynarep.pipeline.methods.encoders.standardise import StandardisedArchitecture, StandardisedStates
from dynarep.pipeline.nn.networks import Normaliser
from dynarep.pipeline.playing.evaluate import evaluate
from dynarep.pipeline.playing.motion import Motion, MotionConfig, load_motion, transport_distance
from dynarep.pipeline.playing.play import EvaluateConfig
from dynarep.pipeline.playing.summary import gather, print_scores, summarise
from dynarep.pipeline.relabel import relabel
from tests.entries import a_run, entry, standardised


def circle(steps: int, radius: float = 1.0) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, steps)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)


def read(root: Path, file: str, **card: Any) -> Dataset:
    cards = root / "configs" / "datasets"
    cards.mkdir(parents=True, exist_ok=True)
    (cards / "turn.yaml").write_text(yaml.safe_dump({"path": file, "format": "arrays", **card}))
    prepare(["turn"], cards=cards, root=root, out=root / "artifacts" / "shards")
    return load_dataset(root / "artifacts" / "shards" / "turn")


def write_motion(root: Path, kind: str, states: np.ndarray) -> str:
    if kind == "npy":
        np.save(root / "turn.npy", states)
    elif kind == "npz":
        np.savez(root / "turn.npz", observations=states)
    else:
        (root / "turn").mkdir()
        np.save(root / "turn" / "observations.npy", states)
    return "turn" if kind == "folder" else f"turn.{kind}"


@pytest.mark.parametrize("kind", ["npy", "npz", "folder"])
def test_an_array_of_states_is_one_episode(kind: str, tmp_path: Path) -> None:
    file = write_motion(tmp_path, kind, circle(20).astype(np.float64))
    dataset = read(tmp_path, file, observations_only=True)
    (episode,) = dataset.episodes
    np.testing.assert_array_equal(episode.observations, circle(20))
    assert (episode.length, episode.terminated, episode.truncated) == (19, False, True)
    assert (dataset.spec.action_dim, dataset.spec.has_rewards, dataset.returns) == (0, False, None)


def test_the_card_must_say_that_it_is_a_motion(tmp_path: Path) -> None:
    write_motion(tmp_path, "npy", circle(20))
    write_motion(tmp_path, "npz", circle(20))
    with pytest.raises(DataError, match=r"turn.npy: found a single array, .*observations_only: true"):
        read(tmp_path, "turn.npy")
    with pytest.raises(DataError, match=r"turn.npz: terminals: missing"):
        read(tmp_path, "turn.npz")
    np.savez(tmp_path / "marked.npz", observations=circle(20), terminals=np.zeros(20))
    with pytest.raises(DataError, match=r"marked.npz: timeouts: missing"):  # some marks are not none
        read(tmp_path, "marked.npz", observations_only=True)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (np.zeros(7), r"observations: found shape \(7,\), expected \(rows, numbers\)"),
        (np.zeros((3, 7, 2)), r"observations: found shape \(3, 7, 2\), expected \(rows, numbers\)"),
        (np.zeros((0, 2)), r"observations: found shape \(0, 2\), expected at least one row"),
        (np.zeros((1, 2)), "single row"),
        (np.array(["a", "b"]), "expected an array of numbers"),
        (np.float64(3.0), r"found shape \(\)"),
    ],
)
def test_arrays_that_are_no_motion(states: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "turn.npy", states)
    with pytest.raises(DataError, match=message):
        read(tmp_path, "turn.npy", observations_only=True)


def test_describe_proposes_the_card(tmp_path: Path) -> None:
    for kind in ("npy", "npz"):
        text, _ = describe(str(tmp_path / write_motion(tmp_path, kind, circle(20))), tmp_path)
        assert "observations_only: true" in text


def test_distance_has_known_values() -> None:
    x = torch.from_numpy(circle(40))
    assert transport_distance(x, x) == 0.0
    for shift in ([0.3, -0.4], [30.0, 40.0], [0.03, 0.04]):
        moved = x + torch.tensor(shift)
        assert transport_distance(moved, x) == pytest.approx(np.hypot(*shift), rel=2e-3, abs=5e-4)
        assert transport_distance(x, moved) == pytest.approx(np.hypot(*shift), rel=2e-3, abs=5e-4)
    assert transport_distance(x, x.flip(0)) == pytest.approx(0.0, abs=1e-3)  # the order of states does not count
    assert transport_distance(x.repeat(3, 1), x) == pytest.approx(0.0, abs=1e-3)  # nor how often it is repeated
    point = torch.ones(5, 2)
    assert transport_distance(point, point) == 0.0
    assert transport_distance(torch.zeros(9, 2), point) == pytest.approx(2**0.5, rel=1e-4)


def test_distance_is_that_of_exact_transport() -> None:
    """On the line it is known: sorted points go to sorted points."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(60, 1, generator=generator), 2.0 * torch.rand(60, 1, generator=generator)
    exact = float((x.sort(0).values - y.sort(0).values).square().mean().sqrt())
    assert transport_distance(x, y) == pytest.approx(exact, rel=0.02)


def test_points_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(ValueError, match="not finite"):
        transport_distance(torch.tensor([[float("nan")]]), torch.zeros(3, 1))


def test_the_nearest_episode_of_the_motion_counts() -> None:
    motion = Motion(lambda observations: 2.0 * observations, [torch.zeros(4, 2), torch.full((6, 2), 10.0)])
    assert motion.distance(np.full((5, 2), 5.0, np.float32)) == pytest.approx(0.0, abs=1e-5)
    assert motion.distance(np.full((5, 2), 0.5, np.float32)) == pytest.approx(2**0.5, rel=1e-4)


class Turntable(gymnasium.Env[np.ndarray, np.ndarray]):
    """Shows the unit circle moved by the first action, twenty states of it."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Box(-4.0, 4.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.row, self.shift = 0, np.zeros(2)
        return circle(20)[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.row += 1
        return circle(20)[min(self.row, 19)] + action, 1.0, False, self.row == 19, {}


gymnasium.register("Turntable-v0", entry_point=f"{__name__}:Turntable", max_episode_steps=100)


class Shift:
    """Replica r moves the circle by ``values[r]`` along the first axis."""

    def __init__(self, *values: float) -> None:
        self.values, self.replicas = torch.tensor(values), len(values)
        self.architecture = SimpleNamespace(observation_dim=2)

    def reset(self, seed: tuple[int, ...]) -> None:
        pass

    def act(self, observations: Tensor) -> Tensor:
        first = self.values[:, None, None].expand(-1, observations.shape[1], 1)
        return torch.cat([first, torch.zeros_like(first)], -1)


def load_shift(folder: Path) -> Shift:
    return Shift(*json.loads((folder / "config.json").read_text()))


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """Policies that turn exactly as the motion does, and one that does it elsewhere."""
    read(tmp_path, write_motion(tmp_path, "npy", circle(20)), observations_only=True)
    root = tmp_path / "artifacts"
    for name, values in {"same": [0.0, 0.0], "moved": [0.0, 2.0], "far": [4.0]}.items():
        folder = root / "learn" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(values))
        (folder / "metadata.json").write_text(json.dumps({"kind": "iql"}))
    return root


def test_evaluation_measures_the_distance_to_the_motion(artifacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    motion = MotionConfig(dataset="turn")
    settings = EvaluateConfig(env="Turntable-v0", episodes=6, workers=1, motion=motion)
    for name in ("same", "moved", "far"):
        folder = artifacts / "evaluate" / name
        folder.mkdir(parents=True)
        (folder / "returns.json").write_text(json.dumps(evaluate(name, settings, artifacts, load_shift)))
    raw = gather(artifacts)
    metrics = summarise(raw)
    assert metrics["same"]["motion_distance"] == 0.0
    std = np.array(load_dataset(artifacts / "shards" / "turn").statistics["observation_std"])[0] + 1e-3
    # the first state is shown before the first action, so 18 of 19 states are moved
    distances = raw["policies"]["moved"]["distances"]
    assert distances[0] == [0.0] * 6
    expected = 2.0 / std
    assert 0.9 * expected < distances[1][0] < expected
    assert metrics["moved"]["motion_distance"] == pytest.approx(np.mean(distances))
    assert metrics["same"]["return_mean"] == metrics["moved"]["return_mean"] == 19.0  # the reward tells nothing
    assert metrics["far"]["motion_distance"] > metrics["moved"]["motion_distance"]
    json.dumps([metrics, raw], allow_nan=False)
    print_scores(metrics)
    printed = capsys.readouterr().out
    assert "distance" in printed
    assert printed.index("same") < printed.index("moved") < printed.index("far")


def test_another_scale_is_an_encoder_of_another_dataset(artifacts: Path) -> None:
    wide = Episode(id="wide-0", observations=10.0 * circle(50), terminated=False, truncated=True)
    write_dataset(artifacts / "shards" / "wide", "wide", [wide], provenance={}, env=None, bounds=((), ()))
    moved = circle(20)[:19] + np.array([2.0, 0.0], np.float32)
    std = np.array(load_dataset(artifacts / "shards" / "wide").statistics["observation_std"])[0] + 1e-3
    encoder = StandardisedStates(StandardisedArchitecture(replicas=1, observation_dim=2))
    moments = (
        load_dataset(artifacts / "shards" / "wide").statistics[f"observation_{name}"] for name in ("mean", "std")
    )
    encoder.normaliser = Normaliser(*(torch.tensor(values) for values in moments))
    save_model(artifacts / "pretrain" / "wide", encoder)
    motion = load_motion(MotionConfig(dataset="turn", space="wide"), artifacts, 2)
    assert motion.distance(moved) == pytest.approx(2.0 / std, rel=2e-3)


def test_distance_in_the_intent_space_is_in_steps(artifacts: Path) -> None:
    config = MotionConfig(dataset="turn", space="intent")
    with pytest.raises(ValueError, match=r"evaluate.motion.space: needs the encoder of pretrain.intent"):
        load_motion(config, artifacts, 2)
    torch.manual_seed(0)
    encoder = IntentEncoder(IntentArchitecture(observation_dim=2, hidden=(8,), latent_dim=4, replicas=2))
    encoder.calibration.copy_(torch.tensor([4.0, 9.0]))
    save_model(artifacts / "pretrain" / "intent", encoder)
    motion = load_motion(config, artifacts, 2)
    assert motion.distance(circle(20)[:19]) == 0.0
    far = circle(30, radius=3.0)
    with torch.no_grad():
        points = [2.0 * encoder.embed(torch.from_numpy(x).unsqueeze(0))[0] for x in (far, circle(20)[:19])]
    assert motion.distance(far) == pytest.approx(transport_distance(*points))


def test_a_motion_that_does_not_fit(artifacts: Path) -> None:
    config = MotionConfig(dataset="turn")
    with pytest.raises(
        ValueError, match=r"evaluate.motion.dataset: observations of turn have 2 numbers, those of .* 11"
    ):
        load_motion(config, artifacts, 11)
    with pytest.raises(DataError, match=r"shards/flip/index.json: no such file"):
        load_motion(MotionConfig(dataset="flip"), artifacts, 2)
    with pytest.raises(ParamsError, match=r"scale: unknown key"):
        validate(MotionConfig, {"dataset": "turn", "scale": "wide"}, "evaluate.motion")


def test_ailot_rewards_the_episodes_that_follow_the_motion(tmp_path: Path) -> None:
    motion = read(tmp_path, write_motion(tmp_path, "npy", circle(30)), observations_only=True)
    rng = np.random.default_rng(0)
    radii = [1.0, 3.0, 1.1, 0.1, 5.0]
    agents = [
        Episode(
            id=f"agent-{i}",
            observations=(circle(30, radius) + 0.02 * rng.normal(size=(30, 2))).astype(np.float32),
            actions=np.zeros((29, 1), np.float32),
            terminated=False,
            truncated=True,
        )
        for i, radius in enumerate(radii)
    ]
    write_dataset(tmp_path / "agents", "agents", agents, provenance={}, env=None, bounds=([-1.0], [1.0]))
    dataset = load_dataset(tmp_path / "agents")
    c = entry("relabel", "ailot", space="standardised")
    made = relabel(c, dataset, motion, standardised(dataset), a_run(tmp_path / "label", "relabel/x", 1))
    means = {name: float(values.mean()) for name, values in made.rewards.items()}
    assert sorted(means, key=means.__getitem__, reverse=True)[:2] == ["agent-0", "agent-2"]
    assert means["agent-0"] > 2 * means["agent-3"]
