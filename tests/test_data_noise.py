"""Noise dimensions and cut variants of datasets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data_prepare import Project, ids

from dynarep.data.card import make_card
from dynarep.data.noise import Kind, NoiseProcess, draw_noise, episode_generator
from dynarep.data.schema import DataError
from dynarep.data.shards import read_index

AR1 = {"kind": "ar1", "dims": 5, "rho": 0.9, "seed": 3}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    result = Project(tmp_path)
    result.recorded("walk", [3.0, 9.0, 1.0, 7.0], card={"env": "Hopper-v4"})
    return result


@pytest.mark.parametrize(("kind", "rho"), [("white", 0.0), ("ar1", 0.95)])
def test_noise_is_stationary_with_unit_variance_and_its_correlation(kind: Kind, rho: float) -> None:
    drawn = np.stack([draw_noise(kind, 40, 50, episode_generator(0, f"e-{i}"), rho=rho) for i in range(400)])
    assert drawn.shape == (400, 40, 50)
    assert drawn.dtype == np.float32
    for row in (0, 1, 39):
        assert abs(drawn[:, row].mean()) < 0.03
        assert abs(drawn[:, row].var() - 1) < 0.05
    for lag in (1, 5):
        assert abs((drawn[:, :-lag] * drawn[:, lag:]).mean() - rho**lag * (rho > 0)) < 0.02
    assert abs((drawn[..., 0] * drawn[..., 1]).mean()) < 0.05


@pytest.mark.parametrize(("kind", "rho"), [("white", 0.0), ("ar1", 0.95)])
def test_noise_step_by_step_is_the_noise_of_an_episode(kind: Kind, rho: float) -> None:
    process = NoiseProcess(kind, 7, rho)
    for episode in ("a", "b"):
        process.reset(episode_generator(4, episode))
        stepped = np.stack([process.step() for _ in range(30)])
        np.testing.assert_array_equal(stepped, draw_noise(kind, 30, 7, episode_generator(4, episode), rho=rho))
    assert not np.array_equal(episode_generator(4, "a").random(3), episode_generator(4, "b").random(3))
    assert not np.array_equal(episode_generator(4, "a").random(3), episode_generator(5, "a").random(3))


@pytest.mark.parametrize(("values", "message"), [((0, 0.5), "dims: found 0"), ((3, 1.0), "rho: found 1.0")])
def test_impossible_noise_is_refused(values: tuple[int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseProcess("ar1", *values)


def test_a_card_appends_noise_to_every_state_and_nothing_else_changes(project: Project) -> None:
    plain = project.prepare("walk")
    project.card("noisy", **{"from": "walk", "noise": AR1})
    noisy = project.prepare("noisy")
    assert noisy.spec.observation_dim == plain.spec.observation_dim + 5
    assert noisy.fingerprint != plain.fingerprint
    assert ids(noisy) == ids(plain)
    for a, b in zip(noisy.episodes, plain.episodes, strict=True):
        np.testing.assert_array_equal(a.observations[:, :3], b.observations)
        np.testing.assert_array_equal(a.actions, b.actions)
        expected = draw_noise("ar1", b.length + 1, 5, episode_generator(3, b.id), rho=0.9)
        np.testing.assert_array_equal(a.observations[:, 3:], expected)
    assert read_index(project.out / "noisy")["provenance"]["cards"]["noisy"]["noise"] == {**AR1, "deviation": 1.0}
    project.card("loud", **{"from": "walk", "noise": {**AR1, "deviation": 2.0}})
    loud = project.prepare("loud")
    assert read_index(project.out / "loud")["provenance"]["cards"]["loud"]["noise"] == {**AR1, "deviation": 2.0}
    assert loud.fingerprint != noisy.fingerprint
    for a, b in zip(loud.episodes, noisy.episodes, strict=True):
        np.testing.assert_array_equal(a.observations[:, :3], b.observations[:, :3])
        np.testing.assert_array_equal(a.observations[:, 3:], 2 * b.observations[:, 3:])
    project.card("walk", path="data/walk.npz", format="arrays", env="Hopper-v4", noise=AR1)
    assert project.prepare("walk").fingerprint == noisy.fingerprint
    project.card("noisy", **{"from": "walk", "noise": {**AR1, "seed": 4}})
    assert project.prepare("noisy").spec.observation_dim == 13
    project.card("white", path="data/walk.npz", format="arrays", noise={"kind": "white", "dims": 2})
    assert project.prepare("white").spec.observation_dim == 5


def test_noise_goes_through_a_stride_and_over_one(project: Project) -> None:
    project.card("walk", path="data/walk.npz", format="arrays", noise=AR1, stride=2)
    dataset = project.prepare("walk")
    noise = draw_noise("ar1", 8, 5, episode_generator(3, "walk-000003"), rho=0.9)
    np.testing.assert_array_equal(dataset.episodes[3].current[:, 3:], noise[[0, 2, 4, 6]])
    np.testing.assert_array_equal(dataset.episodes[3].successors[:, 3:], noise[[1, 3, 5, 7]])
    project.card("again", **{"from": "walk", "noise": {"kind": "ar1", "dims": 1, "rho": 0.999}})
    again = project.prepare("again").episodes[3]
    assert np.abs(again.successors[:, -1] - again.current[:, -1]).max() < 0.3


def test_a_cut_variant_has_no_episode_of_a_higher_return(project: Project) -> None:
    whole = project.prepare("walk")
    project.card("cut", **{"from": "walk", "max_return": 7})
    cut = project.prepare("cut")
    assert ids(cut) == ["walk-000000", "walk-000002", "walk-000003"]
    assert cut.returns == [3.0, 1.0, 7.0]
    assert cut.fingerprint != whole.fingerprint
    assert read_index(project.out / "cut")["provenance"]["cards"]["cut"]["max_return"] == 7
    project.card("best", path="data/walk.npz", format="arrays", max_return=7.5, top=1)
    assert ids(project.prepare("best")) == ["best-000003"]
    project.card("cut", **{"from": "walk", "max_return": 0.5})
    with pytest.raises(DataError, match=r"card cut: max_return: found 0.5, expected at least 1, the lowest return"):
        project.prepare("cut")
    project.recorded("silent", [0.0], drop=("rewards",))
    project.card("cut", **{"from": "silent", "max_return": 1})
    with pytest.raises(DataError, match="card cut: max_return: 1 chooses by return, but the episodes have no rewards"):
        project.prepare("cut")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"noise": {"kind": "pink", "dims": 2}}, "noise.kind: found 'pink'"),
        ({"noise": {"kind": "white", "dims": 0}}, "noise.dims: found 0"),
        ({"noise": {"kind": "ar1", "dims": 2, "rho": 1}}, "noise.rho: found 1"),
        ({"noise": {"kind": "white", "dims": 2, "rho": 0.5}}, "noise.rho: found 0.5 with kind white"),
        (
            {"noise": {"kind": "white", "dims": 2, "size": 1}},
            "noise.size: unknown key, expected one of kind, dims, rho, deviation, seed",
        ),
        ({"noise": {"kind": "white", "dims": 2, "deviation": 0}}, "noise.deviation: found 0"),
        ({"noise": {"kind": "white", "dims": 2, "deviation": float("inf")}}, "noise.deviation: found inf"),
        ({"max_return": float("nan")}, "max_return: found nan"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        make_card("robot", {"from": "walk", **values}, "card")


def test_a_card_with_shards_takes_them_as_they_are() -> None:
    for values in ({"noise": {"kind": "white", "dims": 2}}, {"max_return": 0}):
        with pytest.raises(DataError, match="write a card with from: robot that selects"):
            make_card("robot", {"shards": "x", **values}, "card")
