"""Rewards of OTR's published code, and the couplings of OTT-JAX that they come from, in double precision.

Needs ott-jax 0.2.11 with a JAX that it runs on, and a clone of github.com/ethanluoyc/optimal_transport_reward. Of dm-acme
the published file uses names of types only, which are put in place here.
Run: python tests/parity/record_otr.py --repository PATH
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import numpy as np
import ott

OUTPUT = Path(__file__).with_name("otr.npz")
HORIZON, DIM = 1000, 11


def put_acme_in_place() -> None:
    acme, acme_jax = ModuleType("acme"), ModuleType("acme.jax")
    acme.types = SimpleNamespace(NestedArray=Any, Transition=Any)  # type: ignore[attr-defined]
    acme_jax.networks = SimpleNamespace(Params=Any, Observation=Any)  # type: ignore[attr-defined]
    acme_jax.running_statistics = SimpleNamespace()  # type: ignore[attr-defined]
    acme_jax.variable_utils = SimpleNamespace(VariableClient=Any)  # type: ignore[attr-defined]
    sys.modules.update({"acme": acme, "acme.jax": acme_jax})


def couple(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The coupling of two unpadded episodes with the published settings."""
    geometry = ott.geometry.pointcloud.PointCloud(x, y, cost_fn=ott.geometry.costs.Cosine(), epsilon=0.01)
    masses = (np.full(len(z), 1 / HORIZON) for z in (x, y))
    return np.asarray(ott.core.sinkhorn.sinkhorn(geometry, *masses, threshold=1e-9, max_iterations=100).matrix)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repository", type=Path, required=True)
    sys.path.insert(0, str(parser.parse_args().repository / "otr/agents/otil"))
    put_acme_in_place()
    jax.config.update("jax_enable_x64", True)
    import rewarder

    rng = np.random.default_rng(0)
    centre = 0.7 * rng.normal(size=DIM)
    experts = [(centre + 0.2 * rng.normal(size=(n, DIM)).cumsum(0)).astype(np.float32) for n in (55, 30)]
    agents = [
        (experts[k][:n] + 0.1 * rng.normal(size=(n, DIM)).cumsum(0)).astype(np.float32)
        for n, k in ((40, 0), (30, 1), (55, 0))
    ]
    published = {  # what multiplies the mean cost of a step
        "locomotion": partial(rewarder.squashing_exponential, alpha=5.0, beta=5.0 * HORIZON / DIM),
        "antmaze": partial(rewarder.squashing_exponential, alpha=5.0, beta=1.0 * HORIZON),
    }

    def episode(observations: np.ndarray) -> list[SimpleNamespace]:
        return [SimpleNamespace(observation=row) for row in observations.astype(np.float64)]

    out = {f"expert/{k}": expert for k, expert in enumerate(experts)}
    for i, agent in enumerate(agents):
        out[f"agent/{i}"] = agent
        for k, expert in enumerate(experts):
            out[f"coupling/{i}/{k}"] = couple(agent.astype(np.float64), expert.astype(np.float64)).astype(np.float32)
    for name, squashing in published.items():
        for key, demonstrations in {"0": experts[:1], "1": experts[1:], "best": experts}.items():
            demos = [episode(expert) for expert in demonstrations]
            labeller = rewarder.OTILRewarder(demos, HORIZON, squashing_fn=squashing)
            for i, agent in enumerate(agents):
                rewards = out[f"{name}/{i}/{key}"] = labeller.compute_offline_rewards(episode(agent))
                print(name, i, key, rewards.min(), rewards.max())
    out["versions"] = np.array(f"ott-jax {ott.__version__}, jax {jax.__version__}, numpy {np.__version__}")
    np.savez_compressed(OUTPUT, **out)


if __name__ == "__main__":
    main()
