"""The stage that makes an encoder, trained or not, and measures it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch

from dynarep.data.absorbing import with_absorbing_states
from dynarep.data.resident import TransitionTable, observation_moments
from dynarep.data.shards import Dataset, ShardedDataset
from dynarep.pipeline.artifacts.origin import Origin
from dynarep.pipeline.entries import Entry, PretrainInputs
from dynarep.pipeline.measures import Measured
from dynarep.pipeline.method import EncoderMethod, Sources, World
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.sources import open_split
from dynarep.pipeline.training.config import TrainingConfig
from dynarep.pipeline.training.device import training_device
from dynarep.pipeline.training.run import Run, run_key


@dataclass(frozen=True)
class Pretrained:
    """An encoder, frozen, and what was measured of it."""

    encoder: Encoder
    measured: Measured


def pretrain(
    entry: Entry[PretrainInputs], dataset: Dataset | ShardedDataset, run: Run, origin: Origin | None = None
) -> Pretrained:
    """Train an encoder, or take one as it is, and measure it on held-out episodes.

    Args:
        entry: what to make.
        dataset: to train and measure on.
        run: names, seeds and folders.
        origin: the encoder that the entry starts from or hands on.

    Raises:
        ArtifactError: if ``origin`` does not fit the dataset or the entry's settings.
        ValueError: if the dataset has no actions where they are read, or too few episodes to hold some out.
        DataError: if a streamed shard is missing, truncated or changed, or cannot be had.
    """
    inputs, method = entry.inputs, cast(type[EncoderMethod], entry.method)
    needs = method.needs(entry.config)
    if "dataset" in needs.actions and dataset.spec.action_dim == 0:
        raise ValueError(f"{entry.where}.dataset: {dataset.name} has no actions; {entry.kind} needs them")
    if origin is not None:
        origin.check_data(dataset)
    handed_on = origin is not None and not method.trains
    absorbing = needs.absorbing is not None
    if origin is not None and handed_on:
        absorbing = bool(getattr(origin.model.architecture, "absorbing", False))
    training = inputs.training or TrainingConfig(updates=1)
    torch.manual_seed(run.seed)
    device = training_device()
    source, kept = open_split(
        dataset,
        inputs.stream,
        fraction=inputs.held_out,
        seed=run.seed,
        draws=training.batch_size,
        transform=with_absorbing_states if absorbing else list,
        device=device,
        **run.part,
    )
    with source:
        if not kept:
            raise ValueError(f"{entry.where}.dataset: {dataset.name} has one episode; two are needed to hold one out")
        try:
            method.check_held_out(kept)
        except ValueError as error:
            raise ValueError(f"{entry.where}.{error}") from error
        spec = dataset.spec
        everything: list[TransitionTable] = []

        def whole() -> TransitionTable:
            """All transitions, held-out ones too; of a stream what is in memory."""
            if isinstance(dataset, ShardedDataset):
                return source.table
            if not everything:
                transform = with_absorbing_states if absorbing else list
                everything.append(TransitionTable.from_episodes(transform(dataset.episodes), device=device))
            return everything[0]

        world = World(
            run.replicas,
            *observation_moments(dataset, absorbing=absorbing),
            spec.action_low,
            spec.action_high,
            absorbing,
            origin.model if origin and handed_on else None,
        )
        learner = method.build(entry.config, world)
        if origin is not None and method.trains:
            origin.check_settings(learner.export())
            learner.start_from(cast(Encoder, origin.model))
        if method.trains:
            from dynarep.pipeline.training.loop import train

            sources = Sources(
                {"dataset": lambda: source.table, "whole": whole}, run.replicas, training.batch_size, device
            )
            key = run_key(run, entry.kind, entry.config, inputs, dataset.fingerprint, origin and origin.sha256)
            phases = learner.phases()
            if training.snapshots > 1 and any(phase.finish for phase in phases):
                raise ValueError(
                    f"{entry.where}.training.snapshots: found {training.snapshots}, expected 1: {entry.kind} is complete "
                    "after its training alone"
                )
            for phase in phases:
                train(phase.learner, sources, phase.batch, training, run=run, shown=phase.shown, key=key, source=source)
                if phase.finish is not None:
                    phase.finish(sources)
        source.advance(training.updates - 1)
        encoder = cast(Encoder, learner.export().eval().requires_grad_(False))
        try:
            measured = method.measure(entry.config, encoder, kept, source.table, whole(), source.episodes())
        except ValueError as error:
            raise ValueError(f"{entry.where}: {error}") from error
    return Pretrained(encoder, measured)


def board_of(measured: Measured, run: Run) -> None:
    """Show latents and distances in TensorBoard."""
    if not measured.latents:
        return
    import math

    from dynarep.pipeline.training.board import add_latents, board, distance_figure

    latents: dict[str, Any] = measured.latents
    with board(run.logs) as writer:
        shown = slice(None, None, math.ceil(len(latents["latents"]) / BOARD_STATES))
        episode = latents["episode"][shown]
        columns = {"episode": episode, "time": latents["step"][shown], "return": latents["return"][episode].round(2)}
        add_latents(writer, "latents", latents["latents"][shown], columns)
        writer.add_figure("squared distance after k steps", distance_figure(measured.tables["distance"]))


BOARD_STATES = 400
"""How many states TensorBoard's projector shows."""
