"""Short films of policies and of the expert, for the report; made where a renderer works, and a reason given where not.

A policy's clip shows the first seconds of an episode that the evaluation has scored: the first one of the first replica. Its
actions are recorded in the same block of episodes, so that they are the same to the bit, and replayed in an environment that
renders. The expert's clip shows recorded states: positions are set from the observations, and a coordinate along the ground
that these leave out is the sum of its velocity.

All rendering happens in processes of their own, because a graphics library can bring its process down.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dynarep.data.parallel import one_thread
from dynarep.data.schema import Episode
from dynarep.data.shards import load_dataset
from dynarep.pipeline.playing.environments import EvaluationError, NoiseConfig, make_environment, seeded
from dynarep.pipeline.playing.motion import MotionConfig
from dynarep.pipeline.playing.play import LONGEST_STRIP, Actor, EvaluateConfig, play_block

TRACKING = "track"
"""The camera of Gymnasium's locomotion models that follows the body."""

HOW_TO_RENDER = (
    "On Debian or Ubuntu `apt-get install libegl1` installs a renderer that needs no screen and no GPU; then run the stage "
    "evaluate again. MUJOCO_GL chooses another: osmesa, or glfw with a screen."
)


class RenderingError(RuntimeError):
    """No picture can be made; the message says why."""


@dataclass(frozen=True)
class Clip:
    """A short film.

    Args:
        frames: at least one, (height, width, 3).
        facts: what the report says of it: ``steps`` shown, their ``reward`` (or None), whether the episode ``ended`` in it.
    """

    frames: list[NDArray[np.uint8]]
    facts: dict[str, Any]


def make_clip(settings: EvaluateConfig, name: str, film: Callable[[], Clip], folder: Path) -> dict[str, Any]:
    """Make one film and write its strip of frames.

    Args:
        settings: of the evaluation; ``settings.clips`` must be set.
        name: of what is filmed.
        film: makes it, see ``film_policy`` and ``film_recording``.
        folder: receives ``<name>.webp``, the frames one below the other.

    Returns:
        What ``clip.json`` holds: ``seconds_per_frame`` and either ``file``, ``frames`` and the facts of ``Clip`` or the
        ``notice`` that says why there is no film.
    """
    per_frame, _ = _timing(settings)
    about: dict[str, Any] = {"seconds_per_frame": per_frame / _steps_per_second(settings)}
    try:
        clip = _filmed(film)
        write_strip(folder / f"{name}.webp", clip.frames)
        return {**about, "file": f"{name}.webp", "frames": len(clip.frames), **clip.facts}
    except RenderingError as error:
        return {**about, "notice": str(error)}


# Renderers


def renderers() -> list[str | None]:
    """Values of MUJOCO_GL to try; None leaves the choice to MuJoCo."""
    if os.environ.get("MUJOCO_GL"):
        return [os.environ["MUJOCO_GL"]]
    if not sys.platform.startswith("linux"):
        return [None]
    return ["egl", "osmesa", *(["glfw"] if os.environ.get("DISPLAY") else [])]


def _filmed(film: Callable[[], Clip]) -> Clip:
    """Run the job with the first renderer that works.

    Raises:
        RenderingError: if none does, or the film cannot be made.
    """
    faults = []
    for renderer in renderers():
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, _use_renderer, (renderer,)) as pool:
            try:
                clip = pool.submit(_attempt, film).result()
            except (BrokenProcessPool, _RendererError) as error:
                faults.append(f"{renderer or 'default'}: {error}")
                pool.shutdown(cancel_futures=True)
                continue
        if isinstance(clip, RenderingError):
            raise clip
        return clip
    raise RenderingError(f"no renderer works ({'; '.join(faults)}). {HOW_TO_RENDER}")


class _RendererError(Exception):
    """This renderer makes no pictures."""


def _use_renderer(renderer: str | None) -> None:
    if renderer is not None:
        os.environ["MUJOCO_GL"] = renderer
    sys.unraisablehook = lambda unraisable: None  # viewers that were never made complain when they are collected


def _attempt(job: Callable[[], Clip]) -> Clip | RenderingError:
    with one_thread():
        try:
            return job()
        except RenderingError as error:
            return error
        except EvaluationError as error:  # it has worked without a renderer
            raise _RendererError(str(error)) from None
        except _RendererError:
            raise
        except Exception as error:  # no film is worth an evaluation
            return RenderingError(f"{type(error).__name__}: {error}")


@cache
def _stage(
    env: str, options: str, observations: tuple[str, ...] | None, action_repeat: int, noise: NoiseConfig | None
) -> Any:
    """The one environment of a process that renders; a second viewer in a process can blank the first.

    Where MuJoCo draws, the camera follows the body, and shadows and reflections are left out, which makes it three times as
    fast without a GPU.
    """
    environment = make_environment(
        env, json.loads(options), observations, action_repeat=action_repeat, noise=noise, render_mode="rgb_array"
    )
    renderer = getattr(environment.unwrapped, "mujoco_renderer", None)
    if renderer is not None:
        model = renderer.model
        model.light_castshadow[:] = 0
        model.mat_reflectance[:] = 0
        if TRACKING in [model.camera(number).name for number in range(model.ncam)]:
            renderer.camera_id = model.camera(TRACKING).id
    return environment


def _rendering(settings: EvaluateConfig) -> tuple[Any, int]:
    """The environment of this process, and the width of its pictures."""
    assert settings.clips is not None
    options = json.dumps(settings.env_options)
    stage = _stage(settings.env, options, settings.observations, settings.action_repeat, settings.noise)
    return stage, settings.clips.width


def _picture(environment: Any, width: int) -> NDArray[np.uint8]:
    """What the environment looks like, (height, width, 3)."""
    from PIL import Image

    try:
        frame = np.asarray(environment.render())
    except Exception as error:  # drivers raise what they like
        raise _RendererError(f"{type(error).__name__}: {error}") from None
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.min() == frame.max():
        raise _RendererError("the picture is empty")
    size = width, round(width * frame.shape[0] / frame.shape[1])
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))


# Films


class _Recorder:
    """A policy that remembers what it does in the first episode of the first replica."""

    def __init__(self, policy: Actor) -> None:
        self.policy = policy
        self.actions: list[NDArray[Any]] = []

    @property
    def replicas(self) -> int:
        return self.policy.replicas

    def reset(self, seed: tuple[int, ...]) -> None:
        self.policy.reset(seed)

    def act(self, observations: Tensor) -> Tensor:
        actions = self.policy.act(observations)
        self.actions.append(actions[0, 0].numpy().copy())
        return actions


def film_policy(settings: EvaluateConfig, name: str, folder: Path) -> Clip:
    """The first seconds of a policy's first episode."""
    from dynarep.pipeline.artifacts.storage import load_policy_model

    per_frame, steps = _timing(settings)
    recorder = _Recorder(load_policy_model(folder))
    short = replace(settings, max_steps=steps, motion=MotionConfig())
    length = int(play_block(recorder, name, short, first=0).lengths[0, 0])

    stage, width = _rendering(settings)
    with seeded(settings.seed):
        stage.reset(seed=settings.seed)
    frames, total, ended = [_picture(stage, width)], 0.0, False
    for step, action in enumerate(recorder.actions[:length], start=1):
        _, reward, terminated, truncated, _ = stage.step(action)
        total, ended = total + float(reward), bool(terminated or truncated)
        if step % per_frame == 0 or step == length:
            frames.append(_picture(stage, width))
    return Clip(frames, {"steps": length, "reward": total, "ended": ended})


def film_recording(settings: EvaluateConfig, shards: Path) -> Clip:
    """The first seconds of a dataset's first episode, by setting the recorded states.

    Raises:
        RenderingError: if observations do not tell the positions, or the steps of the episode do not follow each other.
    """
    dataset = load_dataset(shards)
    episode = dataset.episodes[0]
    stage, width = _rendering(settings)
    positions = recorded_positions(stage, episode, dataset.name)
    per_frame, steps = _timing(settings)
    last = min(steps, len(positions) - 1)
    frames = []
    for step in sorted({*range(0, last + 1, per_frame), last}):
        stage.unwrapped.set_state(positions[step], np.zeros_like(stage.unwrapped.init_qvel))
        frames.append(_picture(stage, width))
    reward = None if episode.rewards is None else float(episode.rewards[:last].sum(dtype=np.float64))
    ended = last == episode.length
    return Clip(
        frames, {"steps": last, "reward": reward, "ended": ended, "dataset": dataset.name, "episode": episode.id}
    )


def recorded_positions(environment: Any, episode: Episode, dataset: str) -> NDArray[np.float64]:
    """Positions (T, nq) of MuJoCo's joints in the states of an episode, from observations that begin with them.

    Gymnasium's locomotion tasks observe the positions without one or two coordinates along the ground, then all
    velocities. Those coordinates start at 0 and are summed up from their velocities.

    Raises:
        RenderingError: if the observations of the environment are made otherwise, or steps do not follow each other.
    """
    task = environment.unwrapped
    if episode.next_observations is not None:
        raise RenderingError(f"{dataset} holds transitions that do not follow each other")
    if not all(hasattr(task, name) for name in ("set_state", "data", "init_qvel", "dt")):
        raise RenderingError("the environment cannot be set to a recorded state")
    observation, _ = environment.reset(seed=0)
    hidden = _hidden_positions(observation, task.data.qpos, task.data.qvel)
    seen = len(task.data.qpos) - hidden
    states = episode.observations.astype(np.float64)
    if states.shape[1] != len(observation):
        raise RenderingError(f"observations of {dataset} have {states.shape[1]} numbers, expected {len(observation)}")
    moved = np.cumsum(states[:, seen : seen + hidden] * task.dt, axis=0)
    return np.concatenate([moved, states[:, :seen]], axis=1)


def _hidden_positions(observation: NDArray[Any], qpos: NDArray[Any], qvel: NDArray[Any]) -> int:
    """How many leading positions an observation leaves out that goes on with the velocities, clipped or not."""
    for hidden in range(3):
        tail = np.concatenate([qpos[hidden:], np.clip(qvel, -10, 10)])
        if len(observation) >= len(tail) and np.allclose(observation[: len(tail)], tail):
            return hidden
    raise RenderingError("the observations of the environment do not tell the positions of its joints")


def _timing(settings: EvaluateConfig) -> tuple[int, int]:
    """Steps per frame, and steps in a whole clip."""
    assert settings.clips is not None
    rate = _steps_per_second(settings)
    per_frame = max(1, round(rate / settings.clips.fps))
    steps = max(1, round(settings.clips.seconds * rate))
    return per_frame, min(steps, settings.max_steps or steps)


def _steps_per_second(settings: EvaluateConfig) -> float:
    """Of the environment's own time; 20 of its own where it does not say."""
    return float(settings.make().metadata.get("render_fps") or 20) / settings.action_repeat


def write_strip(path: Path, frames: list[NDArray[np.uint8]]) -> None:
    """Write frames as one WebP image, one below the other.

    Raises:
        RenderingError: if the image would be too long for the format.
    """
    from PIL import Image

    strip = np.concatenate(frames)
    if len(strip) > LONGEST_STRIP:
        raise RenderingError(
            f"evaluate.clips: {len(frames)} frames of {len(frames[0])} pixels are more than a WebP image's {LONGEST_STRIP}; "
            "choose fewer seconds, fewer frames per second or a smaller width"
        )
    Image.fromarray(strip).save(path, quality=70, method=6)
