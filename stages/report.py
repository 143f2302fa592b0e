"""Put scores, plots and provenance of all stages on one page."""

from dynarep.pipeline.run import Stage, stage_main


def main(stage: Stage) -> None:
    """Write ``artifacts/report/index.html``."""
    from dynarep.pipeline.report import ReportConfig, build_report

    settings = stage.config(ReportConfig)
    with stage.output() as folder:
        (folder / "index.html").write_text(build_report(settings, stage.artifacts))


if __name__ == "__main__":
    stage_main("report", main)
