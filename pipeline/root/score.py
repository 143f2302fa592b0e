"""``python -m dynarep.score <dataset> --demonstrations <what>``: rank the episodes of a recording, and write what follows.

One command for one recording: it prepares the data and trains a space of distances in steps in a project of its own in the
user's cache, by the programs of the stages, measures every episode by its progress along a demonstration, and prints and
writes scores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynarep.data.shards import Dataset
    from dynarep.data.target import CardTarget, RecordingTarget
    from dynarep.pipeline.entries import Entry, RelabelInputs
    from dynarep.pipeline.nn.models import Encoder
    from dynarep.pipeline.run import Stage

UPDATES = 1000
"""Of the training of the space: half as many rank about as well where the right order is known, see docs/scoring.md."""


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
        help="write the kept episodes with their new rewards: d4rl, robomimic, minari or lerobot; a file or folder, or for "
        "minari an id",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--updates", type=positive, default=UPDATES, help=f"of the training of the space ({UPDATES})")
    return parser


def positive(text: str) -> int:
    """A number of at least 1.

    Raises:
        argparse.ArgumentTypeError: if it is none.
    """
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of at least 1")


def share_or_number(text: str) -> float | None:
    """``0.8`` is a share in (0, 1), ``20`` a number of at least 1, and ``1.0`` is all, None.

    Raises:
        argparse.ArgumentTypeError: if it is neither.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if "." in text and 0 < value <= 1:
        return value if value < 1 else None
    if text.isdecimal() and value >= 1:
        return value
    raise argparse.ArgumentTypeError(f"found {text!r}, expected a share such as 0.8 or a number of episodes such as 20")


def _run(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from dynarep.data.schema import DataError
    from dynarep.data.target import episode_numbers, find_target
    from dynarep.data.writers import FORMATS, Recording, check_place, write
    from dynarep.data.writers.table import can_write
    from dynarep.pipeline.ranking import table, warnings, write_scores
    from dynarep.pipeline.scoring import best, score_episodes

    if options.write is not None and options.write[0] not in FORMATS:
        raise DataError(f"--write: found {options.write[0]!r}, expected one of {', '.join(FORMATS)}")
    if options.keep is not None and options.write is None:
        raise DataError("--keep: found it without --write, which says what to write the kept episodes as")
    target = find_target(options.dataset, Path())
    stage = _project(target, options.updates)
    dataset = _prepared(target, stage, "shards")
    numbers = episode_numbers(options.demonstrations)
    if numbers is not None:
        demonstrations = chosen(dataset, numbers)
    elif len(options.demonstrations) > 1:
        raise DataError(
            f"--demonstrations: found {options.demonstrations}, expected numbers of episodes or one dataset"
        )
    else:
        demonstrations = _prepared(find_target(options.demonstrations[0], Path()), stage, "demonstrations")
    found, expected = demonstrations.spec.observation_dim, dataset.spec.observation_dim
    if found != expected:
        raise DataError(
            f"--demonstrations: {demonstrations.name}: observations: found {found} numbers, expected {expected} as in "
            f"{dataset.name}"
        )
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
    label = _label(dataset, demonstrations)
    run = replace(stage.run(stage.project), name="score")
    scores = score_episodes(label, dataset, demonstrations, encoder, run)
    own = {episode.id for episode in demonstrations.episodes} if numbers is not None else set()
    print("\n".join(table(scores, own)))
    print(f"{out}: {', '.join(write_scores(out, scores, recording, about, label.config.lookahead))}", flush=True)
    for line in warnings(scores):
        print(line, file=sys.stderr)
    if not can_write():
        print("parquet, and tables of steps, need the package pyarrow: pip install 'dynarep[parquet]'", file=sys.stderr)
    if options.write is not None:
        kept = best(scores, options.keep)
        form, target_place = options.write
        place = write(recording, kept, form, target_place, about, overwrite=options.overwrite)
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


def _label(dataset: Dataset, demonstrations: Dataset) -> Entry[RelabelInputs]:
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
    from dynarep.pipeline.stored import read_json

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


if __name__ == "__main__":
    sys.exit(main())
