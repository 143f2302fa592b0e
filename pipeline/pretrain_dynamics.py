"""The stage that learns phi(s, a) and mu(s') from arbitrary transitions, and measures how good the factorisation is."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from dynarep.data.absorbing import with_absorbing_states
from dynarep.data.resident import TransitionTable, observation_moments
from dynarep.data.sampling import uniform
from dynarep.data.shards import Dataset
from dynarep.data.split import held_out
from dynarep.pipeline.encoders import DynamicsEncoder
from dynarep.pipeline.engine import Run, TrainingConfig, run_key, train, training_device
from dynarep.pipeline.functional import effective_rank
from dynarep.pipeline.methods.dynamics import ContrastiveBatch, Dynamics, DynamicsConfig, retrieval_accuracy
from dynarep.pipeline.params import Field, config


@config
class NoiseConfig:
    """p_n, the distribution of noise states: uniform over the states of a dataset."""

    dataset: str
    states: Literal["current", "next"] = "current"
    """``next`` is the marginal of s' where the dataset is the training data itself."""


@config
class PretrainDynamicsConfig:
    """Section ``pretrain_dynamics``."""

    dataset: str
    noise: NoiseConfig
    absorbing: bool = False
    """Append ValueDICE's absorbing-state bit and lead terminated episodes into the absorbing state."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of episodes kept for the metrics."""
    method: DynamicsConfig
    training: TrainingConfig


def pretrain_dynamics(
    c: PretrainDynamicsConfig, dataset: Dataset, noise: Dataset, run: Run
) -> tuple[DynamicsEncoder, dict[str, Any]]:
    """Train and measure; returns the encoder and metrics on held-out episodes.

    Raises:
        ValueError: if the dataset has no actions or too few episodes to hold some out, or the noise dataset has other
            observations.
    """
    if noise.spec.observation_dim != dataset.spec.observation_dim:
        raise ValueError(
            f"pretrain_dynamics.noise.dataset: {noise.name} has observations of {noise.spec.observation_dim} numbers, "
            f"{dataset.name} of {dataset.spec.observation_dim}"
        )
    if dataset.spec.action_dim == 0:
        raise ValueError(f"pretrain_dynamics.dataset: {dataset.name} has no actions; phi(s, a) needs them")
    torch.manual_seed(run.seed)
    device = training_device()
    prepare = with_absorbing_states if c.absorbing else list
    fit, kept = (prepare(part) for part in held_out(dataset.episodes, c.held_out, run.seed))
    if not kept:
        raise ValueError(f"pretrain_dynamics.dataset: {dataset.name} has one episode; two are needed to hold one out")
    table = TransitionTable.from_episodes(fit, device=device)
    noise_states = _states(prepare(noise.episodes), c.noise.states, device)
    mean, std = observation_moments(dataset, absorbing=c.absorbing)
    learner = Dynamics(c.method, run.replicas, mean, std, dataset.spec.action_dim, absorbing=c.absorbing)
    shape = (run.replicas, c.training.batch_size)

    def sample(generator: torch.Generator) -> ContrastiveBatch:
        batch = table.gather(uniform(len(table), shape, generator, device))
        noise = noise_states[uniform(len(noise_states), shape, generator, device)]
        return ContrastiveBatch(batch.observations, batch.actions, batch.next_observations, noise)

    train(
        learner,
        sample,
        c.training,
        run=run,
        metric="normalisation",
        key=run_key(run, c, dataset.fingerprint, noise.fingerprint),
    )
    encoder = learner.export()
    metrics = {
        "held_out": measure(encoder, TransitionTable.from_episodes(kept), noise_states.cpu()),
        "train": measure(encoder, TransitionTable.from_episodes(fit), noise_states.cpu()),
    }
    return encoder, metrics


def _states(episodes: Any, which: str, device: torch.device) -> Tensor:
    table = TransitionTable.from_episodes(episodes, device=device)
    batch = table.gather(torch.arange(len(table), device=device))
    return (batch.next_observations if which == "next" else batch.observations).contiguous()


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
    batch = table.gather(index[None])
    phi = encoder.phi(batch.observations, batch.actions)
    mu_next = encoder.mu(batch.next_observations)
    negatives = min(255, len(index) - 1)
    return {
        "normalisation": (phi.mean(1) * encoder.mu(noise[None]).mean(1)).sum(-1).mean().item(),
        "positive_ratio": (phi * mu_next).sum(-1).mean().item(),
        "retrieval_accuracy": retrieval_accuracy(phi, mu_next, negatives).mean().item(),
        "retrieval_chance": 1.0 / (negatives + 1),
        "effective_rank": effective_rank(phi).mean().item(),
    }
