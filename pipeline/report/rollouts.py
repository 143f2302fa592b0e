"""Films of every policy beside the demonstrations', all on one clock."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from dynarep.pipeline.playing.summary import headline
from dynarep.pipeline.report.html import data_uri, listing, missing_note, note
from dynarep.pipeline.report.inputs import (
    NONE,
    Artifacts,
    MissingInputError,
    ReportError,
    Scored,
    read_bytes,
    read_json,
)
from dynarep.pipeline.tables import count

EXPERT = "demonstrations"


@dataclass(frozen=True)
class _Film:
    name: str
    folder: Path
    facts: Mapping[str, Any]


def rollouts_section(artifacts: Artifacts, scored: Scored) -> str:
    """The demonstrations' film and those of all policies, best first; notes where there are none."""
    folders = {EXPERT: artifacts.root / "demonstrate"}
    folders |= {name: artifacts.folder("evaluate", name) for name in scored.order if name == scored.entry(name)}
    found = [
        _Film(name, folder, _read(folder / "clip.json"))
        for name, folder in folders.items()
        if (folder / "clip.json").exists()
    ]
    if not found and scored.raw["env"] == NONE:
        return note("no films: there is no environment")
    if not found:
        return note("no films: the evaluation was asked for none; evaluate.clips: {} in params.yaml asks for some")
    filmed = {film.name for film in found}
    lacking = [name for name in folders if name not in filmed and name != EXPERT]
    notices = note(f"no film of {listing(lacking)}: the evaluation was asked for none") if lacking else ""
    reasons: dict[str, list[str]] = {}
    for film in found:
        if "notice" in film.facts:
            reasons.setdefault(str(film.facts["notice"]), []).append(film.name)
    films = [film for film in found if "notice" not in film.facts]
    for reason, names in reasons.items():
        notices += note(
            f"no film of {listing(names)}: {reason}" if films or len(reasons) > 1 else f"no films: {reason}"
        )
    if not films:
        return notices
    text = headline(scored.scores).texts(scored.scores)
    shown = "".join(_or_missing(artifacts, film, text.get(film.name, ""), _played(scored, film.name)) for film in films)
    seconds, most = float(films[0].facts["seconds_per_frame"]), max(film.facts["frames"] for film in films)
    control = (
        f'<p class="control"><button type="button">Play</button> <label for="film">Time</label> '
        f'<input type="range" id="film" min="0" max="{most - 1}" value="0"> <output for="film"></output></p>'
    )
    return (
        f'<p class="note">{_about(next((film for film in films if film.name == EXPERT), None))}</p>\n{notices}'
        f'<div class="films" data-seconds="{seconds:g}">{control}<div class="screens">{shown}</div></div>'
    )


def _read(path: Path) -> dict[str, Any]:
    clip = read_json(path)
    for field in () if "notice" in clip else ("file", "frames", "steps", "ended"):
        if clip.get(field) is None:
            raise ReportError(f"{path}: no {field!r}")
    return clip


def _about(expert: _Film | None) -> str:
    policies = (
        "The start of the first episode of each policy's first replica, played from the same start state and scored above; "
        "a film stops where its episode ends."
    )
    if expert is None:
        return policies
    return policies + (
        f" The demonstrations' film is {escape(str(expert.facts.get('episode')))} of {escape(str(expert.facts.get('dataset')))}, "
        "drawn from its recorded states; where these leave out the position along the ground, it is summed up from the velocity."
    )


def _played(scored: Scored, name: str) -> tuple[float, int] | None:
    """Return and length of a policy's filmed episode."""
    if name not in scored.scores:
        return None
    return float(scored.values(name)[0, 0]), int(scored.values(name, "lengths")[0, 0])


def _or_missing(artifacts: Artifacts, film: _Film, score: str, episode: tuple[float, int] | None) -> str:
    try:
        return _film(film, score, episode)
    except MissingInputError as missing:
        return missing_note(artifacts, missing.path)


def _film(film: _Film, score: str, episode: tuple[float, int] | None) -> str:
    clip = film.facts
    content, (width, height) = _strip(film.folder / str(clip["file"]))
    if height % clip["frames"]:
        raise ReportError(
            f"{film.folder / 'clip.json'}: frames: found {clip['frames']}, expected as many as {clip['file']} shows in "
            f"{height} rows"
        )
    frame = f"aspect-ratio:{width}/{height / clip['frames']:g}"
    shown = f"{'all' if clip['ended'] else 'first'} {count(clip['steps'], 'step')} shown"
    shown += "" if clip.get("reward") is None else f", return {clip['reward']:,.0f}"
    whole = f"; {episode[0]:,.0f} in all {count(episode[1], 'step')}" if episode and not clip["ended"] else ""
    address = data_uri(content, "image/webp")
    title = escape(film.name) + (f" <span>{escape(score)}</span>" if score else "")
    alt = escape(f"Film of {film.name}: {clip['frames']} frames, {shown}")
    screen = f'<div class="screen" tabindex="0" style="{frame}"><img alt="{alt}" src="{address}"></div>'
    caption = f"<figcaption><b>{title}</b><br>{escape(shown + whole)}</figcaption>"
    return f'<figure class="film" data-frames="{clip["frames"]}">{screen}{caption}</figure>\n'


def _strip(path: Path) -> tuple[bytes, tuple[int, int]]:
    """Content and size of a picture."""
    from PIL import Image

    content = read_bytes(path)
    try:
        with Image.open(io.BytesIO(content), formats=("WEBP",)) as strip:
            return content, strip.size
    except Exception as error:  # UnidentifiedImageError, DecompressionBombError, ... by the damage
        raise ReportError(f"{path}: not a picture: {error}") from None
