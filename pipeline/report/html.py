"""Pieces of HTML: tables, notes, texts of values."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dynarep.pipeline.report.inputs import Artifacts, MissingInputError

NBSP = "\u00a0"


def or_missing(make: Callable[..., str], artifacts: Artifacts, *arguments: Any) -> str:
    """A part of the page, or a note that names the file it lacks."""
    try:
        return make(artifacts, *arguments)
    except MissingInputError as missing:
        return missing_note(artifacts, missing.path)


def missing_note(artifacts: Artifacts, path: Path, what: str = "") -> str:
    """A note that a file, or something in it, is not there."""
    return note(f"not available: {what}{artifacts.relative(path)}")


def note(text: str) -> str:
    """A note in place of something."""
    return f'<p class="missing">{escape(text)}</p>\n'


def table(
    caption: str,
    header: Sequence[tuple[str, str]],
    rows: Iterable[Sequence[str]],
    *,
    muted: Iterable[int] = (),
    shaded: Iterable[int] = (),
) -> str:
    """A table of escaped cells whose first column names the rows.

    Args:
        caption: what it shows, for readers who do not see it.
        header: (title, class of the column's cells) of each column.
        rows: texts.
        muted: numbers of rows that stand for reference.
        shaded: numbers of rows that stand for controls.
    """
    classes = dict.fromkeys(shaded, " class=unlearned") | dict.fromkeys(muted, " class=reference")
    head = "".join(f'<th scope="col" class="{kind}">{escape(title)}</th>' for title, kind in header)
    body = "".join(f"<tr{classes.get(number, '')}>{_cells(header, row)}</tr>\n" for number, row in enumerate(rows))
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table><caption>{escape(caption)}'
        f"</caption><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n"
    )


def _cells(header: Sequence[tuple[str, str]], row: Sequence[str]) -> str:
    first, *rest = zip(header, row, strict=True)
    (_, kind), name = first
    return f'<th scope="row" class="{kind}">{escape(name)}</th>' + "".join(
        f'<td class="{kind}">{escape(cell)}</td>' for (_, kind), cell in rest
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of terms and what they are; pairs without a text are left out."""
    return "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in pairs if text) + "</dl>"


def figure(content: str, caption: str = "") -> str:
    """A figure; the caption is HTML."""
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{content}{below}</figure>\n"


def details(title: str, aside: str, content: str, *, opened: bool = False) -> str:
    """Something that is folded away until it is asked for."""
    summary = f"<summary>{escape(title)} <span>{escape(aside)}</span></summary>"
    return f"<details{' open' if opened else ''}>{summary}\n{content}</details>\n"


def data_uri(content: bytes, kind: str) -> str:
    """An address that is its own content."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def flatten(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as (dotted key, text) pairs."""
    if isinstance(values, dict):
        return [
            pair for key, value in values.items() for pair in flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(values, list) and not any(isinstance(value, dict | list) for value in values):
        return [(prefix, ", ".join(map(as_text, values)))]
    return [(prefix, as_text(values))]


def as_text(value: Any) -> str:
    """A value in a few characters."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value + 0.0:.4g}"  # no -0
    return value if isinstance(value, str) else json.dumps(value)


def listing(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def beside(*parts: str) -> str:
    """Parts of the page side by side where it is wide enough."""
    return f'<div class="beside">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>\n'
