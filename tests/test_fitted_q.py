"""Judging policies on recordings: fitted Q evaluation beside values that are known, and the error of actions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dynarep.configs.params import ParamsError, validate
from dynarep.data.prepare import write_episodes
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset
from dynarep.pipeline.artifacts.storage import save_artifact
from dynarep.pipeline.fitted_q import FittedQConfig, attainable, targets
from dynarep.pipeline.methods.policies.deterministic import Policy, PolicyArchitecture
from dynarep.pipeline.playing.play import EvaluateConfig, RecordingConfig
from dynarep.pipeline.playing.recorded import action_errors, fitted_values, judge
from dynarep.pipeline.run import Stage
from dynarep.pipeline.training.config import TrainingConfig
from dynarep.pipeline.training.run import Run

STATES, SLIP, GAMMA, PUSH = 5, 0.2, 0.8, 0.9
ITERATED = FittedQConfig(
    gamma=GAMMA,
    hidden=(64,),
    learning_rate=3e-3,
    refresh=10,
    training=TrainingConfig(updates=400, batch_size=256, updates_per_chunk=100),
)


def constant(*actions: float, observation_dim: int = STATES, low: float = -1.0, high: float = 1.0) -> Policy:
    """Replica r always does ``actions[r]``."""
    policy = Policy(
        PolicyArchitecture(
            replicas=len(actions), observation_dim=observation_dim, action_low=(low,), action_high=(high,), hidden=()
        )
    )
    with torch.no_grad():
        policy.network.layers[0].weight.zero_()
        unit = (torch.tensor(actions) - low) / (high - low) * 2 - 1
        policy.network.layers[0].bias.copy_(torch.atanh(unit)[:, None, None])
    return policy.eval().requires_grad_(False)


def step(state: int, right: bool) -> int:
    return min(state + 1, STATES - 1) if right else max(state - 1, 0)


def walks(*, terminal: bool) -> list[Episode]:
    """Random walks on a line of states; a step fails with probability ``SLIP``, and reaching the last state is worth 1."""
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(80):
        states, actions, rewards, over = [int(rng.integers(STATES - 1))], [], [], False
        while len(actions) < 25 and not over:
            action = rng.choice([-PUSH, PUSH])
            right = (action > 0) != (rng.random() < SLIP)
            states.append(step(states[-1], right))
            actions.append([action])
            rewards.append(float(states[-1] == STATES - 1))
            over = terminal and states[-1] == STATES - 1
        arrays = (np.eye(STATES)[states], np.array(actions), np.array(rewards))
        observations, acted, worth = (array.astype(np.float32) for array in arrays)
        episodes.append(
            Episode(
                id=f"w-{number}",
                observations=observations,
                actions=acted,
                rewards=worth,
                terminated=over,
                truncated=not over,
            )
        )
    return episodes


def solved(move: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """V of the Bellman equations V = worth + gamma move V."""
    return np.linalg.solve(np.eye(STATES) - GAMMA * move, worth)


def true_values(right: bool, *, terminal: bool) -> np.ndarray:
    """V of always going one way."""
    move, worth = np.zeros((STATES, STATES)), np.zeros(STATES)
    for state in range(STATES):
        for probability, way in ((1 - SLIP, right), (SLIP, not right)):
            reached = step(state, way)
            worth[state] += probability * (reached == STATES - 1)
            move[state, reached] += probability * (not (terminal and reached == STATES - 1))
    return solved(move, worth)


def counted_values(episodes: list[Episode], right: bool) -> np.ndarray:
    """V of always going one way in the chain that the recording's counts make: what fitted Q evaluation has to find."""
    move, worth, counts = np.zeros((STATES, STATES)), np.zeros(STATES), np.full(STATES, 1e-9)
    for episode in episodes:
        assert episode.actions is not None
        assert episode.rewards is not None
        for t in range(episode.length):
            state, reached = episode.observations[t : t + 2].argmax(1)
            if (episode.actions[t, 0] > 0) == right:
                counts[state] += 1
                worth[state] += episode.rewards[t]
                move[state, reached] += not (episode.terminated and t == episode.length - 1)
    return solved(move / counts[:, None], worth / counts)


def written(folder: Path, episodes: Sequence[Episode], **bounds: float) -> Dataset:
    write_episodes(folder, episodes, **bounds)
    return load_dataset(folder)


def run_in(folder: Path) -> Run:
    (folder / "out").mkdir()
    return Run("evaluate/x", 0, 2, folder / "out", folder / "checkpoints")


@pytest.mark.parametrize("terminal", [False, True])
def test_values_of_a_known_chain(tmp_path: Path, terminal: bool) -> None:
    data = written(tmp_path / "walks", walks(terminal=terminal))
    found = fitted_values(constant(PUSH, -PUSH), data, None, ITERATED, run_in(tmp_path), "key").numpy()
    starts = [int(episode.observations[0].argmax()) for episode in data.episodes]
    best = true_values(True, terminal=terminal).max()
    for replica, right in enumerate((True, False)):
        assert found[replica] == pytest.approx(counted_values(data.episodes, right)[starts], abs=0.06 * best)
        assert found[replica] == pytest.approx(true_values(right, terminal=terminal)[starts], abs=0.15 * best)


def test_rewards_may_come_from_elsewhere(tmp_path: Path) -> None:
    data = written(tmp_path / "walks", walks(terminal=False))
    ones = {
        episode.id: np.stack([np.full(episode.length, worth, np.float32) for worth in (1.0, 3.0)])
        for episode in data.episodes
    }
    training = TrainingConfig(updates=50, batch_size=32)
    short = FittedQConfig(gamma=0.5, hidden=(8,), learning_rate=3e-3, refresh=5, training=training)
    found = fitted_values(constant(0.9, -0.9), data, ones, short, run_in(tmp_path), "key").numpy()
    assert found.mean(1) == pytest.approx([1 / (1 - 0.5), 3 / (1 - 0.5)], rel=0.05)


def test_targets_by_hand() -> None:
    rewards, terminated, nexts = (
        torch.tensor([[1.0, 1.0, 0.0]]),
        torch.tensor([[0.0, 1.0, 0.0]]),
        torch.tensor([[4.0, 4.0, 99.0]]),
    )
    assert targets(rewards, terminated, nexts, 0.5, 0.0, 10.0).tolist() == [[3.0, 1.0, 10.0]]


@pytest.mark.parametrize(
    ("rewards", "terminates", "limits"),
    [
        ([-1.0, 2.0], False, (-2.0, 4.0)),
        ([1.0, 2.0], False, (2.0, 4.0)),
        ([1.0, 2.0], True, (1.0, 4.0)),
        ([-2.0, -1.0], True, (-4.0, -1.0)),
    ],
)
def test_what_rewards_allow(rewards: list[float], terminates: bool, limits: tuple[float, float]) -> None:
    assert attainable(torch.tensor([rewards]), terminates, 0.5) == pytest.approx(limits)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 512.0)])
def test_errors_of_actions_are_shares_of_half_their_range(low: float, high: float) -> None:
    half = (high - low) / 2
    recorded = (low + half + half * np.array([[0.5], [-0.5]])).astype(np.float32)
    episode = Episode(
        id="e",
        observations=np.zeros((3, 2), np.float32),
        actions=recorded,
        rewards=None,
        terminated=False,
        truncated=True,
    )
    policy = constant(low + 1.5 * half, low + half, observation_dim=2, low=low, high=high)
    found = action_errors(policy, [episode, episode])
    assert found.numpy() == pytest.approx(np.array([[0.5**0.5] * 2, [0.5] * 2]), abs=1e-5)


def test_too_few_iterations_are_refused() -> None:
    with pytest.raises(
        ParamsError, match=r"gamma 0.99 and 50 iterations .* leave 61% of the error of the start, expected at most 5%"
    ):
        validate(FittedQConfig, {"training": {"updates": 1000}}, "fitted_q")
    assert FittedQConfig().smoke().training.updates == 20


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"env": "none"}, "env, recording.dataset: found none twice"),
        ({"env": "none", "recording": {"dataset": "d"}, "clips": {}}, "clips: found with env: none"),
        (
            {"env": "none", "recording": {"dataset": "d"}, "motion": {"dataset": "m"}},
            "motion.dataset: found with env: none",
        ),
    ],
)
def test_without_an_environment_there_is_a_recording_and_nothing_is_played(values: dict, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        validate(EvaluateConfig, values, "evaluate")


def test_recordings_that_cannot_judge_are_refused(tmp_path: Path) -> None:
    unrewarded = [replace(episode, rewards=None) for episode in walks(terminal=False)[:3]]
    data = written(tmp_path / "walks", unrewarded)
    folders = {"bc": tmp_path / "bc"}
    folders["bc"].mkdir()
    save_artifact(folders["bc"], constant(0.0), {})
    with pytest.raises(ValueError, match="walks: has no rewards; expected some, or an entry of relabel"):
        judge("bc", folders, RecordingConfig(dataset="walks", fitted_q=ITERATED), data, None, run_in(tmp_path))
    save_artifact(folders["bc"], constant(0.0, observation_dim=7), {})
    with pytest.raises(ValueError, match=r"walks: observation_dim: found 5, expected 7 as in learn\.bc"):
        judge("bc", folders, RecordingConfig(dataset="walks"), data, None, Run("x", 0, 1, tmp_path, tmp_path))


def test_a_run_without_an_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dynarep.stages import demonstrate, evaluate, report, scores

    data = written(tmp_path / "artifacts" / "shards" / "walks", walks(terminal=False)[:8])
    trained = {"right": {"walks": data.fingerprint}, "left": {"others": "0"}}
    for name, policy in (("right", constant(0.9, 0.8)), ("left", constant(-0.9, -0.8))):
        folder = tmp_path / "artifacts" / "learn" / name
        folder.mkdir(parents=True)
        save_artifact(folder, policy, {"kind": "bc", "datasets": trained[name]})
    fitted = {
        "gamma": 0.8,
        "hidden": [16],
        "refresh": 5,
        "training": {"updates": 100, "batch_size": 32, "updates_per_chunk": 50},
    }
    judged = {"env": "none", "recording": {"dataset": "walks", "fitted_q": fitted}}
    learned = {name: {"kind": "bc"} for name in trained}
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({"replicas": 2, "learn": learned, "evaluate": judged, "report": {}})
    )
    demonstrate.main(Stage("demonstrate", tmp_path / "params.yaml"))
    for name in trained:
        evaluate.main(Stage("evaluate", tmp_path / "params.yaml", name))
    report.main(Stage("report", tmp_path / "params.yaml"))
    printed = capsys.readouterr().out
    assert "recording walks: 2 replicas, 8 episodes" in printed
    assert "trained on this recording, so not held out: right" in printed
    assert max(map(len, printed.splitlines())) <= 80
    scores.main(Stage("scores", tmp_path / "params.yaml"))
    assert capsys.readouterr().out == printed
    found = json.loads((tmp_path / "artifacts" / "report" / "metrics.json").read_text())
    assert found["right"]["fitted_q"] > found["left"]["fitted_q"]
    assert found["left"]["action_error_low"] < found["left"]["action_error"] < found["left"]["action_error_high"]
    assert found["left"]["return_mean"] is None
    page = (tmp_path / "artifacts" / "report" / "index.html").read_text()
    for text in ("fitted Q", "action error", "On the recording walks, right is the best of 2 policies"):
        assert text in page, text
    assert (tmp_path / "artifacts" / "evaluate" / "left" / "fitted_q-left" / "curves.tsv").is_file()
