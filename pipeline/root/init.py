"""``python -m dynarep.init <recording> --demonstrations <what>``: lay out a project, with cards, params and stages."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynarep.data.target import RecordingTarget

WITHOUT_ENVIRONMENT = ("demonstrate", "evaluate", "report")
"""Stages that play episodes, or show what was played."""

FILES = ("params.yaml", "dvc.yaml", "configs/datasets")
"""What a folder must not have."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 after an error that is told in one line."""
    parser = argparse.ArgumentParser(prog="dynarep init", description="Lay out a project for a recording.")
    parser.add_argument("recording", help="its file or folder, or a Minari or D4RL id")
    parser.add_argument(
        "--demonstrations",
        nargs="+",
        required=True,
        metavar="WHAT",
        help="numbers of episodes of the recording that show how it is done; or another recording or id",
    )
    parser.add_argument("--folder", type=Path, default=Path(), help="of the project, by default this one")
    parser.add_argument(
        "--env", help="Gymnasium id of the environment to evaluate in, if the recording does not name it"
    )
    options = parser.parse_args(arguments)

    from dynarep.data.schema import DataError

    try:
        _run(options)
    except (DataError, ValueError, OSError) as error:
        print(f"error: init: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    from dataclasses import replace

    import yaml

    from dynarep.data.prepare import read_recording
    from dynarep.data.schema import DataError

    folder: Path = options.folder
    for name in FILES:
        if (folder / name).exists():
            raise DataError(f"{folder / name}: is there; name another --folder")
    target = _recording(options.recording, folder)
    recording = read_recording(target.path, target.card)
    env = options.env or recording.env
    if all(word.isdecimal() for word in options.demonstrations):
        shown = _numbered(target, [int(word) for word in options.demonstrations], folder)
    elif len(options.demonstrations) > 1:
        raise DataError(
            f"--demonstrations: found {options.demonstrations}, expected numbers of episodes or one recording"
        )
    else:
        shown = _recording(options.demonstrations[0], folder)
    if shown.name == target.name:
        shown = replace(shown, name=f"{target.name[:60]}-demonstrations")
    cards = folder / "configs" / "datasets"
    cards.mkdir(parents=True)
    for one in (target, shown):
        values = {**one.values, **({"env": env} if env else {})}
        (cards / f"{one.name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    acts = recording.episodes[0].actions is not None
    (folder / "params.yaml").write_text(_dumped(params(target.name, shown.name, env, acts=acts)))
    sources = [one.values["path"] for one in (target, shown) if "path" in one.values]
    (folder / "dvc.yaml").write_text(_dumped(stages(sources, acts=acts, plays=env is not None)))
    (folder / ".gitignore").write_text("/artifacts/\n/.dynarep/\n/logs/\n")
    print(f"{folder}: cards {target.name} and {shown.name}, params.yaml, dvc.yaml")
    if env is None:
        print("no environment is known, so policies are not played; --env names one")
    print(f"next:  {'' if folder == Path() else f'cd {folder} && '}git init && dvc init && dynarep run")


def _recording(text: str, folder: Path) -> RecordingTarget:
    from dynarep.data.schema import DataError
    from dynarep.data.target import RecordingTarget, find_target

    found = find_target(text, folder)
    if not isinstance(found, RecordingTarget):
        raise DataError(f"{text}: found a card, expected a recording; a project that has cards needs no other")
    return found


def _numbered(target: RecordingTarget, numbers: list[int], folder: Path) -> RecordingTarget:
    """Some episodes of a recording, written as a dataset of their own into the project."""
    from dynarep.data.prepare import read_recording, write_episodes
    from dynarep.data.schema import DataError
    from dynarep.data.target import RecordingTarget
    from dynarep.data.writers import number_of

    recording = read_recording(target.path, target.card)
    episodes = {number_of(episode.id): episode for episode in recording.episodes}
    if wrong := [number for number in numbers if number not in episodes]:
        raise DataError(
            f"--demonstrations: found {wrong[0]}, expected numbers of episodes of {target.name}, {min(episodes)} to "
            f"{max(episodes)}"
        )
    name = f"{target.name[:60]}-demonstrations"
    low, high = recording.bounds
    bounds: dict[str, Any] = {"action_low": list(low), "action_high": list(high)} if low else {}
    place = folder / "recordings" / name
    write_episodes(place, [episodes[number] for number in numbers], env=recording.env, **bounds)
    values = {"path": f"recordings/{name}", "format": "prepared", **bounds}
    return RecordingTarget(name, values, place, [])


def params(dataset: str, demonstrations: str, env: str | None, *, acts: bool) -> dict[str, Any]:
    """Values of a params file: a metric in steps, progress in it, and policies that learn from it and read what actions control.

    Args:
        dataset: name of a card.
        demonstrations: name of another.
        env: Gymnasium id, None without an environment.
        acts: whether the dataset has actions, without which no policy is learned.
    """
    inputs = {"dataset": dataset, "demonstrations": demonstrations}
    cloning = {"hidden": [128, 128], "training": {"updates": 5000, "batch_size": 256}}
    values: dict[str, Any] = {
        "seed": 0,
        "replicas": 1,
        "pretrain": {
            "metric": {
                "kind": "temporal_metric",
                "dataset": dataset,
                "initial": "none",
                "training": {"updates": 2000, "batch_size": 256},
            }
        },
        "relabel": {"progress": {"kind": "progress", **inputs, "space": "metric"}},
    }
    if acts:
        values["pretrain"]["controlled"] = {
            "kind": "inverse",
            "dataset": dataset,
            "initial": "none",
            "training": {"updates": 3000, "batch_size": 256},
        }
        learned = {**inputs, "encoder": "controlled", "rewards": "progress"}
        values["learn"] = {
            "weighted": {"kind": "weighted_bc", **learned, "gamma": 0, "temperature": 3, **cloning},
            "bc": {"kind": "bc", **inputs, "encoder": "none", "rewards": "none", **cloning},
            "random": {"kind": "random", **inputs, "encoder": "none", "rewards": "none"},
        }
    if acts and env is not None:
        values["evaluate"] = {
            "env": env,
            "episodes": 10,
            "demonstrations": demonstrations,
            "motion": {"dataset": "none", "space": "none"},
            "recording": {"dataset": "none", "rewards": "none"},
        }
        values["report"] = {"compare": None}
    return values


def stages(sources: list[str], *, acts: bool, plays: bool) -> dict[str, Any]:
    """Values of a dvc.yaml.

    Args:
        sources: recordings that the cards name by their paths.
        acts: whether policies are learned.
        plays: whether they are played.
    """
    import importlib.resources

    import yaml

    template = importlib.resources.files("dynarep.configs") / "project" / "dvc.yaml"
    values: dict[str, Any] = yaml.safe_load(template.read_text())
    values["stages"]["prepare"]["deps"] += sources
    gone = () if acts and plays else WITHOUT_ENVIRONMENT if acts else ("learn", *WITHOUT_ENVIRONMENT)
    for name in gone:
        del values["stages"][name]
    if gone:
        del values["metrics"]
        values["stages"]["prepare"]["params"] = ["pretrain", "relabel", *(["learn"] if acts else [])]
    return values


def _dumped(values: dict[str, Any]) -> str:
    import yaml

    class Plain(yaml.SafeDumper):
        """Without anchors."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(values, Dumper=Plain, sort_keys=False, width=120, default_flow_style=None)


if __name__ == "__main__":
    sys.exit(main())
