"""Couplings of POT, and AILOT's rewards that follow from them, in double precision.

Needs numpy and POT. Run: python tests/parity/record_transport.py
"""

from pathlib import Path

import numpy as np
import ot

OUTPUT = Path(__file__).with_name("transport.npz")


def coupling(cost: np.ndarray, a: np.ndarray, b: np.ndarray, epsilon: float) -> np.ndarray:
    """POT's solution, with both marginals met to 1e-11."""
    found = ot.bregman.sinkhorn_log(a, b, cost, epsilon, numItermax=1_000_000, stopThr=1e-12)
    assert abs(found.sum(0) - b).sum() < 1e-11
    assert abs(found.sum(1) - a).sum() < 1e-11
    assert np.allclose(found, ot.sinkhorn(a, b, cost, epsilon, numItermax=1_000_000, stopThr=1e-12), atol=1e-10)
    return found


def uniform(size: int) -> np.ndarray:
    return np.full(size, 1 / size)


def record_problems(rng: np.random.Generator, out: dict[str, np.ndarray]) -> None:
    problems = {  # rows, columns, epsilon over the mean cost, uniform masses
        "square": (30, 30, 0.05, True),
        "rectangular": (20, 40, 0.05, True),
        "masses": (30, 20, 0.05, False),
        "small_epsilon": (15, 20, 0.005, False),
    }
    for name, (rows, columns, fraction, equal) in problems.items():
        x, y = rng.normal(size=(rows, 3)), rng.normal(size=(columns, 3)) + 0.5
        cost = ((x[:, None] - y[None]) ** 2).sum(2).astype(np.float32)
        a = uniform(rows) if equal else rng.dirichlet(np.full(rows, 2.0))
        b = uniform(columns) if equal else rng.dirichlet(np.full(columns, 2.0))
        epsilon = float(np.float32(fraction * cost.mean()))
        out[f"{name}/cost"], out[f"{name}/a"], out[f"{name}/b"] = cost, a, b
        out[f"{name}/epsilon"] = np.array(epsilon)
        out[f"{name}/coupling"] = coupling(cost.astype(np.float64), a, b, epsilon)


def record_ailot(rng: np.random.Generator, out: dict[str, np.ndarray]) -> None:
    """An agent that joins the expert's path at its twelfth step and drifts off it."""
    expert = rng.normal(size=(40, 6)).cumsum(0).astype(np.float32)
    agent = (expert[11:36] + 0.2 * rng.normal(size=(25, 6)).cumsum(0)).astype(np.float32)
    out["ailot/agent"], out["ailot/expert"] = agent, expert
    x, y = agent.astype(np.float64), expert.astype(np.float64)
    for case, (lookahead, fraction, tau) in enumerate(((0, 0.01, 0.05), (2, 0.01, 0.05), (2, 0.05, 0.02))):
        ahead = [np.minimum(np.arange(len(z)) + lookahead, len(z) - 1) for z in (x, y)]
        cost = ot.dist(x, y, "sqeuclidean") + ot.dist(x[ahead[0]], y[ahead[1]], "sqeuclidean")
        found = coupling(cost, uniform(len(x)), uniform(len(y)), fraction * cost.mean())
        entry = int(cost[0].argmin())
        assert entry > 0
        out[f"ailot/{case}/settings"] = np.array([lookahead, fraction, tau])
        out[f"ailot/{case}/coupling"] = found
        out[f"ailot/{case}/entry"] = np.array(entry)
        out[f"ailot/{case}/rewards"] = 5.0 * np.exp(-tau * len(x) * (found * cost)[:, entry:].sum(1))


def main() -> None:
    rng = np.random.default_rng(0)
    out: dict[str, np.ndarray] = {}
    record_problems(rng, out)
    record_ailot(rng, out)
    out["versions"] = np.array(f"POT {ot.__version__}, numpy {np.__version__}")
    np.savez_compressed(OUTPUT, **out)
    for name, value in out.items():
        if name.endswith("rewards"):
            print(name, value.min(), value.max())


if __name__ == "__main__":
    main()
