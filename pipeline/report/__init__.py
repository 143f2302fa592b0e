"""The report: one self-contained HTML page made of what the stages left behind.

``inputs`` reads the stages' files; ``plots`` and ``html`` are what figures and tables are made of; each part of the page has
a file of its own; ``page`` puts them together. Nothing here imports torch or a simulator: what only a stage knows (latents,
couplings, films), the stage has stored.
"""

from dynarep.pipeline.report.inputs import ReportError
from dynarep.pipeline.report.page import ReportConfig, build_report

__all__ = ["ReportConfig", "ReportError", "build_report"]
