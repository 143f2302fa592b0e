"""``python -m dynarep.init <recording> --demonstrations <what>``: lay out a project, with cards, params and stages."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynarep.data.prepare import Recording
    from dynarep.data.target import RecordingTarget

HELD_OUT = 0.1
"""Share of the episodes that policies are judged on where there is no environment."""

MOST_HELD_OUT = 100
"""Of them, at most."""

FEWEST = 4
"""Episodes of a recording from which some are held out; two are needed to learn from."""

JUDGING = ("demonstrate", "evaluate", "report")
"""Stages that say what policies are worth."""

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

    from dynarep.data.prepare import read_recording
    from dynarep.data.schema import DataError
    from dynarep.data.target import episode_numbers

    folder: Path = options.folder
    for name in FILES:
        if (folder / name).exists():
            raise DataError(f"{folder / name}: is there; name another --folder")
    target = _recording(options.recording, folder)
    recording = read_recording(target.path, target.card)
    env, acts = options.env or recording.env, recording.episodes[0].actions is not None
    if options.env:
        _check_env(options.env, target, recording)
    given = episode_numbers(options.demonstrations)
    numbers = given or []
    if given is not None:
        shown = _part(target, recording, numbers, "demonstrations", folder)
    elif len(options.demonstrations) > 1:
        raise DataError(
            f"--demonstrations: found {options.demonstrations}, expected numbers of episodes or one recording"
        )
    else:
        shown = _recording(options.demonstrations[0], folder)
        found = read_recording(shown.path, shown.card).episodes[0].observations.shape[1]
        where = f"--demonstrations: {shown.name}: observations"
        _check_size(where, found, recording.episodes[0].observations, target.name)
    if shown.name == target.name:
        shown = replace(shown, name=f"{target.name[:60]}-demonstrations")
    made, held_out = [target, shown], None
    if acts and env is None and (kept := _held_out(target, recording, numbers)):
        held_out = _part(target, recording, kept, "held-out", folder)
        made = [replace(target, values={**target.values, "leave_out": kept}), shown, held_out]
    cards = folder / "configs" / "datasets"
    cards.mkdir(parents=True)
    for one in made:
        values = {**one.values, **({"env": env} if env else {})}
        (cards / f"{one.name}.yaml").write_text(_dumped(values))
    judged = None if held_out is None else held_out.name
    (folder / "params.yaml").write_text(_dumped(params(target.name, shown.name, env, acts=acts, held_out=judged)))
    sources = [one.values["path"] for one in made if "path" in one.values]
    judges = acts and (env is not None or judged is not None)
    (folder / "dvc.yaml").write_text(_dumped(stages(sources, acts=acts, judges=judges)))
    (folder / ".gitignore").write_text("/artifacts/\n/.dynarep/\n/logs/\n")
    print(f"{folder}: cards {', '.join(one.name for one in made)}; params.yaml, dvc.yaml")
    if not acts:
        print("the recording has no actions, so it is labelled, and no policy is learned")
    elif judged is not None:
        print(f"no environment is known (--env names one), so policies are judged on {judged}")
    elif env is None:
        print("no environment is known (--env names one) and no episode can be held out, so policies are not judged")
    print(f"next:  {'' if folder == Path() else f'cd {folder} && '}git init && dvc init && dynarep run")


def _check_env(env: str, target: RecordingTarget, recording: Recording) -> None:
    """The environment can be made here, and its observations and actions are of the recording's sizes."""
    from dynarep.data.schema import DataError
    from dynarep.pipeline.playing.environments import EvaluationError, make_environment

    try:
        made = make_environment(env)
    except EvaluationError as error:
        raise DataError(f"--env: {error}") from None
    episode = recording.episodes[0]
    _check_size(f"--env: {env}: observations", made.observation_space.shape[0], episode.observations, target.name)
    if episode.actions is not None:
        _check_size(f"--env: {env}: actions", made.action_space.shape[0], episode.actions, target.name)
    made.close()


def _check_size(where: str, found: int, own: Any, name: str) -> None:
    from dynarep.data.schema import DataError

    if found != own.shape[1]:
        raise DataError(f"{where}: found {found} numbers, expected {own.shape[1]} as in {name}")


def _recording(text: str, folder: Path) -> RecordingTarget:
    from dynarep.data.schema import DataError
    from dynarep.data.target import RecordingTarget, find_target

    found = find_target(text, folder)
    if not isinstance(found, RecordingTarget):
        raise DataError(f"{text}: found a card, expected a recording; a project that has cards needs no other")
    return found


def _part(
    target: RecordingTarget, recording: Recording, numbers: list[int], what: str, folder: Path
) -> RecordingTarget:
    """Some episodes of a recording, written as a dataset of their own into the project."""
    from dynarep.data.prepare import write_episodes
    from dynarep.data.schema import DataError
    from dynarep.data.target import RecordingTarget
    from dynarep.data.writers import number_of

    episodes = {number_of(episode.id): episode for episode in recording.episodes}
    if wrong := [number for number in numbers if number not in episodes]:
        raise DataError(
            f"--{what}: found {wrong[0]}, expected numbers of episodes of {target.name}, {min(episodes)} to {max(episodes)}"
        )
    name = f"{target.name[:60]}-{what}"
    low, high = recording.bounds
    bounds: dict[str, Any] = {"action_low": list(low), "action_high": list(high)} if low else {}
    place = folder / "recordings" / name
    if place.exists():
        raise DataError(f"{place}: is there; name another --folder")
    write_episodes(place, [episodes[number] for number in numbers], env=recording.env, **bounds)
    values = {"path": f"recordings/{name}", "format": "prepared", **bounds}
    return RecordingTarget(name, values, place, [])


def _held_out(target: RecordingTarget, recording: Recording, shown: list[int]) -> list[int]:
    """Numbers of the episodes to judge policies on; none where too few would be left to learn from."""
    from dynarep.data.card import FORMAT_KEYS
    from dynarep.data.split import held_out_ids
    from dynarep.data.writers import number_of

    others = [episode.id for episode in recording.episodes if number_of(episode.id) not in shown]
    few = len(recording.episodes) < FEWEST or len(others) < 2
    if few or target.values["format"] not in FORMAT_KEYS["leave_out"]:
        return []
    share = min(HELD_OUT, MOST_HELD_OUT / len(others))
    return sorted(map(number_of, held_out_ids(others, share, seed=0)))


def params(
    dataset: str, demonstrations: str, env: str | None, *, acts: bool, held_out: str | None = None
) -> dict[str, Any]:
    """Values of a params file: a metric in steps, a label by following in it, and policies that read what actions control.

    Args:
        dataset: name of a card.
        demonstrations: name of another.
        env: Gymnasium id, None without an environment.
        acts: whether the dataset has actions, without which no policy is learned.
        held_out: name of the dataset that policies are judged on where there is no environment; None: they are not.
    """
    inputs = {"dataset": dataset, "demonstrations": demonstrations}
    cloning = {"hidden": [128, 128], "layer_norm": True, "training": {"updates": 5000, "batch_size": 256}}
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
        "relabel": {"follow": {"kind": "follow", **inputs, "space": "metric"}},
    }
    if acts:
        values["pretrain"]["controlled"] = {
            "kind": "inverse",
            "dataset": dataset,
            "initial": "none",
            "training": {"updates": 3000, "batch_size": 256},
        }
        learned = {**inputs, "encoder": "controlled", "rewards": "follow"}
        values["learn"] = {
            "weighted": {"kind": "weighted_bc", **learned, "gamma": 0, "temperature": 3, **cloning},
            "bc": {"kind": "bc", **inputs, "encoder": "none", "rewards": "none", **cloning},
            "random": {"kind": "random", **inputs, "encoder": "none", "rewards": "none"},
        }
    motion = {"dataset": "none", "space": "none"}
    if acts and env is not None:
        recording = {"dataset": "none", "rewards": "none"}
        values["evaluate"] = {
            "env": env,
            "episodes": 10,
            "demonstrations": demonstrations,
            "motion": motion,
            "recording": recording,
        }
    elif acts and held_out is not None:
        values["relabel"]["held_out"] = {**values["relabel"]["follow"], "dataset": held_out}
        fitted_q = {"gamma": 0.98, "hidden": [128, 128], "training": {"updates": 3000}}
        values["evaluate"] = {
            "env": "none",
            "demonstrations": "none",
            "motion": motion,
            "recording": {"dataset": held_out, "rewards": "held_out", "fitted_q": fitted_q},
        }
    if "evaluate" in values:
        values["report"] = {"compare": None}
    return values


def stages(sources: list[str], *, acts: bool, judges: bool) -> dict[str, Any]:
    """Values of a dvc.yaml.

    Args:
        sources: recordings that the cards name by their paths.
        acts: whether policies are learned.
        judges: whether the project says what they are worth.
    """
    import importlib.resources

    import yaml

    template = importlib.resources.files("dynarep.configs") / "project" / "dvc.yaml"
    values: dict[str, Any] = yaml.safe_load(template.read_text())
    values["stages"]["prepare"]["deps"] += sources
    gone = () if judges else JUDGING if acts else ("learn", *JUDGING)
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
