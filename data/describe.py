"""What is in a recording or in the dataset of a card, in words and numbers for people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dynarep.configs.params import read_yaml
from dynarep.data import d4rl
from dynarep.data.card import DatasetCard
from dynarep.data.prepare import Recording, index_of, load_recording, read_recording
from dynarep.data.readers import REQUIRED, load, locate
from dynarep.data.readers.flat import BOUND_TOLERANCE, COLUMNS, FAULTY, Notes, Part, cut
from dynarep.data.readers.guess import filter_keys
from dynarep.data.schema import DataError, Episode
from dynarep.data.shards import parse_index
from dynarep.data.target import CardTarget, RecordingTarget, find_target

COLUMNS_SHOWN = 40
"""Lines about the columns of one array."""


def describe(target: str, project: Path) -> tuple[str, bool]:
    """Describe a card or a recording.

    Args:
        target: name of a card in ``<project>/configs/datasets``, a card's file, a recording's file or folder, or the name of
            a published dataset, a Minari id or one of D4RL's, which is downloaded if it is not there.
        project: the folder that holds ``configs/``.

    Returns:
        The text, and whether ``prepare`` would take the data.

    Raises:
        DataError: if there is no such card or recording, or it is too damaged to say anything about it.
    """
    found = find_target(target, project)
    return _describe_card(found) if isinstance(found, CardTarget) else _describe_recording(found)


def _describe_card(found: CardTarget) -> tuple[str, bool]:
    name, cards, project, card = found.name, found.cards, found.project, found.card
    values = read_yaml(cards / f"{name}.yaml")
    lines = [f"Card {name}: {card.description}".rstrip(": ")]
    lines += _yaml({key: value for key, value in values.items() if key != "description"})
    if card.shards is not None:
        return "\n".join([*lines, *_in_place(card.shards, project)]), True
    parts = load(locate(card, project), card) if card.format is not None else []
    try:
        recording = load_recording(name, cards=cards, root=project)
    except DataError as error:
        return "\n".join([*lines, *_refusal(error, parts, card)]), False
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


def _describe_recording(found: RecordingTarget) -> tuple[str, bool]:
    name, values, path, parts, card = found.name, found.values, found.path, found.parts, found.card
    lines = [f"{path}: looks like format {card.format}"]
    try:
        recording = read_recording(path, card)
    except DataError as error:
        return "\n".join([*lines, *_refusal(error, parts, card)]), False
    lines += _summary(recording, d4rl.reference(card.dataset) if card.format == "d4rl" and card.dataset else None)
    lines += _remarks(recording, parts)
    lines += ["", f"A card that reads it, configs/datasets/{name}.yaml:", ""]
    lines += _yaml(values)
    lines += [f"  # {line}" for line in _advice(card, recording, path)]
    return "\n".join(lines), True


def _yaml(values: dict[str, Any]) -> list[str]:
    """Lines of a card, a key each."""
    dumped = {key: yaml.safe_dump(value, default_flow_style=True, width=10**6) for key, value in values.items()}
    return [f"  {key}: {text.splitlines()[0]}" for key, text in dumped.items()]


def _advice(card: DatasetCard, recording: Recording, path: Path) -> list[str]:
    """What somebody should check in a guessed card, or add to it."""
    advice = [] if recording.env else ["env: the Gymnasium id of the environment, if there is one"]
    if card.action_low is not None and card.format != "prepared":
        advice.append("bounds as found, at least -1 and 1; give those of the environment or of the actuators")
    if card.observations is not None:
        advice.append("observations: all vectors in the file; leave out what the policy will not see")
    if card.dones is not None:
        advice.append("dones: terminated, if the flag means that the task itself was over, not only the recording")
    if card.format == "robomimic" and (found := filter_keys(path)):
        counts = ", ".join(f"{name} ({count:,})" for name, count in found.items())
        advice.append(f"subset: one of the file's own choices of demonstrations, {counts}")
    if card.format == "ogbench":
        advice.append("format: arrays, if terminals mean terminal states and not ends of trajectories")
    return advice


def _refusal(error: DataError, parts: Sequence[Part], card: DatasetCard) -> list[str]:
    """Why a recording is refused, whether it could be read without faulty episodes, and what its arrays hold."""
    lines = ["", "It would be refused:", f"  {error}"]
    if parts and FAULTY not in (card.leave_out or ()):
        try:
            found = cut(parts, card, REQUIRED.get(str(card.format), ()), faulty=True)
        except DataError:
            pass
        else:
            kept = sum(1 for _ in found)
            lines.append(
                f"  leave_out: faulty in the card would leave out {_count(len(found.notes.left_out), 'episode')} and keep "
                f"{kept:,}."
            )
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
    if recording.notes.left_out:
        lines.append(f"left out      {_count(len(recording.notes.left_out), 'episode')}: {_reasons(recording.notes)}")
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
    episodes = recording.episodes
    found = [
        *_marks(recording.notes),
        *_ends(episodes),
        *_jumps(episodes),
        *_columns(recording),
        *_discrete(episodes),
        *_merged(parts),
        *_copies(episodes),
    ]
    return ["", "Worth a look:", *(f"  - {line}" for line in found)] if found else ["", "Nothing suspicious found."]


def _reasons(notes: Notes) -> str:
    """Why episodes were left out, the most frequent reason first, each with the episodes."""
    counted = Counter(re.sub(r"[0-9.]+(?:e[-+]?[0-9]+)?", "#", reason) for reason in notes.left_out.values())
    texts = []
    for shape, count in counted.most_common(3):
        of = [
            (name, reason)
            for name, reason in notes.left_out.items()
            if re.sub(r"[0-9.]+(?:e[-+]?[0-9]+)?", "#", reason) == shape
        ]
        others = f" and {count - 1:,} more" if count > 1 else ""
        texts.append(f"{of[0][1]} ({of[0][0]}{others})")
    rest = len(counted) - len(texts)
    return "; ".join(texts) + (f"; and {_count(rest, 'other reason')}" if rest > 0 else "")


def _marks(notes: Notes) -> Iterable[str]:
    """Ends that nobody marked, terminals that end nothing, and rows that are no transition."""
    if notes.unmarked:
        yield (
            f"{_count(notes.unmarked, 'episode')} without a mark at the end; taken as truncated. Either the recording stopped "
            "there, or ends were not written down."
        )
    if notes.inside:
        yield (
            f"{_count(notes.inside, 'row')} with a terminal flag after which the episode goes on, as in AntMaze near the goal. "
            "They end nothing; see terminals in docs/data-format.md."
        )
    if notes.resimulated:
        yield (
            f"next_observations and the observations of the next row differ by up to {_number(notes.resimulated)} within "
            "episodes. The format keeps episodes apart, so they stay whole, and the observations are taken."
        )
    if notes.final:
        yield (
            f"No next_observations: the last row of each episode is a final state only, so {notes.final:,} of "
            f"{notes.rows:,} rows are no steps."
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


JUMP_STEPS = 100
"""A step so many times as large as the median one looks like another episode."""


def _jumps(episodes: Sequence[Episode]) -> Iterable[str]:
    """Steps within an episode that look like the start of another one."""
    states = np.concatenate([episode.current for episode in episodes]).astype(np.float64)
    moves = [episode.successors.astype(np.float64) - episode.current for episode in episodes]
    deviation = states.std(0)
    scale = np.where(deviation > 0, deviation, 1.0)
    sizes = [np.linalg.norm(move / scale, axis=1) for move in moves]
    typical = float(np.median(np.concatenate(sizes)))
    largest = max(float(size.max()) for size in sizes)
    if not typical or largest <= JUMP_STEPS * typical:
        return
    jumping = [size > JUMP_STEPS * typical for size in sizes]
    which = [i for i, jumps in enumerate(jumping) if jumps.any()]
    last = sum(bool(jumping[i][-1]) for i in which)
    text = (
        f"{_count(len(which), 'episode')} with a jump of up to {largest / typical:,.0f} median steps inside, the first in "
        f"{episodes[which[0]].id}, step {int(np.argmax(jumping[which[0]]))}"
    )
    if 2 * last > len(which):
        text += f"; in {last:,} of them it is the last step, as if timeouts came one row late"
    else:
        text += ", as if an end had not been marked"
    yield text + "."


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
            columns = f"{'column' + 's' * (len(constant) > 1)} {', '.join(map(str, constant))}"
            moving = " What a model makes of a value that it never saw is open: leave them out if they move in use."
            yield f"Constant in {name}: {columns}." + moving * (name == "observations")
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


DISCRETE_VALUES = 20
"""So many whole numbers at most are taken for choices."""


def _discrete(episodes: Sequence[Episode]) -> Iterable[str]:
    """Actions that look like choices."""
    arrays = [episode.actions for episode in episodes if episode.actions is not None]
    if not arrays:
        return
    actions = np.concatenate(arrays)
    values = np.unique(actions)
    if not 1 < len(values) <= DISCRETE_VALUES or len(actions) < 2 * len(values) or (values != np.round(values)).any():
        return
    if actions.shape[1] > 1 and set(values.tolist()) == {0.0, 1.0} and (actions.sum(1) == 1).all():
        kind = f"a choice among {actions.shape[1]}, one-hot"
    else:
        kind = f"{len(values)} whole numbers, from {_number(values[0])} to {_number(values[-1])}"
    yield f"Actions look discrete: {kind}. All methods here take actions as continuous numbers."


MERGED_SHARE = 0.01


def _merged(parts: Sequence[Part]) -> Iterable[str]:
    """Columns in which float32 cannot tell apart what the file can."""
    for name in ("observations", "actions", "rewards"):
        arrays = [part.columns[name] for part in parts if name in part.columns]
        wide = [
            values for values in arrays if values.dtype.kind in "fiu" and values.dtype.itemsize == 8 and len(values)
        ]
        if not wide or len({values.shape[1:] for values in wide}) > 1:
            continue
        columns = int(np.prod(wide[0].shape[1:]))
        moves, lost = np.zeros(columns, np.int64), np.zeros(columns, np.int64)
        for values in wide:
            flat = values.reshape(len(values), -1)
            with np.errstate(over="ignore", invalid="ignore"):
                narrow = flat.astype(np.float32)
            moved = flat[1:] != flat[:-1]
            moves += moved.sum(0)
            lost += (moved & (narrow[1:] == narrow[:-1])).sum(0)
        merged = np.flatnonzero((lost > 0) & (lost >= MERGED_SHARE * moves))
        if len(merged):
            worst = merged[np.argmax(lost[merged] / moves[merged])]
            share = lost[worst] / moves[worst]
            yield (
                f"float32 merges values in {name}, {'column' + 's' * (len(merged) > 1)} {', '.join(map(str, merged))}: "
                f"{share:.0%} of the changes from row to row vanish in column {worst}. Subtract an offset before recording, "
                "for instance the start of a clock."
            )


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
    value = float(value) + 0.0  # no -0
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
