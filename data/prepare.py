"""From dataset cards to prepared datasets: read, combine, select, write, and leave alone what is up to date."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dynarep.configs.params import read_file
from dynarep.data.card import DatasetCard, Member, Noise, load_card, make_card
from dynarep.data.folders import digest_of, whole_folder
from dynarep.data.noise import draw_noise, episode_generator
from dynarep.data.parallel import IN_PROCESS, ClusterConfig, ClusterError, map_shards
from dynarep.data.readers import environment, locate, module, read, source_files
from dynarep.data.readers.flat import Notes, check_bounds
from dynarep.data.remote import read_remote_index
from dynarep.data.schema import DataError, Episode
from dynarep.data.shard import INDEX_BYTES
from dynarep.data.shards import Bounds, load_shards, open_index, open_shard, parse_index, read_index, write_dataset
from dynarep.data.split import hashed_choice


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Episodes on the way from their source to the shards.

    Args:
        episodes: selected so far.
        returns: of each whole episode, before any subsampling; None without rewards.
        bounds: lower and upper action bounds; two empty tuples without actions.
        env: Gymnasium id, if known.
        notes: how the sources were read.
    """

    episodes: list[Episode]
    returns: list[float] | None
    bounds: Bounds
    env: str | None
    notes: Notes = field(default_factory=Notes)


def prepare(names: Iterable[str], *, cards: Path, root: Path, out: Path, engine: ClusterConfig = IN_PROCESS) -> None:
    """Write ``<out>/<name>/`` for each dataset, or leave it alone if it is fresh; one line on stdout for each.

    A dataset is fresh if its card, those it refers to, the content of its sources and the schema version are those it
    was written with, and all shards are there in full size. A card that another one refers to is read from its source.

    Args:
        names: of cards; duplicates count once.
        cards: folder of the cards.
        root: relative source paths start here.
        out: folder of prepared datasets; others that lie there stay.
        engine: where the members of a mixture are read.

    Raises:
        DataError: if a card or a source is not as it must be. All cards are checked before anything is written.
    """
    trees = {name: _card_tree(name, cards) for name in names}

    indices = cache(partial(index_of, root=root))
    for name, tree in trees.items():
        folder = out / name
        recorded = _recorded(folder)
        sources = _sources(tree, root, recorded, indices)
        provenance = {"cards": {key: _plain(card) for key, card in tree.items()}, "sources": sources}
        fresh = _is_fresh(folder, provenance)
        if not fresh and (shards := tree[name].shards) is not None:
            _write_in_place(folder, tree[name], *indices(shards), provenance)
        elif not fresh:
            recording = _build(name, tree, root, engine)
            _check_unchanged(sources, _sources(tree, root, sources, partial(index_of, root=root)))
            write_dataset(
                folder,
                name,
                recording.episodes,
                provenance=provenance | _found(recording.notes),
                env=recording.env,
                bounds=recording.bounds,
                returns=recording.returns,
            )
        index = read_index(folder)
        episodes = sum(len(shard["episodes"]) for shard in index["shards"])
        shown = folder.relative_to(root) if folder.is_relative_to(root) else folder
        print(
            f"{name}: {episodes:,} episode{'s' * (episodes != 1)}, {index['transitions']:,} steps"
            + _counted(index["provenance"])
            + (f", in place at {tree[name].shards}" if tree[name].shards is not None else "")
            + (", fresh" if fresh else f" -> {shown}"),
            flush=True,
        )


def _found(notes: Notes) -> dict[str, Any]:
    """What of the reading belongs into the provenance: nothing if everything was taken as it is."""
    found = {"left_out": dict(sorted(notes.left_out.items())), "terminals_inside": notes.inside}
    return {key: value for key, value in found.items() if value}


def _counted(provenance: Mapping[str, Any]) -> str:
    """The same for the line about a dataset."""
    left_out, inside = len(provenance.get("left_out", ())), provenance.get("terminals_inside", 0)
    counted = f", {left_out:,} left out" if left_out else ""
    return counted + (f", {inside:,} terminals inside episodes are no ends" if inside else "")


def index_of(shards: str, root: Path) -> tuple[str, Path | str, bytes]:
    """The index of a prepared dataset that a card uses in place.

    Args:
        shards: folder or URL in the card.
        root: relative paths start here.

    Returns:
        Name of the index, for messages and provenance; folder or URL of the shards; content of ``index.json``.

    Raises:
        DataError: if there is none, or it cannot be had.
    """
    if "://" in shards:
        where, content = read_remote_index(shards)
        return where, shards, content
    try:
        return f"{shards}/index.json", root / shards, read_file(root / shards / "index.json", INDEX_BYTES)
    except OSError as error:
        raise DataError(
            f"{root / shards / 'index.json'}: cannot be read, named as shards by a dataset card: {error.strerror}"
        ) from None


def _write_in_place(
    folder: Path, card: DatasetCard, where: str, location: Path | str, content: bytes, provenance: Mapping[str, Any]
) -> None:
    """Write only an index, which says where the shards are; the rest as ``index_of`` returns it."""
    index = parse_index(content, where)
    if isinstance(location, Path):
        _check_sizes(location, index)
        location = str(location) if Path(str(card.shards)).is_absolute() else os.path.relpath(location, folder)
    changed = {"name": card.name, "env": card.env or index["env"], "location": location, "provenance": provenance}
    with whole_folder(folder) as new:
        (new / "index.json").write_text(json.dumps({**index, **changed}, indent=1, allow_nan=False) + "\n")


def _check_sizes(folder: Path, index: Mapping[str, Any]) -> None:
    """All shards of an index lie in a folder, with the sizes that it lists."""
    for shard in index["shards"]:
        path = folder / shard["file"]
        with open_shard(path) as file:
            found = os.fstat(file.fileno()).st_size
        if found != shard["bytes"]:
            raise DataError(f"{path}: found {found} bytes, expected {shard['bytes']} as in index.json")


def _sources(
    tree: Mapping[str, DatasetCard],
    root: Path,
    recorded: Mapping[str, str],
    indices: Callable[[str], tuple[str, Path | str, bytes]],
) -> dict[str, str]:
    """SHA-256 of each file that the cards of a dataset name, by the path, name or URL in the card.

    Raises:
        DataError: if a file cannot be had, or is not that of the SHA-256 in its card.
    """
    found: dict[str, str] = {}
    for card in tree.values():
        if card.format is not None:
            found |= _recorded_files(card, root, recorded)
        elif card.shards is not None:
            where, _, content = indices(card.shards)
            found[where] = sha256(content).hexdigest()
            _check_sum(where, found[where], card)
    return {path: found[path] for path in sorted(found)}


def _recorded_files(card: DatasetCard, root: Path, recorded: Mapping[str, str]) -> dict[str, str]:
    """The same of the files that a card's recording consists of.

    A dataset given by name has to stay what it was; it is downloaded only where it is read.
    """
    base = card.path or card.dataset
    assert base is not None
    known = {path: value for path, value in recorded.items() if path == base or path.startswith(f"{base}/")}
    if card.dataset is None or card.sha256 not in (None, _sum(known, base)):
        known = {}
    if known and card.dataset is not None and module(card).local(card.dataset) is None:
        return known
    path = locate(card, root)
    files = source_files(path, card)
    found = {base if file == path else f"{base}/{file.relative_to(path).as_posix()}": _digest(file) for file in files}
    _check_sum(path, _sum(found, base), card)
    if known and found != known:
        raise DataError(
            f"{path}: found sha256 {_sum(found, base)}, expected {_sum(known, base)} as when {base} was prepared; if it may be "
            "another, delete the prepared dataset"
        )
    return found


def _sum(files: Mapping[str, str], base: str) -> str:
    """SHA-256 of a recording: of its file, or of what ``sha256sum`` prints for the files of a folder, by their paths in it."""
    if base in files:
        return files[base]
    lines = (f"{files[path]}  {path.removeprefix(f'{base}/')}\n" for path in sorted(files))
    return sha256("".join(lines).encode()).hexdigest()


def _check_sum(where: Path | str, found: str, card: DatasetCard) -> None:
    if card.sha256 not in (None, found):
        advice = "; delete the file to download it again" if card.dataset is not None else ""
        raise DataError(f"{where}: found sha256 {found}, expected {card.sha256} as the card {card.name} says{advice}")


def _check_unchanged(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """The files that were read are those whose hashes are kept with the dataset."""
    for source in sorted(before.keys() | after.keys()):
        found, expected = after.get(source), before.get(source)
        if found != expected:
            raise DataError(f"{source}: found sha256 {found}, expected {expected}; it changed while it was read")


def _digest(path: Path) -> str:
    try:
        return digest_of(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read, named as path by a dataset card: {error.strerror}") from None


def _recorded(folder: Path) -> Mapping[str, str]:
    """SHA-256 of the sources of a prepared dataset, nothing if there is none."""
    try:
        return dict(read_index(folder)["provenance"].get("sources", {}))
    except DataError:
        return {}


def load_recording(name: str, *, cards: Path, root: Path) -> Recording:
    """The episodes that a card describes, without writing them.

    Args:
        name: of the card.
        cards: folder of the cards.
        root: relative source paths start here.

    Raises:
        DataError: if a card or a source is not as it must be.
    """
    return _build(name, _card_tree(name, cards), root)


def write_episodes(
    folder: Path,
    episodes: Iterable[Episode],
    *,
    env: str | None = None,
    action_low: float | tuple[float, ...] = -1.0,
    action_high: float | tuple[float, ...] = 1.0,
) -> None:
    """Write a prepared dataset from episodes made in Python, in place of what was there.

    ``load_dataset`` reads it, and so does a card with ``path: <folder>`` and ``format: prepared``.

    Args:
        folder: becomes the dataset; its name is the dataset's.
        episodes: at least one, unique ids, equal dimensions; consumed one at a time, so they need not fit in memory.
        env: Gymnasium id of the environment.
        action_low: lower action bound, one number or one per component.
        action_high: upper action bound, likewise.

    Raises:
        DataError: if there is no episode, two share an id, they differ in dimensions or in having rewards, or an action is
            out of bounds.
    """
    source = iter(episodes)
    first = next(source, None)
    if first is None:
        raise DataError(f"{folder}: found no episodes, expected at least one")
    values = {"path": str(folder), "format": "prepared", "action_low": action_low, "action_high": action_high}
    card = make_card(folder.name, values, str(folder))

    def checked() -> Iterator[Episode]:
        for episode in chain([first], source):
            if episode.actions is not None:
                check_bounds(episode.actions, f"{folder}: {episode.id}", card)
            yield episode

    bounds: Bounds = ((), ()) if first.actions is None else card.action_bounds(first.actions.shape[1])
    write_dataset(folder, folder.name, checked(), provenance={"cards": {}, "sources": {}}, env=env, bounds=bounds)


def _card_tree(name: str, folder: Path) -> dict[str, DatasetCard]:
    """A card and all it refers to, by name, the card itself first."""
    tree: dict[str, DatasetCard] = {}

    def visit(name: str, chain: tuple[str, ...]) -> None:
        if name in chain:
            raise DataError(f"{folder}: dataset cards refer to each other in a circle: {' -> '.join([*chain, name])}")
        try:
            card = tree[name] if name in tree else load_card(name, folder)
        except DataError as error:
            raise DataError(f"{folder / chain[-1]}.yaml: {error}" if chain else str(error)) from None
        tree[name] = card
        for member in card.members:
            visit(member.name, (*chain, name))

    visit(name, ())
    return tree


NO_CONTENT = ("name", "description", "mirrors", "sha256")
"""Keys of a card that do not change what is read."""


def _plain(card: DatasetCard) -> dict[str, Any]:
    """What of a card determines the dataset, as JSON reads it back."""
    values = {key: value for key, value in asdict(card).items() if key not in NO_CONTENT}
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in values.items() if value is not None
    }


def _is_fresh(folder: Path, provenance: Mapping[str, Any]) -> bool:
    try:
        index = read_index(folder)
    except DataError:
        return False
    sizes = {shard["file"]: shard["bytes"] for shard in index["shards"]}
    found = {name: (folder / name).stat().st_size for name in sizes if (folder / name).is_file()}
    made_of = {key: index["provenance"].get(key) for key in provenance}
    return made_of == provenance and (found == sizes or "location" in index)


def _build(name: str, tree: Mapping[str, DatasetCard], root: Path, engine: ClusterConfig = IN_PROCESS) -> Recording:
    """The episodes that a card describes; the members of a mixture are read shard by shard, each in one piece."""
    card = tree[name]
    if card.format is not None:
        recording = read_recording(locate(card, root), card)
    elif card.shards is not None:
        where, location, content = index_of(card.shards, root)
        dataset = load_shards(open_index(parse_index(content, where), root, location))
        recording = Recording(
            episodes=dataset.episodes,
            returns=dataset.returns,
            bounds=(dataset.spec.action_low, dataset.spec.action_high),
            env=dataset.env,
        )
    else:
        members = {member.name: member for member in card.members}
        if len(members) == 1:
            parts = {name: _part(member, card, tree, root, engine) for name, member in members.items()}
        else:
            read = partial(_part, card=card, tree=tree, root=root)
            try:
                found = dict(map_shards(read, members, engine))
            except ClusterError as error:
                raise DataError(f"card {name}: {error}") from error
            parts = {name: found[name] for name in members}
        recording = _mixture(card, parts)
    if card.max_return is not None:
        recording = _up_to(card, recording)
    if card.top is not None:
        recording = _best(card, recording)
    if card.noise is not None:
        recording = replace(recording, episodes=[noisy(episode, card.noise) for episode in recording.episodes])
    if card.stride is not None:
        recording = replace(recording, episodes=[_strided(episode, card) for episode in recording.episodes])
    if card.observations_only:
        recording = _without_actions(recording)
    return replace(recording, env=card.env or recording.env)


def _part(
    member: Member, card: DatasetCard, tree: Mapping[str, DatasetCard], root: Path, engine: ClusterConfig = IN_PROCESS
) -> Recording:
    """What ``card`` takes of one of its members."""
    part = _fraction(_build(member.name, tree, root, engine), member.fraction)
    return _without_actions(part) if card.observations_only else part


def read_recording(path: Path, card: DatasetCard) -> Recording:
    """All episodes of a recording, before anything is selected.

    Raises:
        DataError: if it cannot be read as the card says.
    """
    found = read(path, card)
    episodes = list(found)
    if not episodes:
        raise DataError(f"{path}: found no episodes, expected at least one")
    returns = [episode.return_ for episode in episodes]
    actions = episodes[0].actions
    return Recording(
        episodes=episodes,
        returns=[value for value in returns if value is not None] or None,
        bounds=((), ()) if actions is None else card.action_bounds(actions.shape[1]),
        env=card.env or environment(path, card),
        notes=found.notes,
    )


def _select(recording: Recording, keep: Iterable[int]) -> Recording:
    keep, returns = sorted(keep), recording.returns
    return replace(
        recording,
        episodes=[recording.episodes[i] for i in keep],
        returns=None if returns is None else [returns[i] for i in keep],
    )


def _fraction(recording: Recording, fraction: float) -> Recording:
    ids = [episode.id for episode in recording.episodes]
    chosen = hashed_choice(ids, max(1, round(fraction * len(ids))), seed=0)
    return _select(recording, [i for i, name in enumerate(ids) if name in chosen])


def _best(card: DatasetCard, recording: Recording) -> Recording:
    count, returns = len(recording.episodes), recording.returns
    assert card.top is not None
    if returns is None:
        raise DataError(f"card {card.name}: top: {card.top} chooses by return, but the episodes have no rewards")
    if card.top > count:
        raise DataError(f"card {card.name}: top: found {card.top}, expected at most {count}, the number of episodes")
    return _select(recording, sorted(range(count), key=lambda i: -returns[i])[: card.top])


def _up_to(card: DatasetCard, recording: Recording) -> Recording:
    returns, most = recording.returns, card.max_return
    assert most is not None
    if returns is None:
        raise DataError(f"card {card.name}: max_return: {most:g} chooses by return, but the episodes have no rewards")
    keep = [i for i, value in enumerate(returns) if value <= most]
    if not keep:
        raise DataError(
            f"card {card.name}: max_return: found {most:g}, expected at least {min(returns):g}, the lowest return of an episode"
        )
    return _select(recording, keep)


def noisy(episode: Episode, noise: Noise) -> Episode:
    """The episode with irrelevant numbers appended to its observations, drawn from the noise's seed and the episode's id.

    Where transitions do not follow each other, the noise goes on from a state to its successor to the next state.
    """
    states, successors = episode.observations, episode.next_observations
    rows = len(states) if successors is None else 2 * len(states)
    rng = episode_generator(noise.seed, episode.id)
    drawn = draw_noise(noise.kind, rows, noise.dims, rng, rho=noise.correlation, deviation=noise.deviation)
    if successors is None:
        return replace(episode, observations=np.concatenate([states, drawn], axis=1))
    return replace(
        episode,
        observations=np.concatenate([states, drawn[::2]], axis=1),
        next_observations=np.concatenate([successors, drawn[1::2]], axis=1),
    )


def _strided(episode: Episode, card: DatasetCard) -> Episode:
    assert card.stride is not None
    start = 0
    if card.stride_offset == "random":
        start = int(episode_generator(card.stride, episode.id).integers(min(card.stride, episode.length)))
    return strided(episode, card.stride, start)


def strided(episode: Episode, stride: int, start: int = 0) -> Episode:
    """Every ``stride``-th transition (s_t, a_t, r_t, s_{t+1}), t = start, start + stride, ..., with its own successor.

    The result ends as the episode does if the last transition is among them; else the terminal state is not shown and
    the result is truncated. Its return is the sum over the kept transitions.
    """
    kept = slice(start, None, stride)
    complete = (episode.length - 1 - start) % stride == 0
    return replace(
        episode,
        observations=episode.current[kept].copy(),
        next_observations=episode.successors[kept].copy(),
        actions=None if episode.actions is None else episode.actions[kept].copy(),
        rewards=None if episode.rewards is None else episode.rewards[kept].copy(),
        terminated=episode.terminated and complete,
        truncated=episode.truncated or not complete,
    )


def _without_actions(recording: Recording) -> Recording:
    """Observations alone; the returns stay."""
    episodes = [replace(episode, actions=None, rewards=None) for episode in recording.episodes]
    return replace(recording, episodes=episodes, bounds=((), ()))


def _mixture(card: DatasetCard, parts: Mapping[str, Recording]) -> Recording:
    """All parts after one another; rewards, and likewise returns, stay only where every part has them."""
    first, *others = parts
    for name in others:
        for key, of in FORM.items():
            found, expected = of(parts[name]), of(parts[first])
            if found != expected and not (key == "env" and card.env is not None):
                raise DataError(
                    f"card {card.name}: {key}: found {found} in {name} and {expected} in {first}, expected the same"
                    + ("; or set env in this card" if key == "env" else "")
                )
    owner: dict[str, str] = {}
    for name, part in parts.items():
        for episode in part.episodes:
            if owner.setdefault(episode.id, name) != name:
                raise DataError(f"card {card.name}: mix: {name} and {owner[episode.id]} share episode {episode.id}")
    notes = Notes()
    for part in parts.values():
        notes += part.notes
    rewarded = all(part.episodes[0].rewards is not None for part in parts.values())
    returns = [part.returns for part in parts.values() if part.returns is not None]
    return replace(
        parts[first],
        episodes=[e if rewarded else replace(e, rewards=None) for part in parts.values() for e in part.episodes],
        returns=[value for part in returns for value in part] if len(returns) == len(parts) else None,
        notes=notes,
    )


def _action_dim(recording: Recording) -> int:
    actions = recording.episodes[0].actions
    return 0 if actions is None else actions.shape[1]


FORM: dict[str, Callable[[Recording], Any]] = {
    "observation_dim": lambda recording: recording.episodes[0].observations.shape[1],
    "action_dim": _action_dim,
    "action bounds": lambda recording: recording.bounds,
    "env": lambda recording: recording.env,
}
"""What the parts of a mixture must agree in."""
