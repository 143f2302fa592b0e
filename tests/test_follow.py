"""Following a demonstration that leads somewhere, and one that goes round and round."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, write_dataset
from dynarep.pipeline.methods.rewards.follow import repeats
from dynarep.pipeline.relabel import Relabelling, relabel
from tests.entries import a_run, entry, raw

Points = NDArray[np.float32]
LINE: Points = np.arange(61, dtype=np.float32)[:, None] * np.array([[0.5, 0.0]], dtype=np.float32)


def rounds(steps: float, noise: float = 0.0) -> Points:
    """Around a circle of radius 1 in 40 steps a round."""
    angle = 2 * math.pi * np.arange(steps + 1) / 40
    offset = noise * np.random.default_rng(0).normal(size=(len(angle), 2))
    return (np.stack([np.cos(angle), np.sin(angle)], 1) + offset).astype(np.float32)


def prepared(folder: Path, *paths: Points) -> Dataset:
    episodes = [
        Episode(id=f"e-{i}", observations=path, terminated=False, truncated=True) for i, path in enumerate(paths)
    ]
    write_dataset(folder, folder.name, episodes, provenance={}, env=None, bounds=([], []))
    return load_dataset(folder)


def labelled(folder: Path, kind: str, expert: Points, *paths: Points, **values: Any) -> Relabelling:
    data = prepared(folder / "data", *paths)
    made = entry("relabel", kind, space="raw", **values)
    return relabel(made, data, prepared(folder / "expert", expert), raw(data), a_run(folder / "run"))


@pytest.mark.parametrize(
    ("path", "share"),
    [
        (LINE, 0.0),
        (rounds(119), 1.0),  # each state has another one a round away
        (np.concatenate([LINE, LINE[::-1]]), (122 - 7) / 122),  # out and back: all states but those of the turn
        (np.concatenate([LINE[:30], np.repeat(LINE[30:31], 90, 0)]), 0.0),  # there, and still for most of the time
        (np.concatenate([rounds(79), np.repeat(rounds(79)[-1:], 20, 0)]), 1.0),  # twice round, and then still
        (rounds(239)[::6], 1.0),  # a fast gait, two steps across, which is less than k
    ],
)
def test_repeats_is_the_share_of_states_that_are_met_again(path: Points, share: float) -> None:
    assert repeats(torch.from_numpy(path.copy())[None], 3).item() == pytest.approx(share, abs=0.04)


def test_where_the_demonstration_leads_somewhere_it_is_progress(tmp_path: Path) -> None:
    walks = LINE[::2] + np.float32(0.3), LINE[::-1], LINE[10:40]
    follow = labelled(tmp_path / "follow", "follow", LINE, *walks)
    progress = labelled(tmp_path / "progress", "progress", LINE, *walks)
    for name, rewards in progress.rewards.items():
        np.testing.assert_array_equal(follow.rewards[name], rewards)
    assert follow.metrics["repeats"] == 0.0


def test_where_it_goes_round_episodes_count_by_how_long_they_stay_near(tmp_path: Path) -> None:
    """Direction says nothing then: the longer and the nearer, the better, the same for all steps of an episode."""
    paths = rounds(80, 0.3), rounds(80, 0.02), rounds(40, 0.02), rounds(80, 0.1)
    found = labelled(tmp_path, "follow", rounds(80), *paths)
    assert found.metrics["repeats"] == pytest.approx(1.0, abs=0.05)
    rewards = [found.rewards[f"e-{i}"] for i in range(len(paths))]
    assert all(np.unique(values).size == 1 for values in rewards)
    far, near, short, middle = (float(values[0, 0]) for values in rewards)
    assert near > middle > far
    assert near == pytest.approx(2 * short, rel=0.1)


def test_nearness_by_hand(tmp_path: Path) -> None:
    """At distances of 1 and 3 times the median from every state: exp(-1) and exp(-3) for each of the steps."""
    circle = rounds(79)
    out = [circle * np.float32(1 + d) for d in (0.1, 0.1, 0.3)]
    found = labelled(tmp_path, "follow", circle, *out)
    for name, times in (("e-0", 1.0), ("e-2", 3.0)):
        np.testing.assert_allclose(found.rewards[name], math.exp(-times), rtol=1e-3)
