"""Files of a run of the pipeline, made up, for tests of the report."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dynarep.data.prepare import write_episodes
from dynarep.data.schema import Episode

HOPPER = (-20.272305, 3234.3)
"""D4RL's reference returns."""

EXPERT = 4000.0
"""Return of the demonstration."""

SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "pretrain": {
        "dynamics": {"kind": "contrastive", "dataset": "hopper-arbitrary", "training": {"updates": 4000}},
        "intent": {"kind": "icvf", "dataset": "hopper-arbitrary", "training": {"updates": 6000}},
        "raw": {"kind": "identity", "dataset": "hopper-arbitrary"},
    },
    "relabel": {
        "ailot": {"kind": "ailot", "space": "intent"},
        "length": {"kind": "constant"},
        "otr": {"kind": "otr", "space": "raw"},
    },
    "learn": {
        "bc": {"kind": "bc", "encoder": "none", "rewards": "none", "training": {"updates": 5000, "actor": 1e-4}},
        "iql_ailot": {"kind": "iql", "rewards": "ailot", "training": {"updates": 20000}},
        "top_length": {"kind": "top_bc", "rewards": "length", "training": {"updates": 20000}},
        "chance": {"kind": "random"},
    },
}
"""The params file behind the run. What acts at random is not called so: the report goes by kind."""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def change(path: Path, **values: Any) -> None:
    """Replace some keys of a JSON file."""
    path.write_text(json.dumps({**read(path), **values}))


def write_scores(root: Path, returns: dict[str, Any], **values: Any) -> None:
    """What the evaluation left behind of some policies.

    Args:
        root: artifacts.
        returns: by policy, a number that all returns are near, or all of them (R, E).
        values: other keys of ``returns.json``; ``lengths`` and ``successes`` by policy.
    """
    shutil.rmtree(root / "evaluate", ignore_errors=True)
    more = {key: values.pop(key, {}) for key in ("successes", "distances")}
    for name, found in returns.items():
        table = np.arange(8.0).reshape(2, 4) + found if np.ndim(found) == 0 else np.array(found, dtype=float)
        played = {"returns": table.tolist(), "lengths": np.full(table.shape, 300).tolist()}
        played |= {key: by_name[name] for key, by_name in more.items() if name in by_name}
        shared = {"env": "Hopper-v4", "env_options": {}, "seed": 7, "max_steps": None, "reference": HOPPER}
        raw = {**shared, "versions": {"gymnasium": "1.4.0", "mujoco": "4.0.0"}, "policies": {name: played}, **values}
        write(root / "evaluate" / name / "returns.json", json.dumps(raw))


def write_entry(root: Path, section: str, name: str, **metadata: Any) -> None:
    """Metadata, and of a model also its config and curves."""
    settings = SETTINGS[section].get(name, {})
    described = {
        "stage": f"{section}/{name}",
        "version": "0.1.0",
        "params": {"seed": 0, "replicas": 2, section: {name: settings}},
        "datasets": {"hopper-arbitrary": "f00d"},
        **metadata,
    }
    write(root / section / name / "metadata.json", json.dumps(described))
    if section != "relabel":
        config = {"kind": settings.get("kind"), "architecture": {}, "sha256": f"{section}-{name}"}
        write(root / section / name / "config.json", json.dumps(config))
    if "training" in settings:
        rows = "".join(f"{i * 50}\t{1 / i}\n" for i in range(1, 601))
        write(root / section / name / "curves.tsv", "update\tloss\n" + rows)


def write_run(root: Path) -> None:
    """A run of three policies and chance, with every file that the report reads."""
    write_scores(root, {"bc": 1000, "iql_ailot": 2000, "top_length": 500, "chance": 18})
    write(root / "demonstrate" / "metrics.json", json.dumps({"dataset": "hopper-expert-1", "returns": [EXPERT]}))
    for name in SETTINGS["pretrain"]:
        write_entry(root, "pretrain", name)
    for name in ("intent", "raw"):
        own = "psi" if name == "intent" else "states"
        rows = "".join(f"{k}\t{space}\t{k**0.8}\t{k**0.8 / 3}\t{k * 2}\n" for k in (1, 5, 50) for space in (own, "raw"))
        write(root / "pretrain" / name / "distance.tsv", "k\tspace\tmean\tlow\thigh\n" + rows)
        write_latents(root, name)
    write(
        root / "pretrain" / "dynamics" / "metrics.json", json.dumps({"held_out": {"noise": [1.01, 0.99]}, "rank": None})
    )
    write(root / "pretrain" / "intent" / "metrics.json", json.dumps({"psi": {"spearman": 0.9612345}}))
    write(root / "pretrain" / "raw" / "metrics.json", json.dumps({"states": {"spearman": 0.5}}))
    for name, spearman in (("ailot", 0.912), ("length", 0.8), ("otr", 0.501)):
        used = {
            "dataset": "hopper-arbitrary",
            "demonstrations": "hopper-expert-1",
            "kind": SETTINGS["relabel"][name]["kind"],
        }
        write_entry(root, "relabel", name, **used)
        rows = "".join(f"e{i}\t{i + 5}\t{-i}\t{i * 3}\n" for i in range(50))
        write(root / "relabel" / name / "returns.tsv", "episode\tlength\trelabelled\ttrue\n" + rows)
        write(root / "relabel" / name / "metrics.json", json.dumps({"spearman_true_return": spearman}))
        if name != "length":
            write_examples(root, name)
    saw = {
        "bc": {"expert": "1 episode, observations & actions", "other": "nothing"},
        "iql_ailot": {"expert": "1 episode, observations only", "other": "60,000"},
    }
    for name, settings in SETTINGS["learn"].items():
        about = {"kind": settings["kind"], "rewards": settings.get("rewards", "none"), "saw": saw.get(name, {})}
        write_entry(root, "learn", name, demonstrations="hopper-expert-1", **about)
    write_clips(root)
    index = {"transitions": 84_000, "returns": [1.0, 3.0], "env": "Hopper-v4", "shards": [{"episodes": ["a", "b"]}]}
    index |= {"provenance": {"cards": {}}}
    write(root / "shards" / "hopper-arbitrary" / "index.json", json.dumps(index))


def write_examples(root: Path, name: str, prefix: str = "agent") -> None:
    folder = root / "relabel" / name / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    for number, length in enumerate((40, 700)):
        np.savez(
            folder / f"{number}.npz",
            coupling=np.full((length, 500), 1 / 500 / length, dtype=np.float32),
            rewards=np.linspace(-1, number, length, dtype=np.float32),
            true_rewards=np.ones(length, dtype=np.float32),
            agent=f"{prefix}-{number}",
            expert="expert-3",
        )


def write_latents(root: Path, name: str = "intent", **changes: Any) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        "latents": generator.normal(size=(60, 8)).astype(np.float32),
        "observations": generator.normal(size=(60, 11)).astype(np.float32),
        "episode": np.repeat([0, 1, 2], 20),
        "step": np.tile(np.arange(20), 3),
        "return": np.array([5.0, 100.0, 3000.0]),
        "length": np.array([20, 20, 20]),
    }
    np.savez(root / "pretrain" / name / "latents.npz", **{**arrays, **changes})


def write_plane(root: Path) -> None:
    """Let the states of the run be points in a plane: a demonstration along a line, and paths of two policies."""
    line = np.linspace(0, 10, 21, dtype=np.float32)
    states = np.stack([np.tile(line[:20], 3), np.repeat([0.0, 1.0, 2.0], 20)], 1).astype(np.float32)
    for name in ("intent", "raw"):
        write_latents(root, name, observations=states, latents=states**2 if name == "intent" else states)
    write_episodes(
        root / "shards" / "hopper-expert-1",
        [Episode(id="one", observations=np.stack([line, 0 * line], 1), terminated=False, truncated=True)],
    )
    for name in ("bc", "iql_ailot"):
        np.savez(root / "evaluate" / name / "paths.npz", observations=states[:40], replica=np.repeat([0, 1], 20))


def write_clips(root: Path) -> None:
    """Films of two policies and of the demonstration, and the reason why there is none of chance."""
    for shade, (folder, name, frames) in enumerate(
        (("evaluate/bc", "bc", 3), ("evaluate/iql_ailot", "iql_ailot", 12), ("demonstrate", "hopper-expert-1", 12))
    ):
        strip = np.repeat(np.linspace(0, 250, frames).astype(np.uint8), 24)[:, None, None] + np.zeros(
            (1, 32, 3), np.uint8
        )
        Image.fromarray(strip).save(root / folder / f"{name}.webp", quality=10 * shade + 50)
        clip: dict[str, Any] = {"seconds_per_frame": 0.08, "file": f"{name}.webp", "frames": frames}
        clip |= {"steps": 10 * frames - 10, "reward": 100.0 * frames, "ended": name == "bc"}
        clip |= {"dataset": name, "episode": "episode-7"} if folder == "demonstrate" else {}
        write(root / folder / "clip.json", json.dumps(clip))
    write(root / "evaluate" / "chance" / "clip.json", json.dumps({"seconds_per_frame": 0.08, "notice": "it hides"}))


def write_other_run(artifacts: Path) -> Path:
    """Another run, ``before`` beside a run: iql_ailot was far worse, bc is the same, top_length played other episodes."""
    root = artifacts.parent / "before"
    shutil.copytree(artifacts, root)
    write_scores(root, {"bc": 1000, "iql_ailot": 500, "top_length": [[500.0, 501.0]], "old": 9})
    for section, name in (("pretrain", "intent"), ("learn", "iql_ailot")):
        changed = {"kind": SETTINGS[section][name]["kind"], "datasets": {"hopper-arbitrary": "beef"}}
        write_entry(root, section, name, **changed)
        change(root / section / name / "config.json", sha256="another")
    metadata = root / "learn" / "bc" / "metadata.json"
    params = read(metadata)["params"]
    params["learn"]["bc"]["training"]["actor"] = 2e-4
    change(metadata, params=params)
    return root
