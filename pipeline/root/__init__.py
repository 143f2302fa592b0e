"""Representations of dynamics and of intent from recorded control data, and offline imitation in them.

The installed package ``dynarep`` is this file with ``pipeline``, ``stages``, ``data`` and ``configs`` below it. Names are
imported when first used, so that ``import dynarep`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynarep.data.columns import read_latents
    from dynarep.data.prepare import prepare, write_episodes
    from dynarep.data.schema import DataError, Episode
    from dynarep.data.shards import Dataset, load_dataset
    from dynarep.pipeline.artifacts.storage import ArtifactError, load_policy, save_artifact
    from dynarep.pipeline.training.loop import Run, TrainingConfig
    from dynarep.pipeline.playing.evaluate import EvaluateConfig, evaluate
    from dynarep.pipeline.imitate import ImitateConfig, imitate
    from dynarep.pipeline.offline_rl import OfflineRLConfig, offline_rl, scaled_rewards
    from dynarep.pipeline.pretrain_dynamics import PretrainDynamicsConfig, pretrain_dynamics
    from dynarep.pipeline.pretrain_intent import PretrainIntentConfig, pretrain_intent
    from dynarep.pipeline.artifacts.pretrained import PretrainedDynamics, PretrainedIntent, load_encoder
    from dynarep.pipeline.relabel import RelabelConfig, relabel
    from dynarep.pipeline.report import ReportConfig, build_report
    from dynarep.pipeline.spaces import dynamics_space, intent_space, observation_space

    __version__: str

__all__ = [
    "ArtifactError",
    "DataError",
    "Dataset",
    "Episode",
    "EvaluateConfig",
    "ImitateConfig",
    "OfflineRLConfig",
    "PretrainDynamicsConfig",
    "PretrainIntentConfig",
    "PretrainedDynamics",
    "PretrainedIntent",
    "RelabelConfig",
    "ReportConfig",
    "Run",
    "TrainingConfig",
    "__version__",
    "build_report",
    "dynamics_space",
    "evaluate",
    "imitate",
    "intent_space",
    "load_dataset",
    "load_encoder",
    "load_policy",
    "observation_space",
    "offline_rl",
    "prepare",
    "pretrain_dynamics",
    "pretrain_intent",
    "read_latents",
    "relabel",
    "save_artifact",
    "scaled_rewards",
    "write_episodes",
]

_HOMES = {
    "dynarep.data.columns": ("read_latents",),
    "dynarep.data.prepare": ("prepare", "write_episodes"),
    "dynarep.data.schema": ("DataError", "Episode"),
    "dynarep.data.shards": ("Dataset", "load_dataset"),
    "dynarep.pipeline.artifacts.storage": ("ArtifactError", "load_policy", "save_artifact"),
    "dynarep.pipeline.training.loop": ("Run", "TrainingConfig"),
    "dynarep.pipeline.playing.evaluate": ("EvaluateConfig", "evaluate"),
    "dynarep.pipeline.imitate": ("ImitateConfig", "imitate"),
    "dynarep.pipeline.offline_rl": ("OfflineRLConfig", "offline_rl", "scaled_rewards"),
    "dynarep.pipeline.pretrain_dynamics": ("PretrainDynamicsConfig", "pretrain_dynamics"),
    "dynarep.pipeline.pretrain_intent": ("PretrainIntentConfig", "pretrain_intent"),
    "dynarep.pipeline.artifacts.pretrained": ("PretrainedDynamics", "PretrainedIntent", "load_encoder"),
    "dynarep.pipeline.relabel": ("RelabelConfig", "relabel"),
    "dynarep.pipeline.report": ("ReportConfig", "build_report"),
    "dynarep.pipeline.spaces": ("dynamics_space", "intent_space", "observation_space"),
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
