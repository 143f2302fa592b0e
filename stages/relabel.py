"""Reward the dataset named in ``relabel.dataset`` by comparison with ``relabel.demonstrations``."""

from dynarep.pipeline.run import Stage, stage_main, write_json, write_table


def main(stage: Stage) -> None:
    """Write rewards, returns and examples of each method into ``artifacts/relabel/<method>``."""
    import torch

    from dynarep.data.shards import write_rewards
    from dynarep.pipeline.engine import training_device
    from dynarep.pipeline.relabel import RelabelConfig, example_episodes, relabel, smoke, spaces_of, write_examples
    from dynarep.pipeline.spaces import load_space
    from dynarep.pipeline.watching import board, coupling_figure

    c = stage.config(RelabelConfig)
    c = smoke(c) if stage.smoke else c
    dataset, demonstrations = stage.dataset(c.dataset), stage.dataset(c.demonstrations)
    engine = stage.engine()
    device = training_device() if engine.in_process else torch.device("cpu")
    names = dict.fromkeys(space for method in c.methods.values() for space in spaces_of(method))
    spaces = {name: load_space(name, dataset, stage.artifacts, device) for name in names}
    examples = example_episodes(dataset, c.examples)
    with stage.output() as folder:
        run = stage.run(folder)
        metrics, returns = {}, []
        for name, method in c.methods.items():
            within = run.within(name)
            result = relabel(name, method, dataset, demonstrations, spaces, device, within, engine, examples)
            write_rewards(within.output, dataset, result.rewards)
            write_table(within.output / "returns.tsv", result.returns)
            write_examples(within.output / "examples", result.examples)
            returns += [{"method": name, **row} for row in result.returns]
            coupled = [example["coupling"] for example in result.examples if "coupling" in example]
            if coupled:
                with board(within.output) as writer:
                    for step, coupling in enumerate(coupled):
                        writer.add_figure("coupling", coupling_figure(coupling), step)
            metrics[name] = result.metrics
        write_json(folder / "metrics.json", metrics)
        write_table(folder / "returns.tsv", returns)
        used = {"dataset": dataset.name, "demonstrations": demonstrations.name}
        write_json(folder / "metadata.json", {**stage.provenance(dataset, demonstrations), **used})


if __name__ == "__main__":
    stage_main("relabel", main)
