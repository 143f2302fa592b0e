"""The stage that makes a policy: by imitation of demonstrations, or from rewards, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynarep.data.absorbing import with_absorbing_states
from dynarep.data.resident import TransitionTable, observation_moments
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset
from dynarep.pipeline.entries import NONE, Entry, LearnInputs
from dynarep.pipeline.method import Learner, Needs, Sources, World
from dynarep.pipeline.nn.functional import return_range_scale
from dynarep.pipeline.nn.models import ActingModel, Encoder
from dynarep.pipeline.playing.environments import CollectionConfig, family, simulator_versions
from dynarep.pipeline.playing.replay import Explorer, Replay
from dynarep.pipeline.sources import Source
from dynarep.pipeline.training.config import TrainingConfig
from dynarep.pipeline.training.device import training_device
from dynarep.pipeline.training.run import Run, digest, run_key

EXPERT_STEPS, DATA_STEPS = 1, 10
"""Steps in the absorbing state after a demonstration and after an episode of the dataset, as ValueDICE has them."""

Rewards = Mapping[str, Tensor | NDArray[np.float32]]
"""Per episode id, (R or 1, T)."""


def learn(
    entry: Entry[LearnInputs],
    dataset: Dataset | None,
    demonstrations: Dataset | None,
    encoder: Encoder | None,
    rewards: Rewards | None,
    run: Run,
) -> tuple[ActingModel, dict[str, Any]]:
    """Train one policy; returns it with what its metadata say of it.

    Args:
        entry: what to learn.
        dataset: any episodes of the system; None where the entry names none.
        demonstrations: expert episodes, likewise.
        encoder: the one that the entry names, if any.
        rewards: those that the entry names, if any.
        run: names, seeds and folders.

    Raises:
        ValueError: if data it needs has no actions, observation, action or replica counts disagree, or the environment in which
            it acts cannot be made or fails.
    """
    method, c, inputs = cast(type[Learner], entry.method), entry.config, entry.inputs
    needs = method.needs(c)
    data = {"dataset": dataset, "demonstrations": demonstrations}
    torch.manual_seed(run.seed)
    device = training_device()
    with ExitStack() as stack:
        try:
            replay = None
            if needs.environment is not None:
                updates = cast(TrainingConfig, inputs.training).updates
                replay = Replay(needs.environment, run.replicas, run.seed, device, updates=updates)
                stack.enter_context(replay)
                _check_acting(entry, replay, run)
            form = _form(data, replay)
            _check(entry, needs, data, form, encoder, run)
            learner = method.build(c, _world(needs, dataset, form, encoder, run))
            scaled = None
            if rewards is not None:
                assert dataset is not None
                scaled = scaled_rewards(dataset, rewards, run.replicas, inputs).to(device)
            tables: dict[str, Callable[[], TransitionTable]] = {
                role: _table_of(role, data, entry, device) for role in data
            }
            if replay is not None:
                learner.to(device)
                if dataset is not None:
                    if rewards is not None:
                        replay.scale_rewards(reward_factor(dataset, rewards, run.replicas, inputs), inputs.reward_bias)
                    _begin_with(replay, tables["dataset"](), scaled, learner)
                steps = replay.table
                tables["dataset"] = lambda: steps
            sources = Sources(tables, run.replicas, 1, device, scaled)
            learner.prepare(sources)
            if method.trains:
                found = _fingerprints(dataset, demonstrations, encoder, scaled)
                _train(learner, entry, sources, run, found, replay)
        except ValueError as error:
            raise ValueError(f"{entry.where}: {error}") from error
    policy = cast(ActingModel, learner.export().eval().requires_grad_(False))
    return policy, _account(entry, data, encoder, learner, replay)


def _account(
    entry: Entry[LearnInputs],
    data: Mapping[str, Dataset | None],
    encoder: Encoder | None,
    learner: Learner,
    replay: Replay | None,
) -> dict[str, Any]:
    """What a policy's metadata say of it: what it saw, and the facts of its method."""
    method, inputs = cast(type[Learner], entry.method), entry.inputs
    needs, dataset, demonstrations = method.needs(entry.config), data["dataset"], data["demonstrations"]
    expert = "nothing" if demonstrations is None else describe(demonstrations)
    transitions = "nothing" if dataset is None else f"{sum(e.length for e in dataset.episodes):,} transitions"
    saw = method.saw(entry.config, expert, transitions, None if inputs.rewards == NONE else inputs.rewards)
    if encoder is not None and needs.optional_encoder:
        read = " and ".join(needs.encoder) or inputs.encoder
        saw = {**saw, "other": f"{saw['other']}, also through {read}"}
    facts = learner.facts()
    if replay is not None:
        steps = replay.steps_after(cast(TrainingConfig, inputs.training).updates)
        facts = {**facts, "interaction": interaction(replay.settings, steps)}
        saw = {**saw, "own steps": f"{steps:,} in {replay.settings.env}"}
    return {"saw": saw, **facts}


def _table_of(
    role: str, data: Mapping[str, Dataset | None], entry: Entry[LearnInputs], device: torch.device
) -> Callable[[], TransitionTable]:
    """The table of a role, made when it is first asked for."""
    needs = cast(type[Learner], entry.method).needs(entry.config)

    @cache
    def table() -> TransitionTable:
        found = data[role]
        if found is None:
            raise ValueError(f"{role}: found none; {entry.kind} reads it")
        steps = EXPERT_STEPS if role == "demonstrations" else DATA_STEPS
        return TransitionTable.from_episodes(absorbed(found.episodes, needs, steps), device=device)

    return table


@dataclass(frozen=True)
class _Form:
    """Sizes of what is seen and done."""

    observation_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]


def _form(data: Mapping[str, Dataset | None], replay: Replay | None) -> _Form:
    """That of the environment, else that of the data, whose actions may be in one of two datasets."""
    if replay is not None:
        return _Form(replay.observation_dim, replay.action_low, replay.action_high)
    specs = [data[role].spec for role in ("dataset", "demonstrations")]  # type: ignore[union-attr]
    spec = specs[1] if specs[1].action_dim else specs[0]
    return _Form(specs[0].observation_dim, spec.action_low, spec.action_high)


def _world(needs: Needs, dataset: Dataset | None, form: _Form, encoder: Encoder | None, run: Run) -> World:
    absorbing = needs.absorbing is not None
    bounds = form.action_low, form.action_high
    if dataset is None or needs.environment is not None:  # what acts knows its own moments
        moments = torch.zeros(form.observation_dim), torch.ones(form.observation_dim)
        return World(run.replicas, *moments, *bounds, absorbing, encoder)
    moments = observation_moments(dataset, absorbing=absorbing)
    latents = None if encoder is None else latent_moments(encoder, dataset)
    return World(run.replicas, *moments, *bounds, absorbing, encoder, latents)


def _begin_with(replay: Replay, table: TransitionTable, scaled: Tensor | None, learner: Learner) -> None:
    """Fill a replay with a dataset."""
    rows = table.gather(torch.arange(len(table), device=table.packed.device).expand(replay.replicas, -1))
    rewards = torch.zeros_like(rows.terminated) if scaled is None else scaled
    replay.fill(replace(rows, rewards=rewards), cast(Explorer, learner))


def interaction(settings: CollectionConfig, steps: int) -> dict[str, Any]:
    """What a policy's metadata say of the steps that each replica made."""
    options = {**family(settings.env).options, **settings.env_options}
    return {
        "env": settings.env,
        "env_options": options,
        "steps": steps,
        "versions": simulator_versions(settings.env),
    }


def _fingerprints(
    dataset: Dataset | None, demonstrations: Dataset | None, encoder: Encoder | None, rewards: Tensor | None
) -> list[str]:
    found = ["none" if data is None else data.fingerprint for data in (dataset, demonstrations)]
    if encoder is not None:
        found.append(digest(*encoder.state_dict().values()))
    if rewards is not None:
        found.append(digest(rewards))
    return found


def _train(
    learner: Learner,
    entry: Entry[LearnInputs],
    sources: Sources,
    run: Run,
    fingerprints: list[str],
    source: Source | None,
) -> None:
    from dynarep.pipeline.training.loop import train

    for phase in learner.phases():
        training = phase.training or cast(TrainingConfig, entry.inputs.training)
        within = run.phase(phase.name) if phase.name else run
        sized = sources.sized(training.batch_size)
        key = run_key(within, entry.kind, entry.config, entry.inputs, *fingerprints)
        train(phase.learner, sized, phase.batch, training, run=within, shown=phase.shown, key=key, source=source)
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
    factor = reward_factor(dataset, rewards, replicas, c)
    flat = torch.cat([torch.as_tensor(rewards[e.id]).float() for e in dataset.episodes], -1)
    return (flat * factor.unsqueeze(-1) + c.reward_bias).expand(replicas, -1).contiguous()


def reward_factor(dataset: Dataset, rewards: Rewards, replicas: int, c: LearnInputs) -> Tensor:
    """What rewards are multiplied by, (R or 1,); arguments and errors as ``scaled_rewards``."""
    found = len(next(iter(rewards.values())))
    if found not in (1, replicas):
        raise ValueError(f"rewards: found {found} replicas, this run has {replicas}")
    if c.reward_scale == "none":
        return torch.ones(found)
    return return_range_scale(torch.as_tensor(rewards[e.id]).float() for e in dataset.episodes)


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
    data: Mapping[str, Dataset | None],
    form: _Form,
    encoder: Encoder | None,
    run: Run,
) -> None:
    inputs, action_dim = entry.inputs, len(form.action_low)
    for role, found in data.items():
        if role in needs.actions and found is not None and found.spec.action_dim == 0:
            raise ValueError(f"dataset {found.name} has no actions; {entry.kind} imitates actions")
    reference = data["dataset"]
    if needs.environment is None:
        assert reference is not None
        origin, expected = reference.name, (reference.spec.observation_dim, reference.spec.action_dim)
    else:
        origin, expected = f"env {needs.environment.env}", (form.observation_dim, action_dim)
    for role, found in data.items():
        if found is None or found.name == origin:
            continue
        sizes = found.spec.observation_dim, found.spec.action_dim
        for field, size, right in zip(("observation_dim", "action_dim"), sizes, expected, strict=True):
            if size != right and not (field == "action_dim" and 0 in (size, right)):
                raise ValueError(f"{field}: found {size} in {role} {found.name}, expected {right} as in {origin}")
    if encoder is None:
        return
    if not needs.encoder and encoder.spaces[0] in encoder.reads_actions and needs.environment is None:
        raise ValueError(f"encoder: {inputs.encoder} reads actions, expected an encoder of states")
    missing = set(needs.encoder) - set(encoder.spaces)
    if missing:
        raise ValueError(
            f"encoder: {inputs.encoder} has {' and '.join(encoder.spaces)}, expected {' and '.join(needs.encoder)}"
        )
    a = encoder.architecture
    for field, got, wanted in (
        ("observation_dim", a.observation_dim, form.observation_dim),
        ("action_dim", getattr(a, "action_dim", None), expected[1]),
        ("replicas", a.replicas, run.replicas),
        ("absorbing", getattr(a, "absorbing", None), needs.absorbing is not None),
    ):
        if got is not None and got != wanted and not (field == "replicas" and got == 1):
            raise ValueError(f"encoder: {inputs.encoder} has {field} {got}, this run needs {wanted}")


def _check_acting(entry: Entry[LearnInputs], replay: Replay, run: Run) -> None:
    if run.trainer.processes > 1:
        raise ValueError(
            f"trainer: found {run.trainer.processes} processes, expected one; {entry.kind} acts while it learns"
        )
    size = cast(TrainingConfig, entry.inputs.training).batch_size
    for key in ("random_steps", "capacity"):
        found = getattr(replay.settings, key)
        if found < size:
            raise ValueError(f"environment.{key}: found {found}, expected at least training.batch_size, {size}")


def describe(demonstrations: Dataset) -> str:
    """What a demonstration dataset shows, in words."""
    count, steps = len(demonstrations.episodes), sum(e.length for e in demonstrations.episodes)
    content = "observations and actions" if demonstrations.spec.action_dim else "observations only"
    return f"{count} episode{'s' if count > 1 else ''} ({steps:,} steps), {content}"
