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
    fraction_interval,
    interquartile_mean,
    normalised_score,
    probability_of_improvement,
    ranking,
    rate_interval,
)
from dynarep.pipeline.playing.summary import print_scores, summarise
from dynarep.pipeline.tables import digits_apart, number_text


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


def test_pairing_cancels_what_both_share() -> None:
    generator = np.random.default_rng(2)
    starts = generator.normal(0, 10, (3, 20))  # how hard an episode is, for both
    values, others = (starts + shift + generator.normal(0, 0.5, (3, 20)) for shift in (1.0, 0.0))
    low, high = difference_interval(values, others, paired=True)
    assert 0 < low < high < 2.5
    assert difference_interval(values, others)[0] < 0  # the same scores, not told apart
    assert difference_interval(values, values, paired=True) == (0.0, 0.0)
    with pytest.raises(ValueError, match=r"shapes \(3, 20\) and \(3, 19\)"):
        difference_interval(values, others[:, :19], paired=True)


def test_paired_difference_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(100):
        starts = generator.normal(0, 3, (8, 20))
        replicas = generator.normal(0, 1, (2, 8, 1))
        values, others = (starts + 2 * (1 - i) + replicas[i] + generator.normal(0, 1, (8, 20)) for i in range(2))
        low, high = difference_interval(values, others, paired=True, resamples=400)
        covered += low <= 2 <= high
    assert covered >= 82


def test_probability_of_improvement_counts_pairs_and_halves_of_ties() -> None:
    assert probability_of_improvement([[[1.0, 3.0]]], [[[2.0, 2.0]]]) == 0.5
    assert probability_of_improvement([[[1.0]], [[2.0]]], [[[0.0]], [[2.0]]]) == 0.75


def test_a_rate_is_never_certain() -> None:
    assert rate_interval(np.ones((2, 5))) == (pytest.approx(0.722, abs=1e-3), 1.0)  # Wilson's for 10 of 10
    assert rate_interval(np.zeros((2, 5))) == (0.0, pytest.approx(0.278, abs=1e-3))
    low, high = rate_interval([[1.0] * 20, [0.0] * 20])  # replicas that disagree say less than Wilson's 0.35 to 0.65
    assert (low, high) == (0.0, 1.0)


def test_expert_fraction_knows_how_well_the_demonstrations_are_known() -> None:
    values = np.full((2, 5), 50.0)
    assert fraction_interval(values, [[0.0]], [100.0]) == (0.5, 0.5)
    low, high = fraction_interval(values, [[0.0]], [80.0, 120.0]) or (1.0, 0.0)
    assert low == pytest.approx(50 / 120)
    assert high == pytest.approx(50 / 80)
    low, high = fraction_interval(values, [[-10.0, 10.0]], [100.0]) or (1.0, 0.0)
    assert low < 0.5 < high
    assert fraction_interval(values, [[0.0, 90.0]], [80.0, 120.0]) is None  # no unit
    low, high = fraction_interval(values, [[100.0]], [0.0]) or (1.0, 0.0)  # an expert of low returns
    assert (low, high) == (0.5, 0.5)


def test_numbers_that_read_as_zero_have_no_sign() -> None:
    assert [number_text(value, ".2f") for value in (-0.001, 0.0, -0.01, 1234.5)] == ["0.00", "0.00", "-0.01", "1234.50"]
    assert [number_text(value, "+,.1f") for value in (0.04, -0.04, 1234.0)] == ["0.0", "0.0", "+1,234.0"]


def test_digits_tell_apart_what_is_not_equal() -> None:
    assert digits_apart([-12.3, -11.8, 5.0, None], 0) == [1, 1, 0, 0]
    assert digits_apart([1.0, 1.0, 2.0], 0) == [0, 0, 0]  # equal values may read the same
    assert digits_apart([1.0, 1.00001, float("nan")], 1) == [1, 1, 1]  # and so may what nobody can tell apart
    assert digits_apart([1.21, 1.23, 1.3], 1) == [2, 2, 1]


def played(returns: list[list[float]], **more: list[list[float]]) -> dict[str, list[list[float]]]:
    return {"returns": returns, "lengths": [[10.0] * len(row) for row in returns], **more}


def raw(policies: dict[str, dict[str, list[list[float]]]], **more: object) -> dict[str, object]:
    return {"env": "Maze-v0", "reference": None, "random": [], "demonstrations": None, "policies": policies, **more}


def test_every_environment_has_intervals() -> None:
    policies = {
        "a": played([[-3.0, -5.0], [-4.0, -6.0]], successes=[[1.0, 0.0], [1.0, 0.0]]),
        "chance": played([[-9.0, -11.0], [-10.0, -10.0]], successes=[[0.0, 0.0], [0.0, 0.0]]),
    }
    scores = summarise(raw(policies, random=["chance"], demonstrations=[-2.0, -4.0]))
    a = scores["a"]
    assert a["normalised_iqm"] is None
    assert a["normalised_low"] is None
    assert a["return_low"] < a["return_iqm"] == -4.5 < a["return_high"]
    assert a["success_low"] < a["success_rate"] == 0.5 < a["success_high"]
    assert a["expert_fraction"] == pytest.approx((-4.5 + 10) / 7)
    assert a["expert_fraction_low"] < a["expert_fraction"] < a["expert_fraction_high"]
    alone = summarise(raw({"a": played([[1.0]])}))["a"]
    assert (alone["return_iqm"], alone["return_low"], alone["return_high"]) == (1.0, None, None)


def test_the_printed_table_is_narrow_and_marks_controls(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a_policy_whose_name_is_as_long_as_names_are_in_a_grid_of_methods_and_labels"
    policies = {
        long: played([[-12.2, -12.2]] * 2),
        "b": played([[-12.24, -12.24]] * 2),
        "c": played([[-0.01, 0.0]] * 2),
    }
    policies = {name: played(values["returns"], successes=[[1.0, 0.0]] * 2) for name, values in policies.items()}
    scores = summarise(raw(policies, reference=(-20.0, 100.0), demonstrations=[-19.0]))
    print_scores(scores, ["b"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "b *" in printed
    assert "6.50" in printed  # c's neighbours: 6.5 and 6.47 would both read 6.5
    assert "6.47" in printed
    assert "-0.0 " not in printed
    assert "above 1.1 of the expert" in printed


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
    recorded = {"a": (0.3, 1.0), "b": (0.2, 3.0), "c": (0.1, 2.0)}
    nothing = dict.fromkeys(keys)
    judged = {name: {**nothing, "action_error": error, "fitted_q": value} for name, (error, value) in recorded.items()}
    assert ranking(judged) == ["b", "c", "a"]
    assert ranking({name: {**score, "fitted_q": None} for name, score in judged.items()}) == ["c", "b", "a"]
