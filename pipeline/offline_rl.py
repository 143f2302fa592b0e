"""The stage that learns policies from relabelled rewards, or from the true ones, by IQL, TD3+BC or cloning the best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynarep.configs.params import Field, config
from dynarep.data.resident import TransitionTable, observation_moments
from dynarep.data.sampling import uniform, uniform_of
from dynarep.data.shards import Dataset
from dynarep.pipeline.encoders import Policy
from dynarep.pipeline.engine import Run, TrainingConfig, digest, run_key, train, training_device
from dynarep.pipeline.methods.bc import BC, BCConfig, best_rows
from dynarep.pipeline.methods.iql import IQL, IQLConfig, RewardBatch
from dynarep.pipeline.methods.otr import return_range_scale
from dynarep.pipeline.methods.td3_bc import TD3BC, SARSABatch, TD3BCConfig

TRUE_REWARD = "true"
"""The name under which the dataset's own reward is asked for."""


@config
class OfflinePolicyConfig:
    """One policy: which reward it learns from, and by which method."""

    rewards: str
    """A method of the relabel stage, or ``true`` for the dataset's own reward."""
    learner: Literal["iql", "td3_bc", "top_bc"] = "iql"
    """``top_bc`` clones the episodes of highest return under these rewards."""
    reward_scale: Literal["return_range", "none"] | None = None
    """null: the section's."""
    reward_bias: float | None = None
    """null: the section's."""


@config
class TopBCConfig:
    """Cloning of the best episodes (%BC, Chen et al. 2021): which share of the transitions, and how."""

    top: float = Field(default=0.1, gt=0, le=1)
    """Share of all transitions that the chosen episodes hold."""
    method: BCConfig = BCConfig()


@config
class OfflineRLConfig:
    """Section ``offline_rl``: the policies by name, the settings of their learners, and the budget they share."""

    policies: dict[str, OfflinePolicyConfig]
    reward_scale: Literal["return_range", "none"] = "return_range"
    """``return_range`` multiplies rewards by 1000 / (largest - smallest episode return), as OTR does. A policy can set its
    own: sparse rewards of AntMaze are published unscaled, relabelled ones scaled."""
    reward_bias: float = 0.0
    """Added after scaling; AntMaze is published with -2 for OTR's rewards and -1 for its own. A policy can set its own."""
    iql: IQLConfig = IQLConfig()
    td3_bc: TD3BCConfig = TD3BCConfig()
    top_bc: TopBCConfig = TopBCConfig()
    training: TrainingConfig


def scaled_rewards(
    dataset: Dataset,
    rewards: Mapping[str, Tensor | NDArray[np.float32]] | None,
    replicas: int,
    c: OfflineRLConfig,
    policy: OfflinePolicyConfig | None = None,
) -> Tensor:
    """Rewards of all transitions in the dataset's order, one row per replica, scaled: (R, N).

    Args:
        dataset: its own rewards are used where ``rewards`` is None.
        rewards: per episode id, (R or 1, T).
        replicas: R.
        c: scaling and bias.
        policy: its own scaling and bias count, where it sets them.

    Raises:
        ValueError: if the dataset has no reward of its own but it is asked for, if the number of relabelled replicas
            is neither 1 nor R, or if all episodes have the same return, which leaves the scale undefined.
    """
    if rewards is None:
        if not dataset.spec.has_rewards:
            raise ValueError(f"offline_rl: dataset {dataset.name} has no rewards, but a policy asks for the true one")
        rewards = {e.id: torch.as_tensor(e.rewards)[None] for e in dataset.episodes}
    found = len(next(iter(rewards.values())))
    if found not in (1, replicas):
        raise ValueError(f"offline_rl: rewards hold {found} replicas, this run has {replicas}")
    parts = [torch.as_tensor(rewards[e.id]).float() for e in dataset.episodes]
    flat = torch.cat(parts, -1)
    scale, bias = c.reward_scale, c.reward_bias
    if policy is not None:
        scale = policy.reward_scale or scale
        bias = bias if policy.reward_bias is None else policy.reward_bias
    if scale == "return_range":
        flat = flat * return_range_scale(parts).unsqueeze(-1)
    return (flat + bias).expand(replicas, -1).contiguous()


def next_actions(dataset: Dataset, table: TransitionTable) -> Tensor:
    """The action that was recorded after each row of a dataset's table, NaN at the end of an episode: (N, action_dim).

    Raises:
        ValueError: if transitions do not follow each other, which leaves the next action unknown.
    """
    for episode in dataset.episodes:
        if episode.next_observations is not None:
            raise ValueError(
                f"offline_rl.td3_bc.critic_penalty: found a value above 0, but transitions of episode {episode.id} of "
                f"dataset {dataset.name} do not follow each other; expected 0"
            )
    row = torch.arange(len(table), device=table.last.device)
    following = table.gather(torch.minimum(row + 1, table.last)).actions
    return torch.where((row == table.last).unsqueeze(-1), torch.nan, following)


def offline_rl(c: OfflineRLConfig, policy: OfflinePolicyConfig, dataset: Dataset, rewards: Tensor, run: Run) -> Policy:
    """Train one policy.

    Args:
        c: the section.
        policy: the one of its policies to train.
        dataset: transitions with actions.
        rewards: from ``scaled_rewards``, (R, N).
        run: names, seeds and folders.

    Raises:
        ValueError: if the dataset has no actions, or no next actions where they are needed.
    """
    if dataset.spec.action_dim == 0:
        raise ValueError(f"offline_rl: dataset {dataset.name} has no actions")
    torch.manual_seed(run.seed)
    device = training_device()
    table = TransitionTable.from_episodes(dataset.episodes, device=device)
    rewards = rewards.to(device)
    shape = (run.replicas, c.training.batch_size)
    form = run.replicas, *observation_moments(dataset), dataset.spec.action_low, dataset.spec.action_high
    learner: IQL | TD3BC | BC
    following = chosen = None
    if policy.learner == "iql":
        learner, metrics = IQL(c.iql, *form), ("value", "q_loss")
    elif policy.learner == "td3_bc":
        learner, metrics = TD3BC(c.td3_bc, *form), ("q", "squared_error")
        if c.td3_bc.critic_penalty > 0:
            following = next_actions(dataset, table)
    else:
        learner, metrics = BC(c.top_bc.method, *form), ("loss", "squared_error")
        chosen = best_rows(rewards, [episode.length for episode in dataset.episodes], c.top_bc.top)

    def sample(generator: torch.Generator) -> RewardBatch | SARSABatch:
        if chosen is None:
            index = uniform(len(table), shape, generator, device)
        else:
            index = uniform_of(chosen, c.training.batch_size, generator)
        batch = table.gather(index)
        fields = batch.observations, batch.actions, rewards.gather(1, index), batch.terminated, batch.next_observations
        if policy.learner == "td3_bc":
            return SARSABatch(*fields, None if following is None else following[index])
        return RewardBatch(*fields)

    top = c.top_bc.top if policy.learner == "top_bc" else None
    key = run_key(run, learner.config, top, c.training, dataset.fingerprint, digest(rewards))
    train(learner, sample, c.training, run=run, metrics=metrics, key=key)
    return learner.export().eval().requires_grad_(False)
