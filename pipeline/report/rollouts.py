"""Films of every policy beside the expert's, all on one clock."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from dynarep.pipeline.report.html import count, data_uri, note
from dynarep.pipeline.report.inputs import (
    MissingInputError,
    ReportError,
    read_json,
    read_returns,
)
from dynarep.pipeline.report.scores import Scores, score_text
from dynarep.pipeline.playing.scores import ranking

EXPERT = "expert"


def rollouts_section(artifacts: Path, scores: Scores) -> str:
    """The expert's film and those of all policies, best first; notes where there are none."""
    folder = artifacts / "evaluate" / "clips"
    if not folder.is_dir():
        return note("no films: the evaluation was asked for none; evaluate.clips: {} in params.yaml asks for some")
    path = folder / "clips.json"
    index = read_json(path)
    for field in ("seconds_per_frame", "clips", "notices"):
        if field not in index:
            raise ReportError(f"{path}: no {field!r}")
    clips: dict[str, Any] = index["clips"]
    notices = "".join(
        note(f"no film of {name}: {reason}" if name else f"no films: {reason}")
        for name, reason in index["notices"].items()
    )
    if not clips:
        return notices
    played = _played(artifacts)
    order = [name for name in (EXPERT, *ranking(scores)) if name in clips]
    films = "".join(_film(folder, name, clips[name], _score(scores, name), played.get(name)) for name in order)
    seconds, most = float(index["seconds_per_frame"]), max(clip["frames"] for clip in clips.values())
    control = (
        f'<p class="control"><button type="button">Play</button> <label for="film">Time</label> '
        f'<input type="range" id="film" min="0" max="{most - 1}" value="0"> <output for="film"></output></p>'
    )
    return (
        f'<p class="note">{_about(clips.get(EXPERT))}</p>\n{notices}'
        f'<div class="films" data-seconds="{seconds:g}">{control}<div class="screens">{films}</div></div>'
    )


def _about(expert: Mapping[str, Any] | None) -> str:
    policies = (
        "The start of the first episode of each policy's first replica, played from the same start state and scored above; "
        "a film stops where its episode ends."
    )
    if expert is None:
        return policies
    return policies + (
        f" The expert is {escape(expert['episode'])} of {escape(expert['dataset'])}, drawn from its recorded states; where "
        "these leave out the position along the ground, it is summed up from the velocity."
    )


def _played(artifacts: Path) -> dict[str, tuple[float, int]]:
    """Return and length of the filmed episode of each policy."""
    try:
        raw = read_returns(artifacts)
    except MissingInputError:
        return {}
    return {name: (values["returns"][0][0], values["lengths"][0][0]) for name, values in raw["policies"].items()}


def _score(scores: Scores, name: str) -> str:
    return score_text(scores[name]) if name in scores and scores[name]["normalised_iqm"] is not None else ""


def _film(folder: Path, name: str, clip: Mapping[str, Any], score: str, episode: tuple[float, int] | None) -> str:
    content, (width, height) = _strip(folder / clip["file"])
    frame = f"aspect-ratio:{width}/{height / clip['frames']:g}"
    shown = f"{'all' if clip['ended'] else 'first'} {count(clip['steps'], 'step')} shown"
    shown += "" if clip["reward"] is None else f", return {clip['reward']:,.0f}"
    whole = f"; {episode[0]:,.0f} in all {count(episode[1], 'step')}" if episode and not clip["ended"] else ""
    address = data_uri(content, "image/webp")
    title = escape(name) + (f" <span>{score}</span>" if score else "")
    alt = escape(f"Film of {name}: {clip['frames']} frames, {shown}")
    screen = f'<div class="screen" tabindex="0" style="{frame}"><img alt="{alt}" src="{address}"></div>'
    caption = f"<figcaption><b>{title}</b><br>{escape(shown + whole)}</figcaption>"
    return f'<figure class="film" data-frames="{clip["frames"]}">{screen}{caption}</figure>\n'


def _strip(path: Path) -> tuple[bytes, tuple[int, int]]:
    """Content and size of a picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as strip:
            return path.read_bytes(), strip.size
    except FileNotFoundError:
        raise MissingInputError(path) from None
    except UnidentifiedImageError:
        raise ReportError(f"{path}: not a picture") from None
