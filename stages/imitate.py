"""Imitate the demonstrations named in ``imitate.demonstrations`` with every policy of ``imitate.policies``."""

from dynarep.pipeline.run import Stage, stage_main, write_json


def main(stage: Stage) -> None:
    """Write one policy artifact per entry into ``artifacts/imitate/<policy>``."""
    from dynarep.pipeline.artifacts import load_dynamics_encoder, save_artifact
    from dynarep.pipeline.imitate import ImitateConfig, imitate, needs_encoder, smoke

    c = stage.config(ImitateConfig)
    demonstrations, arbitrary = stage.dataset(c.demonstrations), stage.dataset(c.dataset)
    encoder = None
    if any(map(needs_encoder, c.policies.values())):
        dim = arbitrary.spec.observation_dim
        encoder = load_dynamics_encoder(stage.artifacts / "pretrain_dynamics", observation_dim=dim)
    with stage.output() as folder:
        run = stage.run(folder)
        summary = {}
        for name, policy_config in c.policies.items():
            if stage.smoke:
                policy_config = smoke(policy_config)
            within = run.within(name)
            policy, facts = imitate(name, policy_config, demonstrations, arbitrary, encoder, within)
            metadata = {
                **stage.provenance(demonstrations, arbitrary, model=name),
                "demonstrations": demonstrations.name,
                **facts,
            }
            save_artifact(within.output, policy, metadata)
            summary[name] = {"updates": policy_config.training.updates, "batch_size": policy_config.training.batch_size}
        write_json(folder / "metrics.json", summary)


if __name__ == "__main__":
    stage_main("imitate", main)
