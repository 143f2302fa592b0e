"""Learn psi(s) by ICVF from the dataset named in ``pretrain_intent.dataset``."""

from dynarep.pipeline.run import Stage, stage_main, write_json, write_table


def main(stage: Stage) -> None:
    """Write the encoder, its metrics, curves, distance table and some latents into ``artifacts/pretrain_intent``."""
    from dataclasses import replace

    from dynarep.pipeline.artifacts import save_artifact
    from dynarep.pipeline.encoders import IntentEncoder
    from dynarep.pipeline.pretrain_intent import PretrainIntentConfig, pretrain_intent
    from dynarep.pipeline.reuse import load_origin

    c = stage.config(PretrainIntentConfig)
    if stage.smoke and c.training is not None:
        c = replace(c, training=c.training.smoke())
    dataset = stage.dataset(c.dataset) if c.stream is None else stage.sharded_dataset(c.dataset)
    origin = load_origin(c, stage.name, IntentEncoder, stage.run_config().replicas, stage.project)
    with stage.output() as folder:
        encoder, metrics, distances = pretrain_intent(c, dataset, stage.run(folder, shared=True), origin)
        write_json(folder / "metrics.json", metrics)
        write_table(folder / "distance.tsv", distances)
        metadata = stage.provenance(dataset)
        if origin is not None:
            metadata = origin.describe(metadata, trained=c.encoder is None)
        save_artifact(folder, encoder, {**metadata, "metrics": metrics})


if __name__ == "__main__":
    stage_main("pretrain_intent", main)
