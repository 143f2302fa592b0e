"""Play the policy of one entry of ``learn`` in the environment of section ``evaluate``."""

from dynarep.pipeline.run import Stage, stage_main


def main(stage: Stage) -> None:
    """Write what is known of each episode into ``returns``, a film into ``clip``, and what can be drawn into ``paths.npz``.

    What recorded transitions say of the policy stands in ``returns.json``, too.
    """
    import json
    from dataclasses import replace
    from functools import partial

    from dynarep.data.shards import read_rewards
    from dynarep.pipeline.entries import NONE
    from dynarep.pipeline.playing.clips import film_policy, make_clip
    from dynarep.pipeline.playing.evaluate import evaluate, return_rows, snapshots_of
    from dynarep.pipeline.playing.play import EvaluateConfig
    from dynarep.pipeline.playing.recorded import judge, merged
    from dynarep.pipeline.tables import write_json, write_table

    settings = stage.config(EvaluateConfig)
    if stage.smoke:
        recording = settings.recording.smoke()
        settings = replace(settings, episodes=1, max_steps=50, workers=1, recording=recording)
    with stage.output() as folder:
        run = stage.run(folder, shared=False)
        paths, cluster = folder / "paths.npz", stage.cluster()
        returns = evaluate(stage.entry, settings, stage.artifacts, cluster=cluster, paths=paths, title=run.title)
        recording, learned = settings.recording, stage.artifacts / "learn" / stage.entry
        if recording.dataset != NONE:
            dataset = stage.dataset(recording.dataset)
            rewards = None
            if recording.rewards != NONE:
                rewards = read_rewards(stage.artifacts / "relabel" / recording.rewards, dataset)
            folders = snapshots_of(stage.entry, learned) if settings.snapshots else {stage.entry: learned}
            returns = merged(returns, judge(stage.entry, folders, recording, dataset, rewards, run))
        (folder / "returns.json").write_text(json.dumps(returns) + "\n")
        write_table(folder / "returns.tsv", return_rows(returns))
        if settings.clips is not None:
            film = partial(film_policy, settings, stage.entry, learned)
            write_json(folder / "clip.json", make_clip(settings, stage.entry, film, folder))


if __name__ == "__main__":
    stage_main("evaluate", main, entries=True)
