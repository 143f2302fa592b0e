"""Learn phi(s, a) and mu(s') from the dataset named in ``pretrain_dynamics.dataset``."""

from dynarep.pipeline.run import Stage, stage_main, write_json


def main(stage: Stage) -> None:
    """Write the encoder, its metrics and curves into ``artifacts/pretrain_dynamics``."""
    from dataclasses import replace

    from dynarep.pipeline.artifacts import save_artifact
    from dynarep.pipeline.encoders import DynamicsEncoder
    from dynarep.pipeline.pretrain_dynamics import PretrainDynamicsConfig, pretrain_dynamics
    from dynarep.pipeline.reuse import load_origin

    c = stage.config(PretrainDynamicsConfig)
    if stage.smoke and c.training is not None:
        c = replace(c, training=c.training.smoke())
    open_dataset = stage.dataset if c.stream is None else stage.sharded_dataset
    dataset, noise = open_dataset(c.dataset), open_dataset(c.noise.dataset)
    origin = load_origin(c, stage.name, DynamicsEncoder, stage.run_config().replicas, stage.project)
    with stage.output() as folder:
        encoder, metrics = pretrain_dynamics(c, dataset, noise, stage.run(folder, shared=True), origin)
        write_json(folder / "metrics.json", metrics)
        metadata = stage.provenance(dataset, noise)
        if origin is not None:
            metadata = origin.describe(metadata, trained=c.encoder is None)
        save_artifact(folder, encoder, {**metadata, "metrics": metrics})


if __name__ == "__main__":
    stage_main("pretrain_dynamics", main)
