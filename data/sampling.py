"""Which transitions, goals and intents to look at: index functions over episode bounds, on the device, vectorised."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def uniform(count: int, shape: tuple[int, ...], generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Independent uniform indices in [0, count), int64 of the given shape."""
    return torch.randint(count, shape, generator=generator, device=device)


def uniform_of(rows: Sequence[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """Independent uniform choices of each replica from rows of its own: R tensors (N_r,) -> (R, count)."""
    return torch.stack([own[uniform(len(own), (count,), generator, own.device)] for own in rows])


def goals(
    index: Tensor,
    last: Tensor,
    count: int,
    *,
    p_random: float,
    p_trajectory: float,
    p_current: float,
    generator: torch.Generator,
    final: bool = False,
) -> Tensor:
    """Goals for transitions, by ICVF's mixture (Ghosh et al. 2023, arXiv 2304.04782, appendix).

    A goal is the state s of the row that the returned index points to. With probability ``p_random`` it is any row;
    with ``p_trajectory`` a row between this one and the last of its episode, round(u i + (1 - u) last), u ~ U(0, 1);
    with ``p_current`` the row itself. A goal counts as reached where indices are equal.

    With ``final`` the states that episodes end in can be goals, too: N + i stands for the state after row i. Random goals are
    then the states after rows, and those of the trajectory go on to the state after its last row.

    Args:
        index: rows, int64 of any shape.
        last: last row of each row's episode, same shape.
        count: number of rows N.
        p_random: overall probability of a random goal.
        p_trajectory: overall probability of a goal from the rest of the episode.
        p_current: overall probability of the current state.
        generator: on the device of ``index``.
        final: whether the states after the last rows can be goals.

    Returns:
        Goal rows, int64, same shape; with ``final`` up to 2 N - 1.

    Raises:
        ValueError: if the probabilities are negative or do not sum to 1.
    """
    probabilities = (p_random, p_trajectory, p_current)
    if min(probabilities) < 0 or not math.isclose(sum(probabilities), 1.0, abs_tol=1e-6):
        raise ValueError(f"p_random, p_trajectory, p_current: found {probabilities}, expected to sum to 1")
    kind, u = torch.rand((2, *index.shape), generator=generator, device=index.device).unbind(0)
    # The distance is rounded, not the row: row numbers beyond 2^24 are not exact in float32.
    ahead = index + ((last + final - index) * u).round().long()
    anywhere = uniform(count, tuple(index.shape), generator, index.device)
    if final:
        ahead, anywhere = torch.where(ahead > last, last + count, ahead), anywhere + count
    return torch.where(kind < p_random, anywhere, torch.where(kind < p_random + p_trajectory, ahead, index))


def goal_and_intent(
    index: Tensor,
    last: Tensor,
    count: int,
    *,
    p_random: float,
    p_trajectory: float,
    p_current: float,
    p_same: float,
    generator: torch.Generator,
    final: bool = False,
) -> tuple[Tensor, Tensor]:
    """An outcome g and an intent z for each transition, both drawn by ``goals``.

    With probability ``p_same`` the outcome is the intent's own goal, g := z, else the two are independent.

    Returns:
        Rows (g, z), int64, each of the shape of ``index``.

    Raises:
        ValueError: if the probabilities of ``goals`` do not sum to 1, or ``p_same`` is outside [0, 1].
    """
    if not 0 <= p_same <= 1:
        raise ValueError(f"p_same: found {p_same}, expected a probability")

    def draw() -> Tensor:
        return goals(
            index,
            last,
            count,
            p_random=p_random,
            p_trajectory=p_trajectory,
            p_current=p_current,
            generator=generator,
            final=final,
        )

    z, independent = draw(), draw()
    same = torch.rand(index.shape, generator=generator, device=index.device) < p_same
    return torch.where(same, z, independent), z


def lies_ahead(index: Tensor, last: Tensor, count: int, goal: Tensor) -> Tensor:
    """Whether a goal, as ``goals`` codes it, comes later in the row's own episode; not where it is the row itself: bool."""
    row = torch.where(goal < count, goal, goal - count + 1)
    return (row > index) & (row <= torch.where(goal < count, last, last + 1))


def window(index: Tensor, last: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The rows that follow each row within its episode.

    Args:
        index: rows, int64 of any shape.
        last: last row of each row's episode, same shape.
        steps: H, at least 1.

    Returns:
        Rows (*, H), from each one on, in whose place the episode's last row stands beyond its end; and 1.0 where a row is
        one of the episode, else 0.0, (*, H).
    """
    rows = index.unsqueeze(-1) + torch.arange(steps, device=index.device)
    end = last.unsqueeze(-1)
    return torch.minimum(rows, end), (rows <= end).float()
