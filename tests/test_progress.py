"""Progress along a demonstration, on lines and corners whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynarep.pipeline.methods.rewards.progress import Progress, ProgressConfig
from dynarep.pipeline.steps_to_go import steps_to_go

LINE = torch.arange(11.0).unsqueeze(1) * torch.tensor([[0.5, 0.0]])
"""From 0 to 5 along the first axis in ten steps of 0.5."""


def label(agent: Tensor, expert: Tensor, lookahead: int = 1, length: int | None = None) -> Tensor:
    method = Progress.__new__(Progress)
    torch.nn.Module.__init__(method)
    method.config = ProgressConfig(lookahead=lookahead)
    lengths = torch.tensor([length or len(agent)])
    return method.against(agent[None], lengths, expert[None], torch.tensor([len(expert)]), torch.ones(1)).rewards[0]


def test_steps_to_go_are_the_steps_left_and_the_way_to_the_demonstration() -> None:
    points = torch.tensor([[0.0, 0.0], [2.5, 0.0], [5.0, 0.0], [2.5, 1.5]])
    value, steps = steps_to_go(points[None], LINE[None], torch.tensor([11]))
    assert steps.tolist() == [[0, 5, 10, 5]]
    torch.testing.assert_close(value, torch.tensor([[10.0, 5.0, 0.0, 8.0]]))


def test_the_demonstration_itself_makes_one_step_per_step() -> None:
    torch.testing.assert_close(label(LINE, LINE), torch.cat([torch.ones(10), torch.zeros(1)]))
    torch.testing.assert_close(label(LINE, LINE, 4)[:7], torch.ones(7))
    torch.testing.assert_close(label(LINE, LINE, 4)[7:], torch.tensor([0.75, 0.5, 0.25, 0.0]))


def test_going_back_and_leaving_cost_and_standing_pays_nothing() -> None:
    assert label(LINE.flip(0), LINE)[:-1].max() == -1.0
    away = torch.stack([LINE[5], LINE[5] + torch.tensor([0.0, 0.5]), LINE[5] + torch.tensor([0.0, 1.0])])
    torch.testing.assert_close(label(away, LINE), torch.tensor([-1.0, -1.0, 0.0]))
    assert not label(LINE[5].expand(4, 2), LINE).any()


def test_a_jump_between_parts_of_the_demonstration_is_worth_one_step_at_most() -> None:
    """Between out and back, nearer to the one, then to the other: ten steps of the way lie between the two states."""
    out = torch.stack([torch.arange(11.0), torch.zeros(11)], 1)
    way = torch.cat([out, out.flip(0) + torch.tensor([0.0, 2.0])])
    across = torch.tensor([[5.0, 0.9], [5.0, 1.1], [5.0, 0.9], [5.0, 0.9]])
    torch.testing.assert_close(label(across, way)[:3], torch.tensor([1.0, -1.0, 0.0]))


def test_the_unit_of_the_space_does_not_matter() -> None:
    torch.testing.assert_close(label(LINE * 70, LINE * 70, 3), label(LINE, LINE, 3))


def test_padding_pays_nothing_and_is_not_looked_ahead_to() -> None:
    padded = torch.cat([LINE[:4], LINE[3:4].expand(3, 2)])
    found = label(padded, LINE, 2, length=4)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0]))


def test_around_a_wall_the_way_of_the_demonstration_counts() -> None:
    """Out and back along a wall: the end is near as the crow flies, and V knows that it is far."""
    out = torch.stack([torch.arange(11.0), torch.zeros(11)], 1)
    back = torch.stack([torch.arange(10.0, -1.0, -1.0), torch.full((11,), 2.0)], 1)
    way = torch.cat([out, back])
    value, _ = steps_to_go(torch.tensor([[[0.0, 0.0], [9.0, 0.0], [9.0, 2.0]]]), way[None], torch.tensor([22]))
    assert value[0, 0] > value[0, 1] > value[0, 2]


def test_a_demonstration_that_never_moves_is_refused() -> None:
    with pytest.raises(ValueError, match="never moves"):
        steps_to_go(LINE[None], torch.zeros(1, 5, 2), torch.tensor([5]))
