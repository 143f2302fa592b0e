"""Make the policy of one entry of ``learn``."""

from dynarep.pipeline.run import Stage, stage_main


def main(stage: Stage) -> None:
    """Write the policy and its curves into ``artifacts/learn/<entry>``."""
    import sys

    from dynarep.data.shards import read_rewards
    from dynarep.pipeline.artifacts.storage import save_artifact
    from dynarep.pipeline.entries import NONE
    from dynarep.pipeline.learn import learn

    entry = stage.read_entry()
    inputs = entry.inputs
    dataset, demonstrations = (
        None if name == NONE else stage.dataset(name) for name in (inputs.dataset, inputs.demonstrations)
    )
    named = [data for data in (dataset, demonstrations) if data is not None]
    observation_dim = named[0].spec.observation_dim if named else None
    encoder = stage.encoder(inputs.encoder, f"{entry.where}.encoder", observation_dim)
    rewards = None
    if inputs.rewards != NONE:
        assert dataset is not None  # an entry that names rewards names the dataset that they are of
        rewards = read_rewards(stage.artifacts / "relabel" / inputs.rewards, dataset)
    with stage.output() as folder:
        policy, facts = learn(entry, dataset, demonstrations, encoder, rewards, stage.run(folder))
        if "warning" in facts:
            print(f"{stage.name}: {facts['warning']}", file=sys.stderr)
        about = {"kind": entry.kind, "demonstrations": inputs.demonstrations, "rewards": inputs.rewards}
        save_artifact(folder, policy, {**stage.provenance(*named), **about, **facts})


if __name__ == "__main__":
    stage_main("learn", main, entries=True)
