"""Gather the scores of all policies, and put scores, plots and provenance of all stages on one page."""

from dynarep.pipeline.run import Stage, stage_main


def main(stage: Stage) -> None:
    """Write ``index.html``, ``metrics.json`` and ``returns.tsv`` into ``artifacts/report``, and print the scores.

    What entries left behind that the params file has no more is not part of the run.
    """
    from dynarep.pipeline.playing.summary import print_scores, score_rows
    from dynarep.pipeline.report import ReportConfig, controls, make_page, read_scores
    from dynarep.pipeline.report.inputs import Artifacts
    from dynarep.pipeline.tables import write_json, write_table

    settings = stage.config(ReportConfig)
    scored = read_scores(Artifacts.of(stage.artifacts, stage.values()))
    with stage.output() as folder:
        write_json(folder / "metrics.json", scored.scores)
        write_table(folder / "returns.tsv", score_rows(scored.raw))
        (folder / "index.html").write_text(make_page(settings, scored))
    print_scores(scored.scores, controls(scored))


if __name__ == "__main__":
    stage_main("report", main)
