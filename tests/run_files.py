"""Files of a run of the pipeline, made up, for tests of the report."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dynarep.data.d4rl import environment_reference


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def score(return_mean: float, iqm: float | None, **values: Any) -> dict[str, Any]:
    return {
        "env": "Hopper-v4",
        "episodes": 4,
        "replicas": 2,
        "return_mean": return_mean,
        "length_mean": return_mean / 3,
        "normalised_iqm": iqm,
        "normalised_low": None if iqm is None else iqm - 5,
        "normalised_high": None if iqm is None else iqm + 5,
        "expert_fraction": return_mean / 4000,
        "success_rate": None,
        "motion_distance": None,
        **values,
    }


def write_scores(root: Path, scores: dict[str, dict[str, Any]]) -> None:
    env = next(iter(scores.values()))["env"]
    played = {
        name: {
            "returns": (values["return_mean"] + np.arange(8.0).reshape(2, 4)).tolist(),
            "lengths": np.full((2, 4), 300).tolist(),
        }
        for name, values in scores.items()
    }
    versions = {"gymnasium": "1.4.0", "mujoco": "4.0.0"}
    reference = environment_reference(env)
    expert = dict.fromkeys(scores, 4000.0 if reference else None)
    raw = {
        "env": env,
        "demonstrations": expert,
        "seed": 7,
        "max_steps": None,
        "reference": reference,
        "versions": versions,
        "policies": played,
    }
    write(root / "evaluate" / "metrics.json", json.dumps(scores))
    write(root / "evaluate" / "returns.json", json.dumps(raw))


def write_model(root: Path, name: str, **metadata: Any) -> None:
    described = {"version": "0.1.0", "revision": "abc123", "datasets": {"hopper-arbitrary": "f00d"}, **metadata}
    write(root / name / "metadata.json", json.dumps(described))
    write(root / name / "config.json", "{}")
    rows = "".join(f"{i * 50}\t{1 / i}\n" for i in range(1, 601))
    write(root / name / "curves.tsv", "update\tloss\n" + rows)


def write_run(root: Path) -> None:
    """A run of two policies, with every file that the report reads."""
    write_scores(root, {"bc": score(1000, 30.0), "iql_ailot": score(2000, 62.0), "random": score(18, 1.2)})
    for name in ("pretrain_dynamics", "pretrain_intent"):
        write_model(root, name)
    saw = {"expert": "1 episode, observations & actions", "other": "nothing"}
    write_model(
        root,
        "imitate/bc",
        demonstrations="hopper-expert-1",
        saw=saw,
        params={"imitate": {"actor": 1e-4, "policies": {"bc": {"kind": "bc"}}}},
    )
    write_model(root, "offline_rl/iql_ailot", saw={"expert": "1 episode, observations only", "other": "60,000"})
    write(root / "pretrain_dynamics" / "metrics.json", json.dumps({"held_out": {"noise": [1.01, 0.99]}, "rank": None}))
    write(root / "pretrain_intent" / "metrics.json", json.dumps({"psi": {"spearman": 0.9612345}}))
    distances = "".join(
        f"{k}\t{space}\t{k**0.8}\t{k**0.8 / 3}\t{k * 2}\n" for k in (1, 5, 50) for space in ("psi", "raw")
    )
    write(root / "pretrain_intent" / "distance.tsv", "k\tspace\tmean\tlow\thigh\n" + distances)
    for method in ("ailot", "otr"):
        rows = "".join(f"e{i}\t{i + 5}\t{-i}\t{i * 3}\n" for i in range(50))
        write(root / "relabel" / method / "returns.tsv", "episode\tlength\trelabelled\ttrue\n" + rows)
        write_examples(root, method)
    spearman = {"ailot": {"spearman_true_return": 0.912}, "otr": {"spearman_true_return": 0.501}}
    write(root / "relabel" / "metrics.json", json.dumps(spearman))
    labelled = {"dataset": "hopper-arbitrary", "demonstrations": "hopper-expert-1-states", "version": "0.1.0"}
    write(root / "relabel" / "metadata.json", json.dumps({**labelled, "datasets": {"hopper-arbitrary": "f00d"}}))
    write_latents(root)
    write_clips(root)
    index = {"transitions": 84_000, "returns": [1.0, 3.0], "env": "Hopper-v4", "shards": [{"episodes": ["a", "b"]}]}
    write(root / "shards" / "hopper-arbitrary" / "index.json", json.dumps(index))
    for stage_name in ("pretrain_dynamics", "pretrain_intent", "imitate", "relabel", "offline_rl", "evaluate"):
        write_timing(root, stage_name, 200 if stage_name == "imitate" else 50)


def write_examples(root: Path, method: str) -> None:
    folder = root / "relabel" / method / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    for number, length in enumerate((40, 700)):
        np.savez(
            folder / f"{number}.npz",
            coupling=np.full((length, 500), 1 / 500 / length, dtype=np.float32),
            rewards=np.linspace(-1, number, length, dtype=np.float32),
            true_rewards=np.ones(length, dtype=np.float32),
            agent=f"agent-{number}",
            expert="expert-3",
        )


def write_latents(root: Path, **changes: Any) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        "latents": generator.normal(size=(60, 8)).astype(np.float32),
        "episode": np.repeat([0, 1, 2], 20),
        "step": np.tile(np.arange(20), 3),
        "return": np.array([5.0, 100.0, 3000.0]),
        "length": np.array([20, 20, 20]),
    }
    np.savez(root / "pretrain_intent" / "latents.npz", **{**arrays, **changes})


def write_clips(root: Path, **changes: Any) -> None:
    folder = root / "evaluate" / "clips"
    folder.mkdir(exist_ok=True)
    clips: dict[str, Any] = {}
    for shade, (name, frames) in enumerate((("bc", 3), ("iql_ailot", 12), ("expert", 12))):
        strip = np.repeat(np.linspace(0, 250, frames).astype(np.uint8), 24)[:, None, None] + np.zeros(
            (1, 32, 3), np.uint8
        )
        Image.fromarray(strip).save(folder / f"{name}.webp", quality=10 * shade + 50)
        ended = {"steps": 10 * frames - 10, "reward": 100.0 * frames, "ended": name == "bc"}
        clips[name] = {"file": f"{name}.webp", "frames": frames, **ended}
    clips["expert"] |= {"dataset": "hopper-expert-1", "episode": "episode-7"}
    notices = {"random": "it hides"}
    index = {"seconds_per_frame": 0.08, "clips": clips, "notices": notices, **changes}
    (folder / "clips.json").write_text(json.dumps(index))


def write_timing(root: Path, name: str, seconds: float) -> None:
    timing = {"started": "2026-02-03T10:20:30+00:00", "seconds": seconds, "cores": 2}
    write(root / name / "timing.json", json.dumps(timing))


def write_other_run(artifacts: Path) -> Path:
    """Another run, ``before`` beside a run: iql_ailot is far worse, bc the same."""
    root = artifacts.parent / "before"
    shutil.copytree(artifacts, root)
    write_scores(root, {"bc": score(1000, 30.0), "iql_ailot": score(500, 15.0), "old": score(9, 1.0)})
    changed = {"params": {"imitate": {"actor": 2e-4}}, "datasets": {"hopper-arbitrary": "beef"}, "revision": "fff"}
    for name in ("pretrain_dynamics", "pretrain_intent", "imitate/bc", "offline_rl/iql_ailot"):
        write_model(root, name, **changed)
    relabelled = json.loads((root / "relabel" / "metadata.json").read_text())
    write(root / "relabel" / "metadata.json", json.dumps({**relabelled, "datasets": changed["datasets"]}))
    return root
