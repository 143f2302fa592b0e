"""OGBench's ``.npz`` files: flat arrays ``observations``, ``actions``, ``terminals``.

The trap: ``terminals`` marks the last row of a trajectory, which no task ended, so it is D4RL's ``timeouts``; that row
holds the final state, and its action leads nowhere. Files saved from ``load_dataset`` are read too: with
``next_observations``, or in compact form, where ``terminals`` marks the last two rows and ``valids`` is 0 in the last.
``rewards`` are used where there are any. ``masks``, which single-task data have, are 0 where the task is over: an episode
whose last step has such a mask is terminated; elsewhere the trajectory goes on, so it is not cut there. Simulator states
(``qpos``, ``qvel``, ...) are left alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dynarep.data.card import DatasetCard
from dynarep.data.readers.arrays import read_archive
from dynarep.data.readers.flat import COLUMNS, Part, flags
from dynarep.data.schema import DataError


def load(path: Path, card: DatasetCard) -> list[Part]:
    """The arrays in D4RL's terms, not checked beyond the ends.

    Raises:
        DataError: if the file is damaged, has ``timeouts``, or ``terminals``, ``valids`` or ``masks`` are no flags.
    """
    where = str(path)
    columns = read_archive(path, (*COLUMNS, "valids", "masks"))
    if "timeouts" in columns:
        raise DataError(f"{where}: timeouts: OGBench's files have none; found {', '.join(columns)}; try format: arrays")
    extra = {name: columns.pop(name) for name in ("valids", "masks") if name in columns}
    if "terminals" not in columns:
        return [Part(where, columns)]
    ends = flags(columns["terminals"], where, "terminals")
    if ends.shape != columns["observations"].shape[:1] if "observations" in columns else ends.ndim != 1:
        return [Part(where, columns | {"timeouts": ends})]
    for name, values in extra.items():
        if values.shape != ends.shape:
            raise DataError(f"{where}: {name}: found shape {values.shape}, expected {ends.shape} as terminals")
        extra[name] = flags(values, where, name)
    over = ~extra["masks"] if "masks" in extra else np.zeros_like(ends)
    ends &= ~extra.get("valids", np.zeros_like(ends))
    return [Part(where, columns | {"terminals": over, "timeouts": ends}, ends=ends)]
