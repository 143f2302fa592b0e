"""Episodes and what is made of them without learning: invariants, splits, absorbing states, strides."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynarep.data.absorbing import with_absorbing_states
from dynarep.data.prepare import strided
from dynarep.data.schema import DataError, Episode
from dynarep.data.split import held_out
from dynarep.data.statistics import Moments

Make = Callable[..., Episode]


def floats(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_views_of_an_episode(make_episode: Make) -> None:
    episode = make_episode(4)
    assert episode.length == 4
    np.testing.assert_array_equal(episode.current, episode.observations[:4])
    np.testing.assert_array_equal(episode.successors, episode.observations[1:])
    assert episode.rewards is not None
    assert episode.return_ == pytest.approx(float(episode.rewards.sum()))
    separate = make_episode(4, separate=True, rewards=None)
    assert separate.length == 4
    np.testing.assert_array_equal(separate.current, separate.observations)
    np.testing.assert_array_equal(separate.successors, separate.next_observations)
    assert separate.return_ is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"observations": np.zeros((5, 3))}, "observations: found float64 array, expected a float32 array"),
        ({"observations": [[0.0]] * 5}, "observations: found list, expected a float32 array"),
        ({"observations": None}, "observations: found NoneType, expected a float32 array"),
        ({"observations": floats(5)}, "observations: found shape (5,), expected (steps, numbers)"),
        ({"observations": floats(5, 0)}, "observations: found shape (5, 0), expected (steps, numbers)"),
        ({"observations": floats(1, 3)}, "observations: found shape (1, 3), expected at least one transition"),
        ({"observations": floats(0, 3)}, "observations: found shape (0, 3), expected at least one transition"),
        ({"actions": floats(5, 2)}, "actions: found 5 rows, expected 4 for 5 observations"),
        ({"actions": floats(4)}, "actions: found shape (4,), expected (steps, numbers)"),
        ({"rewards": floats(3)}, "rewards: found 3 rows, expected 4 for 5 observations"),
        ({"rewards": floats(4, 1)}, "rewards: found shape (4, 1), expected (steps,)"),
        ({"next_observations": floats(4, 3)}, "next_observations: found 4 rows, expected 5"),
        ({"next_observations": floats(5, 2), "actions": None, "rewards": None}, "found shape (5, 2), expected (5, 3)"),
        ({"id": "hopper.v2-0"}, "episode id: found 'hopper.v2-0'"),
        ({"id": "../e"}, "episode id: found '../e'"),
        ({"id": "e" * 81}, "expected at most 80 letters"),
    ],
)
def test_an_episode_refuses(make_episode: Make, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        make_episode(4, **{"id": "e-7", **fields})


@pytest.mark.parametrize("field", ["observations", "next_observations", "actions", "rewards"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_episode_names_the_row_that_is_not_finite(make_episode: Make, field: str, value: float) -> None:
    episode = make_episode(4, "e-7", separate=True)
    values = getattr(episode, field).copy()
    values[2] = value
    with pytest.raises(DataError, match=rf"episode e-7: {field}: found .* in row 2(, component 0)?, expected finite"):
        replace(episode, **{field: values})


def test_a_wide_row_that_is_not_finite_is_told_in_one_line(make_episode: Make) -> None:
    episode = make_episode(4, "e-7")
    values = np.zeros((len(episode.observations), 300), np.float32)
    values[2, 250] = np.nan
    with pytest.raises(DataError, match=r"found nan in row 2, component 250, expected finite numbers$"):
        replace(episode, observations=values)


@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 5))
def test_held_out_parts_are_whole_and_independent_of_order(
    make_episode: Make, count: int, fraction: float, seed: int
) -> None:
    episodes = [make_episode(1, f"e-{i}") for i in range(count)]
    train, kept = held_out(episodes, fraction, seed)
    assert train
    assert kept
    assert abs(len(kept) - fraction * count) <= 1
    assert sorted([*train, *kept], key=episodes.index) == episodes
    assert [e for e in episodes if e in kept] == kept
    _, kept_of_reversed = held_out(episodes[::-1], fraction, seed)
    assert {e.id for e in kept_of_reversed} == {e.id for e in kept}


def test_held_out_depends_on_the_seed_and_spares_a_single_episode(make_episode: Make) -> None:
    episodes = [make_episode(1, f"e-{i}") for i in range(40)]
    kept = [frozenset(e.id for e in held_out(episodes, 0.25, seed)[1]) for seed in range(3)]
    assert len(set(kept)) == 3
    assert held_out(episodes[:1], 0.5, 0) == (episodes[:1], [])
    assert held_out([], 0.5, 0) == ([], [])
    for fraction in (0.0, 1.0, -0.1, 1.5):
        with pytest.raises(ValueError, match="held-out fraction"):
            held_out(episodes, fraction, 0)


@pytest.mark.parametrize("separate", [False, True])
def test_a_terminated_episode_ends_in_the_absorbing_state(make_episode: Make, separate: bool) -> None:
    episode = make_episode(4, separate=separate, terminated=True, truncated=False)
    (result,) = with_absorbing_states([episode], repeats=3)
    absorbing = np.array([0, 0, 0, 1], np.float32)
    assert result.length == 4 + 3
    assert result.id == episode.id
    assert (result.terminated, result.truncated) == (False, True)
    np.testing.assert_array_equal(result.current[:4, :3], episode.current)
    np.testing.assert_array_equal(result.current[:4, 3], 0)
    np.testing.assert_array_equal(result.successors[:3, :3], episode.successors[:3])
    np.testing.assert_array_equal(result.successors[:3, 3], 0)
    np.testing.assert_array_equal(result.successors[3:], np.tile(absorbing, (4, 1)))
    np.testing.assert_array_equal(result.current[4:], np.tile(absorbing, (3, 1)))
    assert result.actions is not None
    assert result.rewards is not None
    np.testing.assert_array_equal(result.actions[:4], episode.actions)
    np.testing.assert_array_equal(result.actions[4:], 0)
    np.testing.assert_array_equal(result.rewards[:4], episode.rewards)
    np.testing.assert_array_equal(result.rewards[4:], 0)
    assert episode.observations.shape[1] == 3
    assert not (episode.successors[-1] == 0).any()


@pytest.mark.parametrize("separate", [False, True])
def test_a_truncated_episode_only_gains_the_bit(make_episode: Make, separate: bool) -> None:
    episode = make_episode(4, separate=separate, actions=None, rewards=None)
    (result,) = with_absorbing_states([episode])
    assert result.length == 4
    assert result.actions is None
    assert (result.terminated, result.truncated) == (False, True)
    np.testing.assert_array_equal(result.current, np.pad(episode.current, ((0, 0), (0, 1))))
    np.testing.assert_array_equal(result.successors, np.pad(episode.successors, ((0, 0), (0, 1))))


@pytest.mark.parametrize(
    ("length", "stride", "kept"), [(7, 3, [0, 3, 6]), (8, 3, [0, 3, 6]), (3, 5, [0]), (4, 1, [0, 1, 2, 3])]
)
@pytest.mark.parametrize("separate", [False, True])
def test_stride_keeps_every_nth_transition(
    make_episode: Make, length: int, stride: int, kept: list[int], separate: bool
) -> None:
    episode = make_episode(length, separate=separate, terminated=True, truncated=False)
    result = strided(episode, stride)
    np.testing.assert_array_equal(result.current, episode.current[kept])
    np.testing.assert_array_equal(result.successors, episode.successors[kept])
    assert episode.actions is not None
    assert episode.rewards is not None
    np.testing.assert_array_equal(result.actions, episode.actions[kept])
    np.testing.assert_array_equal(result.rewards, episode.rewards[kept])
    complete = kept[-1] == length - 1
    assert (result.terminated, result.truncated) == (complete, not complete)


def test_a_constant_column_is_divided_by_one() -> None:
    moments = Moments()
    rows = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    rows[:, 1] = 0.1  # whose mean in float64 is not always exactly 0.1
    for part in np.array_split(rows, 7):
        moments.add(part)
    assert moments.std[1] == 1.0
    np.testing.assert_allclose(moments.std[::2], rows[:, ::2].astype(np.float64).std(0), rtol=1e-10)
    moments.add(rows[:1] + 1e-3)
    assert 0 < moments.std[1] < 1e-3
