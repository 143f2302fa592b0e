"""The resident table and the index functions over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynarep.data.resident import TransitionTable, observation_moments
from dynarep.data.sampling import goal_and_intent, goals, uniform
from dynarep.data.schema import DataError, Episode
from dynarep.data.shards import load_dataset, write_dataset

Make = Callable[..., Episode]
MIXTURE = {"p_random": 0.3, "p_trajectory": 0.5, "p_current": 0.2}


def several(make: Make, lengths: list[int], **fields: Any) -> list[Episode]:
    return [make(length, f"e-{i}", seed=i, **fields) for i, length in enumerate(lengths)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    separate=st.booleans(),
    action_dim=st.integers(0, 2),
    data=st.data(),
)
def test_a_gathered_transition_is_one_of_an_episode(
    make_episode: Make, lengths: list[int], separate: bool, action_dim: int, data: st.DataObject
) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    episodes = [
        make_episode(n, f"e-{i}", seed=i, separate=separate, action_dim=action_dim, terminated=flag, truncated=not flag)
        for i, (n, flag) in enumerate(zip(lengths, flags, strict=True))
    ]
    table = TransitionTable.from_episodes(episodes)
    assert len(table) == sum(lengths)
    batch = table.gather(torch.arange(len(table)))
    assert batch.rewards is not None
    row = 0
    for episode in episodes:
        assert episode.rewards is not None
        for t in range(episode.length):
            np.testing.assert_array_equal(batch.observations[row].numpy(), episode.current[t])
            np.testing.assert_array_equal(batch.next_observations[row].numpy(), episode.successors[t])
            if episode.actions is not None:
                np.testing.assert_array_equal(batch.actions[row].numpy(), episode.actions[t])
            assert float(batch.rewards[row]) == float(episode.rewards[t])
            assert float(batch.terminated[row]) == float(episode.terminated and t == episode.length - 1)
            assert int(table.first[row]) == row - t
            assert int(table.last[row]) == row - t + episode.length - 1
            row += 1
    np.testing.assert_array_equal(table.initial.numpy(), [e.current[0] for e in episodes])


def test_any_shape_of_index_comes_back_in_front(make_episode: Make) -> None:
    table = TransitionTable.from_episodes(several(make_episode, [4, 5]))
    index = uniform(len(table), (3, 7), generator(), "cpu")
    batch = table.gather(index)
    assert batch.observations.shape == (3, 7, 3)
    assert batch.actions.shape == (3, 7, 2)
    assert batch.rewards is not None
    assert batch.rewards.shape == batch.terminated.shape == (3, 7)
    torch.testing.assert_close(batch.observations[1, 2], table.gather(index[1, 2]).observations, rtol=0, atol=0)
    torch.testing.assert_close(table.observations_at(index), batch.observations, rtol=0, atol=0)
    assert batch.observations.data_ptr() == batch.actions.data_ptr() - 3 * 4, "views of one gathered block"
    empty = table.gather(torch.empty((2, 0), dtype=torch.int64))
    assert empty.next_observations.shape == (2, 0, 3)


def test_missing_actions_have_no_width_and_missing_rewards_stay_missing(make_episode: Make) -> None:
    episodes = several(make_episode, [4, 5], action_dim=0, rewards=None)
    table = TransitionTable.from_episodes(episodes)
    batch = table.gather(torch.arange(9))
    assert batch.actions.shape == (9, 0)
    assert batch.rewards is None
    rewards = {"e-0": np.arange(4.0), "e-1": np.arange(4.0, 9.0)}
    batch = TransitionTable.from_episodes(episodes, rewards=rewards).gather(torch.arange(9))
    assert batch.rewards is not None
    np.testing.assert_array_equal(batch.rewards.numpy(), np.arange(9))


def test_given_rewards_replace_recorded_ones(make_episode: Make) -> None:
    episodes = several(make_episode, [2])
    batch = TransitionTable.from_episodes(episodes, rewards={"e-0": np.array([7.0, 8.0])}).gather(torch.arange(2))
    assert batch.rewards is not None
    assert batch.rewards.tolist() == [7.0, 8.0]


def test_a_table_refuses_what_does_not_fit(make_episode: Make) -> None:
    episodes = several(make_episode, [2, 3])
    with pytest.raises(DataError, match="at least one episode"):
        TransitionTable.from_episodes([])
    for fields in ({"observation_dim": 4}, {"action_dim": 0}, {"rewards": None}):
        with pytest.raises(DataError, match=r"episode e-9: .* expected \(3, 2, True\) as in e-0"):
            TransitionTable.from_episodes([*episodes, make_episode(2, "e-9", **fields)])
    with pytest.raises(DataError, match="rewards: none for episode e-1"):
        TransitionTable.from_episodes(episodes, rewards={"e-0": np.zeros(2)})
    with pytest.raises(DataError, match=r"rewards of episode e-1: found shape \(2,\), expected \(3,\)"):
        TransitionTable.from_episodes(episodes, rewards={"e-0": np.zeros(2), "e-1": np.zeros(2)})
    with pytest.raises(DataError, match="finite"):
        TransitionTable.from_episodes(episodes, rewards={"e-0": np.zeros(2), "e-1": np.array([0, np.nan, 0])})


def test_moments_leave_the_absorbing_bit_as_it_is(make_episode: Make, tmp_path: Path) -> None:
    episodes = several(make_episode, [4, 5])
    write_dataset(tmp_path / "e", "e", episodes, provenance={}, env=None, bounds=((-1, -1), (1, 1)))
    states = TransitionTable.from_episodes(episodes).packed[:, :3]
    mean, std = observation_moments(load_dataset(tmp_path / "e"))
    torch.testing.assert_close(mean, states.mean(0))
    torch.testing.assert_close(std, states.std(0, correction=0))
    mean, std = observation_moments(load_dataset(tmp_path / "e"), absorbing=True)
    assert (mean[3], std[3]) == (0.0, 1.0)
    assert len(mean) == len(std) == 4


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    seed=st.integers(0, 1000),
    mixture=st.sampled_from([(0.0, 1.0, 0.0), (0.0, 0.5, 0.5), (0.3, 0.5, 0.2), (0.0, 0.0, 1.0)]),
)
def test_no_goal_of_the_trajectory_leaves_its_episode(
    make_episode: Make, lengths: list[int], seed: int, mixture: tuple[float, float, float]
) -> None:
    table = TransitionTable.from_episodes(several(make_episode, lengths))
    index = uniform(len(table), (200,), generator(seed), "cpu")
    names = dict(zip(MIXTURE, mixture, strict=True))
    for drawn in goal_and_intent(
        index, table.last[index], len(table), p_same=0.5, generator=generator(seed + 1), **names
    ):
        assert drawn.dtype == torch.int64
        assert ((drawn >= 0) & (drawn < len(table))).all()
        if mixture[0] == 0:
            assert (drawn >= index).all()
            assert (drawn <= table.last[index]).all()
        if mixture[2] == 1:
            assert (drawn == index).all()


def test_the_mixture_has_the_stated_probabilities() -> None:
    draws, length, count = 1_000_000, 1_000_001, 10**9
    index = torch.full((draws,), 500_000_000)
    last = index + length
    drawn = goals(index, last, count, generator=generator(), **MIXTURE)
    current = drawn == index
    ahead = (drawn > index) & (drawn <= last)
    shares = [float((~current & ~ahead).float().mean()), float(ahead.float().mean()), float(current.float().mean())]
    assert shares == pytest.approx([0.3, 0.5, 0.2], abs=0.005)
    # Uniform between here and the end: u and 1 - u are alike.
    distances = (drawn[ahead] - index[ahead]).double() / length
    assert float(distances.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(distances.var()) == pytest.approx(1 / 12, abs=0.002)


def test_trajectory_goals_reach_every_row_to_the_end_and_round_as_published() -> None:
    # Four rows ahead: round(4u) hits both ends with 1/8 and the inner rows with 1/4.
    index = torch.full((200_000,), 10)
    drawn = goals(index, index + 4, 99, p_random=0.0, p_trajectory=1.0, p_current=0.0, generator=generator())
    shares = torch.bincount(drawn - 10, minlength=5) / len(index)
    assert shares.tolist() == pytest.approx([0.125, 0.25, 0.25, 0.25, 0.125], abs=0.005)


def test_outcome_and_intent_agree_at_least_as_often_as_asked() -> None:
    index = torch.zeros(200_000, dtype=torch.int64)
    last, count = index + 10**6, 10**9
    g, z = goal_and_intent(index, last, count, p_same=0.5, generator=generator(), **MIXTURE)
    # Independent draws also agree where both are the current state: 0.5 + 0.5 * 0.2^2.
    assert float((g == z).float().mean()) == pytest.approx(0.52, abs=0.005)
    g, z = goal_and_intent(index, last, count, p_same=1.0, generator=generator(), **MIXTURE)
    assert (g == z).all()
    g, z = goal_and_intent(index, last, count, p_same=0.0, generator=generator(), **MIXTURE)
    assert float((g == z).float().mean()) == pytest.approx(0.04, abs=0.005)
    for drawn in (g, z):
        assert float((drawn == 0).float().mean()) == pytest.approx(0.2, abs=0.005)


def test_the_same_generator_draws_the_same() -> None:
    index = torch.arange(50)
    first, second = (goals(index, index + 5, 100, generator=generator(3), **MIXTURE) for _ in range(2))
    assert (first == second).all()
    assert (first != goals(index, index + 5, 100, generator=generator(4), **MIXTURE)).any()


def test_probabilities_are_checked() -> None:
    index = torch.arange(3)
    for p in ((0.5, 0.5, 0.5), (1.2, -0.2, 0.0)):
        with pytest.raises(ValueError, match="sum to 1"):
            goals(index, index, 3, generator=generator(), **dict(zip(MIXTURE, p, strict=True)))
    with pytest.raises(ValueError, match="p_same"):
        goal_and_intent(index, index, 3, p_same=1.5, generator=generator(), **MIXTURE)


def test_uniform_covers_all_rows_equally() -> None:
    drawn = uniform(7, (70_000,), generator(), "cpu")
    assert (torch.bincount(drawn, minlength=7) / 70_000).tolist() == pytest.approx([1 / 7] * 7, abs=0.01)
