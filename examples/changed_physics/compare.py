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
from dynarep.pipeline.entries import parse_entry
from dynarep.pipeline.learn import learn
from dynarep.pipeline.playing.evaluate import evaluate
from dynarep.pipeline.playing.play import EvaluateConfig
from dynarep.pipeline.playing.summary import summarise
from dynarep.pipeline.pretrain import pretrain
from dynarep.pipeline.training.run import Run

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


def recorded(data: dynarep.Dataset) -> dict[str, np.ndarray]:
    """The rewards of the recording, in the form of learned ones: one row per episode."""
    return {episode.id: episode.rewards[None] for episode in data.episodes if episode.rewards is not None}


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
    shared = {"hidden": [options.width, options.width], "training": training}

    def run(name: str, replicas: int = options.replicas) -> Run:
        folder = options.out / name
        folder.mkdir(parents=True)
        return Run(name, 0, replicas, folder, options.out / "checkpoints")

    # The physics in which policies are to work: one demonstration, and for comparison much other data.
    package, shards = Path(str(files("dynarep.data"))).parent, options.out / "shards"
    dynarep.prepare([DATA, DEMONSTRATION], cards=package / "configs" / "datasets", root=package, out=shards)
    here, demonstration = (dynarep.load_dataset(shards / name) for name in (DATA, DEMONSTRATION))

    # The physics in which there is much data.
    best = {"kind": "top_bc", "dataset": DATA, "demonstrations": DEMONSTRATION, "rewards": "recorded", **shared}
    weak, _ = learn(
        parse_entry("learn", "weak", {**best, "top": 0.1}),
        here,
        demonstration,
        None,
        recorded(here),
        run("behaviour", 1),
    )
    dynarep.write_episodes(
        shards / "changed", record(changed(options.mass, options.friction), weak, options.steps, seed=0), env=ENV
    )
    there = dynarep.load_dataset(shards / "changed")
    lengths = [episode.length for episode in there.episodes]
    print(f"changed physics: {len(lengths)} episodes, {sum(lengths):,} steps, mean return {np.mean(there.returns):.0f}")

    def representation(data: dynarep.Dataset) -> Any:
        values = {"kind": "contrastive", "dataset": data.name, "feature_dim": 64, **shared}
        made = pretrain(parse_entry("pretrain", data.name, values), data, run(f"pretrain/{data.name}"))
        print(f"{data.name}: retrieval {made.measured.metrics['held_out']['retrieval_accuracy']:.3f}, held out")
        return made.encoder

    encoders = {"changed": representation(there), "own": representation(here)}
    dual = {"actor_rate": 3e-4, "cloning_weight": 100}
    arms: dict[str, dict[str, Any]] = {
        "random": {"kind": "random"},
        "bc": {"kind": "bc", **shared},
        "bc_changed_top3": {"kind": "top_bc", "rewards": "recorded", "top": 0.03, **shared},
        "value_dice": {"kind": "value_dice", **dual, **shared},
        "repr_changed": {"kind": "repr_value_dice", "encoder": "changed", **dual, **shared},
        "repr_own": {"kind": "repr_value_dice", "encoder": "own", **dual, **shared},
        "repr_changed_top3": {"kind": "repr_value_dice", "encoder": "changed", "top": 0.03, **dual, **shared},
    }
    played: dict[str, Any] = {}
    settings = EvaluateConfig(env=ENV, episodes=options.episodes, seed=1000, workers=options.workers)
    for name, values in arms.items():
        entry = parse_entry("learn", name, {"dataset": "changed", "demonstrations": DEMONSTRATION, **values})
        rewards = recorded(there) if "rewards" in values else None
        within = run(f"learn/{name}")
        policy, facts = learn(entry, there, demonstration, encoders.get(entry.inputs.encoder), rewards, within)
        dynarep.save_artifact(within.output, policy, {"kind": entry.kind, **facts})
        returns = evaluate(name, settings, options.out)
        played = {**returns, "policies": {**played.get("policies", {}), **returns["policies"]}}

    scores = summarise({**played, "random": ["random"], "demonstrations": demonstration.returns})
    (options.out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    print(f"{'policy':20} {'return':>8} {'normalised IQM':>15} {'95 % interval':>16}")
    for name in sorted(scores, key=lambda name: -scores[name]["normalised_iqm"]):
        score = scores[name]
        low, high = score["normalised_low"], score["normalised_high"]
        interval = "-" if low is None else f"[{low:.1f}, {high:.1f}]"  # of one episode there is none
        print(f"{name:20} {score['return_mean']:8.1f} {score['normalised_iqm']:15.1f} {interval:>16}")


if __name__ == "__main__":
    main()
