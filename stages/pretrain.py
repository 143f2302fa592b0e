"""Make the encoder of one entry of ``pretrain``."""

from dynarep.pipeline.run import Stage, stage_main


def main(stage: Stage) -> None:
    """Write the encoder, its metrics, curves and tables into ``artifacts/pretrain/<entry>``."""
    import numpy as np

    from dynarep.pipeline.artifacts.origin import load_origin
    from dynarep.pipeline.artifacts.storage import save_artifact
    from dynarep.pipeline.entries import NONE
    from dynarep.pipeline.pretrain import board_of, pretrain
    from dynarep.pipeline.tables import write_json, write_table

    entry = stage.read_entry()
    inputs = entry.inputs
    dataset = stage.dataset(inputs.dataset) if inputs.stream is None else stage.sharded_dataset(inputs.dataset)
    origin, replicas = None, stage.run_config().replicas
    if inputs.source is not None:
        origin = load_origin(inputs.source, f"{entry.where}.source", replicas, stage.project)
    elif inputs.initial != NONE:
        origin = load_origin(str(stage.artifacts / "pretrain" / inputs.initial), f"{entry.where}.initial", replicas)
    with stage.output() as folder:
        run = stage.run(folder)
        made = pretrain(entry, dataset, run, origin)
        measured = made.measured
        write_json(folder / "metrics.json", measured.metrics)
        for name, rows in measured.tables.items():
            write_table(folder / f"{name}.tsv", rows)
        if measured.latents:
            np.savez_compressed(folder / "latents.npz", **measured.latents)
        board_of(measured, run)
        metadata = stage.provenance(dataset)
        if origin is not None:
            metadata = origin.describe(metadata, trained=entry.method.trains)
        save_artifact(folder, made.encoder, {**metadata, "metrics": measured.metrics})


if __name__ == "__main__":
    stage_main("pretrain", main, entries=True)
