"""The page as a whole."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import dynarep.pipeline.report.plots as plots
from dynarep.configs.params import config
from dynarep.pipeline.report.comparison import comparison_section
from dynarep.pipeline.report.couplings import couplings_section
from dynarep.pipeline.report.curves import curves_section
from dynarep.pipeline.report.html import or_missing
from dynarep.pipeline.report.inputs import Artifacts, Scored, read_scores
from dynarep.pipeline.report.labels import labels_section
from dynarep.pipeline.report.representation import spaces_section
from dynarep.pipeline.report.rollouts import rollouts_section
from dynarep.pipeline.report.scores import scores_section
from dynarep.pipeline.report.stages import stages_section
from dynarep.pipeline.report.summary import summary


@config
class ReportConfig:
    """Settings of the report.

    Args:
        title: heading of the page.
        compare: artifacts of another run to compare this one with; a path beside the params file, or from the root.
    """

    title: str = "dynarep report"
    compare: str | None = None


def build_report(settings: ReportConfig, artifacts: Path, entries: Mapping[str, Sequence[str]] | None = None) -> str:
    """Make the page.

    Args:
        settings: of the report.
        artifacts: root of the stages' folders; ``settings.compare`` is relative to the folder it lies in.
        entries: by section of a params file, those that belong to the run, in the order in which they are shown; by default all
            that lie there.

    Returns:
        HTML that needs no other file. A part whose input is missing says so.

    Raises:
        ReportError: if there are no scores, here or in the run to compare with, or an input is damaged.
    """
    return make_page(settings, read_scores(Artifacts(artifacts, entries or {})))


def make_page(settings: ReportConfig, scored: Scored) -> str:
    """The page of scores that have been read; see ``build_report``."""
    import matplotlib

    artifacts = scored.artifacts
    sections: dict[str, Callable[[Artifacts], str]] = {
        "Scores": partial(scores_section, scored=scored),
        "Rollouts": partial(rollouts_section, scored=scored),
        "Comparison of two runs": partial(
            comparison_section, scored=scored, other=Artifacts(artifacts.root.parent / (settings.compare or ""))
        ),
        "Spaces": spaces_section,
        "Couplings and rewards": couplings_section,
        "Labels: relabelled and true returns": labels_section,
        "Stages and provenance": partial(stages_section, scored=scored),
        "Learning curves": curves_section,
    }
    if settings.compare is None:
        del sections["Comparison of two runs"]
    anchors = {title: title.split()[0].lower().rstrip(":") for title in sections}
    with matplotlib.rc_context(plots.STYLE):  # type: ignore[arg-type]
        body = "\n".join(
            f'<section id="{anchors[title]}"><h2>{title}</h2>\n{or_missing(make, artifacts)}</section>'
            for title, make in sections.items()
        )
    script = _resource("page.js")
    return Template(_resource("page.html")).substitute(
        title=escape(settings.title),
        style=_resource("page.css"),
        script=script,
        script_hash=b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        summary=summary(artifacts, scored),
        contents="".join(f'<a href="#{anchor}">{title}</a>\n' for title, anchor in anchors.items()),
        sections=body,
    )


def _resource(name: str) -> str:
    return files("dynarep.pipeline.report").joinpath(name).read_text()
