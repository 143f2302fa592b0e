"""What is in a recording or in the dataset of a card, in words and numbers for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dynarep.data import d4rl
from dynarep.data.card import DatasetCard, card_names, load_card, make_card
from dynarep.data.prepare import Recording, index_of, load_recording, read_recording
from dynarep.data.readers import load, locate
from dynarep.data.readers.flat import BOUND_TOLERANCE, COLUMNS, Part, gaps
from dynarep.data.readers.guess import guess
from dynarep.data.schema import DataError, Episode
from dynarep.data.shards import parse_index, read_index

COLUMNS_SHOWN = 40
"""Lines about the columns of one array."""


def describe(target: str, project: Path) -> tuple[str, bool]:
    """Describe a card or a recording.

    Args:
        target: name of a card in ``<project>/configs/datasets``, a card's file, or a recording's file or folder.
        project: the folder that holds ``configs/``.

    Returns:
        The text, and whether ``prepare`` would take the data.

    Raises:
        DataError: if there is no such card or recording, or it is too damaged to say anything about it.
    """
    cards = project / "configs" / "datasets"
    file = Path(target)
    if file.suffix in (".yaml", ".yml"):
        if not file.is_file():
            raise DataError(f"{file}: no such file")
        cards, target = file.parent, file.stem
        if cards.resolve().parts[-2:] == ("configs", "datasets"):
            project = cards.resolve().parents[1]
        return _describe_card(target, cards, project)
    if target in card_names(cards):
        return _describe_card(target, cards, project)
    if file.exists():
        return _describe_recording(file, project)
    known = ", ".join(card_names(cards)) or "none"
    raise DataError(f"{target}: no such file or folder, and no card in {cards}; cards there: {known}")


def _describe_card(name: str, cards: Path, project: Path) -> tuple[str, bool]:
    card = load_card(name, cards)
    values = yaml.safe_load((cards / f"{name}.yaml").read_text())
    lines = [f"Card {name}: {card.description}".rstrip(": ")]
    lines += _yaml({key: value for key, value in values.items() if key != "description"})
    if card.shards is not None:
        return "\n".join([*lines, *_in_place(card.shards, project)]), True
    parts = load(locate(card, project), card) if card.format is not None else []
    try:
        recording = load_recording(name, cards=cards, root=project)
    except DataError as error:
        return "\n".join([*lines, *_refusal(error, parts)]), False
    lines += _summary(recording, d4rl.reference(card.dataset) if card.format == "d4rl" and card.dataset else None)
    lines += _remarks(recording, parts)
    return "\n".join(lines), True


def _in_place(shards: str, project: Path) -> list[str]:
    """What the index of a prepared dataset says; the shards, which may be many, are left alone."""
    where, _, content = index_of(shards, project)
    index = parse_index(content, where)
    spec, returns = index["spec"], index["returns"]
    steps = [length for shard in index["shards"] for length in shard["steps"]]
    size = sum(shard["bytes"] for shard in index["shards"])
    lines = [
        "",
        f"{len(steps):,} episodes, {index['transitions']:,} steps in {len(index['shards']):,} shards, "
        f"{size / 1e6:,.1f} MB; used in place, by its index alone",
        f"lengths {min(steps):,} to {max(steps):,}, median {np.median(steps):,.0f}",
        f"observations of {spec['observation_dim']} numbers, actions of {spec['action_dim']}, "
        f"{'with' if spec['has_rewards'] else 'without'} rewards; environment: {index['env'] or 'unknown'}",
    ]
    return lines if returns is None else [*lines, f"returns {_number(min(returns))} to {_number(max(returns))}"]


def _describe_recording(path: Path, project: Path) -> tuple[str, bool]:
    keys = guess(path)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.resolve().stem).strip("-_")[:80] or "mine"
    place = path.resolve()
    root = project.resolve()
    values = {"path": str(place.relative_to(root) if place.is_relative_to(root) else place), **keys}
    parts = load(path, make_card(name, values, name))
    values |= _bounds(path, values["format"], parts)
    card = make_card(name, values, name)
    lines = [f"{path}: looks like format {card.format}"]
    try:
        recording = read_recording(path, card)
    except DataError as error:
        return "\n".join([*lines, *_refusal(error, parts)]), False
    lines += _summary(recording, None)
    lines += _remarks(recording, parts)
    lines += ["", f"A card that reads it, configs/datasets/{name}.yaml:", ""]
    lines += _yaml(values)
    lines += [f"  # {line}" for line in _advice(card, recording)]
    return "\n".join(lines), True


def _yaml(values: dict[str, Any]) -> list[str]:
    """Lines of a card, a key each."""
    dumped = {key: yaml.safe_dump(value, default_flow_style=True, width=10**6) for key, value in values.items()}
    return [f"  {key}: {text.splitlines()[0]}" for key, text in dumped.items()]


def _bounds(path: Path, kind: str, parts: Sequence[Part]) -> dict[str, Any]:
    """Action bounds for a card: nothing if -1 and 1 will do, else those found, rounded outwards."""
    if kind == "prepared":
        bounds = {key: read_index(path)["spec"][key] for key in ("action_low", "action_high")}
        return bounds if set(bounds["action_low"]) - {-1.0} or set(bounds["action_high"]) - {1.0} else {}
    actions = [part.columns["actions"].astype(np.float64) for part in parts if "actions" in part.columns]
    if not actions or any(a.ndim != 2 or a.shape[1:] != actions[0].shape[1:] or not len(a) for a in actions):
        return {}
    low, high = (reduce([reduce(a) for a in actions]) for reduce in (np.fmin.reduce, np.fmax.reduce))
    inside = (low >= -1 - BOUND_TOLERANCE).all() and (high <= 1 + BOUND_TOLERANCE).all()
    if inside or not (np.isfinite(low).all() and np.isfinite(high).all()):
        return {}
    low, high = np.floor(low * 100) / 100, np.ceil(high * 100) / 100
    return {"action_low": np.minimum(low, -1).tolist(), "action_high": np.maximum(high, 1).tolist()}


def _advice(card: DatasetCard, recording: Recording) -> list[str]:
    """What somebody should check in a guessed card, or add to it."""
    advice = [] if recording.env else ["env: the Gymnasium id of the environment, if there is one"]
    if card.action_low is not None and card.format != "prepared":
        advice.append("bounds as found, at least -1 and 1; give those of the environment or of the actuators")
    if card.observations is not None:
        advice.append("observations: all vectors in the file; leave out what the policy will not see")
    if card.dones is not None:
        advice.append("dones: terminated, if the flag means that the task itself was over, not only the recording")
    if card.format == "ogbench":
        advice.append("format: arrays, if terminals mean terminal states and not ends of trajectories")
    return advice


def _refusal(error: DataError, parts: Sequence[Part]) -> list[str]:
    """Why a recording is refused, and what its arrays hold."""
    lines = ["", "It would be refused:", f"  {error}"]
    rows = []
    for name in COLUMNS:
        arrays = [part.columns[name] for part in parts if name in part.columns]
        if arrays:
            numbers = np.concatenate([np.ravel(values).astype(np.float64) for values in arrays])
            finite = numbers[np.isfinite(numbers)]
            shape = str(arrays[0].shape) if len(arrays) == 1 else f"{len(arrays)} x {arrays[0].shape}"
            least, most = (_number(finite.min()), _number(finite.max())) if len(finite) else ("-", "-")
            rows.append((name, shape, least, most, f"{len(numbers) - len(finite):,}"))
    if rows:
        lines += ["", *_table([("array", "shape", "least", "most", "not finite"), *rows])]
    return lines


def _summary(recording: Recording, reference: tuple[float, float] | None) -> list[str]:
    """Counts, lengths, returns, ends and columns."""
    episodes = recording.episodes
    steps = sum(episode.length for episode in episodes)
    states = np.concatenate([episode.observations for episode in episodes])
    lines = [
        "",
        f"episodes      {len(episodes):,}",
        f"steps         {steps:,}",
        f"observations  {states.shape[1]} numbers",
    ]
    low, high = recording.bounds
    if len(low):
        lines.append(f"actions       {len(low)} numbers, allowed from {_span(low)} to {_span(high)}")
    else:
        lines.append("actions       none")
    has_rewards = all(episode.rewards is not None for episode in episodes)
    lines.append("rewards       " + ("one each step" if has_rewards else "none"))
    lines.append(f"environment   {recording.env or 'not known; set env in the card'}")
    lines += ["", "How episodes end:"]
    ends = [(episode.terminated, episode.truncated) for episode in episodes]
    for flags, meaning in ENDS.items():
        if flags in ends:
            lines.append(f"  {ends.count(flags):>7,}  {meaning}")
    rows = [("", "least", "median", "mean", "most"), ("length", *_distribution([e.length for e in episodes]))]
    if recording.returns:
        rows.append(("return", *_distribution(recording.returns)))
    if recording.returns and reference:
        random, expert = reference
        scores = [100 * (value - random) / (expert - random) for value in recording.returns]
        rows.append(("D4RL score", *_distribution(scores)))
    lines += ["", *_table(rows)]
    columns: dict[str, np.ndarray] = {"observations": states}
    actions = [episode.actions for episode in episodes if episode.actions is not None]
    rewards = [episode.rewards[:, None] for episode in episodes if episode.rewards is not None]
    columns |= {"actions": np.concatenate(actions)} if actions else {}
    columns |= {"rewards": np.concatenate(rewards)} if rewards else {}
    rows = [("column", "least", "mean", "std", "most")]
    for name, values in columns.items():
        statistics = [getattr(values, key)(0, dtype=np.float64) for key in ("mean", "std")]
        for i in range(min(values.shape[1], COLUMNS_SHOWN)):
            numbers = (values[:, i].min(), statistics[0][i], statistics[1][i], values[:, i].max())
            label = name if name == "rewards" else f"{name} {i}"
            rows.append((label, *map(_number, numbers)))
        if values.shape[1] > COLUMNS_SHOWN:
            rows.append((f"... {values.shape[1] - COLUMNS_SHOWN} more", "", "", "", ""))
    return [*lines, "", *_table(rows)]


ENDS = {
    (True, False): "terminated: the last step entered a terminal state",
    (False, True): "truncated: the recording stopped, by a time limit or otherwise",
    (True, True): "both: a terminal state in the last step before a limit",
}
"""(terminated, truncated) -> what it means."""


def _remarks(recording: Recording, parts: Sequence[Part]) -> list[str]:
    """What a careful person would look at before training on the data."""
    found = [*_marks(parts), *_ends(recording.episodes), *_columns(recording), *_copies(recording.episodes)]
    return ["", "Worth a look:", *(f"  - {line}" for line in found)] if found else ["", "Nothing suspicious found."]


def _marks(parts: Sequence[Part]) -> Iterable[str]:
    """Ends that nobody marked, and rows that are no transition."""
    unmarked = single = rows = 0
    for part in parts:
        columns = part.columns
        marked = columns["terminals"].astype(bool) | columns.get(
            "timeouts", np.zeros(len(columns["terminals"]))
        ).astype(bool)
        rows += len(marked)
        unmarked += int(not marked[-1])
        if "next_observations" in columns:
            unmarked += int((gaps(columns) & ~marked[:-1]).sum())
        else:
            marked[-1] = True
            single += int(marked.sum())
    if unmarked:
        yield (
            f"{_count(unmarked, 'episode')} without a mark at the end; taken as truncated. Either the recording stopped "
            "there, or ends were not written down."
        )
    if single:
        yield (
            f"No next_observations: the last row of each episode is a final state only, so {single:,} of {rows:,} rows are "
            "no steps."
        )


def _ends(episodes: Sequence[Episode]) -> Iterable[str]:
    """Terminal states that look like time limits, and very short episodes."""
    lengths = [episode.length for episode in episodes if episode.terminated]
    if len(lengths) > 1 and len(set(lengths)) == 1 and lengths[0] > 1:
        yield (
            f"All {len(lengths):,} terminated episodes have exactly {lengths[0]:,} steps, as if a time limit had been marked "
            "as a terminal state."
        )
    elif len(lengths) == len(episodes) > 1:
        yield (
            "Every episode ends in a terminal state. If the marks mean no more than ends of trajectories, as OGBench's do, "
            "they are timeouts."
        )
    short = sum(episode.length == 1 for episode in episodes)
    if short:
        yield f"{_count(short, 'episode')} of a single step."


def _columns(recording: Recording) -> Iterable[str]:
    """Constant columns, constant rewards and returns, actions beyond -1 and 1."""
    episodes = recording.episodes
    for name in ("observations", "actions", "rewards"):
        arrays = [values for episode in episodes if (values := getattr(episode, name)) is not None]
        if not arrays:
            continue
        values = np.concatenate(arrays).reshape(sum(map(len, arrays)), -1)
        constant = np.flatnonzero(values.min(0) == values.max(0))
        if len(constant) and name == "rewards":
            yield f"All rewards are {_number(values[0, 0])}; no method can learn from them."
        elif len(constant):
            yield f"Constant in {name}: {'column' + 's' * (len(constant) > 1)} {', '.join(map(str, constant))}."
        if name == "actions":
            outside = int((np.abs(values) > 1 + BOUND_TOLERANCE).any(1).sum())
            if outside:
                yield (
                    f"Actions beyond -1 and 1 in {outside:,} of {len(values):,} steps, from {_number(values.min())} to "
                    f"{_number(values.max())}; bounds belong into the card."
                )
    returns = recording.returns
    if returns and len(returns) > 1 and min(returns) == max(returns) != 0:
        yield f"All episodes have the same return, {_number(returns[0])}."


def _copies(episodes: Sequence[Episode]) -> Iterable[str]:
    """Episodes and steps that occur more than once."""
    digests = [
        sha256(b"".join(a.tobytes() for a in (e.current, e.successors, e.actions) if a is not None)).digest()
        for e in episodes
    ]
    copies = len(digests) - len(set(digests))
    if copies:
        yield f"{_count(copies, 'episode')} equal to an earlier one in all states and actions."
    steps = np.concatenate(
        [np.concatenate([a for a in (e.current, e.actions, e.successors) if a is not None], 1) for e in episodes]
    )
    distinct = len(np.unique(np.ascontiguousarray(steps).view(f"V{steps.itemsize * steps.shape[1]}")))
    if distinct < len(steps):
        yield (
            f"{len(steps) - distinct:,} of {len(steps):,} steps repeat an earlier one exactly (same state, action and "
            "next state)."
        )


def _distribution(values: Sequence[float]) -> tuple[str, ...]:
    return tuple(_number(float(f(values))) for f in (np.min, np.median, np.mean, np.max))


def _span(bound: Sequence[float]) -> str:
    """One number, or all if they differ."""
    return _number(bound[0]) if len(set(bound)) == 1 else f"({', '.join(_number(value) for value in bound)})"


def _number(value: float) -> str:
    """Four significant digits, whole numbers as they are."""
    value = float(value)
    if value == round(value) and abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
