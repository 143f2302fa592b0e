"""Reward a dataset by the method of one entry of ``relabel``."""

from dynarep.pipeline.run import Stage, stage_main


def main(stage: Stage) -> None:
    """Write rewards, returns and examples into ``artifacts/relabel/<entry>``."""
    import sys
    from typing import cast

    from dynarep.data.shards import write_rewards
    from dynarep.pipeline.agreement import remarks, write_examples
    from dynarep.pipeline.labelling import Reward
    from dynarep.pipeline.relabel import relabel
    from dynarep.pipeline.tables import write_json, write_table
    from dynarep.pipeline.training.board import board, coupling_figure

    entry = stage.read_entry()
    dataset, demonstrations = stage.dataset(entry.inputs.dataset), stage.dataset(entry.inputs.demonstrations)
    encoder = stage.encoder(entry.inputs.space, f"{entry.where}.space", dataset.spec.observation_dim)
    with stage.output() as folder:
        run = stage.run(folder, shared=False)
        result = relabel(entry, dataset, demonstrations, encoder, run, stage.cluster())
        write_rewards(folder, dataset, result.rewards)
        write_table(folder / "returns.tsv", result.returns)
        write_examples(folder / "examples", result.examples)
        coupled = [example["coupling"] for example in result.examples if "coupling" in example]
        if coupled:
            with board(run.logs) as writer:
                for step, coupling in enumerate(coupled):
                    writer.add_figure("coupling", coupling_figure(coupling), step)
        doubts = remarks(result.metrics, result.rewards, tempered=cast(type[Reward], entry.method).tempered)
        write_json(folder / "metrics.json", {**result.metrics, **({"remarks": doubts} if doubts else {})})
        for remark in doubts:
            print(f"{stage.name}: {remark}", file=sys.stderr)
        used = {"dataset": dataset.name, "demonstrations": demonstrations.name, "kind": entry.kind}
        write_json(folder / "metadata.json", {**stage.provenance(dataset, demonstrations), **used})


if __name__ == "__main__":
    stage_main("relabel", main, entries=True)
