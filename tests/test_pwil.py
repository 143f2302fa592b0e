"""PWIL: the greedy transport by hand and against a loop, and what steps are paid in a small environment."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dynarep.configs.params import ParamsError
from dynarep.pipeline.learn import learn
from dynarep.pipeline.methods.learners.pwil import greedy_reward, greedy_step
from dynarep.pipeline.playing.replay import Replay
from tests.test_sac import acting, dataset, run

torch.set_num_threads(1)


def test_a_step_by_hand() -> None:
    distance, left = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.5, 0.1, 0.3])
    cost, rest = greedy_step(distance, left, 0.25)
    assert float(cost) == pytest.approx(0.1 * 1 + 0.15 * 2)
    torch.testing.assert_close(rest, torch.tensor([0.5, 0.0, 0.15]))
    cost, rest = greedy_step(distance, rest, 1.0)
    assert float(cost) == pytest.approx(0.15 * 2 + 0.5 * 3 + 0.35 * 3), "what finds no atom pays the largest distance"
    assert rest.sum() == 0
    assert float(greedy_reward(torch.tensor(0.01), 4, 5.0, 2.0, 100)) == pytest.approx(5 * math.exp(-1.0))


def test_an_episode_is_coupled_as_a_loop_would() -> None:
    rng = np.random.default_rng(0)
    distances, atoms = rng.uniform(size=(12, 5)), np.full(5, 1 / 5)
    left = torch.full((5,), 0.2, dtype=torch.float64)
    for row in distances:
        mass, by_hand = 1 / 12, 0.0
        while mass > 1e-12:
            near = min((j for j in range(5) if atoms[j] > 1e-12), key=lambda j: row[j])
            moved = min(mass, atoms[near])
            by_hand, mass, atoms[near] = by_hand + moved * row[near], mass - moved, atoms[near] - moved
        cost, left = greedy_step(torch.from_numpy(row), left, 1 / 12)
        assert float(cost) == pytest.approx(by_hand, abs=1e-9)
    assert left.abs().max() < 1e-9


def test_steps_are_paid_as_they_come(tmp_path: Path) -> None:
    """What the table keeps is what the greedy transport of each episode says, made anew."""
    shown = dataset(tmp_path, "shown")
    made = acting("pwil", demonstrations="shown", horizon=20, environment={"environments": 2})
    seen: list[Replay] = []
    init = Replay.__init__

    def keeping(self: Replay, *arguments: object, **options: object) -> None:
        init(self, *arguments, **options)  # type: ignore[arg-type]
        seen.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replay, "__init__", keeping)
        learn(made, None, shown, None, None, run(tmp_path))
    rows = seen[0].table.gather(torch.arange(0, 40, 2))  # the first episode of the first environment
    atoms = torch.cat(
        [torch.cat([torch.from_numpy(e.current), torch.from_numpy(e.actions)], -1) for e in shown.episodes]
    )
    unit = atoms.std(0, correction=0)
    left = torch.full((len(atoms),), 1 / len(atoms))
    assert rows.rewards is not None
    for point, paid in zip(torch.cat([rows.observations, rows.actions], -1), rows.rewards, strict=True):
        cost, left = greedy_step(torch.linalg.vector_norm((point - atoms) / unit, dim=-1), left, 1 / 20)
        assert float(paid) == pytest.approx(float(greedy_reward(cost, 3, 5.0, 5.0, 20)), rel=1e-3)


def test_it_reads_no_dataset() -> None:
    with pytest.raises(
        ParamsError, match=r"learn\.name\.dataset: found 'data', expected none; pwil reads its own steps"
    ):
        acting("pwil", demonstrations="shown", dataset="data")
