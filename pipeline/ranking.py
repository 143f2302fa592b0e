"""A ranking of episodes as people and programs read it: lines for a terminal, CSV, parquet, and LeRobot's progress of frames."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dynarep.data.folders import whole_folder
from dynarep.data.writers import Recording, lerobot
from dynarep.data.writers.table import can_write, write_table
from dynarep.pipeline.methods.rewards.follow import REPEATED
from dynarep.pipeline.scoring import Score
from dynarep.pipeline.tables import write_json

SHOWN = 10
"""Episodes at either end of the ranking that are printed."""
WIDTH = 20
"""Characters of the plot of an episode."""
BARS = "▁▂▃▄▅▆▇█"
PLAIN_BARS = "_.-:=+*#"


def table(scores: Sequence[Score], shown: Collection[str] = ()) -> list[str]:
    """The best and the worst episodes, a line each, at most 80 characters wide.

    Args:
        scores: best first.
        shown: ids of those that are demonstrations, too.
    """
    ids = [score.episode for score in scores]
    name = short_names(ids)
    widest = max(7, *(len(name[episode]) for episode in ids))
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
    if set(shown) & set(ids):
        lines.append("* demonstration")
    lines.append("score = reach (of the demonstration) x forward (share of steps that go on)")
    return lines


def warnings(scores: Sequence[Score]) -> list[str]:
    """A line for each demonstration that repeats itself, with what to do instead."""
    again = {score.demonstration: score.repeats for score in scores if score.repeats > REPEATED}
    return [
        f"warning: {name} repeats itself ({share:.0%} of its states come again), so progress along it tells little; "
        "rank by nearness, with the label follow of dynarep init (docs/scoring.md)"
        for name, share in sorted(again.items())
    ]


def short_names(ids: Sequence[str]) -> dict[str, str]:
    """Ids as a narrow column shows them: their numbers if they differ in nothing else, else at most 20 characters."""
    if len({episode.rpartition("-")[0] for episode in ids}) == 1:
        return {
            episode: str(int(tail)) if (tail := episode.rpartition("-")[2]).isdecimal() else tail for episode in ids
        }
    return {episode: episode if len(episode) <= 20 else f"{episode[:8]}..{episode[-10:]}" for episode in ids}


def _encodable(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def sparkline(values: np.ndarray, width: int, bars: str) -> str:
    """Numbers in [0, 1] as a row of at most ``width`` bars, the mean of equal parts each."""
    parts = np.array_split(values, min(width, len(values)))
    return "".join(bars[min(int(part.mean() * len(bars)), len(bars) - 1)] for part in parts)


def write_scores(
    out: Path, scores: Sequence[Score], recording: Recording, about: Mapping[str, Any], pause: int
) -> list[str]:
    """Write a folder of scores: CSV, parquet where pyarrow is there, and of a LeRobot dataset the progress of every frame.

    Args:
        out: the folder, in place of what was there.
        scores: best first.
        recording: of the episodes.
        about: plain values that say how the scores were made, for ``about.json``.
        pause: steps without going on that are listed as a pause, at least.

    Returns:
        Names of the files beside ``about.json``.
    """
    rows = [
        {
            "rank": rank,
            "episode": score.episode,
            "steps": score.steps,
            "score": score.score,
            "reach": score.reach,
            "forward": score.forward,
            "demonstration": score.demonstration,
            "pauses": " ".join(f"{start}-{stop}" for start, stop in score.pauses(pause)),
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
    return ["scores.csv", *tables]
