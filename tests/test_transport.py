import math
from typing import Any

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from dynarep.pipeline import transport
from dynarep.pipeline.transport import Transport, mean_cost, pad_with_last, sinkhorn, uniform_masses


def clouds(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(columns, 3, generator=generator, dtype=torch.float64) + 0.5
    return torch.cdist(x, y).square().to(dtype)


def masses(size: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    return (values / values.sum()).to(dtype)


def solve(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: float,
    iterations: int = 1000,
    tolerance: float = 0.0,
    relaxation: float = 1.0,
) -> Transport:
    epsilons = torch.tensor([epsilon], dtype=cost.dtype)
    numbers = {"max_iterations": iterations, "tolerance": tolerance, "relaxation": relaxation}
    return sinkhorn(cost[None], a[None], b[None], epsilons, **numbers)  # type: ignore[arg-type]


def log_domain(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Sinkhorn in double precision, columns first, started at zero row potentials per unit of mass."""
    cost, a, b = cost.double(), a.double(), b.double()
    f = torch.zeros_like(a)
    g = torch.zeros_like(b)
    for _ in range(iterations):
        g = -epsilon * torch.logsumexp(a.log()[:, None] + (f[:, None] - cost) / epsilon, 0)
        f = -epsilon * torch.logsumexp(b.log() + (g - cost) / epsilon, 1)
    return a[:, None] * b * torch.exp((f[:, None] + g - cost) / epsilon)


@pytest.mark.parametrize(
    ("rows", "columns", "epsilon"), [(30, 40, 0.5), (40, 30, 0.1), (1, 7, 0.1), (7, 1, 0.1), (1, 1, 1.0)]
)
def test_equals_pot(rows: int, columns: int, epsilon: float) -> None:
    cost = clouds(rows, columns, dtype=torch.float64)
    a, b = masses(rows, 1, torch.float64), masses(columns, 2, torch.float64)
    expected = ot.sinkhorn(a, b, cost, epsilon, method="sinkhorn_log", numItermax=100_000, stopThr=1e-13)
    found = solve(cost, a, b, epsilon, 50_000, 1e-11)
    torch.testing.assert_close(found.coupling[0], expected, atol=1e-9, rtol=1e-6)
    single = solve(cost.float(), a.float(), b.float(), epsilon, 5000, 1e-6)
    torch.testing.assert_close(single.coupling[0].double(), expected, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("fraction", [0.05, 0.01, 1e-3, 1e-4])
@pytest.mark.parametrize("iterations", [1, 2, 35])
def test_iterates_are_those_of_the_log_domain(fraction: float, iterations: int) -> None:
    cost, a, b = clouds(60, 90), masses(60, 1), 3.0 * masses(90, 2)
    epsilon = fraction * float(cost.mean())
    found = solve(cost, a, b, epsilon, iterations).coupling[0].double()
    expected = log_domain(cost, a, b, epsilon, iterations)
    error = ((found - expected) * cost).sum(1).abs() / (expected * cost).sum(1)
    assert error.max() < (1e-5 if fraction >= 0.01 else 2e-3)


def test_single_precision_is_enough_for_long_episodes() -> None:
    cost, a, b = clouds(400, 500), masses(400, 1), masses(500, 2)
    for fraction in (0.01, 0.05):
        epsilon = fraction * float(cost.mean())
        paid = (solve(cost, a, b, epsilon, 100).coupling[0] * cost).sum(1)
        expected = (log_domain(cost, a, b, epsilon, 100) * cost).sum(1)
        assert ((paid - expected).abs() / expected).max() < 1e-5


def test_large_epsilon_gives_the_product_of_the_masses() -> None:
    cost, a, b = clouds(20, 30), masses(20, 1), masses(30, 2)
    found = solve(cost, a, b, 1e6, 10)
    torch.testing.assert_close(found.coupling[0], a[:, None] * b, rtol=1e-4, atol=0.0)


def test_identical_points_pay_nothing_at_small_epsilon() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    cost = torch.cdist(x, x[order]).square()
    mass = torch.full((50,), 1 / 50)
    found = solve(cost, mass, mass, 1e-3, 500)
    assert (found.coupling[0] * cost).sum() < 1e-5
    assert (found.coupling[0].argmax(0) == order).all()


def test_permuting_points_permutes_the_coupling() -> None:
    cost, a, b = clouds(20, 30), masses(20, 1), masses(30, 2)
    rows, columns = torch.randperm(20), torch.randperm(30)
    expected = solve(cost, a, b, 0.05, 50).coupling[0][rows][:, columns]
    found = solve(cost[rows][:, columns], a[rows], b[columns], 0.05, 50).coupling[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)


positive = st.floats(2**-12, 1.0, width=32)


@settings(max_examples=50, deadline=None)
@given(
    a=arrays(np.float32, st.integers(1, 12), elements=st.one_of(st.just(0.0), positive)),
    b=arrays(np.float32, st.integers(1, 12), elements=st.one_of(st.just(0.0), positive)),
    log_epsilon=st.floats(-12.0, 6.0),
    iterations=st.integers(1, 30),
)
def test_rows_are_exact_and_the_error_is_honest(
    a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], log_epsilon: float, iterations: int
) -> None:
    a[0], b[0] = max(a[0], 0.5), max(b[0], 0.5)
    rows, columns = torch.from_numpy(a), torch.from_numpy(b)
    found = solve(clouds(len(a), len(b)), rows, columns, math.exp(log_epsilon), iterations)
    coupling = found.coupling[0]
    assert coupling.isfinite().all()
    assert (coupling >= 0).all()
    torch.testing.assert_close(coupling.sum(1), rows, rtol=2e-6, atol=0.0)
    assert (coupling[:, columns == 0] == 0).all()
    shares = coupling.sum(0) / rows.sum() - columns / columns.sum()
    assert float(found.marginal_error) == pytest.approx(float(shares.abs().sum()), abs=3e-6)


def test_the_total_of_the_columns_does_not_matter() -> None:
    cost, a, b = clouds(20, 30), masses(20, 1), masses(30, 2)
    one, other = solve(cost, a, b, 0.05, 7), solve(cost, a, 0.3 * b, 0.05, 7)
    torch.testing.assert_close(one.coupling, other.coupling, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(one.marginal_error, other.marginal_error, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("at_once", "relaxation"), [(False, 1.0), (True, 1.0), (False, 1.7)])
def test_padding_and_company_change_nothing(at_once: bool, relaxation: float) -> None:
    """Problems of other sizes that converge at other times, padded with rubbish, give what each gives alone."""
    sizes, epsilons = [(30, 50), (40, 20), (7, 50), (40, 50)], torch.tensor([0.02, 1.0, 0.05, 0.2])
    cost = torch.full((4, 40, 50), torch.nan)
    a, b = torch.zeros(4, 40), torch.zeros(4, 50)
    for i, (n, m) in enumerate(sizes):
        cost[i, :n, :m], a[i, :n], b[i, :m] = clouds(n, m, i), masses(n, i), masses(m, i + 10)
    found = (
        transport._solve(cost, a, b, epsilons, 300, 1e-3, relaxation)
        if at_once
        else sinkhorn(cost, a, b, epsilons, max_iterations=300, tolerance=1e-3, relaxation=relaxation)
    )
    assert len(set(found.iterations.tolist())) >= 3
    for i, (n, m) in enumerate(sizes):
        alone = solve(cost[i, :n, :m], a[i, :n], b[i, :m], float(epsilons[i]), 300, 1e-3, relaxation)
        assert found.iterations[i] == alone.iterations[0]
        torch.testing.assert_close(found.coupling[i, :n, :m], alone.coupling[0], rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(found.marginal_error[i], alone.marginal_error[0], rtol=1e-2, atol=1e-6)
        assert found.coupling[i, n:].sum() == found.coupling[i, :, m:].sum() == 0


@pytest.mark.parametrize(("epsilon", "share"), [(0.05, 0.5), (0.2, 0.7), (2.0, 2.0)])
@pytest.mark.parametrize("seed", range(4))
def test_over_relaxation_reaches_the_same_coupling_sooner(epsilon: float, share: float, seed: int) -> None:
    sides = [masses(size, seed + size, torch.float64) for size in (40, 60)]
    cost = clouds(40, 60, seed, torch.float64)
    plain, relaxed = (solve(cost, *sides, epsilon, 50_000, 1e-8, relaxation) for relaxation in (1.0, 1.7))
    assert max(float(plain.marginal_error), float(relaxed.marginal_error)) < 1e-8
    torch.testing.assert_close(relaxed.coupling, plain.coupling, rtol=0.0, atol=1e-8)
    assert float(relaxed.iterations) <= share * float(plain.iterations) + transport.CHECK_EVERY


def test_stops_at_the_tolerance() -> None:
    cost, a, b = clouds(30, 40), masses(30, 1), masses(40, 2)
    found = solve(cost, a, b, 0.5, 1000, 1e-3)
    assert float(found.marginal_error) < 1e-3
    assert int(found.iterations) < 1000
    before = solve(cost, a, b, 0.5, int(found.iterations) - transport.CHECK_EVERY)
    assert float(before.marginal_error) >= 1e-3
    same = solve(cost, a, b, 0.5, int(found.iterations))
    torch.testing.assert_close(found.coupling, same.coupling)


def test_epsilon_far_too_small_stays_finite_and_says_so() -> None:
    cost, a, b = clouds(100, 120), masses(100, 1), masses(120, 2)
    found = solve(cost, a, b, 1e-7 * float(cost.mean()), 50)
    assert found.coupling.isfinite().all()
    torch.testing.assert_close(found.coupling[0].sum(1), a, rtol=1e-5, atol=0.0)
    assert float(found.marginal_error) > 0.1
    assert int(found.iterations) == 50


def test_no_denormal_numbers() -> None:
    cost, a, b = clouds(100, 120), masses(100, 1), masses(120, 2)
    coupling = solve(cost, a, b, 1e-3 * float(cost.mean()), 50).coupling
    assert coupling.min() >= torch.finfo(torch.float32).tiny


def test_inputs_stay_as_they_are() -> None:
    cost, a, b = clouds(10, 12), masses(10, 1), masses(12, 2)
    copies = cost.clone(), a.clone(), b.clone()
    solve(cost, a, b, 0.1, 20)
    for value, copy in zip((cost, a, b), copies, strict=True):
        assert torch.equal(value, copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.ones(1, 4)}, r"expected cost \(B, n, m\)"),
        ({"epsilon": torch.ones(2)}, r"expected cost \(B, n, m\)"),
        ({"a": torch.tensor([[1.0, -1.0, 1.0]])}, "masses a: expected finite values of at least 0"),
        ({"b": torch.tensor([[1.0, torch.nan]])}, "masses b: expected finite values of at least 0"),
        ({"b": torch.zeros(1, 2)}, "masses b: problem 0 has no mass"),
        ({"epsilon": torch.zeros(1)}, "epsilon: expected finite values greater than 0"),
        ({"cost": torch.full((1, 3, 2), torch.inf)}, "cost: not finite"),
        ({"cost": torch.full((1, 3, 2), torch.nan)}, "cost: not finite"),
        ({"cost": torch.full((1, 3, 2), 1e30), "epsilon": torch.full((1,), 1e-30)}, "cost: not finite, or too large"),
        ({"max_iterations": 0}, "max_iterations: expected at least 1"),
        ({"relaxation": 2.0}, r"relaxation: expected a number in \[1, 2\), found 2"),
    ],
)
def test_refuses_what_is_not_a_problem(change: dict[str, Any], message: str) -> None:
    good = {"cost": torch.ones(1, 3, 2), "a": torch.ones(1, 3), "b": torch.ones(1, 2), "epsilon": torch.ones(1)}
    with pytest.raises(ValueError, match=message):
        sinkhorn(**{**good, "max_iterations": 1, "tolerance": 0.0, **change})


def test_uniform_masses() -> None:
    found = uniform_masses(torch.tensor([2, 4]), 4, torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.125, 0.125, 0.125, 0.125]]))


def test_mean_cost_weighs_by_mass() -> None:
    cost = torch.tensor([[[1.0, 2.0, 9.0], [3.0, 4.0, 9.0]]])
    a, b = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.5, 0.5, 0.0]])
    torch.testing.assert_close(mean_cost(cost, a, b), torch.tensor([(1.5 + 3 * 3.5) / 4]))


def test_pad_with_last() -> None:
    padded, lengths = pad_with_last([torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0], [5.0]])])
    assert padded.tolist() == [[[1.0], [2.0], [2.0]], [[3.0], [4.0], [5.0]]]
    assert lengths.tolist() == [2, 3]
