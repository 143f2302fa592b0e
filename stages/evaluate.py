"""Play every trained policy in its environment and score it."""

from dynarep.pipeline.run import Stage, stage_main, write_json, write_table


def main(stage: Stage) -> None:
    """Write scores and raw returns into ``metrics.json`` and ``returns.json``, and films into ``clips``."""
    import json
    from dataclasses import replace

    from dynarep.pipeline.playing.clips import make_clips
    from dynarep.pipeline.playing.evaluate import EvaluateConfig, evaluate, print_scores, return_rows

    settings = stage.config(EvaluateConfig)
    if stage.smoke:
        settings = replace(settings, episodes=1, max_steps=50, workers=1)
    with stage.output() as folder:
        metrics, returns = evaluate(settings, stage.artifacts, engine=stage.engine())
        write_json(folder / "metrics.json", metrics)
        (folder / "returns.json").write_text(json.dumps(returns) + "\n")
        write_table(folder / "returns.tsv", return_rows(returns))
        if settings.clips is not None:
            (folder / "clips").mkdir()
            write_json(folder / "clips" / "clips.json", make_clips(settings, stage.artifacts, folder / "clips"))
    print_scores(metrics)


if __name__ == "__main__":
    stage_main("evaluate", main)
