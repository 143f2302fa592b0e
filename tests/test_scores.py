import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dynarep.data.d4rl import environment_reference, reference
from dynarep.pipeline.playing.scores import (
    bootstrap_interval,
    difference_interval,
    expert_fraction,
    interquartile_mean,
    normalised_score,
    ranking,
)


def test_normalised_score_is_d4rls() -> None:
    hopper = environment_reference("Hopper-v4")
    assert hopper == (-20.272305, 3234.3)
    scores = normalised_score([-20.272305, 3234.3, 1000.0, 3683.0], hopper)
    np.testing.assert_allclose(scores, [0.0, 100.0, 31.348890, 113.786758], atol=1e-5)


@pytest.mark.parametrize(
    ("env", "random", "expert"),
    [("HalfCheetah-v5", -280.178953, 12135.0), ("Walker2d-v2", 1.629008, 4592.3), ("Ant-v4", -325.6, 3879.7)],
)
def test_references_hold_for_any_version(env: str, random: float, expert: float) -> None:
    assert environment_reference(env) == (random, expert)


@pytest.mark.parametrize(
    ("env", "dataset"),
    [
        *((f"Ant-v{version}", "ant-medium-v2") for version in (2, 3, 4, 5)),
        *((f"Hopper-v{version}", "hopper-medium-v2") for version in (2, 3, 4, 5)),
        ("AntMaze_UMaze-v5", "antmaze-umaze-v2"),
        ("AntMaze_Large_Diverse_GR-v4", "antmaze-large-diverse-v2"),
        ("gymnasium_robotics:AntMaze_Medium-v5", "antmaze-medium-play-v2"),
        ("AdroitHandPen-v1", "pen-human-v1"),
        ("AdroitHandHammer-v1", "hammer-cloned-v1"),
        ("AdroitHandDoor-v1", "door-expert-v1"),
        ("AdroitHandRelocate-v1", "relocate-human-v0"),
        ("FrankaKitchen-v1", "kitchen-mixed-v0"),
        ("PointMaze_UMaze-v3", "maze2d-umaze-v1"),
        ("PointMaze_LargeDense-v3", "maze2d-large-dense-v1"),
    ],
)
def test_an_environment_and_its_datasets_have_one_reference(env: str, dataset: str) -> None:
    assert environment_reference(env) == reference(dataset)
    assert reference(dataset) is not None


@pytest.mark.parametrize(
    "env",
    [
        *(
            "Humanoid-v5",
            "Hopper",
            "dm_control/hopper-hop-v0",
            "dm_control/Hopper-v0",
            "HopperHard-v1",
            "hopper-medium-v2",
        ),
        *("AntMaze_UMazeDense-v5", "AntMaze_Open-v5", "PointMaze_Open-v3", "AdroitHandPenSparse-v1", "my:Hopper-v4"),
    ],
)
def test_no_reference_for_other_environments(env: str) -> None:
    assert environment_reference(env) is None


def test_expert_fraction() -> None:
    assert expert_fraction(30.0, 10.0, 50.0) == pytest.approx(0.5)
    assert expert_fraction(10.0, 10.0, 50.0) == 0.0
    assert expert_fraction(0.0, -10.0, -10.0) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[7.0, 1.0], [2.0, 6.0], [3.0, 5.0], [4.0, 1000.0]], 4.5),  # 3, 4, 5, 6 are left
        ([0.0, 0.0, 1.0, 2.0, 3.0, 100.0], 1.5),  # one of six goes at either end
        ([1.0, 2.0, 6.0], 3.0),  # fewer than four: nothing goes
        ([5.0], 5.0),
    ],
)
def test_interquartile_mean(values: list[float], expected: float) -> None:
    assert interquartile_mean(values) == pytest.approx(expected)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        seeds = generator.normal(size=(12, 1))  # what a training seed gives, around the true centre 0
        low, high = bootstrap_interval(seeds + generator.normal(size=(12, 20)), resamples=500, seed=trial)
        hits += low <= 0.0 <= high
    assert 0.86 <= hits / 300 <= 0.98


def test_replicas_are_resampled() -> None:
    low, high = bootstrap_interval([[0.0] * 5, [10.0] * 5, [20.0] * 5])
    assert low < 10.0 < high  # nothing varies within a replica, but the replicas differ


def test_interval_is_of_the_interquartile_mean() -> None:
    assert bootstrap_interval([[0.0] * 39 + [1000.0]]) == (0.0, 0.0)  # an outlier that a mean would follow


def test_interval_is_reproducible_and_depends_on_the_seed() -> None:
    values = np.random.default_rng(1).normal(size=(2, 15))
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_higher_confidence_is_wider() -> None:
    values = np.random.default_rng(2).normal(size=(3, 20))
    inner, outer = bootstrap_interval(values, confidence=0.5), bootstrap_interval(values, confidence=0.95)
    assert outer[0] < inner[0] < inner[1] < outer[1]


@given(arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 8)), elements=st.floats(-1e4, 1e4)))
def test_interval_lies_within_the_values(values: np.ndarray) -> None:
    low, high = bootstrap_interval(values, resamples=50)
    tolerance = 1e-9 * max(1.0, float(np.abs(values).max()))
    assert values.min() - tolerance <= low <= high <= values.max() + tolerance


def test_difference_of_two_is_told_apart_when_it_is_large() -> None:
    generator = np.random.default_rng(0)
    values, others = generator.normal(50, 5, (3, 20)), generator.normal(40, 5, (5, 10))
    low, high = difference_interval(values, others)
    assert 0 < low < interquartile_mean(values) - interquartile_mean(others) < high
    assert difference_interval(others, values)[1] < 0
    low, high = difference_interval(values, values)
    assert low < 0 < high
    assert (low, high) == difference_interval(values, values)


def test_difference_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        low, high = difference_interval(generator.normal(3, 1, (1, 30)), generator.normal(1, 1, (1, 30)), resamples=400)
        covered += low <= 2 <= high
    assert covered >= 88


def test_ranking() -> None:
    scores = {"a": (1.0, 20.0, 0.1, 7.0), "b": (3.0, 10.0, 0.2, 8.0), "c": (2.0, 30.0, 0.3, 9.0)}
    keys = ("return_mean", "normalised_iqm", "success_rate", "motion_distance")
    full: dict[str, dict[str, float | None]] = {n: dict(zip(keys, v, strict=True)) for n, v in scores.items()}

    def without(*missing: str) -> dict[str, dict[str, float | None]]:
        return {name: score | dict.fromkeys(missing) for name, score in full.items()}

    assert ranking(full) == ["a", "b", "c"]  # a small distance is good
    assert ranking(without("motion_distance")) == ["c", "a", "b"]
    assert ranking(without("motion_distance", "normalised_iqm")) == ["c", "b", "a"]
    assert ranking(without("motion_distance", "normalised_iqm", "success_rate")) == ["b", "c", "a"]
