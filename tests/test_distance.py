import math

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree
from torch import Tensor

from dynarep.configs.params import validate
from dynarep.pipeline.methods.rewards.ailot import intent_cost
from dynarep.pipeline.methods.rewards.segment import SegmentConfig, segment_bounds
from dynarep.pipeline.search import Matches, SearchConfig, hard_coupling, label, with_lookahead
from dynarep.pipeline.transport import pad_with_last


def line(*points: float) -> Tensor:
    return torch.tensor(points, dtype=torch.float32)[:, None]


def episodes(*lengths: int, dim: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, dim, generator=generator) for length in lengths]


def label_by(c: SearchConfig, agent: Tensor, n: Tensor, expert: Tensor, m: Tensor, unit: Tensor, dim: int) -> Matches:
    """``label`` within the segments of the configuration, if it has any."""
    bounds = segment_bounds(n, m, agent.shape[1], c.segments) if isinstance(c, SegmentConfig) else None
    return label(agent, n, expert, m, unit, c, dim, bounds)


def match(
    agent: Tensor, expert: Tensor, *, calibration: float = 1.0, action_dim: int = 3, **settings: object
) -> Matches:
    kind = SegmentConfig if "segments" in settings else SearchConfig
    lengths = (torch.tensor([len(x)]) for x in (agent, expert))
    n, m = lengths
    c = validate(kind, settings, "method")
    return label_by(c, agent[None], n, expert[None], m, torch.tensor([calibration]), action_dim)


def test_worked_example() -> None:
    found = match(line(0.0, 1.2, 7.0, 2.5), line(0.0, 1.0, 2.0, 3.0), scale=4.0, temperature=0.5, calibration=2.0)
    assert found.steps.tolist() == [[0, 1, 3, 2]]  # of the two at the same distance the first
    paid = [0.0, 2 * 0.2**2, 2 * 4.0**2, 2 * 0.5**2]
    torch.testing.assert_close(found.rewards, torch.tensor([[4.0 * math.exp(-0.5 * x) for x in paid]]))


def test_published_form() -> None:
    """Alpha exp(-beta d / |A|), d the distance of (s, s'), in the units of the observations."""
    agent, expert = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.zeros(5, 2)
    published = {"scale": 1.0, "temperature": 0.5, "power": 1, "units": "raw", "lookahead": 1}
    found = match(agent, expert, calibration=9.0, **published, divide_by_action_dim=True).rewards
    expected = torch.tensor([[math.exp(-0.5 * 5.0 / 3), math.exp(-0.5 * math.sqrt(50.0) / 3)]])
    torch.testing.assert_close(found, expected)
    undivided = match(agent, expert, calibration=9.0, **published).rewards
    torch.testing.assert_close(undivided, expected**3)


def test_a_search_tree_finds_the_same() -> None:
    agent, expert = episodes(200, 300)
    distance, steps = KDTree(np.hstack([expert[:-1], expert[1:]])).query(np.hstack([agent[:-1], agent[1:]]))
    found = match(agent[:-1], expert[:-1], lookahead=1, power=1, units="raw", temperature=0.5)
    inner = (steps < 298) & (np.arange(199) < 198) & (found.steps[0].numpy() < 298)  # the last pairs differ
    assert inner.sum() > 190
    assert (found.steps[0].numpy() == steps)[inner].all()
    np.testing.assert_allclose(found.rewards[0][inner], 5.0 * np.exp(-0.5 * distance[inner]), rtol=1e-5)


@pytest.mark.parametrize("lookahead", [0, 1, 4])
@pytest.mark.parametrize("settings", [{}, {"segments": 1}, {"segments": 7}, {"segments": 1000}, {"power": 1}])
def test_own_episode_pays_nothing(lookahead: int, settings: dict[str, object]) -> None:
    (agent,) = episodes(20)
    found = match(agent, agent, lookahead=lookahead, **settings)
    assert found.steps.tolist() == [list(range(20))]
    assert (found.rewards == 5.0).all()


def test_where_points_lie_does_not_matter() -> None:
    agent, expert = episodes(30, 40)
    one, other = match(agent, expert), match(agent + 1000.0, expert + 1000.0)
    assert torch.equal(one.steps, other.steps)
    torch.testing.assert_close(one.rewards, other.rewards, rtol=1e-3, atol=0.0)


def test_units() -> None:
    """Calibrated rewards do not know the scale of the space, raw ones do not know the calibration."""
    agent, expert = episodes(30, 40)
    one = match(agent, expert, calibration=0.5).rewards
    torch.testing.assert_close(match(10 * agent, 10 * expert, calibration=0.005).rewards, one)
    raw = match(agent, expert, calibration=0.5, units="raw").rewards
    assert torch.equal(match(agent, expert, calibration=7.0, units="raw").rewards, raw)
    torch.testing.assert_close(raw, 5.0 * (one / 5.0) ** 2)


@pytest.mark.parametrize("lookahead", [0, 1, 3])
def test_a_step_pays_the_cheapest_of_ailots_costs(lookahead: int) -> None:
    agent, expert = episodes(25, 40)
    cheapest = intent_cost(agent[None], expert[None], lookahead).amin(2)
    cheapest /= 1 if lookahead else 2  # AILOT's formula counts the state twice without lookahead
    found = match(agent, expert, lookahead=lookahead, temperature=0.1).rewards
    torch.testing.assert_close(found, 5.0 * torch.exp(-0.1 * cheapest))


def test_lookahead_stays_at_the_last_state() -> None:
    found = with_lookahead(line(0.0, 1.0, 2.0)[None], 2)
    assert found.tolist() == [[[0.0, 2.0], [1.0, 2.0], [2.0, 2.0]]]


@pytest.mark.parametrize(
    ("lengths", "segments", "bounds"),
    [
        ((4, 6), 1, [(0, 6)] * 4),
        ((4, 6), 2, [(0, 3), (0, 3), (3, 6), (3, 6)]),
        ((4, 6), 4, [(0, 2), (1, 3), (3, 5), (4, 6)]),  # steps 1 and 4 belong to two parts each
        ((4, 3), 10, [(0, 1), (0, 1), (1, 2), (2, 3)]),
        ((3, 3), 3, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_segments_by_hand(lengths: tuple[int, int], segments: int, bounds: list[tuple[int, int]]) -> None:
    first, end = segment_bounds(torch.tensor(lengths[:1]), torch.tensor(lengths[1:]), lengths[0] + 2, segments)
    assert list(zip(first[0].tolist(), end[0].tolist(), strict=True)) == bounds + 2 * bounds[-1:]


def test_segments_are_never_empty_and_leave_nothing_out() -> None:
    generator = torch.Generator().manual_seed(0)
    agent, expert = (torch.randint(1, 200, (500,), generator=generator) for _ in range(2))
    for segments in (1, 2, 3, 10, 64):
        first, end = segment_bounds(agent, expert, 200, segments)
        assert (first >= 0).all()
        assert (first < end).all()
        assert (end <= expert[:, None]).all()
        assert (first[:, 0] == 0).all()
        enough = agent >= segments  # then every part has a step of the agent
        assert (end[enough, -1] == expert[enough]).all()
        assert (first[enough, 1:] <= end[enough, :-1]).all()


def test_only_segments_notice_a_reversed_expert() -> None:
    path = line(*range(20))
    assert (match(path, path.flip(0)).rewards == 5.0).all()
    found = match(path, path.flip(0), segments=4, temperature=0.01)
    far = torch.tensor([15.0, 14, 13, 12, 11, 5, 4, 3, 2, 1])  # from 0..4 to 15..19, from 5..9 to 10..14
    torch.testing.assert_close(found.rewards[0, :10], 5.0 * torch.exp(-0.01 * far.square()))
    torch.testing.assert_close(found.rewards, found.rewards.flip(1))


def test_one_segment_is_the_nearest_of_all() -> None:
    agent, expert = episodes(30, 17)
    one, other = match(agent, expert, segments=1), match(agent, expert)
    assert torch.equal(one.rewards, other.rewards)
    assert torch.equal(one.steps, other.steps)
    assert (match(agent, expert, segments=5).rewards <= other.rewards).all()


@pytest.mark.parametrize("settings", [{}, {"lookahead": 3}, {"segments": 4, "lookahead": 1}])
def test_a_batch_is_its_members_and_padding_earns_nothing(settings: dict[str, object]) -> None:
    agents, experts = episodes(12, 30, 1), episodes(25, 9, 14)
    (agent, n), (expert, m) = pad_with_last(agents), pad_with_last(experts)
    c = validate(SegmentConfig if "segments" in settings else SearchConfig, settings, "method")
    found = label_by(c, agent, n, expert, m, torch.tensor([1.0, 2.0, 3.0]), 0)
    for i, (x, y) in enumerate(zip(agents, experts, strict=True)):
        alone = match(x, y, calibration=i + 1.0, **settings)
        torch.testing.assert_close(found.rewards[i, : len(x)], alone.rewards[0])
        assert torch.equal(found.steps[i, : len(x)], alone.steps[0])
        assert (found.rewards[i, len(x) :] == 0).all()


@pytest.mark.parametrize("settings", [{}, {"segments": 3}])
def test_padding_of_the_expert_is_never_nearest(settings: dict[str, object]) -> None:
    agent, expert = episodes(30, 9)
    padded = torch.cat([expert, agent])[None]
    c = validate(SegmentConfig if settings else SearchConfig, settings, "method")
    found = label_by(c, agent[None], torch.tensor([30]), padded, torch.tensor([9]), torch.ones(1), 0)
    assert torch.equal(found.steps, match(agent, expert, **settings).steps)


def test_hard_coupling() -> None:
    coupling = hard_coupling(torch.tensor([[2, 0, 2, 1], [1, 1, 0, 0]]), torch.tensor([4, 2]), 3)
    assert coupling[0].tolist() == [[0, 0, 0.25], [0.25, 0, 0], [0, 0, 0.25], [0, 0.25, 0]]
    assert coupling[1].tolist() == [[0, 0.5, 0], [0, 0.5, 0], [0, 0, 0], [0, 0, 0]]
