"""Imitate in one physics with a dynamics representation that was pretrained in another."""

import argparse
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

import dynarep

gymnasium.logger.min_level = gymnasium.logger.ERROR  # no advice to take Hopper-v5
ENV = "Hopper-v4"
DATA, DEMONSTRATION = "hopper-arbitrary", "hopper-expert-1"


def changed(mass: float, friction: float) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """Hopper with all masses and inertias, and all sliding frictions, multiplied."""
    env = gymnasium.make(ENV)
    model: Any = env.unwrapped.model
    model.body_mass[:] *= mass
    model.body_inertia[:] *= mass
    model.geom_friction[:, 0] *= friction
    return env


def record(
    env: gymnasium.Env[np.ndarray, np.ndarray], policy: torch.nn.Module, steps: int, seed: int
) -> Iterator[dynarep.Episode]:
    """Episodes of a policy with more or less noise, every fifth of random actions, at least ``steps`` transitions in all."""
    rng, total, number = np.random.default_rng(seed), 0, 0
    while total < steps:
        noise = 2.0 if number % 5 == 4 else rng.uniform(0, 0.6)
        observation, _ = env.reset(seed=seed + number)
        observations, actions, rewards, terminated, truncated = [observation], [], [], False, False
        while not (terminated or truncated):
            action = policy(torch.as_tensor(observation, dtype=torch.float32)[None])[0].numpy()
            action = np.clip(action + noise * rng.normal(size=action.shape), -1, 1).astype(np.float32)
            observation, reward, terminated, truncated, _ = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(reward)
        yield dynarep.Episode(
            id=f"changed-{number:06d}",
            observations=np.array(observations, np.float32),
            actions=np.array(actions),
            rewards=np.array(rewards, np.float32),
            terminated=terminated,
            truncated=truncated,
        )
        total, number = total + len(actions), number + 1


def main(arguments: list[str] | None = None) -> None:
    """Record, pretrain, imitate, evaluate; print scores and write them to <out>/scores.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--mass", type=float, default=1.5, help="factor on masses where the representation is learned")
    parser.add_argument("--friction", type=float, default=0.5, help="factor on frictions there")
    parser.add_argument("--steps", type=int, default=80_000, help="transitions recorded there")
    parser.add_argument("--updates", type=int, default=4000, help="of every training")
    parser.add_argument("--width", type=int, default=128, help="of hidden layers")
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=20, help="of the evaluation, for each replica")
    parser.add_argument("--workers", type=int, default=1, help="processes of the evaluation")
    parser.add_argument("--out", type=Path, default=Path("out"), help="must not exist")
    options = parser.parse_args(arguments)
    training = {"updates": options.updates, "updates_per_chunk": min(250, options.updates)}
    hidden = [options.width, options.width]

    def run(name: str, replicas: int = options.replicas) -> dynarep.Run:
        folder = options.out / name
        folder.mkdir(parents=True)
        return dynarep.Run(name, 0, replicas, folder, options.out / "checkpoints")

    # The physics in which policies are to work: one demonstration, and for comparison much other data.
    package, shards = Path(str(files("dynarep.data"))).parent, options.out / "shards"
    dynarep.prepare([DATA, DEMONSTRATION], cards=package / "configs" / "datasets", root=package, out=shards)
    here, demonstration = (dynarep.load_dataset(shards / name) for name in (DATA, DEMONSTRATION))

    # The physics in which there is much data.
    clone = {"kind": "bc", "data": "dataset", "top": 0.1, "method": {"hidden": hidden}, "training": training}
    c = dynarep.ImitateConfig(demonstrations=DEMONSTRATION, dataset=DATA, policies={"weak": clone})
    weak, _ = dynarep.imitate("weak", c.policies["weak"], demonstration, here, None, run("behaviour", replicas=1))
    dynarep.write_episodes(
        shards / "changed", record(changed(options.mass, options.friction), weak, options.steps, seed=0), env=ENV
    )
    there = dynarep.load_dataset(shards / "changed")
    lengths = [episode.length for episode in there.episodes]
    print(f"changed physics: {len(lengths)} episodes, {sum(lengths):,} steps, mean return {np.mean(there.returns):.0f}")

    def representation(data: dynarep.Dataset) -> Any:
        settings = dynarep.PretrainDynamicsConfig(
            dataset=data.name,
            noise={"dataset": data.name, "states": "next"},
            method={"hidden": hidden, "feature_dim": 64},
            training=training,
        )
        encoder, metrics = dynarep.pretrain_dynamics(settings, data, data, run(f"pretrain_dynamics_{data.name}"))
        print(f"{data.name}: retrieval {metrics['held_out']['retrieval_accuracy']:.3f}, held out")
        return encoder

    changed_phi, own_phi = representation(there), representation(here)
    method = {"hidden": hidden, "actor_rate": 3e-4, "cloning_weight": 100}
    dual = {"method": method, "training": training}
    arms: dict[str, tuple[dict[str, Any], Any]] = {
        "bc": ({"kind": "bc", "method": {"hidden": hidden}, "training": training}, None),
        "bc_changed_top3": ({**clone, "top": 0.03}, None),
        "value_dice": ({"kind": "value_dice", **dual}, None),
        "repr_changed": ({"kind": "repr_value_dice", **dual}, changed_phi),
        "repr_own": ({"kind": "repr_value_dice", **dual}, own_phi),
        "repr_changed_top3": ({"kind": "repr_value_dice", "top": 0.03, **dual}, changed_phi),
    }
    policies = {name: settings for name, (settings, _) in arms.items()}
    c = dynarep.ImitateConfig(demonstrations=DEMONSTRATION, dataset="changed", policies=policies)
    for name, (_, encoder) in arms.items():
        within = run(f"imitate/{name}")
        policy, facts = dynarep.imitate(name, c.policies[name], demonstration, there, encoder, within)
        dynarep.save_artifact(within.output, policy, {"demonstrations": DEMONSTRATION, **facts})

    settings = dynarep.EvaluateConfig(env=ENV, episodes=options.episodes, seed=1000, workers=options.workers)
    scores, _ = dynarep.evaluate(settings, options.out)
    (options.out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(f"{'policy':20} {'return':>8} {'normalised IQM':>15} {'95 % interval':>16}")
    for name in sorted(scores, key=lambda name: -scores[name]["normalised_iqm"]):
        score = scores[name]
        interval = f"[{score['normalised_low']:.1f}, {score['normalised_high']:.1f}]"
        print(f"{name:20} {score['return_mean']:8.1f} {score['normalised_iqm']:15.1f} {interval:>16}")


if __name__ == "__main__":
    main()
