"""Representations of dynamics and of intent from recorded control data, and offline imitation in them.

The installed package ``dynarep`` is this file with ``pipeline``, ``stages``, ``data`` and ``configs`` below it. Names are
imported when first used, so that ``import dynarep`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynarep.configs.params import ParamsError
    from dynarep.data.columns import read_latents
    from dynarep.data.prepare import prepare, write_episodes
    from dynarep.data.schema import DataError, Episode
    from dynarep.data.shards import Dataset, load_dataset, read_rewards, write_rewards
    from dynarep.pipeline.artifacts.pretrained import (
        PretrainedDynamics,
        PretrainedEncoder,
        PretrainedIntent,
        PretrainedPolicy,
        load_encoder,
        load_policy,
    )
    from dynarep.pipeline.artifacts.storage import ArtifactError, save_artifact
    from dynarep.pipeline.entries import Entry, parse_entry, read_entry
    from dynarep.pipeline.learn import learn
    from dynarep.pipeline.playing.evaluate import evaluate
    from dynarep.pipeline.playing.play import EvaluateConfig
    from dynarep.pipeline.playing.summary import gather, summarise
    from dynarep.pipeline.pretrain import pretrain
    from dynarep.pipeline.relabel import relabel
    from dynarep.pipeline.report import ReportConfig, build_report
    from dynarep.pipeline.training.config import TrainingConfig
    from dynarep.pipeline.training.run import Run

    __version__: str

__all__ = [
    "ArtifactError",
    "DataError",
    "Dataset",
    "Entry",
    "Episode",
    "EvaluateConfig",
    "ParamsError",
    "PretrainedDynamics",
    "PretrainedEncoder",
    "PretrainedIntent",
    "PretrainedPolicy",
    "ReportConfig",
    "Run",
    "TrainingConfig",
    "__version__",
    "build_report",
    "evaluate",
    "gather",
    "learn",
    "load_dataset",
    "load_encoder",
    "load_policy",
    "parse_entry",
    "prepare",
    "pretrain",
    "read_entry",
    "read_latents",
    "read_rewards",
    "relabel",
    "save_artifact",
    "summarise",
    "write_episodes",
    "write_rewards",
]

_HOMES = {
    "dynarep.configs.params": ("ParamsError",),
    "dynarep.data.columns": ("read_latents",),
    "dynarep.data.prepare": ("prepare", "write_episodes"),
    "dynarep.data.schema": ("DataError", "Episode"),
    "dynarep.data.shards": ("Dataset", "load_dataset", "read_rewards", "write_rewards"),
    "dynarep.pipeline.artifacts.pretrained": (
        "PretrainedDynamics",
        "PretrainedEncoder",
        "PretrainedIntent",
        "PretrainedPolicy",
        "load_encoder",
        "load_policy",
    ),
    "dynarep.pipeline.artifacts.storage": ("ArtifactError", "save_artifact"),
    "dynarep.pipeline.entries": ("Entry", "parse_entry", "read_entry"),
    "dynarep.pipeline.learn": ("learn",),
    "dynarep.pipeline.playing.evaluate": ("evaluate",),
    "dynarep.pipeline.playing.play": ("EvaluateConfig",),
    "dynarep.pipeline.playing.summary": ("gather", "summarise"),
    "dynarep.pipeline.pretrain": ("pretrain",),
    "dynarep.pipeline.relabel": ("relabel",),
    "dynarep.pipeline.report": ("ReportConfig", "build_report"),
    "dynarep.pipeline.training.config": ("TrainingConfig",),
    "dynarep.pipeline.training.run": ("Run",),
}
"""Where each name is defined."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("dynarep")
    elif name in __all__:
        module = next(module for module, names in _HOMES.items() if name in names)
        value = getattr(import_module(module), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
