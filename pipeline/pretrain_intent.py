"""The stage that learns psi(s) by ICVF, calibrates it in steps, and measures how its distances grow with time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.data.resident import observation_moments
from dynarep.data.sampling import goal_and_intent, uniform
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, ShardedDataset
from dynarep.pipeline.encoders import IntentEncoder
from dynarep.pipeline.engine import Run, run_key, train, training_device
from dynarep.pipeline.methods.icvf import ICVF, GoalBatch, ICVFConfig
from dynarep.pipeline.reuse import Origin, PretrainingConfig, load_origin
from dynarep.pipeline.sources import StreamConfig, open_split
from dynarep.pipeline.watching import add_latents, board, distance_figure

MAP_EPISODES, MAP_STATES = 60, 1500
"""How many held-out episodes, and states of them, are kept for a map of the latent space."""

BOARD_STATES = 400
"""How many of these states TensorBoard's projector shows."""

HORIZON = 50
"""Largest number of steps over which distances are compared."""


@config
class PretrainIntentConfig(PretrainingConfig):
    """Section ``pretrain_intent``; an ``encoder`` from elsewhere is measured on the dataset."""

    dataset: str
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of episodes kept for the metrics."""
    stream: StreamConfig | None = None
    """For a dataset larger than memory; by default all of it is in memory."""
    method: ICVFConfig = ICVFConfig()
    recalibrate: bool = False
    """Measure the unit of distance of an ``encoder`` anew, on the dataset; else it keeps its own."""


def pretrain_intent(
    c: PretrainIntentConfig, dataset: Dataset | ShardedDataset, run: Run, origin: Origin[IntentEncoder] | None = None
) -> tuple[IntentEncoder, dict[str, Any], list[dict[str, Any]]]:
    """Train, calibrate and measure; returns the encoder, its metrics, and rows of distance against k.

    Latents of held-out states (``map_latents``) go to ``latents.npz`` in ``run.output``.

    With ``c.encoder`` nothing is trained, and ``step_distance`` among the metrics is the squared distance of one step of the
    dataset in the unit that this encoder brings.

    Args:
        c: the section.
        dataset: to train and measure on.
        run: names, seeds and folders.
        origin: what ``c.encoder`` or ``c.initial`` names; loaded from there by default.

    Raises:
        ArtifactError: if the encoder that ``c`` names cannot be loaded, or does not fit the dataset or ``c.method``.
        ValueError: if no held-out episode has two states.
        DataError: if a streamed shard is missing, truncated or changed, or cannot be had.
    """
    origin = origin or load_origin(c, "pretrain_intent", IntentEncoder, run.replicas)
    if origin is not None:
        origin.check_data(dataset, ("observation_dim",))
    torch.manual_seed(run.seed)
    device = training_device()
    reading: dict[str, Any] = {"seed": run.seed, "draws": c.planned.batch_size, "device": device, **run.part}
    source, kept = open_split(dataset, c.stream, fraction=c.held_out, **reading)
    with source:
        if all(episode.length < 2 for episode in kept):
            raise ValueError(
                f"pretrain_intent.held_out: none of the {len(kept)} episodes held out of {dataset.name} has two states; "
                "hold out more episodes"
            )
        learner = ICVF(c.method, run.replicas, *observation_moments(dataset))
        if origin is not None and c.encoder is None:
            origin.check_settings(learner.export())
            learner.start_from(origin.model)
        shape = (run.replicas, c.planned.batch_size)
        m = c.method

        def sample(generator: torch.Generator) -> GoalBatch:
            table = source.table
            index = uniform(len(table), shape, generator, device)
            g, z = goal_and_intent(
                index,
                table.last[index],
                len(table),
                p_random=m.p_random,
                p_trajectory=m.p_trajectory,
                p_current=m.p_current,
                p_same=m.p_same,
                generator=generator,
            )
            batch = table.gather(index)
            return GoalBatch(
                batch.observations,
                batch.next_observations,
                table.observations_at(g),
                table.observations_at(z),
                (g == index).float(),
                (z == index).float(),
            )

        if c.encoder is None:
            key = run_key(run, c, dataset.fingerprint, origin and origin.sha256)
            train(learner, sample, c.planned, run=run, metrics=("loss", "value"), key=key, seek=source.seek)
        source.seek(c.planned.updates - 1)
        encoder = origin.model if origin is not None and c.encoder is not None else learner.export()
        encoder.eval().requires_grad_(False)
        calibration = step_calibration(encoder, source.episodes())
    step_distance = encoder.calibration / calibration
    if c.encoder is None or c.recalibrate:
        encoder.calibration.copy_(calibration)
    spaces = {"psi": encoder.embed, "raw": lambda x: x, "standardised": encoder.normaliser}
    metrics: dict[str, Any] = {"calibration": encoder.calibration.tolist()}
    if c.encoder is not None:
        metrics["step_distance"] = step_distance.mean().item()
    rows: list[dict[str, Any]] = []
    for space, embed in spaces.items():
        steps, distances = distances_over_time(kept, embed)
        metrics[space] = {
            "spearman": float(spearmanr(steps, distances).statistic),
            "r_squared": float(np.corrcoef(steps, distances)[0, 1] ** 2),
        }
        unit = distances[steps == 1].mean()
        for k in range(1, HORIZON + 1):
            values = distances[steps == k] / unit
            if len(values):
                low, high = np.percentile(values, [10, 90])
                rows.append({"k": k, "space": space, "mean": values.mean(), "low": low, "high": high})
    latents = map_latents(encoder, kept)
    np.savez_compressed(run.output / "latents.npz", **latents)
    with board(run.output) as writer:
        shown = slice(None, None, math.ceil(len(latents["latents"]) / BOARD_STATES))
        episode = latents["episode"][shown]
        columns = {"episode": episode, "time": latents["step"][shown], "return": latents["return"][episode].round(2)}
        add_latents(writer, "psi", latents["latents"][shown], columns)
        writer.add_figure("squared distance after k steps", distance_figure(rows))
    return encoder, metrics, rows


@torch.no_grad()
def step_calibration(encoder: IntentEncoder, episodes: Iterable[Episode]) -> Tensor:
    """The scale (R,) that makes the squared distance of one step 1 on average over the episodes' transitions.

    Raises:
        ValueError: if psi of a replica does not change over any step, which leaves the scale undefined.
    """
    total, count = torch.zeros(encoder.architecture.replicas, dtype=torch.float64), 0
    for episode in episodes:
        now = encoder.embed(torch.from_numpy(episode.current)[None])
        following = encoder.embed(torch.from_numpy(episode.successors)[None])
        total += (following - now).square().sum(-1).double().sum(-1)
        count += episode.length
    if not (total > 0).all():
        constant = (total <= 0).nonzero().flatten().tolist()
        raise ValueError(
            f"pretrain_intent: psi of replica {constant} is the same for a state and the next, all over the data"
        )
    return (count / total).float()


@torch.no_grad()
def map_latents(encoder: IntentEncoder, episodes: list[Episode]) -> dict[str, Any]:
    """Latents of states along some episodes, for a map of the space.

    Returns:
        ``latents`` (N, latent_dim) float32 of the first replica, with the ``episode`` (N,), an index, and the ``step`` (N,)
        of each; and per episode its ``return`` (E,), NaN where unknown, and ``length`` (E,). The episodes are the first
        ``MAP_EPISODES``; N is about ``MAP_STATES``, spread evenly over their transitions.
    """
    shown = episodes[:MAP_EPISODES]
    stride = max(1, sum(episode.length for episode in shown) // MAP_STATES)
    steps = [np.arange(number % stride, episode.length, stride) for number, episode in enumerate(shown)]
    states = np.concatenate([episode.current[chosen] for episode, chosen in zip(shown, steps, strict=True)])
    returns = [math.nan if episode.return_ is None else episode.return_ for episode in shown]
    return {
        "latents": encoder(torch.from_numpy(states)).numpy(),
        "episode": np.repeat(np.arange(len(shown)), [len(chosen) for chosen in steps]),
        "step": np.concatenate(steps),
        "return": np.array(returns),
        "length": np.array([episode.length for episode in shown]),
    }


@torch.no_grad()
def distances_over_time(episodes: list[Episode], embed: Any, *, starts: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (k, ||x_{t+k} - x_t||^2) for k = 1..50 along episodes, the distance averaged over replicas.

    Args:
        episodes: those shorter than 2 states give nothing.
        embed: (1, T, obs_dim) -> (R, T, latent).
        starts: states t taken per episode, evenly spaced.

    Returns:
        Two arrays of the same length: k, and squared distances in the units of the space.
    """
    steps, distances = [], []
    for episode in episodes:
        latent = embed(torch.from_numpy(episode.current)[None])
        length = latent.shape[1]
        for t in np.unique(np.linspace(0, length - 2, min(starts, max(length - 1, 0))).astype(int)):
            ahead = latent[:, t + 1 : t + 1 + HORIZON]
            steps.append(np.arange(1, ahead.shape[1] + 1))
            distances.append((ahead - latent[:, t : t + 1]).square().sum(-1).mean(0).numpy())
    return np.concatenate(steps), np.concatenate(distances)
