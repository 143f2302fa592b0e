"""Learn every policy of ``offline_rl.policies`` on relabelled or true rewards, by its learner."""

from dynarep.pipeline.run import Stage, stage_main, write_json


def main(stage: Stage) -> None:
    """Write one policy artifact per entry into ``artifacts/offline_rl/<policy>``."""
    import json
    from dataclasses import replace

    from dynarep.data.shards import read_rewards
    from dynarep.pipeline.artifacts import save_artifact
    from dynarep.pipeline.imitate import describe
    from dynarep.pipeline.offline_rl import TRUE_REWARD, OfflineRLConfig, offline_rl, scaled_rewards

    c = stage.config(OfflineRLConfig)
    c = replace(c, training=c.training.smoke()) if stage.smoke else c
    relabel = stage.artifacts / "relabel"
    labels = json.loads((relabel / "metadata.json").read_text())
    dataset, demonstrations = stage.dataset(labels["dataset"]), stage.dataset(labels["demonstrations"])
    transitions = f"{sum(e.length for e in dataset.episodes):,} transitions"
    with stage.output() as folder:
        run = stage.run(folder, shared=True)
        summary = {}
        for name, policy in c.policies.items():
            stored, saw = None, {"expert": "nothing", "other": f"{transitions} with the true reward"}
            if policy.rewards != TRUE_REWARD:
                if not (relabel / policy.rewards).is_dir():
                    known = [TRUE_REWARD, *sorted(path.parent.name for path in relabel.glob("*/rewards"))]
                    where = f"offline_rl.policies.{name}.rewards"
                    raise ValueError(f"{where}: found {policy.rewards!r}, expected one of {', '.join(known)}")
                stored = read_rewards(relabel / policy.rewards, dataset)
                saw = {"expert": describe(demonstrations), "other": f"{transitions} without rewards"}
            within = run.within(name)
            scaled = scaled_rewards(dataset, stored, run.replicas, c, policy)
            model = offline_rl(c, policy, dataset, scaled, within)
            metadata = {**stage.provenance(dataset, model=name), "demonstrations": demonstrations.name, "saw": saw}
            save_artifact(within.output, model, {**metadata, "rewards": policy.rewards, "learner": policy.learner})
            budget = {"updates": c.training.updates, "batch_size": c.training.batch_size}
            summary[name] = {"learner": policy.learner, **budget}
        write_json(folder / "metrics.json", summary)


if __name__ == "__main__":
    stage_main("offline_rl", main)
