"""The report: one self-contained HTML page made of what the stages left behind.

``inputs`` reads the stages' files, by section, entry and kind; ``plots``, ``maps`` and ``html`` are what figures and tables are
made of; each part of the page has a file of its own; ``page`` puts them together. Nothing here imports torch or a simulator:
what only a stage knows (latents, couplings, films, paths), the stage has stored.
"""

from dynarep.pipeline.report.inputs import ReportError, controls, read_scores
from dynarep.pipeline.report.page import ReportConfig, build_report, make_page

__all__ = ["ReportConfig", "ReportError", "build_report", "controls", "make_page", "read_scores"]
