"""Reward the dataset named in ``relabel.dataset`` by comparison with ``relabel.demonstrations``."""

from dynarep.pipeline.run import Stage, stage_main, write_json


def main(stage: Stage) -> None:
    """Write rewards, returns and, where steps are coupled, an example of each method into ``artifacts/relabel/<method>``."""
    import numpy as np
    import torch

    from dynarep.data.shards import write_rewards
    from dynarep.pipeline.engine import training_device, write_table
    from dynarep.pipeline.relabel import RelabelConfig, relabel, smoke, spaces_of
    from dynarep.pipeline.spaces import load_space

    c = stage.config(RelabelConfig)
    c = smoke(c) if stage.smoke else c
    dataset, demonstrations = stage.dataset(c.dataset), stage.dataset(c.demonstrations)
    engine = stage.engine()
    device = training_device() if engine.in_process else torch.device("cpu")
    names = dict.fromkeys(space for method in c.methods.values() for space in spaces_of(method))
    spaces = {name: load_space(name, dataset, stage.artifacts, device) for name in names}
    with stage.output() as folder:
        run = stage.run(folder)
        metrics = {}
        for name, method in c.methods.items():
            within = run.within(name)
            result = relabel(name, method, dataset, demonstrations, spaces, device, within, engine)
            write_rewards(within.output, dataset, result.rewards)
            write_table(within.output / "returns.tsv", result.returns)
            if result.example is not None:
                np.savez_compressed(within.output / "example.npz", **result.example)
            metrics[name] = result.metrics
        write_json(folder / "metrics.json", metrics)
        used = {"dataset": dataset.name, "demonstrations": demonstrations.name}
        write_json(folder / "metadata.json", {**stage.provenance(dataset, demonstrations), **used})


if __name__ == "__main__":
    stage_main("relabel", main)
