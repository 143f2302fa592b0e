"""Reward the dataset named in ``relabel.dataset`` by optimal transport to ``relabel.demonstrations``."""

from dynarep.pipeline.run import Stage, stage_main, write_json


def main(stage: Stage) -> None:
    """Write rewards, returns and an example of each method into ``artifacts/relabel/<method>``."""
    import numpy as np

    from dynarep.data.shards import write_rewards
    from dynarep.pipeline.artifacts import load_intent_encoder
    from dynarep.pipeline.engine import training_device, write_table
    from dynarep.pipeline.relabel import RelabelConfig, Space, relabel, smoke

    c = stage.config(RelabelConfig)
    c = smoke(c) if stage.smoke else c
    dataset, demonstrations = stage.dataset(c.dataset), stage.dataset(c.demonstrations)
    device = training_device()
    intent = None
    if any(method.space == "intent" for method in c.methods.values()):
        dim = dataset.spec.observation_dim
        encoder = load_intent_encoder(stage.artifacts / "pretrain_intent", observation_dim=dim).to(device)
        intent = Space(lambda observations: encoder.embed(observations.unsqueeze(0)), encoder.calibration)
    with stage.output() as folder:
        metrics = {}
        for name, method in c.methods.items():
            result = relabel(name, method, dataset, demonstrations, intent, device)
            write_rewards(folder / name, dataset, result.rewards)
            write_table(folder / name / "returns.tsv", result.returns)
            np.savez_compressed(folder / name / "example.npz", **result.example)
            metrics[name] = result.metrics
        write_json(folder / "metrics.json", metrics)
        names = {"dataset": dataset.name, "demonstrations": demonstrations.name}
        write_json(folder / "metadata.json", {**stage.provenance(dataset, demonstrations), **names})


if __name__ == "__main__":
    stage_main("relabel", main)
