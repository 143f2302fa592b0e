"""Latents of prepared datasets: a column beside the shards, one file per shard, bound to the dataset's content."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynarep.data.folders import whole_folder
from dynarep.data.schema import DataError, Episode
from dynarep.data.shards import Dataset, read_columns, write_columns

Encode = Callable[[Sequence[Episode]], Iterable[NDArray[np.float32]]]
"""Episodes to their latents, in the same order."""


def write_latents(folder: Path, dataset: Dataset, encode: Encode, *, encoder: str) -> Path:
    """Write ``<folder>/latents/<shard>.safetensors``, shard by shard.

    Args:
        folder: receives the folder ``latents``, as a whole, in place of one that was there.
        dataset: whose episodes are encoded.
        encode: gives per episode (rows, d) float32, one row for each row of ``observations`` or for each transition.
        encoder: where the latents come from, kept with them in ``about.json``.

    Returns:
        The folder that was written.

    Raises:
        DataError: if latents have another number of rows or are not finite.
    """
    episodes = {episode.id: episode for episode in dataset.episodes}

    def columns(names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        members = [episodes[name] for name in names]
        found = dict(zip(names, encode(members), strict=True))
        for episode in members:
            _check(f"latents of {dataset.name} by {encoder}", episode, found[episode.id])
        return found

    with whole_folder(folder / "latents") as new:
        write_columns(new, dataset, columns, encoder=encoder)
    return folder / "latents"


def read_latents(folder: Path | str, dataset: Dataset) -> dict[str, NDArray[np.float32]]:
    """Latents written for exactly this dataset, per episode id in the dataset's order.

    Args:
        folder: that holds the folder ``latents``.
        dataset: the one that was encoded.

    Returns:
        Per episode (rows, d): one row for each row of ``observations``, or for each transition.

    Raises:
        DataError: if there are none, a file is damaged or belongs to other content, or an episode is missing or has
            another number of rows.
    """
    latents, check_digests = read_columns(Path(folder), "latents", dataset)
    for episode in dataset.episodes:
        if episode.id not in latents:
            raise DataError(f"{Path(folder) / 'latents'}: misses episode {episode.id}")
        _check(f"{Path(folder) / 'latents'}", episode, latents[episode.id])
    check_digests()
    return {episode.id: latents[episode.id] for episode in dataset.episodes}


def _check(where: str, episode: Episode, latents: NDArray[np.float32]) -> None:
    rows = sorted({episode.length, len(episode.observations)})
    if latents.ndim != 2 or len(latents) not in rows:
        expected = " or ".join(map(str, rows))
        raise DataError(
            f"{where}: episode {episode.id}: found shape {latents.shape}, expected {expected} rows of latents"
        )
    if not np.isfinite(latents).all():
        row = int(np.argwhere(~np.isfinite(latents))[0, 0])
        raise DataError(f"{where}: episode {episode.id}: found a number that is not finite in row {row}")
