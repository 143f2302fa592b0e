"""Prepare the datasets that a params file names: read, check, cut into episodes and write ``artifacts/shards``."""

from dynarep.pipeline.run import Stage, stage_main


def main(stage: Stage) -> None:
    """Write ``artifacts/shards/<dataset>`` for every named dataset that is missing or stale."""
    from dynarep.data.card import card_names
    from dynarep.data.prepare import prepare
    from dynarep.data.schema import DataError
    from dynarep.pipeline.entries import NONE, check_kinds, check_references, datasets_of

    cards = stage.project / "configs" / "datasets"
    known = card_names(cards)
    values = stage.values()
    named = datasets_of(values, str(stage.params))
    check_kinds(values, str(stage.params))
    check_references(values, str(stage.params))
    for name, key in named.items():
        if name not in known:
            raise DataError(f"{stage.params}: {key}: found {name!r}, expected one of {', '.join(known)} ({cards})")
    prepare(dict.fromkeys(named), cards=cards, root=stage.project, out=stage.shards, engine=stage.cluster())
    nothing = stage.shards / NONE / "nothing"  # what a key names that names no dataset
    nothing.parent.mkdir(parents=True, exist_ok=True)
    nothing.touch()


if __name__ == "__main__":
    stage_main("prepare", main)
