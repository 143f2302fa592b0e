"""Loss and gradients of ICVF's published code for given weights and batches, in double precision.

Needs jax[cpu], flax, optax, distrax, ml_collections, icecream and a clone of github.com/dibyaghosh/icvf_release.
Run: python tests/parity/record_icvf.py --repository PATH
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import flax
import jax
import numpy as np

OUTPUT = Path(__file__).with_name("icvf.npz")
CASES, DIM, HIDDEN, BATCH = 2, 5, (12, 8), 16
CONFIG = {"no_intent": False, "min_q": True, "expectile": 0.9, "discount": 0.99}


def draw_batch(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Outcomes and intents that are the current state where they are reached, and the same as each other half the time."""
    s, s_next, g, z = rng.normal(size=(4, BATCH, DIM)).astype(np.float32)
    same, reached, reached_intent = np.arange(BATCH) % 2 == 0, np.arange(BATCH) % 5 == 0, np.arange(BATCH) % 7 < 2
    z[reached_intent] = s[reached_intent]
    g[reached] = s[reached]
    g[same], reached[same] = z[same], reached_intent[same]
    return {
        "observations": s,
        "next_observations": s_next,
        "goals": g,
        "desired_goals": z,
        "rewards": reached - 1.0,
        "masks": 1.0 - reached,
        "desired_rewards": reached_intent - 1.0,
        "desired_masks": 1.0 - reached_intent,
    }


def draw_weights(rng: np.random.Generator, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    scale = {name: (1.2 / shape[-2] ** 0.5 if name.endswith("kernel") else 0.3) for name, shape in shapes.items()}
    return {name: (scale[name] * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repository", type=Path, required=True)
    sys.path.insert(0, str(parser.parse_args().repository))
    jax.config.update("jax_enable_x64", True)
    from src.icvf_learner import icvf_loss
    from src.icvf_networks import create_icvf

    network = create_icvf("multilinear", hidden_dims=HIDDEN)
    example = np.zeros((1, DIM))
    initial = flax.core.unfreeze(network.init(jax.random.PRNGKey(0), example, example, example))["params"]
    shapes = {name: value.shape for name, value in flax.traverse_util.flatten_dict(initial, sep="/").items()}

    def value(parameters: dict) -> Callable:
        return partial(network.apply, {"params": parameters})

    def loss(online: dict, target: dict, batch: dict) -> tuple:
        return icvf_loss(value(online), value(target), batch, CONFIG)

    rng = np.random.default_rng(0)
    out: dict[str, np.ndarray] = {}
    for case in range(CASES):
        batch = draw_batch(rng)
        weights = {name: draw_weights(rng, shapes) for name in ("online", "target")}
        online, target = (
            flax.traverse_util.unflatten_dict({k: v.astype(np.float64) for k, v in w.items()}, sep="/")
            for w in weights.values()
        )
        double = {name: value.astype(np.float64) for name, value in batch.items()}
        (found, info), gradient = jax.value_and_grad(loss, has_aux=True)(online, target, double)
        assert 3 <= info["accept prob"] * BATCH <= BATCH - 3
        out |= {f"{case}/batch/{name}": value for name, value in batch.items()}
        out |= {f"{case}/{name}/{k}": v for name, w in weights.items() for k, v in w.items()}
        out |= {f"{case}/gradient/online/{k}": v for k, v in flax.traverse_util.flatten_dict(gradient, sep="/").items()}
        out[f"{case}/loss"] = found
        out[f"{case}/advantage"], out[f"{case}/accepted"] = info["adv mean"], info["accept prob"]
        out[f"{case}/value"] = value(online)(*(double[name] for name in ("observations", "goals", "desired_goals")))
        print(case, found, info["accept prob"], info["adv mean"])
    out["versions"] = np.array(f"jax {jax.__version__}, flax {flax.__version__}, numpy {np.__version__}")
    np.savez_compressed(OUTPUT, **{name: np.asarray(value) for name, value in out.items()})


if __name__ == "__main__":
    main()
