"""D4RL's datasets by name, and the returns that its scores are normalised with, by dataset and by environment.

Fu et al. 2020, D4RL: Datasets for Deep Data-Driven Reinforcement Learning. An installed ``d4rl`` distribution is asked
first: the tables that its ``infos.py`` writes out as literals are read, and nothing of it is executed. Without it the
table below serves. Gym recordings before v2 had wrong content and are refused.
"""

from __future__ import annotations

import ast
import re
import site
import sysconfig
from difflib import get_close_matches
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from dynarep.configs.params import read_file
from dynarep.data.schema import DataError

SERVER = "http://rail.eecs.berkeley.edu/datasets/offline_rl"

REFERENCES: dict[str, tuple[float, float]] = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "antmaze": (0.0, 1.0),
    "kitchen": (0.0, 4.0),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884),
}
"""Mean returns that D4RL normalises with (random policy, expert) by family, the first word of a dataset's name."""

MAZE2D_REFERENCES: dict[str, tuple[float, float]] = {
    "maze2d-umaze-v1": (23.85, 161.86),
    "maze2d-medium-v1": (13.13, 277.39),
    "maze2d-large-v1": (6.7, 273.99),
    "maze2d-umaze-dense-v1": (68.537689, 193.66285642381482),
    "maze2d-medium-dense-v1": (44.264742, 297.4552547777125),
    "maze2d-large-dense-v1": (30.569041, 303.4857382709002),
}
"""The same where each dataset has its own."""

ENVIRONMENTS = {
    r"(Hopper|HalfCheetah|Walker2d|Ant)-v\d+": "{0}",
    r"AntMaze_(?:UMaze|Medium|Large)(?:_Diverse_GR?)?-v\d+": "antmaze",
    r"AdroitHand(Pen|Hammer|Door|Relocate)-v\d+": "{0}",
    r"FrankaKitchen-v\d+": "kitchen",
    r"PointMaze_(UMaze|Medium|Large)-v\d+": "maze2d-{0}-v1",
    r"PointMaze_(UMaze|Medium|Large)Dense-v\d+": "maze2d-{0}-dense-v1",
}
"""Gymnasium ids of D4RL's tasks, of any version -> family, or dataset of Maze2d."""

WITHDRAWN = re.compile(r"(halfcheetah|hopper|walker2d|ant)-[a-z-]+-v[01]")


def _table() -> dict[str, str]:
    """Dataset -> place of its file on the server."""
    files = {}
    for family in ("halfcheetah", "hopper", "walker2d", "ant"):
        for kind in ("random", "medium", "expert", "medium-replay", "full-replay", "medium-expert"):
            files[f"{family}-{kind}-v2"] = f"gym_mujoco_v2/{family}_{kind.replace('-', '_')}-v2.hdf5"
    mazes = {
        "umaze": ("u-maze", False, False),
        "umaze-diverse": ("u-maze", True, True),
        "medium-play": ("big-maze", True, False),
        "medium-diverse": ("big-maze", True, True),
        "large-play": ("hardest-maze", True, False),
        "large-diverse": ("hardest-maze", True, True),
    }
    for name, (maze, starts, goals) in mazes.items():
        file = f"Ant_maze_{maze}_noisy_multistart_{starts}_multigoal_{goals}_sparse_fixed.hdf5"
        files[f"antmaze-{name}-v2"] = f"ant_maze_v2/{file}"
    for task in ("pen", "hammer", "door", "relocate"):
        for kind in ("human", "cloned", "expert"):
            files[f"{task}-{kind}-v1"] = f"hand_dapg_v1/{task}-{kind}-v1.hdf5"
        files[f"{task}-human-v0"] = f"hand_dapg/{task}-v0_demos_clipped.hdf5"
        files[f"{task}-cloned-v0"] = f"hand_dapg/{task}-demos-v0-bc-combined.hdf5"
        files[f"{task}-expert-v0"] = f"hand_dapg/{task}-v0_expert_clipped.hdf5"
    for size in ("umaze", "medium", "large"):
        files[f"maze2d-{size}-v1"] = f"maze2d/maze2d-{size}-sparse-v1.hdf5"
        files[f"maze2d-{size}-dense-v1"] = f"maze2d/maze2d-{size}-dense-v1.hdf5"
    files["kitchen-complete-v0"] = "kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5"
    files["kitchen-partial-v0"] = "kitchen/kitchen_microwave_kettle_light_slider-v0.hdf5"
    files["kitchen-mixed-v0"] = "kitchen/kitchen_microwave_kettle_bottomburner_light-v0.hdf5"
    return files


URLS = {name: f"{SERVER}/{file}" for name, file in _table().items()}
"""Dataset -> URL."""


def url(name: str) -> str:
    """The official URL of a dataset, for instance ``hopper-medium-v2``.

    Raises:
        DataError: if the name is unknown (the message lists similar ones), or the dataset was withdrawn.
    """
    urls: dict[str, str] = {**URLS, **_installed().get("DATASET_URLS", {})}
    if WITHDRAWN.fullmatch(name):
        raise DataError(f"dataset {name}: D4RL's Gym recordings before v2 have wrong content; use those of v2")
    if name not in urls:
        known = get_close_matches(name, urls) or sorted(urls)
        raise DataError(f"dataset {name}: unknown to D4RL, expected for instance {', '.join(known)}; or give a path")
    return urls[name]


def reference(name: str) -> tuple[float, float] | None:
    """Random and expert return of a dataset's task, None if D4RL has none."""
    installed = _installed()
    low, high = (installed.get(key, {}).get(name) for key in ("REF_MIN_SCORE", "REF_MAX_SCORE"))
    if low is not None and high is not None:
        return float(low), float(high)
    return MAZE2D_REFERENCES.get(name) or REFERENCES.get(name.partition("-")[0])


def environment_reference(env: str) -> tuple[float, float] | None:
    """Random and expert return that D4RL's score of a Gymnasium id such as ``Hopper-v4`` is made of, None if it has none.

    They are those of D4RL's own environments, in the unit of their rewards, whatever the version.
    """
    for pattern, name in ENVIRONMENTS.items():
        if match := re.fullmatch(pattern, env.removeprefix("gymnasium_robotics:")):
            key = name.format(*match.groups()).lower()
            return MAZE2D_REFERENCES.get(key) or REFERENCES[key]
    return None


TABLES: dict[str, type] = {"DATASET_URLS": str, "REF_MIN_SCORE": float, "REF_MAX_SCORE": float}
"""Tables of the package by their names, and what they map datasets to."""
INFOS_BYTES = 1 << 20
"""Largest ``infos.py`` that is read."""


@cache
def _installed() -> dict[str, Any]:
    """The tables of the distribution that is installed for this interpreter, nothing without it."""
    folders = {sysconfig.get_path(key) for key in ("purelib", "platlib")}
    folders |= {site.getusersitepackages()} if site.ENABLE_USER_SITE else set()
    for distribution in distributions(name="d4rl", path=sorted(folders)):
        path = Path(str(distribution.locate_file("d4rl/infos.py")))
        try:
            return _literals(read_file(path, INFOS_BYTES))
        except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return {}


def _literals(source: bytes) -> dict[str, dict[str, Any]]:
    """Those of ``TABLES`` that a Python source assigns as literals, with the entries of the right type."""
    found: dict[str, dict[str, Any]] = {}
    for statement in ast.parse(source).body:
        if not isinstance(statement, ast.Assign):
            continue
        for target in statement.targets:
            if isinstance(target, ast.Name) and target.id in TABLES and isinstance(statement.value, ast.Dict):
                kinds = (str,) if TABLES[target.id] is str else (int, float)
                table = ast.literal_eval(statement.value)
                found[target.id] = {
                    key: value for key, value in table.items() if isinstance(key, str) and type(value) in kinds
                }
    return found
