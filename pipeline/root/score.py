"""``python -m dynarep.score <dataset> --demonstrations <what>``: rank the episodes of a recording, and write what follows.

One command for one recording: it prepares the data and trains a space of distances in steps in a project of its own in the user's
cache, by the programs of the stages, measures every episode by its progress along a demonstration, and prints and writes scores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynarep.data.shards import Dataset
    from dynarep.data.target import CardTarget, RecordingTarget
    from dynarep.data.writers import Recording
    from dynarep.pipeline.nn.models import Encoder
    from dynarep.pipeline.run import Stage
    from dynarep.pipeline.scoring import Score

UPDATES = 1000
"""Of the training of the space: half as many rank about as well where the right order is known, see docs/scoring.md."""

FORMATS = ("d4rl", "robomimic", "minari", "lerobot")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, 1 after an error that is told in one line, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)

    from dynarep.data.schema import DataError

    try:
        _run(options)
    except KeyboardInterrupt:
        print("score: stopped; run it again to go on", file=sys.stderr)
        return 130
    except (DataError, ValueError, FloatingPointError, OSError) as error:
        print(f"error: score: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dynarep score",
        description="Rank the episodes of a recording by their progress along a demonstration.",
        epilog="Formats and columns: docs/scoring.md.",
    )
    parser.add_argument("dataset", help="a card's name or file, a recording's file or folder, or a Minari or D4RL id")
    parser.add_argument(
        "--demonstrations",
        nargs="+",
        required=True,
        metavar="WHAT",
        help="numbers of episodes of the dataset that show how it is done; or another card, recording or id",
    )
    parser.add_argument("--out", type=Path, help="folder of the scores, by default scores/<dataset>")
    parser.add_argument(
        "--keep", type=share_or_number, help="the best episodes to write: 0.8 for a share, 20 for a number"
    )
    parser.add_argument(
        "--write",
        nargs=2,
        metavar=("FORMAT", "PLACE"),
        help=f"write the kept episodes with their new rewards: {', '.join(FORMATS)}; a file or folder, for minari an id",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--updates", type=int, default=UPDATES, help=f"of the training of the space ({UPDATES})")
    return parser


def share_or_number(text: str) -> float:
    """``0.8`` is a share in (0, 1), ``20`` a number of at least 1; ``inf`` stands for all, as ``1.0`` says it.

    Raises:
        argparse.ArgumentTypeError: if it is neither.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if "." in text and 0 < value <= 1:
        return value if value < 1 else float("inf")
    if text.isdecimal() and value >= 1:
        return value
    raise argparse.ArgumentTypeError(f"found {text!r}, expected a share such as 0.8 or a number of episodes such as 20")


def _run(options: argparse.Namespace) -> None:
    from dynarep.data.schema import DataError
    from dynarep.data.target import find_target
    from dynarep.data.writers import Recording, check_place, write
    from dynarep.pipeline.scoring import best, score_episodes

    if options.write is not None and options.write[0] not in FORMATS:
        raise DataError(f"--write: found {options.write[0]!r}, expected one of {', '.join(FORMATS)}")
    if options.keep is not None and options.write is None:
        raise DataError("--keep: found it without --write, which says what to write the kept episodes as")
    target = find_target(options.dataset, Path())
    stage = _project(target, options.updates)
    dataset = _prepared(target, stage, "shards")
    numbered = all(word.isdecimal() for word in options.demonstrations)
    if numbered:
        demonstrations = chosen(dataset, list(map(int, options.demonstrations)))
    elif len(options.demonstrations) > 1:
        raise DataError(
            f"--demonstrations: found {options.demonstrations}, expected numbers of episodes or one dataset"
        )
    else:
        demonstrations = _prepared(find_target(options.demonstrations[0], Path()), stage, "demonstrations")
    about = {
        "made_by": "dynarep score",
        "dataset": options.dataset,
        "fingerprint": dataset.fingerprint,
        "demonstrations": options.demonstrations,
        "demonstrations_fingerprint": demonstrations.fingerprint,
        "updates": options.updates,
    }
    out = options.out or Path("scores") / target.name
    _check_out(out, about, overwrite=options.overwrite)
    card = target.card
    recording = Recording(dataset, _source(target, card), card)
    if options.write is not None:
        check_place(recording, *options.write, overwrite=options.overwrite)

    encoder = _encoder(stage, dataset)
    scores = score_episodes(_label(dataset, demonstrations), dataset, demonstrations, encoder, stage.run(stage.project))
    print("\n".join(table(scores, dataset, demonstrations)))
    _write_scores(out, scores, recording, about)
    if options.write is not None:
        kept = best(scores, options.keep)
        place = write(recording, kept, *options.write, about, overwrite=options.overwrite)
        steps = sum(score.steps for score in kept)
        print(f"{place}: {len(kept):,} of {len(scores):,} episodes, {steps:,} steps, as {options.write[0]}")


def _project(target: CardTarget | RecordingTarget, updates: int) -> Stage:
    """The stage that trains the space, in a project in the cache, one for each place of a recording and training."""
    from hashlib import sha256

    import yaml

    from dynarep.data.download import cache_folder
    from dynarep.data.target import CardTarget
    from dynarep.pipeline.run import Stage

    place = target.cards if isinstance(target, CardTarget) else target.path
    key = sha256(f"{place.resolve()} {target.name} {updates}".encode()).hexdigest()[:12]
    project = cache_folder() / "scores" / f"{target.name}-{key}"
    project.mkdir(parents=True, exist_ok=True)
    metric = {
        "kind": "temporal_metric",
        "dataset": target.name,
        "initial": "none",
        "training": {"updates": updates, "batch_size": 256},
    }
    values = {"seed": 0, "replicas": 1, "pretrain": {"metric": metric}}
    (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return Stage("pretrain", project / "params.yaml", "metric")


def _prepared(target: CardTarget | RecordingTarget, stage: Stage, folder: str) -> Dataset:
    """A dataset, prepared unless it is fresh."""
    import yaml

    from dynarep.data.prepare import prepare
    from dynarep.data.shards import load_dataset
    from dynarep.data.target import CardTarget

    out = stage.artifacts / folder
    if isinstance(target, CardTarget):
        cards, root = target.cards, target.project
    else:
        cards, root = stage.project / "cards" / folder, Path()
        cards.mkdir(parents=True, exist_ok=True)
        (cards / f"{target.name}.yaml").write_text(yaml.safe_dump(target.values, sort_keys=False))
    prepare([target.name], cards=cards, root=root, out=out)
    return load_dataset(out / target.name)


def chosen(dataset: Dataset, numbers: Sequence[int]) -> Dataset:
    """Some episodes of a dataset by their numbers in the recording.

    Raises:
        DataError: if there is no such episode, or several have the number.
    """
    from dataclasses import replace

    from dynarep.data.schema import DataError
    from dynarep.data.writers import number_of

    known: dict[int, list[Any]] = {}
    for episode in dataset.episodes:
        known.setdefault(number_of(episode.id), []).append(episode)
    for number in numbers:
        if len(found := known.get(number, [])) != 1:
            several = f"in {' and '.join(episode.id for episode in found)}" if found else "nowhere"
            raise DataError(
                f"--demonstrations: {number}: found {several} in {dataset.name}, expected one episode; its "
                f"{len(dataset.episodes):,} episodes have numbers from {min(known)} to {max(known)}"
            )
    return replace(dataset, episodes=[known[number][0] for number in numbers])


def _label(dataset: Dataset, demonstrations: Dataset) -> Any:
    from dynarep.pipeline.entries import parse_entry

    inputs = {"dataset": dataset.name, "demonstrations": demonstrations.name, "space": "metric"}
    return parse_entry("relabel", "progress", {"kind": "progress", **inputs})


def _encoder(stage: Stage, dataset: Dataset) -> Encoder:
    """The space, trained unless the one that is there was made of the same data by the same settings."""
    from dynarep.pipeline.artifacts.storage import ArtifactError, read_metadata
    from dynarep.stages.pretrain import main as train

    expected = stage.provenance(dataset)
    try:
        found = read_metadata(stage.destination)
    except ArtifactError:
        found = {}
    if {key: found.get(key) for key in expected} == expected:
        print(f"metric: trained before, in {stage.destination}", flush=True)
    else:
        print(f"metric: training of {stage.read_entry().inputs.training.updates:,} updates", flush=True)
        train(stage)
    encoder = stage.encoder("metric", stage.name, dataset.spec.observation_dim)
    assert encoder is not None
    return encoder


def _source(target: CardTarget | RecordingTarget, card: Any) -> Path | None:
    """The recording itself, if the dataset is one as it lies there."""
    from dynarep.data.readers import locate
    from dynarep.data.target import CardTarget

    if isinstance(target, CardTarget):
        return None if card.format is None or card.stride is not None else locate(card, target.project)
    return target.path


def _check_out(out: Path, about: dict[str, Any], *, overwrite: bool) -> None:
    """A folder of scores is new, or one of the same scores.

    Raises:
        DataError: if not.
    """
    from dynarep.data.schema import DataError
    from dynarep.pipeline.tables import read_json

    if not out.exists() or overwrite:
        return
    try:
        found = read_json(out / "about.json")
    except (ValueError, OSError):
        raise DataError(f"{out}: is there and no folder of scores; name another --out, or say --overwrite") from None
    for key, value in about.items():
        if found.get(key) != value:
            raise DataError(
                f"{out / 'about.json'}: {key}: found {found.get(key)!r}, expected {value!r}; these are other scores: name "
                "another --out, or say --overwrite"
            )


SHOWN = 10
"""Episodes at either end of the ranking that are printed."""
WIDTH = 20
"""Characters of the plot of an episode."""
BARS = "▁▂▃▄▅▆▇█"
PLAIN_BARS = "_.-:=+*#"


def table(scores: Sequence[Score], dataset: Dataset, demonstrations: Dataset) -> list[str]:
    """The best and the worst episodes, a line each, at most 80 characters wide."""
    ids = [score.episode for score in scores]
    name = short_names(ids)
    widest = max(7, *(len(name[episode]) for episode in ids))
    shown = {episode.id for episode in demonstrations.episodes} if demonstrations.name == dataset.name else set()
    bars = BARS if _encodable(BARS) else PLAIN_BARS
    lines = ["", f"{'rank':>5}  {'episode':{widest}} {'steps':>6} {'score':>6} {'reach':>6} {'forward':>7}  progress"]
    for rank, score in enumerate(scores, 1):
        if SHOWN < rank <= len(scores) - SHOWN:
            if rank == SHOWN + 1:
                lines.append(f"  ...  {len(scores) - 2 * SHOWN:,} more in scores.csv")
            continue
        plot = sparkline(score.progress, WIDTH, bars)
        mark = "*" if score.episode in shown else ""
        numbers = f"{score.steps:6} {score.score:6.2f} {score.reach:6.2f} {score.forward:7.2f}"
        lines.append(f"{rank:5}  {name[score.episode]:{widest}} {numbers}  {plot}{mark}")
    lines.append("* demonstration" if shown & set(ids) else "")
    lines.append("score = reach (how far along the demonstration) x forward (share of steps that go on)")
    return lines


def short_names(ids: Sequence[str]) -> dict[str, str]:
    """Ids as a narrow column shows them: their numbers if they differ in nothing else, else at most 24 characters."""
    if len({episode.rpartition("-")[0] for episode in ids}) == 1:
        return {
            episode: str(int(tail)) if (tail := episode.rpartition("-")[2]).isdecimal() else tail for episode in ids
        }
    return {episode: episode if len(episode) <= 24 else f"{episode[:10]}..{episode[-12:]}" for episode in ids}


def _encodable(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def sparkline(values: Any, width: int, bars: str) -> str:
    """Numbers in [0, 1] as a row of at most ``width`` bars, the mean of equal parts each."""
    import numpy as np

    parts = np.array_split(values, min(width, len(values)))
    return "".join(bars[min(int(part.mean() * len(bars)), len(bars) - 1)] for part in parts)


def _write_scores(out: Path, scores: Sequence[Score], recording: Recording, about: dict[str, Any]) -> None:
    """CSV, parquet where it can be written, and for LeRobot the progress of every frame."""
    import csv

    import numpy as np

    from dynarep.data.folders import whole_folder
    from dynarep.data.writers import lerobot
    from dynarep.data.writers.table import can_write, write_table
    from dynarep.pipeline.methods.rewards.progress import ProgressConfig
    from dynarep.pipeline.tables import write_json

    least = ProgressConfig().lookahead
    rows = [
        {
            "rank": rank,
            "episode": score.episode,
            "steps": score.steps,
            "score": score.score,
            "reach": score.reach,
            "forward": score.forward,
            "demonstration": score.demonstration,
            "pauses": " ".join(f"{start}-{stop}" for start, stop in score.pauses(least)),
        }
        for rank, score in enumerate(scores, 1)
    ]
    order = {episode.id: number for number, episode in enumerate(recording.dataset.episodes)}
    recorded = sorted(scores, key=lambda score: order[score.episode])
    tables: dict[str, Callable[[Path], None]] = {}
    if can_write():
        tables["scores.parquet"] = partial(write_table, columns={key: [row[key] for row in rows] for key in rows[0]})
        steps = {
            "episode": np.repeat([score.episode for score in recorded], [score.steps for score in recorded]),
            "step": np.concatenate([np.arange(score.steps) for score in recorded]),
            "progress": np.concatenate([score.progress[:-1] for score in recorded]),
            "reward": np.concatenate([score.rewards for score in recorded]),
            "moving": np.concatenate([score.moving for score in recorded]),
        }
        tables["steps.parquet"] = partial(write_table, columns=steps)
    if recording.card.format == "lerobot" and recording.source is not None:
        frames = lerobot.progress_table(recording.source, {score.episode: score.progress for score in scores})
        tables[lerobot.PROGRESS] = partial(write_table, columns=frames)
    with whole_folder(out) as new:
        with (new / "scores.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {**row, **{key: f"{row[key]:.6f}" for key in ("score", "reach", "forward")}} for row in rows
            )
        for name, write in tables.items():
            write(new / name)
        write_json(new / "about.json", about)
    print(f"{out}: scores.csv{''.join(f', {name}' for name in tables)}", flush=True)
    if not can_write():
        print(
            "tables of every step, and parquet, need the package pyarrow: pip install 'dynarep[parquet]'",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
