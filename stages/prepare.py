"""Prepare the datasets that the other stages name: read, check, cut into episodes and write ``artifacts/shards``."""

from dynarep.pipeline.run import Stage, stage_main

DATASET_KEYS = (
    "pretrain_dynamics.dataset",
    "pretrain_dynamics.noise.dataset",
    "pretrain_intent.dataset",
    "imitate.demonstrations",
    "imitate.dataset",
    "relabel.dataset",
    "relabel.demonstrations",
)
"""Where params.yaml names datasets."""


def main(stage: Stage) -> None:
    """Write ``artifacts/shards/<dataset>`` for every named dataset that is missing or stale."""
    from dynarep.configs.params import read_yaml
    from dynarep.data.card import card_names
    from dynarep.data.prepare import prepare
    from dynarep.data.schema import DataError

    cards = stage.project / "configs" / "datasets"
    known = card_names(cards)
    values = read_yaml(stage.params)
    names: dict[str, None] = {}
    for key in DATASET_KEYS:
        section, *path = key.split(".")
        if section not in values:  # a params file may describe a part of the chain
            continue
        value = values[section]
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        if value not in known:
            raise DataError(f"{stage.params}: {key}: found {value!r}, expected one of {', '.join(known)} ({cards})")
        names[value] = None
    prepare(names, cards=cards, root=stage.project, out=stage.shards, engine=stage.engine())


if __name__ == "__main__":
    stage_main("prepare", main)
