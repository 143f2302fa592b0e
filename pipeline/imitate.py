"""The stage that imitates demonstrations with actions: behaviour cloning, ValueDICE and ReprValueDICE, in one engine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch

from dynarep.data.absorbing import with_absorbing_states
from dynarep.data.resident import Batch, TransitionTable, observation_moments
from dynarep.data.sampling import uniform
from dynarep.data.shards import Dataset
from dynarep.pipeline.encoders import DynamicsEncoder, Policy
from dynarep.pipeline.engine import Run, TrainingConfig, digest, run_key, train, training_device
from dynarep.pipeline.methods.bc import BC, BCConfig
from dynarep.pipeline.methods.value_dice import ImitationBatch, Transitions, ValueDICE, ValueDICEConfig
from dynarep.pipeline.params import Field, config


@config
class CloningPolicyConfig:
    """A policy cloned from the demonstrations or from the arbitrary dataset."""

    kind: Literal["bc"]
    data: Literal["demonstrations", "dataset"] = "demonstrations"
    method: BCConfig
    training: TrainingConfig


@config
class DualPolicyConfig:
    """A policy from the dual game, with a perceptron critic or with the pretrained dynamics representation."""

    kind: Literal["value_dice", "repr_value_dice"]
    absorbing: bool = False
    """Lead terminated episodes into an absorbing state (ValueDICE); the encoder must have been trained so, too."""
    method: ValueDICEConfig
    training: TrainingConfig


PolicyConfig = Annotated[CloningPolicyConfig | DualPolicyConfig, Field(discriminator="kind")]


@config
class ImitateConfig:
    """Section ``imitate``: which demonstrations, which arbitrary data, and the policies to train, by name."""

    demonstrations: str
    dataset: str
    policies: dict[str, PolicyConfig]


def imitate(
    name: str,
    c: CloningPolicyConfig | DualPolicyConfig,
    demonstrations: Dataset,
    arbitrary: Dataset,
    encoder: DynamicsEncoder | None,
    run: Run,
) -> tuple[Policy, dict[str, Any]]:
    """Train one policy; returns it with the metadata that says what it saw.

    Args:
        name: of the policy, for messages.
        c: its configuration.
        demonstrations: expert episodes with actions.
        arbitrary: any episodes of the same system.
        encoder: the dynamics representation, for ``repr_value_dice``.
        run: names, seeds and folders.

    Raises:
        ValueError: if data it needs has no actions, or observation, action or replica counts disagree.
    """
    _check(name, c, demonstrations, arbitrary, encoder, run)
    torch.manual_seed(run.seed)
    device = training_device()
    shape = (run.replicas, c.training.batch_size)
    bounds = demonstrations.spec.action_low, demonstrations.spec.action_high
    learner: BC | ValueDICE
    if isinstance(c, CloningPolicyConfig):
        source = demonstrations if c.data == "demonstrations" else arbitrary
        table = TransitionTable.from_episodes(source.episodes, device=device)
        learner = BC(c.method, run.replicas, *observation_moments(arbitrary), *bounds)

        def sample(generator: torch.Generator) -> Any:
            return table.gather(uniform(len(table), shape, generator, device))

        key, metric = run_key(run, c, source.fingerprint, arbitrary.fingerprint), "squared_error"
    else:
        prepare = with_absorbing_states if c.absorbing else list
        expert = TransitionTable.from_episodes(prepare(demonstrations.episodes), device=device)
        replay = TransitionTable.from_episodes(prepare(arbitrary.episodes), device=device)
        used = encoder if c.kind == "repr_value_dice" else None
        mean, std = observation_moments(arbitrary, absorbing=c.absorbing)
        learner = ValueDICE(c.method, run.replicas, mean, std, *bounds, used, absorbing=c.absorbing)

        def sample(generator: torch.Generator) -> Any:
            parts = (table.gather(uniform(len(table), shape, generator, device)) for table in (expert, replay))
            return ImitationBatch(*map(_transitions, parts))

        weights = () if used is None else used.state_dict().values()
        key = run_key(run, c, demonstrations.fingerprint, arbitrary.fingerprint, digest(*weights))
        metric = "objective"

    train(learner, sample, c.training, run=run, metric=metric, key=key)
    return learner.export(), {"saw": _saw(c, demonstrations, arbitrary)}


def _transitions(batch: Batch) -> Transitions:
    return Transitions(batch.observations, batch.actions, batch.next_observations)


def _check(
    name: str,
    c: CloningPolicyConfig | DualPolicyConfig,
    demonstrations: Dataset,
    arbitrary: Dataset,
    encoder: DynamicsEncoder | None,
    run: Run,
) -> None:
    where = f"imitate.policies.{name}"
    for dataset in (demonstrations, arbitrary):
        if dataset.spec.action_dim == 0:
            raise ValueError(f"{where}: dataset {dataset.name} has no actions; {c.kind} imitates actions")
    if demonstrations.spec.observation_dim != arbitrary.spec.observation_dim:
        raise ValueError(
            f"{where}: demonstrations {demonstrations.name} have observations of {demonstrations.spec.observation_dim} "
            f"numbers, {arbitrary.name} of {arbitrary.spec.observation_dim}"
        )
    if c.kind != "repr_value_dice":
        return
    if encoder is None:
        raise ValueError(f"{where}: repr_value_dice needs a dynamics encoder")
    found = encoder.architecture
    for field, got, wanted in (
        ("observation_dim", found.observation_dim, demonstrations.spec.observation_dim),
        ("action_dim", found.action_dim, demonstrations.spec.action_dim),
        ("replicas", found.replicas, run.replicas),
        ("absorbing", found.absorbing, c.absorbing),
    ):
        if got != wanted:
            raise ValueError(f"{where}: the dynamics encoder has {field} {got}, this run needs {wanted}")


def _saw(c: CloningPolicyConfig | DualPolicyConfig, demonstrations: Dataset, arbitrary: Dataset) -> dict[str, str]:
    expert = describe(demonstrations)
    transitions = f"{sum(e.length for e in arbitrary.episodes):,} transitions without rewards"
    if isinstance(c, CloningPolicyConfig):
        if c.data == "dataset":
            return {"expert": "nothing", "other": transitions}
        return {"expert": expert, "other": "nothing"}
    if c.kind == "repr_value_dice":
        return {"expert": expert, "other": f"{transitions}, through phi and mu"}
    return {"expert": expert, "other": transitions}


def describe(demonstrations: Dataset) -> str:
    """What a demonstration dataset shows, in words."""
    count, steps = len(demonstrations.episodes), sum(e.length for e in demonstrations.episodes)
    content = "observations and actions" if demonstrations.spec.action_dim else "observations only"
    return f"{count} episode{'s' if count > 1 else ''} ({steps:,} steps), {content}"
