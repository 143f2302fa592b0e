"""Learn psi(s) by ICVF from the dataset named in ``pretrain_intent.dataset``."""

from dynarep.pipeline.run import Stage, stage_main, write_json, write_table


def main(stage: Stage) -> None:
    """Write the encoder, its metrics, curves, distance table and some latents into ``artifacts/pretrain_intent``."""
    from dataclasses import replace

    from dynarep.pipeline.artifacts import save_artifact
    from dynarep.pipeline.pretrain_intent import PretrainIntentConfig, pretrain_intent

    c = stage.config(PretrainIntentConfig)
    c = replace(c, training=c.training.smoke()) if stage.smoke else c
    dataset = stage.dataset(c.dataset) if c.stream is None else stage.sharded_dataset(c.dataset)
    with stage.output() as folder:
        encoder, metrics, distances = pretrain_intent(c, dataset, stage.run(folder, shared=True))
        write_json(folder / "metrics.json", metrics)
        write_table(folder / "distance.tsv", distances)
        save_artifact(folder, encoder, {**stage.provenance(dataset), "metrics": metrics})


if __name__ == "__main__":
    stage_main("pretrain_intent", main)
