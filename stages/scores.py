"""Print the scores of what was evaluated last, without running anything."""

from dynarep.pipeline.run import Stage, stage_main


def main(stage: Stage) -> None:
    """Read ``artifacts/evaluate`` and print the table that the report stage printed."""
    from dynarep.pipeline.playing.summary import print_scores
    from dynarep.pipeline.report import controls, read_scores
    from dynarep.pipeline.report.inputs import Artifacts

    scored = read_scores(Artifacts.of(stage.artifacts, stage.values()))
    print_scores(scored.scores, controls(scored))


if __name__ == "__main__":
    stage_main("scores", main)
