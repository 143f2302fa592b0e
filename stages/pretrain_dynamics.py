"""Learn phi(s, a) and mu(s') from the dataset named in ``pretrain_dynamics.dataset``."""

from dynarep.pipeline.run import Stage, stage_main, write_json


def main(stage: Stage) -> None:
    """Write the encoder, its metrics and curves into ``artifacts/pretrain_dynamics``."""
    from dataclasses import replace

    from dynarep.pipeline.artifacts import save_artifact
    from dynarep.pipeline.pretrain_dynamics import PretrainDynamicsConfig, pretrain_dynamics

    c = stage.config(PretrainDynamicsConfig)
    c = replace(c, training=c.training.smoke()) if stage.smoke else c
    open_dataset = stage.dataset if c.stream is None else stage.sharded_dataset
    dataset, noise = open_dataset(c.dataset), open_dataset(c.noise.dataset)
    with stage.output() as folder:
        encoder, metrics = pretrain_dynamics(c, dataset, noise, stage.run(folder, shared=True))
        write_json(folder / "metrics.json", metrics)
        save_artifact(folder, encoder, {**stage.provenance(dataset, noise), "metrics": metrics})


if __name__ == "__main__":
    stage_main("pretrain_dynamics", main)
