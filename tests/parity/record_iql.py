"""Losses and gradients of IQL's published code for given weights and batches, in double precision.

Each of its three updates is run alone on the same networks, with an optimiser that keeps the gradient.

Needs jax[cpu], flax, optax, tensorflow-probability and a clone of github.com/ikostrikov/implicit_q_learning.
Run: python tests/parity/record_iql.py --repository PATH
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax

OUTPUT = Path(__file__).with_name("iql.npz")
CASES, DIM, ACTIONS, HIDDEN, BATCH = 2, 5, 3, (12, 8), 32
EXPECTILE, TEMPERATURE, DISCOUNT = 0.7, 3.0, 0.99
LOG_STDS = ([-0.3, 0.2, 2.5], [-6.0, 0.5, -0.7])
"""One of each case is outside [-5, 2], where the published code clips it."""

KEEP_GRADIENT = optax.GradientTransformation(
    lambda parameters: (), lambda gradient, state, parameters: (gradient, gradient)
)


def draw_batch(rng: np.random.Generator) -> dict[str, np.ndarray]:
    s, s_next = rng.normal(size=(2, BATCH, DIM)).astype(np.float32)
    actions = rng.uniform(-1, 1, (BATCH, ACTIONS)).astype(np.float32)
    rewards = rng.normal(size=BATCH).astype(np.float32)
    return {
        "observations": s,
        "actions": actions,
        "rewards": rewards,
        "masks": (np.arange(BATCH) % 4 > 0).astype(np.float32),
        "next_observations": s_next,
    }


def draw_weights(rng: np.random.Generator, initial: Any) -> dict[str, np.ndarray]:
    shapes = {k: v.shape for k, v in flax.traverse_util.flatten_dict(flax.core.unfreeze(initial), sep="/").items()}
    scale = {name: (2.2 / shape[0] ** 0.5 if name.endswith("kernel") else 0.3) for name, shape in shapes.items()}
    return {name: (scale[name] * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repository", type=Path, required=True)
    sys.path.insert(0, str(parser.parse_args().repository))
    jax.config.update("jax_enable_x64", True)
    import actor
    import critic
    import policy
    from common import Batch, Model
    from value_net import DoubleCritic, ValueCritic

    key = jax.random.PRNGKey(0)
    s, a = np.zeros((1, DIM)), np.zeros((1, ACTIONS))
    gaussian = policy.NormalTanhPolicy(
        HIDDEN, ACTIONS, log_std_min=-5.0, state_dependent_std=False, tanh_squash_distribution=False
    )
    definitions = {
        "actor": (gaussian, (s,)),
        "value": (ValueCritic(HIDDEN), (s,)),
        "critic": (DoubleCritic(HIDDEN), (s, a)),
        "target_critic": (DoubleCritic(HIDDEN), (s, a)),
    }

    rng = np.random.default_rng(0)
    out: dict[str, np.ndarray] = {}
    for case in range(CASES):
        arrays = draw_batch(rng)
        batch = Batch(**{name: value.astype(np.float64) for name, value in arrays.items()})
        models = {}
        for name, (definition, inputs) in definitions.items():
            weights = draw_weights(rng, definition.init(key, *inputs)["params"])
            if name == "actor":
                weights["log_stds"] = np.array(LOG_STDS[case], np.float32)
            out |= {f"{case}/{name}/{k}": v for k, v in weights.items()}
            tree = flax.traverse_util.unflatten_dict({k: v.astype(np.float64) for k, v in weights.items()}, sep="/")
            models[name] = Model(step=1, apply_fn=definition, params=tree, tx=KEEP_GRADIENT, opt_state=())

        updated = {
            "value": critic.update_v(models["target_critic"], models["value"], batch, EXPECTILE),
            "critic": critic.update_q(models["critic"], models["value"], batch, DISCOUNT),
            "actor": actor.update(key, models["actor"], models["target_critic"], models["value"], batch, TEMPERATURE),
        }
        advantage = updated["actor"][1]["adv"]
        assert (TEMPERATURE * advantage > np.log(100)).any(), "no weight is clipped"
        assert 3 <= (advantage < 0).sum() <= BATCH - 3
        out |= {f"{case}/batch/{name}": value for name, value in arrays.items()}
        for name, (model, info) in updated.items():
            out[f"{case}/loss/{name}"] = info[f"{name}_loss"]
            gradient = flax.traverse_util.flatten_dict(flax.core.unfreeze(model.opt_state), sep="/")
            out |= {f"{case}/gradient/{name}/{k}": v for k, v in gradient.items()}
            print(case, name, info[f"{name}_loss"])
    out["versions"] = np.array(f"jax {jax.__version__}, flax {flax.__version__}, optax {optax.__version__}")
    np.savez_compressed(OUTPUT, **{name: np.asarray(value) for name, value in out.items()})


if __name__ == "__main__":
    main()
