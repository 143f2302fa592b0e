"""The stage that makes a policy: by imitation of demonstrations, or from rewards, or both."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynarep.data.absorbing import with_absorbing_states
from dynarep.data.resident import TransitionTable, observation_moments
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset
from dynarep.pipeline.entries import Entry, LearnInputs
from dynarep.pipeline.method import Learner, Needs, Sources, World
from dynarep.pipeline.nn.functional import return_range_scale
from dynarep.pipeline.nn.models import ActingModel, Encoder
from dynarep.pipeline.training.config import TrainingConfig
from dynarep.pipeline.training.device import training_device
from dynarep.pipeline.training.run import Run, digest, run_key

EXPERT_STEPS, DATA_STEPS = 1, 10
"""Steps in the absorbing state after a demonstration and after an episode of the dataset, as ValueDICE has them."""

Rewards = Mapping[str, Tensor | NDArray[np.float32]]
"""Per episode id, (R or 1, T)."""


def learn(
    entry: Entry[LearnInputs],
    dataset: Dataset,
    demonstrations: Dataset,
    encoder: Encoder | None,
    rewards: Rewards | None,
    run: Run,
) -> tuple[ActingModel, dict[str, Any]]:
    """Train one policy; returns it with what its metadata say of it.

    Args:
        entry: what to learn.
        dataset: any episodes of the system.
        demonstrations: expert episodes.
        encoder: the one that the entry names, if any.
        rewards: those that the entry names, if any.
        run: names, seeds and folders.

    Raises:
        ValueError: if data it needs has no actions, or observation, action or replica counts disagree.
    """
    method, c, inputs = cast(type[Learner], entry.method), entry.config, entry.inputs
    needs = method.needs(c)
    _check(entry, needs, dataset, demonstrations, encoder, run)
    torch.manual_seed(run.seed)
    device = training_device()
    spec = demonstrations.spec if demonstrations.spec.action_dim else dataset.spec
    moments = observation_moments(dataset, absorbing=needs.absorbing is not None)
    bounds = spec.action_low, spec.action_high
    latents = None if encoder is None else latent_moments(encoder, dataset)
    world = World(run.replicas, *moments, *bounds, needs.absorbing is not None, encoder, latents)
    try:
        learner = method.build(c, world)
        scaled = None if rewards is None else scaled_rewards(dataset, rewards, run.replicas, inputs).to(device)
        tables = {"dataset": dataset, "demonstrations": demonstrations}
        made: dict[str, TransitionTable] = {}

        def table(role: str) -> TransitionTable:
            if role not in made:
                episodes = absorbed(
                    tables[role].episodes, needs, EXPERT_STEPS if role == "demonstrations" else DATA_STEPS
                )
                made[role] = TransitionTable.from_episodes(episodes, device=device)
            return made[role]

        sources = Sources({role: partial(table, role) for role in tables}, run.replicas, 1, device, scaled)
        learner.prepare(sources)
        if method.trains:
            _train(learner, entry, sources, run, _fingerprints(dataset, demonstrations, encoder, scaled))
    except ValueError as error:
        raise ValueError(f"{entry.where}: {error}") from error
    transitions = f"{sum(e.length for e in dataset.episodes):,} transitions"
    saw = method.saw(c, describe(demonstrations), transitions, None if rewards is None else inputs.rewards)
    if encoder is not None and needs.optional_encoder:
        saw = {**saw, "other": f"{saw['other']}, also through {' and '.join(needs.encoder)}"}
    policy = cast(ActingModel, learner.export().eval().requires_grad_(False))
    return policy, {"saw": saw, **learner.facts()}


def _fingerprints(
    dataset: Dataset, demonstrations: Dataset, encoder: Encoder | None, rewards: Tensor | None
) -> list[str]:
    found = [dataset.fingerprint, demonstrations.fingerprint]
    if encoder is not None:
        found.append(digest(*encoder.state_dict().values()))
    if rewards is not None:
        found.append(digest(rewards))
    return found


def _train(learner: Learner, entry: Entry[LearnInputs], sources: Sources, run: Run, fingerprints: list[str]) -> None:
    from dynarep.pipeline.training.loop import train

    for phase in learner.phases():
        training = phase.training or cast(TrainingConfig, entry.inputs.training)
        within = run.phase(phase.name) if phase.name else run
        sized = sources.sized(training.batch_size)
        key = run_key(within, entry.kind, entry.config, entry.inputs, *fingerprints)
        train(phase.learner, sized, phase.batch, training, run=within, shown=phase.shown, key=key)
        if phase.finish is not None:
            phase.learner.to(sources.device)
            phase.finish(sized)


@torch.no_grad()
def latent_moments(encoder: Encoder, dataset: Dataset) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation of the points of the encoder's first space over a dataset, (R, 1, d) each; None if it reads actions."""
    if encoder.spaces[0] in encoder.reads_actions:
        return None
    total = squares = torch.zeros((), dtype=torch.float64)
    count = 0
    for episode in dataset.episodes:
        points = encoder.embed(torch.from_numpy(episode.current)[None]).double()
        total, squares = total + points.sum(1, keepdim=True), squares + points.square().sum(1, keepdim=True)
        count += points.shape[1]
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float()


def scaled_rewards(dataset: Dataset, rewards: Rewards, replicas: int, c: LearnInputs) -> Tensor:
    """Rewards of all transitions in the dataset's order, one row per replica, scaled: (R, N).

    Args:
        dataset: whose transitions they are of.
        rewards: per episode id, (R or 1, T).
        replicas: R.
        c: scaling and bias.

    Raises:
        ValueError: if the number of relabelled replicas is neither 1 nor R, or if all episodes have the same return, which
            leaves the scale undefined.
    """
    found = len(next(iter(rewards.values())))
    if found not in (1, replicas):
        raise ValueError(f"rewards: found {found} replicas, this run has {replicas}")
    parts = [torch.as_tensor(rewards[e.id]).float() for e in dataset.episodes]
    flat = torch.cat(parts, -1)
    if c.reward_scale == "return_range":
        flat = flat * return_range_scale(parts).unsqueeze(-1)
    return (flat + c.reward_bias).expand(replicas, -1).contiguous()


def absorbed(episodes: list[Episode], needs: Needs, steps: int) -> list[Episode]:
    """Episodes as a method reads them, led into an absorbing state where it asks for that, with ``steps`` for so many steps.

    With ``discounted`` the absorbing state stands for as many steps as it has mass in the discounted occupancy: after T steps
    that mass is gamma^T, that of the steps before 1 - gamma^T; so T gamma^T / (1 - gamma^T) steps stand for it where all of the
    T steps weigh the same.
    """
    if needs.absorbing is None:
        return episodes
    if needs.absorbing == "steps":
        return with_absorbing_states(episodes, steps)
    mass = [needs.gamma**e.length for e in episodes]
    repeats = [round(e.length * m / (1.0 - m)) for e, m in zip(episodes, mass, strict=True)]
    return [with_absorbing_states([e], n)[0] for e, n in zip(episodes, repeats, strict=True)]


def _check(
    entry: Entry[LearnInputs],
    needs: Needs,
    dataset: Dataset,
    demonstrations: Dataset,
    encoder: Encoder | None,
    run: Run,
) -> None:
    where = entry.where
    for role, data in (("dataset", dataset), ("demonstrations", demonstrations)):
        if role in needs.actions and data.spec.action_dim == 0:
            raise ValueError(f"{where}: dataset {data.name} has no actions; {entry.kind} imitates actions")
    for field in ("observation_dim", "action_dim"):
        found, expected = getattr(demonstrations.spec, field), getattr(dataset.spec, field)
        if found != expected and not (field == "action_dim" and 0 in (found, expected)):
            raise ValueError(
                f"{where}: {field}: found {found} in demonstrations {demonstrations.name}, expected {expected} as in "
                f"{dataset.name}"
            )
    if encoder is None:
        return
    if not needs.encoder and encoder.spaces[0] in encoder.reads_actions:
        raise ValueError(f"{where}.encoder: {entry.inputs.encoder} reads actions, expected an encoder of states")
    missing = set(needs.encoder) - set(encoder.spaces)
    if missing:
        raise ValueError(
            f"{where}.encoder: {entry.inputs.encoder} has {' and '.join(encoder.spaces)}, expected {' and '.join(needs.encoder)}"
        )
    a = encoder.architecture
    absorbing = needs.absorbing is not None
    for field, got, wanted in (
        ("observation_dim", a.observation_dim, dataset.spec.observation_dim),
        ("action_dim", getattr(a, "action_dim", None), dataset.spec.action_dim),
        ("replicas", a.replicas, run.replicas),
        ("absorbing", getattr(a, "absorbing", None), absorbing),
    ):
        if got is not None and got != wanted and not (field == "replicas" and got == 1):
            raise ValueError(f"{where}.encoder: {entry.inputs.encoder} has {field} {got}, this run needs {wanted}")


def describe(demonstrations: Dataset) -> str:
    """What a demonstration dataset shows, in words."""
    count, steps = len(demonstrations.episodes), sum(e.length for e in demonstrations.episodes)
    content = "observations and actions" if demonstrations.spec.action_dim else "observations only"
    return f"{count} episode{'s' if count > 1 else ''} ({steps:,} steps), {content}"
