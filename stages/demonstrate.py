"""Film the demonstrations that the scores are compared with, and say what they are worth."""

from dynarep.pipeline.run import Stage, stage_main


def main(stage: Stage) -> None:
    """Write returns of ``evaluate.demonstrations`` into ``metrics.json``, and a film into ``clip.json``."""
    from dataclasses import replace
    from functools import partial

    from dynarep.pipeline.entries import NONE
    from dynarep.pipeline.playing.clips import film_recording, make_clip
    from dynarep.pipeline.playing.play import EvaluateConfig
    from dynarep.pipeline.tables import write_json

    settings = replace(stage, section="evaluate").config(EvaluateConfig)
    name = settings.demonstrations
    with stage.output() as folder:
        returns = None if name == NONE else stage.sharded_dataset(name).returns
        write_json(folder / "metrics.json", {"dataset": name, "returns": returns})
        if settings.clips is not None and name != NONE:
            film = partial(film_recording, settings, stage.shards / name)
            write_json(folder / "clip.json", make_clip(settings, name, film, folder))


if __name__ == "__main__":
    stage_main("demonstrate", main)
