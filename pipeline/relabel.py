"""The stage that gives every transition of a dataset a reward, mostly by comparison with demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch

from dynarep.data.parallel import IN_PROCESS, ClusterConfig, map_shards, one_thread
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, parts
from dynarep.pipeline.agreement import agreement, example, example_episodes, return_rows
from dynarep.pipeline.entries import Entry, RelabelInputs
from dynarep.pipeline.labelling import Judgement, Labelled, Reward, joined
from dynarep.pipeline.method import Sources
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.progress import episode_progress
from dynarep.pipeline.spaces import Space, space_of
from dynarep.pipeline.training.device import keep_freed_memory, training_device
from dynarep.pipeline.training.run import Run, digest, run_key


@dataclass(frozen=True)
class Relabelling:
    """What a method made of a dataset.

    Args:
        rewards: per episode id (R, T) float32.
        returns: one row per episode: ``episode``, ``length``, ``relabelled`` (mean over replicas), ``true`` (or None).
        examples: of some episodes, for the first replica: ``rewards`` (Ta,), ``true_rewards`` (Ta,) if known and the id
            ``agent``; where the method couples steps also ``coupling`` and ``cost`` (Ta, Te) with the best expert, and
            its id ``expert``.
        metrics: means over episodes, experts and replicas; None where the true reward is not known.
    """

    rewards: dict[str, np.ndarray]
    returns: list[dict[str, Any]]
    examples: list[dict[str, Any]]
    metrics: dict[str, Any]


def relabel(
    entry: Entry[RelabelInputs],
    dataset: Dataset,
    demonstrations: Dataset,
    encoder: Encoder | None,
    run: Run,
    cluster: ClusterConfig = IN_PROCESS,
) -> Relabelling:
    """Reward every transition of ``dataset``.

    Args:
        entry: the method.
        dataset: the episodes to reward; their true rewards, if any, are used only in metrics.
        demonstrations: expert episodes.
        encoder: the one that the entry names, if any.
        run: names, seeds and folders, for a method that is trained.
        cluster: where the episodes are labelled; the rewards do not depend on it.

    Raises:
        ValueError: if observations or, where they are read, actions of both datasets differ in size or are missing, if
            replicas disagree, or if a space has values that are not finite.
    """
    device = training_device() if cluster.in_process else torch.device("cpu")
    method = cast(type[Reward], entry.method)
    try:
        reward = method.build(entry.config, judgement(entry, dataset, demonstrations, encoder, run, device))
        if method.trains:
            _train(reward, entry, dataset, demonstrations, encoder, run)
        pieces = parts(dataset)
        labelled = map_shards(partial(_labelled, reward), pieces, cluster)
        total = len(dataset.episodes)
        found = dict(episode_progress(labelled, lambda part: len(part[0]), total, run.title))
        rewards = {episode: values for piece in pieces for episode, values in found[piece][0].items()}
        with torch.no_grad():
            chosen = example_episodes(dataset, entry.inputs.examples)
            examples = [example(episode, rewards) | reward.matched(episode) for episode in chosen]
            metrics = reward.summary(joined([found[piece][1] for piece in pieces]))
    except ValueError as error:
        raise ValueError(f"{entry.where}: {dataset.name} against {demonstrations.name}: {error}") from error
    rewards = {episode.id: rewards[episode.id] for episode in dataset.episodes}
    return Relabelling(rewards, return_rows(dataset, rewards), examples, {**metrics, **agreement(dataset, rewards)})


def judgement(
    entry: Entry[RelabelInputs],
    dataset: Dataset,
    demonstrations: Dataset,
    encoder: Encoder | None,
    run: Run,
    device: torch.device,
) -> Judgement:
    """What a reward is built for, with the spaces that it reads.

    Raises:
        ValueError: if a dataset does not fit the other one or the encoder.
    """
    reads = cast(type[Reward], entry.method).reads
    spaces: dict[str, Space] = {}
    if encoder is not None:
        first = entry.inputs.points or encoder.spaces[0]
        encoder = encoder.to(device)
        for which in reads or (first,):
            spaces[which] = space_of(encoder, which, dataset, device, entry.inputs.space)
    elif reads:
        raise ValueError(f"space: found none, expected an entry of pretrain with {' and '.join(reads)}")
    for space in spaces.values():
        _check(dataset, demonstrations, space)
    _same(dataset, demonstrations, "observation")
    first_space = next(iter(spaces.values()), None)
    return Judgement(run.replicas, first_space, spaces, dataset, demonstrations, device, run.seed)


def _check(dataset: Dataset, demonstrations: Dataset, space: Space) -> None:
    if not space.reads_actions:
        return
    for side in (demonstrations, dataset):
        if side.spec.action_dim == 0:
            raise ValueError(f"space {space.name} needs actions, but {side.name} has none")
    _same(dataset, demonstrations, "action")


def _same(dataset: Dataset, demonstrations: Dataset, what: str) -> None:
    sizes = [getattr(side.spec, f"{what}_dim") for side in (demonstrations, dataset)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{what}s of {demonstrations.name} have {sizes[0]} numbers, those of {dataset.name} {sizes[1]}"
        )


def _train(
    reward: Reward,
    entry: Entry[RelabelInputs],
    dataset: Dataset,
    demonstrations: Dataset,
    encoder: Encoder | None,
    run: Run,
) -> None:
    from dynarep.pipeline.training.loop import train

    training = entry.inputs.training
    assert training is not None
    weights = digest(*encoder.state_dict().values()) if encoder is not None else ""
    for phase in reward.phases():
        sources = Sources({}, run.replicas, training.batch_size, training_device())
        key = run_key(
            run, entry.kind, entry.config, entry.inputs, dataset.fingerprint, demonstrations.fingerprint, weights
        )
        train(phase.learner, sources, phase.batch, training, run=run, shown=phase.shown, key=key)
        if phase.finish is not None:
            phase.finish(sources)


def _labelled(reward: Reward, episodes: Sequence[Episode]) -> Labelled:
    """Rewards of some episodes, and numbers of the problems that they were."""
    rewards: dict[str, np.ndarray[Any, Any]] = {}
    numbers = []
    keep_freed_memory()
    with one_thread(), torch.no_grad():
        for chunk in reward.chunks(episodes):
            found, of_chunk = reward.rewards(chunk)
            rewards |= found
            numbers.append(of_chunk)
    return rewards, joined(numbers)
