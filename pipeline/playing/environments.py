"""Environments of the evaluation: Gymnasium's, those of ``gymnasium-robotics`` and DeepMind Control, as vectors.

Tasks that D4RL has recordings of are made as D4RL evaluates them, as far as the current packages allow: ``FAMILIES`` says
with which options, and which entries of a dictionary make up an observation. See ``docs/environments.md``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dynarep.configs.params import EnvironmentId, Field, config
from dynarep.data.d4rl import environment_reference


@config
class NoiseConfig:
    """Numbers without meaning beside an observation, as ``dynarep.data.noise`` draws them for recordings.

    Args:
        kind: ``white`` is drawn anew in every step, ``ar1`` remembers.
        dims: how many.
        rho: correlation of successive steps with ``ar1``.
        deviation: of each number.
    """

    kind: Literal["white", "ar1"]
    dims: int = Field(gt=0)
    rho: float = Field(default=0.99, ge=0, lt=1)
    deviation: float = Field(default=1.0, gt=0)


@config
class EnvironmentConfig:
    """An environment, and what of it is seen.

    Args:
        env: Gymnasium id, e.g. ``Hopper-v4``; ``module:Id-v0`` imports the module that registers it.
        env_options: keyword arguments of the environment, beside those that ``docs/environments.md`` lists.
        observations: entries of dictionary observations, side by side in this order; null: those of
            ``docs/environments.md``.
        action_repeat: steps of the environment that an action lasts; all else here counts actions as steps, and a reward is
            the sum of theirs.
        noise: numbers without meaning to append to every observation, as a card can append them to a recording.
        max_steps: end episodes after this many steps; null: only the environment's own limit ends them.
    """

    env: EnvironmentId
    env_options: dict[str, Any] = Field(default_factory=dict)
    observations: tuple[str, ...] | None = Field(default=None, min_length=1)
    action_repeat: int = Field(default=1, ge=1)
    noise: NoiseConfig | None = None
    max_steps: int | None = Field(default=None, ge=1)

    def make(self) -> Any:
        """The environment, as ``make_environment`` makes it."""
        return make_environment(
            self.env, self.env_options, self.observations, action_repeat=self.action_repeat, noise=self.noise
        )

    def limit_of(self, environment: Any, key: str) -> int:
        """Steps after which an episode of it is cut off.

        Args:
            environment: from ``make``.
            key: of ``max_steps``, for the message.

        Raises:
            EvaluationError: if neither this configuration nor the environment has a limit.
        """
        own = environment.spec.max_episode_steps
        limit = self.max_steps or (own and -(-own // self.action_repeat))
        if limit is None:
            raise EvaluationError(f"env {self.env!r} has no limit of steps of its own; set {key}")
        return int(limit)


@config
class CollectionConfig(EnvironmentConfig):
    """An environment to act in, and how its steps are collected.

    Args:
        environments: of each replica, stepped together; there is one step per update in all.
        random_steps: uniform random ones before the first update.
        capacity: newest transitions that each replica keeps.
    """

    environments: int = Field(default=1, ge=1)
    random_steps: int = Field(default=2500, ge=1)
    capacity: int = Field(default=500_000, ge=1)


class EvaluationError(ValueError):
    """An environment cannot be made, a policy does not fit it, or an input is missing; the message names which."""


@dataclass(frozen=True)
class Family:
    """Environments that are made alike.

    Args:
        package: module that registers them; None for Gymnasium's own.
        extra: of this project, that installs it.
        distributions: packages beside Gymnasium and MuJoCo whose versions decide what the environments do.
        options: keyword arguments of ``gymnasium.make`` where the evaluation sets none.
        observations: entries of the dictionary that make up an observation, in this order; None: all, by name.
        ignores_seed: the seed of a reset does not reach what the start is drawn from; the method ``seed`` does.
        sparse: a positive return means that the goal was reached.
        misfits: size of an observation that some recordings of the task have -> why it does not fit, and what to do.
        other_frame: what D4RL's datasets of the same layout are called whose coordinates are not those of the environment.
    """

    package: str | None = None
    extra: str | None = None
    distributions: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    observations: tuple[str, ...] | None = None
    ignores_seed: bool = False
    sparse: bool = False
    misfits: Mapping[int, str] = field(default_factory=dict)
    other_frame: str | None = None


ROBOTICS: dict[str, Any] = {
    "package": "gymnasium_robotics",
    "extra": "robotics",
    "distributions": ("gymnasium-robotics",),
}

FAMILIES: dict[str, Family] = {
    r"AntMaze_\w+-v5": Family(
        **ROBOTICS,
        options={"continuing_task": False, "include_cfrc_ext_in_observation": False},
        observations=("achieved_goal", "observation"),
        sparse=True,
        other_frame="antmaze",
    ),
    r"AntMaze_\w+-v\d+": Family(
        **ROBOTICS,
        options={"continuing_task": False},
        observations=("achieved_goal", "observation"),
        sparse=True,
        other_frame="antmaze",
    ),
    r"PointMaze_\w+-v\d+": Family(**ROBOTICS, observations=("observation",), other_frame="maze2d"),
    r"FrankaKitchen-v\d+": Family(
        **ROBOTICS,
        options={"tasks_to_complete": ["microwave", "kettle", "light switch", "slide cabinet"]},
        observations=("observation",),
        misfits={
            60: "D4RL's Kitchen recordings hold 30 positions and 30 numbers of the goal, FrankaKitchen gives 30 positions "
            "and 29 velocities of the robot and the objects. Choose recordings made in FrankaKitchen, such as Minari's "
            "D4RL/kitchen, or leave out the evaluation"
        },
    ),
    r"(AdroitHand|Fetch|HandReach|HandManipulate)\w*-v\d+": Family(**ROBOTICS),
    r"(pointmaze|antmaze|humanoidmaze|antsoccer|cube|scene|puzzle)-.+-v\d+": Family(
        package="ogbench", extra="ogbench", distributions=("ogbench",)
    ),
    r"Meta-World/.+": Family(
        package="metaworld", extra="metaworld", distributions=("metaworld",), options={"seed": 0}, ignores_seed=True
    ),
    r"dm_control/.+": Family(package="shimmy", extra="dmc", distributions=("shimmy", "dm-control")),
    r"Ant-v\d+": Family(
        misfits={
            111: "D4RL's Ant recordings hold 27 numbers and 84 contact forces, which are all zero there (D4RL issue 143) "
            "and which no current environment gives in this form. Choose env: Ant-v4 and a recording with "
            "observations[:, :27], which is Ant-v4's observation. Only for recordings with true contact forces: env: Ant-v4 "
            "with env_options: {use_contact_forces: true} gives 111 numbers"
        }
    ),
}
"""Pattern of Gymnasium ids -> how they are made; the first that matches counts."""

NEUTRAL = ("include_cfrc_ext_in_observation", "maze_map")
"""Options that leave the rewards of a task as they are."""


def family(env: str) -> Family:
    """The family of a Gymnasium id; ids of other packages have one without any particulars."""
    name = env.removeprefix("gymnasium_robotics:").removeprefix("ogbench:")
    return next((found for pattern, found in FAMILIES.items() if re.fullmatch(pattern, name)), Family())


def make_environment(
    env: str,
    options: Mapping[str, Any] | None = None,
    observations: Sequence[str] | None = None,
    *,
    action_repeat: int = 1,
    noise: NoiseConfig | None = None,
    render_mode: str | None = None,
) -> Any:
    """Make a Gymnasium environment whose observations and actions are vectors, the actions bounded.

    Args:
        env: Gymnasium id.
        options: keyword arguments of its constructor, beside those of its family.
        observations: entries of a dictionary that make up an observation, side by side in this order; those of the
            family by default, else all in alphabetical order.
        action_repeat: steps that an action lasts.
        noise: numbers without meaning to append to every observation.
        render_mode: Gymnasium's, for instance ``rgb_array``.

    Raises:
        EvaluationError: if it is unknown, not installed, cannot be made or has other spaces, or an entry is missing.
    """
    import gymnasium
    from gymnasium.spaces import Box, Dict
    from gymnasium.wrappers import RepeatAction

    kind = family(env)
    _register(env, kind)
    options = dict(options or {})
    if "render_mode" in options:
        found = options["render_mode"]
        raise EvaluationError(
            f"env_options: render_mode: found {found!r:.100}, expected no such key; films are drawn off the screen"
        )
    arguments = {**kind.options, **options} | ({"render_mode": render_mode} if render_mode else {})
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*out of date.*", DeprecationWarning)
            environment = gymnasium.make(env, disable_env_checker=True, **arguments)
    except Exception as error:  # constructors raise what they like, also AssertionError without a message
        raise EvaluationError(f"env {env!r} cannot be made: {_reason(error, kind)}") from error
    if isinstance(environment.observation_space, Dict):
        environment = _flattened(env, environment, observations or kind.observations)
    elif observations is not None:
        raise EvaluationError(
            f"observations: found {', '.join(observations)}, but the observations of {env} are no dictionary"
        )
    for name, space in (("observations", environment.observation_space), ("actions", environment.action_space)):
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise EvaluationError(f"env {env!r}: {name} are {space}, expected a Box with one axis")
        if name == "actions" and not space.is_bounded():
            raise EvaluationError(f"env {env!r}: {name} are {space}, expected finite bounds")
    if kind.ignores_seed:
        environment = _seeded_by_reset(environment)
    if action_repeat > 1:
        environment = RepeatAction(environment, action_repeat)
    return environment if noise is None else _noisy(environment, noise)


def without_counting(environments: Sequence[Any]) -> tuple[list[Any], int | None]:
    """What is inside of Gymnasium's outer wrappers that only count steps or complain of one before the first reset.

    They cost a tenth of a step of Hopper.

    Args:
        environments: made alike, each of them reset.

    Returns:
        Environments to step, and after how many steps the wrappers would have cut off an episode; None: never.
    """
    from gymnasium.wrappers import OrderEnforcing, TimeLimit

    limits: list[int] = []
    inside: list[Any] = list(environments)
    while type(outer := inside[0]) in (OrderEnforcing, TimeLimit):
        if type(outer) is TimeLimit:
            if outer.spec is None or outer.spec.max_episode_steps is None:
                break  # it does not say when it cuts off
            limits.append(outer.spec.max_episode_steps)
        inside = [environment.env for environment in inside]
    return inside, min(limits, default=None)


def _seeded_by_reset(environment: Any) -> Any:
    """With a reset that passes its seed to what the environment draws its start from."""
    import gymnasium

    class SeededByReset(gymnasium.Wrapper[Any, Any, Any, Any]):
        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            if seed is not None:
                self.unwrapped.seed(seed)  # type: ignore[attr-defined]
            return self.env.reset(seed=seed, options=options)

    return SeededByReset(environment)


def _noisy(environment: Any, c: NoiseConfig) -> Any:
    """With noise beside each observation, which the seed of an episode determines."""
    import gymnasium
    from gymnasium.spaces import Box

    from dynarep.data.noise import NoiseProcess

    process = NoiseProcess(c.kind, c.dims, c.rho, c.deviation)

    class Noisy(gymnasium.Wrapper[Any, Any, Any, Any]):
        def __init__(self, inner: Any) -> None:
            super().__init__(inner)
            self.observation_space = Box(-np.inf, np.inf, (inner.observation_space.shape[0] + c.dims,), np.float64)

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            observation, info = self.env.reset(seed=seed, options=options)
            process.reset(np.random.default_rng(None if seed is None else (seed, c.dims)))
            return np.concatenate([observation, process.step()]), info

        def step(self, action: Any) -> Any:
            observation, *rest = self.env.step(action)
            return np.concatenate([observation, process.step()]), *rest

    return Noisy(environment)


def simulator_state(environment: Any) -> NDArray[np.float64] | None:
    """All that decides how a simulation of Gymnasium's own MuJoCo tasks goes on; None of other environments.

    ``restore_simulator`` takes it to an environment that was reset.
    """
    if not _is_plain_mujoco(environment):
        return None
    import mujoco

    inner = environment.unwrapped
    what = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.zeros(mujoco.mj_stateSize(inner.model, what))
    mujoco.mj_getState(inner.model, inner.data, state, what)
    return state


def restore_simulator(environment: Any, state: NDArray[np.float64]) -> None:
    """Go on from a ``simulator_state``."""
    import mujoco

    inner = environment.unwrapped
    what = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_setState(inner.model, inner.data, state, what)
    mujoco.mj_forward(inner.model, inner.data)
    mujoco.mj_setState(inner.model, inner.data, state, what)  # mj_forward moves where the solver starts


def _is_plain_mujoco(environment: Any) -> bool:
    import gymnasium

    layers = [environment]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    return all(type(layer).__module__.startswith(("gymnasium.envs.mujoco.", "gymnasium.wrappers.")) for layer in layers)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator for the block, for environments that draw from it at reset."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _register(env: str, kind: Family) -> None:
    """Import the package that registers an environment."""
    if kind.package is None:
        return
    try:
        import_module(kind.package)
        for distribution in kind.distributions:
            version(distribution)
    except (ImportError, PackageNotFoundError) as error:
        raise EvaluationError(
            f"env {env!r} needs the package {' and '.join(kind.distributions)}: pip install 'dynarep[{kind.extra}]' "
            f"({error})"
        ) from error


def _reason(error: Exception, kind: Family) -> str:
    """What an environment's constructor complains of, and what is known to help."""
    reason = f"{error}" or type(error).__name__
    if kind.package == "shimmy" and isinstance(error, AttributeError):
        return (
            f"{reason}; dm-control {version('dm-control')} does not fit mujoco {version('mujoco')}: "
            "pip install 'dynarep[dmc]'"
        )
    if kind.package == "gymnasium_robotics" and isinstance(error, AssertionError):
        return (
            f"{reason}; gymnasium-robotics {version('gymnasium-robotics')} does not fit mujoco {version('mujoco')} here: "
            "pip install 'mujoco<3.12'"
        )
    return reason


def _flattened(env: str, environment: Any, names: Sequence[str] | None) -> Any:
    """Some entries of dictionary observations as one vector."""
    from gymnasium.spaces import Box, flatdim, flatten
    from gymnasium.wrappers import TransformObservation

    entries = environment.observation_space.spaces
    for name in names or ():
        if name not in entries:
            raise EvaluationError(f"observations: {env} has no {name!r}, expected some of {', '.join(entries)}")
    chosen = {name: entries[name] for name in (names or sorted(entries))}
    for name, space in chosen.items():
        if not isinstance(space, Box) or len(space.shape) > 1:
            raise EvaluationError(f"env {env!r}: observation {name!r} is {space}, expected numbers or vectors")

    def join(observation: Mapping[str, Any]) -> NDArray[np.float64]:
        return np.concatenate([flatten(space, observation[name]) for name, space in chosen.items()])

    shape = (sum(flatdim(space) for space in chosen.values()),)
    return TransformObservation(environment, join, Box(-np.inf, np.inf, shape, np.float64))


def succeeded(info: Mapping[str, Any]) -> bool | None:
    """Whether a step of an environment counts as success; None if the environment says nothing of it.

    ``success`` (``is_success`` in Fetch and Hand), or no task left to complete (FrankaKitchen).
    """
    for key in ("success", "is_success"):
        if key in info:
            return bool(info[key])
    return not info["tasks_to_complete"] if "tasks_to_complete" in info else None


def d4rl_reference(env: str, options: Mapping[str, Any] | None = None) -> tuple[float, float] | None:
    """Random and expert return of D4RL's score, None if the environment has none or ``options`` change the task.

    Kitchen's holds for any four tasks.
    """
    usual = dict(family(env).options)
    for name, value in (options or {}).items():
        same = (
            len(value) == len(usual[name])
            if name == "tasks_to_complete" and name in usual
            else value == usual.get(name)
        )
        if name not in NEUTRAL and not same:
            return None
    return environment_reference(env)


def check_observations(where: str, env: str, found: int, given: int) -> None:
    """A policy reads observations of the size that the environment gives.

    Args:
        where: the policy, for messages.
        env: Gymnasium id.
        found: size that the policy reads.
        given: size that the environment gives.

    Raises:
        EvaluationError: if not; for known recordings with the way out.
    """
    if found != given:
        why = family(env).misfits.get(found)
        raise EvaluationError(
            f"{where}: the policy reads observations of {found} numbers, {env} gives {given}"
            + (f". {why}" if why else "")
        )


def check_recording(where: str, env: str, card: Mapping[str, Any]) -> None:
    """The coordinates of a recording are those of the environment, as far as its card tells.

    Args:
        where: the policy that learned from it, for messages.
        env: Gymnasium id.
        card: keys of the dataset card.

    Raises:
        EvaluationError: if it names a dataset of D4RL with other coordinates.
    """
    name, prefix = str(card.get("dataset")), family(env).other_frame
    if prefix is not None and card.get("format") == "d4rl" and name.startswith(prefix):
        raise EvaluationError(
            f"{where}: learned from D4RL's {name}, whose maze has its origin and its axes elsewhere than {env}. Choose "
            "recordings made in this environment, such as Minari's (configs/datasets/antmaze-umaze.yaml), or stop at "
            "offline_rl"
        )


def simulator_versions(env: str) -> dict[str, str]:
    """Versions of the packages that decide what episodes look like."""
    return {name: version(name) for name in ("gymnasium", "mujoco", "torch", *family(env).distributions)}
