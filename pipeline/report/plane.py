"""Where states are points in a plane, as in a maze: distances in a learned space beside straight ones, and paths of policies."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynarep.pipeline.report.arrays import LATENTS, PATHS, read_arrays
from dynarep.pipeline.report.html import figure, listing
from dynarep.pipeline.report.inputs import (
    NONE,
    UNLEARNED_KINDS,
    Artifacts,
    MissingInputError,
    Scored,
    read_json,
)
from dynarep.pipeline.report.maps import Frame, coloured_map, drawing
from dynarep.pipeline.report.scores import named

LEARNED = 2
"""Spaces that are shown on the first screen, at most."""

Array = NDArray[np.float64]


def plane_pictures(artifacts: Artifacts, scored: Scored) -> str:
    """Maps of states in a plane, coloured by the distance from the end of the demonstration; empty where there is no plane."""
    spaces = [name for name in artifacts.names("pretrain") if artifacts.kind("pretrain", name) not in UNLEARNED_KINDS]
    found = [name for name in spaces if _states(artifacts, name) is not None][:LEARNED]
    pictures, dataset = "", ""
    for name in found:
        states, latents = _read(artifacts, name)
        dataset = _demonstrations(artifacts, name)
        demonstration = _demonstration(artifacts, dataset)
        if demonstration is None:
            return ""
        frame = Frame.around(states, demonstration, equal=True)
        goal = demonstration[-1]
        over = frame.line(demonstration, "demonstration") + frame.ring(goal, "demonstration")
        nearest = latents[np.linalg.norm(states - goal, axis=1).argmin()]
        title = f"distance in {named(name, artifacts.kind('pretrain', name))}"
        pictures += coloured_map(frame, states, np.linalg.norm(latents - nearest, axis=1), title, over=over)
        if name == found[-1]:
            straight = np.linalg.norm(states - goal, axis=1)
            pictures += coloured_map(frame, states, straight, "straight distance", over=over)
            pictures += _paths(artifacts, scored, states, demonstration)
    if not pictures:
        return ""
    note = (
        '<p class="note">States of held-out episodes, coloured by their distance from the last state of the demonstration '
        f"{escape(dataset)} (dark line, ring): the yellow ones are near. In a learned space the distance is that of the first "
        "replica's latents, from the state nearest to the ring.</p>"
    )
    return f'<div class="maps">{pictures}</div>{note}'


def _states(artifacts: Artifacts, name: str) -> Array | None:
    """Held-out states of an encoder (N, 2); None where they are no points in a plane, or not kept."""
    try:
        stored = read_arrays(artifacts.folder("pretrain", name) / "latents.npz", LATENTS)
    except MissingInputError:
        return None
    states = stored.get("observations")
    return None if states is None else _positions(artifacts, states)


def _read(artifacts: Artifacts, name: str) -> tuple[Array, Array]:
    stored = read_arrays(artifacts.folder("pretrain", name) / "latents.npz", LATENTS)
    positions = _positions(artifacts, stored["observations"])
    assert positions is not None
    return positions, stored["latents"].astype(np.float64)


def _positions(artifacts: Artifacts, states: NDArray[Any]) -> Array | None:
    """The positions (N, 2) of states: the numbers that ``evaluate.plane`` names, or both of two; None where there are none."""
    if states.ndim != 2 or states.shape[1] < 2:
        return None
    plane = artifacts.plane
    if plane is None:
        return states.astype(np.float64) if states.shape[1] == 2 else None
    return states[:, list(plane)].astype(np.float64) if max(plane) < states.shape[1] else None


def _demonstrations(artifacts: Artifacts, space: str) -> str:
    """The demonstrations that labels in a space compare with, or those that the scores are compared with."""
    for name in artifacts.names("relabel"):
        if artifacts.settings("relabel", name).get("space") == space:
            return str(artifacts.metadata("relabel", name).get("demonstrations", NONE))
    try:
        return str(read_json(artifacts.root / "demonstrate" / "metrics.json").get("dataset", NONE))
    except MissingInputError:
        return NONE


def _demonstration(artifacts: Artifacts, dataset: str) -> Array | None:
    """States (T, 2) of the first demonstration; None without."""
    try:
        states = artifacts.states(dataset)
    except MissingInputError:
        return None
    return _positions(artifacts, states)


def _paths(artifacts: Artifacts, scored: Scored, states: Array, demonstration: Array) -> str:
    """Paths of the best policy in which a learned space takes part, and of the best without; empty where none are kept."""
    chosen: dict[str, str] = {}
    for name in scored.learned:
        if name == scored.entry(name) and (artifacts.folder("evaluate", name) / "paths.npz").exists():
            chosen.setdefault("learned" if scored.lineage(name).learned else "unlearned", name)
    paths: list[tuple[str, Array]] = []
    for style, name in sorted(chosen.items()):
        stored = read_arrays(artifacts.folder("evaluate", name) / "paths.npz", PATHS)
        seen, replica = stored["observations"], stored["replica"]
        positions = _positions(artifacts, seen)
        if positions is not None:
            paths += [(style, positions[replica == number]) for number in np.unique(replica)]
    if not paths:
        return ""
    frame = Frame.around(states, demonstration, *(path for _, path in paths), equal=True)
    lines = "".join(frame.line(path, style) for style, path in paths)
    words = {"learned": "with a learned space, blue", "unlearned": "without, orange"}
    told = [f"{name} ({words[style]})" for style, name in sorted(chosen.items())]
    content = frame.dots(states, "faint") + frame.line(demonstration, "demonstration") + lines
    content += frame.ring(demonstration[-1], "demonstration")
    label = f"Paths of the first episode of each replica: {listing(told)}"
    return figure(drawing(frame, label, content), f"<b>paths of the first episodes</b>: {escape(listing(told))}")
