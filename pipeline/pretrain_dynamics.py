"""The stage that learns phi(s, a) and mu(s') from arbitrary transitions, and measures how good the factorisation is."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.data.absorbing import with_absorbing_states
from dynarep.data.resident import TransitionTable, observation_moments
from dynarep.data.sampling import uniform
from dynarep.data.shards import Dataset, ShardedDataset
from dynarep.pipeline.encoders import DynamicsEncoder
from dynarep.pipeline.engine import Run, run_key, train, training_device
from dynarep.pipeline.functional import effective_rank
from dynarep.pipeline.methods.dynamics import ContrastiveBatch, Dynamics, DynamicsConfig, retrieval_accuracy
from dynarep.pipeline.reuse import Origin, PretrainingConfig, load_origin
from dynarep.pipeline.sources import StreamConfig, open_source, open_split


@config
class NoiseConfig:
    """p_n, the distribution of noise states: uniform over the states of a dataset."""

    dataset: str
    states: Literal["current", "next"] = "current"
    """``next`` is the marginal of s' where the dataset is the training data itself."""


@config
class PretrainDynamicsConfig(PretrainingConfig):
    """Section ``pretrain_dynamics``; an ``encoder`` from elsewhere is measured on the dataset."""

    dataset: str
    noise: NoiseConfig
    absorbing: bool = False
    """Append ValueDICE's absorbing-state bit and lead terminated episodes into the absorbing state."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of episodes kept for the metrics."""
    stream: StreamConfig | None = None
    """For datasets larger than memory; by default all of both is in memory."""
    method: DynamicsConfig = DynamicsConfig()


def pretrain_dynamics(
    c: PretrainDynamicsConfig,
    dataset: Dataset | ShardedDataset,
    noise: Dataset | ShardedDataset,
    run: Run,
    origin: Origin[DynamicsEncoder] | None = None,
) -> tuple[DynamicsEncoder, dict[str, Any]]:
    """Train and measure; returns the encoder and metrics on held-out episodes.

    With ``c.encoder`` nothing is trained.

    Args:
        c: the section.
        dataset: to train and measure on.
        noise: whose states are p_n.
        run: names, seeds and folders.
        origin: what ``c.encoder`` or ``c.initial`` names; loaded from there by default.

    Raises:
        ArtifactError: if the encoder that ``c`` names cannot be loaded, or does not fit the dataset or ``c``.
        ValueError: if the dataset has no actions or too few episodes to hold some out, or the noise dataset has other
            observations.
        DataError: if a streamed shard is missing, truncated or changed, or cannot be had.
    """
    if noise.spec.observation_dim != dataset.spec.observation_dim:
        raise ValueError(
            f"pretrain_dynamics.noise.dataset: {noise.name} has observations of {noise.spec.observation_dim} numbers, "
            f"{dataset.name} of {dataset.spec.observation_dim}"
        )
    if dataset.spec.action_dim == 0:
        raise ValueError(f"pretrain_dynamics.dataset: {dataset.name} has no actions; phi(s, a) needs them")
    origin = origin or load_origin(c, "pretrain_dynamics", DynamicsEncoder, run.replicas)
    if origin is not None:
        origin.check_data(dataset, ("observation_dim", "action_dim"))
    torch.manual_seed(run.seed)
    device = training_device()
    absorbing = c.absorbing if origin is None or c.encoder is None else origin.model.architecture.absorbing
    transform = with_absorbing_states if absorbing else list
    reading: dict[str, Any] = {
        "seed": run.seed,
        "draws": c.planned.batch_size,
        "transform": transform,
        "device": device,
        **run.part,
    }
    with ExitStack() as stack:
        source, kept = open_split(dataset, c.stream, fraction=c.held_out, **reading)
        stack.enter_context(source)
        if not kept:
            raise ValueError(
                f"pretrain_dynamics.dataset: {dataset.name} has one episode; two are needed to hold one out"
            )
        noise_source = source
        if c.stream is None or noise.name != dataset.name:
            noise_source = stack.enter_context(open_source(noise, c.stream, **reading))
        mean, std = observation_moments(dataset, absorbing=absorbing)
        learner = Dynamics(c.method, run.replicas, mean, std, dataset.spec.action_dim, absorbing=absorbing)
        if origin is not None and c.encoder is None:
            origin.check_settings(learner.encoder)
            learner.start_from(origin.model)
        shape = (run.replicas, c.planned.batch_size)

        def noise_states() -> Tensor:
            table = noise_source.table
            return table.next_observations if c.noise.states == "next" else table.observations

        def sample(generator: torch.Generator) -> ContrastiveBatch:
            table, states = source.table, noise_states()
            batch = table.gather(uniform(len(table), shape, generator, device))
            noise = states[uniform(len(states), shape, generator, device)]
            return ContrastiveBatch(batch.observations, batch.actions, batch.next_observations, noise)

        def seek(update: int) -> None:
            source.seek(update)
            noise_source.seek(update)

        if c.encoder is None:
            key = run_key(run, c, dataset.fingerprint, noise.fingerprint, origin and origin.sha256)
            train(learner, sample, c.planned, run=run, metrics=("loss", "normalisation"), key=key, seek=seek)
        seek(c.planned.updates - 1)
        encoder = origin.model if origin is not None and c.encoder is not None else learner.export()
        encoder.eval().requires_grad_(False)
        states = noise_states().cpu()
        metrics = {
            "held_out": measure(encoder, TransitionTable.from_episodes(kept), states),
            "train": measure(encoder, source.table, states),
        }
    return encoder, metrics


@torch.no_grad()
def measure(encoder: DynamicsEncoder, table: TransitionTable, noise: Tensor, *, limit: int = 4096) -> dict[str, float]:
    """Quality of a factorisation on transitions, mean over replicas.

    Returns:
        ``normalisation``, E_{p_n} phi^T mu, 1 for a true ratio; ``positive_ratio``, E phi^T mu(s') over transitions;
        ``retrieval_accuracy`` of the true next state among 255 others, and ``retrieval_chance``; ``effective_rank`` of
        phi over the transitions, at most feature_dim.
    """
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(len(table), generator=generator)[:limit]
    noise = noise[torch.randperm(len(noise), generator=generator)[:limit]]
    batch = table.gather(index[None].to(table.packed.device))
    phi = encoder.phi(batch.observations.cpu(), batch.actions.cpu())
    mu_next = encoder.mu(batch.next_observations.cpu())
    negatives = min(255, len(index) - 1)
    return {
        "normalisation": (phi.mean(1) * encoder.mu(noise[None]).mean(1)).sum(-1).mean().item(),
        "positive_ratio": (phi * mu_next).sum(-1).mean().item(),
        "retrieval_accuracy": retrieval_accuracy(phi, mu_next, negatives).mean().item(),
        "retrieval_chance": 1.0 / (negatives + 1),
        "effective_rank": effective_rank(phi).mean().item(),
    }
