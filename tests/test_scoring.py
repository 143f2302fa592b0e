"""Scores of episodes on a line whose answer is known, and how a terminal and files show them."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from entries import a_run, entry, raw

from dynarep.data.card import make_card
from dynarep.data.prepare import write_episodes
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset
from dynarep.data.writers import Recording
from dynarep.pipeline.methods.rewards.progress import ProgressConfig
from dynarep.pipeline.ranking import PLAIN_BARS, short_names, sparkline, table, warnings, write_scores
from dynarep.pipeline.scoring import Score, best, pace, progress, score_episodes, with_last_state

LINE = np.stack([np.arange(11.0) / 2, np.zeros(11)], 1)
"""The demonstration: from 0 to 5 in ten steps."""
BESIDE = LINE + np.array([0, 50])
"""A hundred steps away from it."""


def episode(name: str, states: np.ndarray) -> Episode:
    states = np.asarray(states, np.float32)
    actions = np.zeros((len(states) - 1, 1), np.float32)
    return Episode(id=name, observations=states, actions=actions, terminated=False, truncated=True)


def dataset(folder: Path, episodes: Sequence[Episode]) -> Dataset:
    write_episodes(folder, episodes)
    return load_dataset(folder)


EPISODES = [
    episode("e-000000", LINE),
    episode("e-000001", LINE[:6]),
    episode("e-000002", np.concatenate([LINE, np.repeat(LINE[-1:], 10, 0)])),
    episode("e-000003", LINE[::-1]),
    episode("e-000004", BESIDE),
    episode("e-000005", np.repeat(LINE[:1], 20, 0)),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return dataset(tmp_path_factory.mktemp("data") / "e", EPISODES)


def scored(data: Dataset, demonstrations: Dataset, folder: Path) -> dict[str, Score]:
    label = entry("relabel", "progress", ProgressConfig(lookahead=2), space="raw")
    found = score_episodes(label, data, demonstrations, raw(data), a_run(folder, replicas=1))
    return {score.episode: score for score in found}


def test_scores_are_those_worked_out_by_hand(data: Dataset, tmp_path: Path) -> None:
    found = scored(data, dataset(tmp_path / "d", [episode("d-000000", LINE)]), tmp_path)
    numbers = {name: (round(s.reach, 6), round(s.forward, 6), round(s.score, 6)) for name, s in found.items()}
    assert numbers == {
        "e-000000": (1.0, 1.0, 1.0),  # the demonstration itself
        "e-000001": (0.5, 1.0, 0.5),  # half of it
        "e-000002": (1.0, 0.5, 0.5),  # all of it, and as long again at the end
        "e-000003": (1.0, 0.0, 0.0),  # backwards
        "e-000004": (0.0, 1.0, 0.0),  # beside it, 100 steps away
        "e-000005": (0.0, 0.0, 0.0),  # stays at the start
    }
    np.testing.assert_allclose(found["e-000000"].progress, np.arange(11) / 10, atol=1e-6)
    np.testing.assert_allclose(found["e-000000"].rewards, [*np.ones(9), 0.5], atol=1e-6)
    assert list(found)[:3] == ["e-000000", "e-000001", "e-000002"], "best first, and of equal ones the earlier"
    assert {s.steps for s in found.values()} == {10, 5, 20, 19}


def test_pauses_are_the_runs_of_steps_that_do_not_go_on(data: Dataset, tmp_path: Path) -> None:
    found = scored(data, dataset(tmp_path / "d", [episode("d-000000", LINE)]), tmp_path)
    assert found["e-000002"].pauses(3) == [(10, 20)]
    assert found["e-000000"].pauses(1) == []
    assert found["e-000005"].pauses(19) == [(0, 19)]
    assert found["e-000005"].pauses(20) == []


def test_noise_of_a_sensor_is_no_progress(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    still = np.repeat(LINE[5:6], 400, 0) + rng.normal(0, 0.01, (400, 2))
    data = dataset(tmp_path / "n", [episode("n-0", still), episode("n-1", LINE)])
    found = scored(data, dataset(tmp_path / "d", [episode("d-0", LINE)]), tmp_path)
    assert found["n-0"].forward < 0.01
    assert (np.abs(found["n-0"].rewards) > 0).mean() > 0.9, "it does move"


def test_an_episode_is_measured_by_the_demonstration_that_it_follows(data: Dataset, tmp_path: Path) -> None:
    demonstrations = dataset(tmp_path / "d", [episode("d-0", BESIDE), episode("d-1", LINE)])
    found = scored(data, demonstrations, tmp_path)
    assert (found["e-000004"].demonstration, found["e-000004"].score) == ("d-0", 1.0)
    assert (found["e-000000"].demonstration, found["e-000000"].score) == ("d-1", 1.0)


def test_a_demonstration_that_repeats_itself_gets_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    """Round and round a circle that is far larger than k steps; a line that ends in a long hold does not repeat itself."""
    angle = 2 * np.pi * np.arange(121) / 40
    circle = episode("c-000000", np.stack([np.cos(angle), np.sin(angle)], 1))
    held = episode("h-000000", np.concatenate([LINE, np.repeat(LINE[-1:], 40, 0)]))
    data = dataset(tmp_path / "c", [circle, held])
    found = scored(data, dataset(tmp_path / "d", [circle, held]), tmp_path)
    assert found["c-000000"].repeats == pytest.approx(1.0, abs=0.05)
    assert found["h-000000"].repeats == 0.0
    (line,) = warnings(list(found.values()))
    assert line.startswith("warning: c-000000 repeats itself (100% of its states come again)")
    assert "label follow of dynarep init" in line
    assert "\n" not in line


def test_progress_and_pace_of_steps_to_go() -> None:
    left = torch.tensor([[10.0, 5.0, 0.0, -1e-7, 30.0]])
    torch.testing.assert_close(progress(left, 11), torch.tensor([[0.0, 0.5, 1.0, 1.0, 0.0]]))
    torch.testing.assert_close(pace(left[:, :3], 2), torch.tensor([[5.0, 5.0]]))
    torch.testing.assert_close(pace(left[:, :3], 1), torch.tensor([[5.0, 5.0]]))
    torch.testing.assert_close(pace(left, 3)[0, :2], torch.tensor([10 / 3, -25 / 3]))


def test_the_last_state_counts_also_of_separate_transitions() -> None:
    separate = Episode(
        id="s-0", observations=LINE[:4].astype(np.float32), next_observations=LINE[1:5].astype(np.float32),
        terminated=True, truncated=False,
    )  # fmt: skip
    np.testing.assert_array_equal(with_last_state(separate).current, LINE[:5].astype(np.float32))
    np.testing.assert_array_equal(with_last_state(EPISODES[0]).current, LINE.astype(np.float32))


def test_faults_name_both_datasets(data: Dataset, tmp_path: Path) -> None:
    still = dataset(tmp_path / "still", [episode("d-0", np.repeat(LINE[:1], 3, 0))])
    with pytest.raises(ValueError, match="e against still: a demonstration never moves"):
        scored(data, still, tmp_path / "a")
    wide = dataset(tmp_path / "wide", [episode("d-0", np.zeros((3, 3)))])
    with pytest.raises(ValueError, match="observations of wide have 3 numbers, those of e 2"):
        scored(data, wide, tmp_path / "b")


def score(name: str, reach: float, moving: Sequence[bool], demonstration: str = "d-0") -> Score:
    steps = len(moving)
    line = np.linspace(0, reach, steps + 1, dtype=np.float32)
    return Score(name, demonstration, line, np.zeros(steps, np.float32), np.array(moving))


def test_the_best_are_a_share_a_number_or_all() -> None:
    scores = [score(f"e-{i}", 1 - i / 10, [True]) for i in range(10)]
    assert [s.episode for s in best(scores, 0.25)] == ["e-0", "e-1"]
    assert len(best(scores, 0.01)) == 1
    assert len(best(scores, 7)) == 7
    assert best(scores, None) == scores


def test_a_table_fits_a_terminal_and_marks_demonstrations(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{'long-name-of-a-card' * (i % 2)}card-{i:06d}" for i in range(50)]
    scores = [score(name, 1 - i / 100, [True] * 300) for i, name in enumerate(names)]
    for bars in (True, False):
        if not bars:
            monkeypatch.setattr(sys, "stdout", open("/dev/null", "w", encoding="ascii"))  # noqa: SIM115, PTH123
        lines = table(scores, [names[0]])
        assert max(map(len, lines)) <= 80
        assert "\n".join(lines).isascii() == (not bars)
    assert [line for line in lines if line.endswith("*")] == [lines[2]]
    assert "30 more in scores.csv" in lines[12]
    assert lines[-1].startswith("score = reach")


def test_plots_and_names_are_short() -> None:
    assert sparkline(np.linspace(0, 1, 400), 8, PLAIN_BARS) == PLAIN_BARS
    assert sparkline(np.ones(3), 20, PLAIN_BARS) == "###"
    assert short_names(["card-000000", "card-000012"]) == {"card-000000": "0", "card-000012": "12"}
    long = short_names(["a" * 40 + "-000001", "b-000002"])
    assert all(len(name) <= 20 for name in long.values())
    assert len(set(long.values())) == 2


def test_scores_are_written_in_two_formats_and_read_back(data: Dataset, tmp_path: Path) -> None:
    scores = [score("e-000000", 1.0, [True] * 10), score("e-000002", 0.5, [True] * 4 + [False] * 12 + [True] * 4)]
    card = make_card("e", {"path": "e", "format": "prepared"}, "card")
    names = write_scores(tmp_path / "out", scores, Recording(data, None, card), {"updates": 3}, 10)
    rows = list(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert [row["episode"] for row in rows] == ["e-000000", "e-000002"]
    assert rows[1] | {"score": "0.200000", "reach": "0.500000", "forward": "0.400000", "pauses": "4-16"} == rows[1]
    assert json.loads((tmp_path / "out" / "about.json").read_text()) == {"updates": 3}
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    assert names == ["scores.csv", "scores.parquet", "steps.parquet"]
    assert pyarrow.parquet.read_table(tmp_path / "out" / "scores.parquet")["rank"].to_pylist() == [1, 2]
    steps = pyarrow.parquet.read_table(tmp_path / "out" / "steps.parquet").to_pydict()
    assert steps["episode"] == ["e-000000"] * 10 + ["e-000002"] * 20
    assert steps["step"][:12] == [*range(10), 0, 1]
    assert steps["moving"][10:] == [True] * 4 + [False] * 12 + [True] * 4
