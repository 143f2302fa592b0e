"""The stage that imitates demonstrations: cloning, the dual game, and cloning with occupancy weights, in one engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from dynarep.configs.params import Field, config
from dynarep.data.absorbing import with_absorbing_states
from dynarep.data.resident import Batch, TransitionTable, observation_moments
from dynarep.data.sampling import uniform, uniform_of
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset
from dynarep.pipeline.encoders import DynamicsEncoder, Policy
from dynarep.pipeline.engine import Run, Sample, TrainingConfig, digest, run_key, train, training_device
from dynarep.pipeline.methods.bc import BC, BCConfig, best_episodes, best_rows
from dynarep.pipeline.methods.occupancy import expert_weights, occupancy_reward
from dynarep.pipeline.methods.smodice import (
    Comparison,
    Discriminator,
    OccupancyValue,
    RatedBatch,
    SMODICEConfig,
    cloning_weights,
    effective_share,
)
from dynarep.pipeline.methods.value_dice import (
    ImitationBatch,
    ReprValueDICEConfig,
    Transitions,
    ValueDICE,
    ValueDICEConfig,
)


@config
class CloningPolicyConfig:
    """A policy cloned from the demonstrations, or from the arbitrary dataset or its best episodes."""

    kind: Literal["bc"]
    data: Literal["demonstrations", "dataset"] = "demonstrations"
    top: float = Field(default=1.0, gt=0, le=1)
    """With ``data: dataset``, clone the episodes of highest return that hold this share of the transitions."""
    method: BCConfig
    training: TrainingConfig


@config
class DualPolicyConfig:
    """A policy from the dual game, with a perceptron critic."""

    kind: Literal["value_dice"]
    absorbing: bool = False
    """Lead terminated episodes into an absorbing state."""
    method: ValueDICEConfig
    training: TrainingConfig


@config
class ReprDualPolicyConfig:
    """A policy from the dual game, with a critic on the pretrained dynamics representation."""

    kind: Literal["repr_value_dice"]
    absorbing: bool = False
    """Lead terminated episodes into an absorbing state; the encoder must have been trained so, too."""
    top: float = Field(default=0.0, ge=0, le=1)
    """Clone, beside the demonstrations, the arbitrary episodes that hold this share of the transitions and have the highest
    expert occupancy ratio in phi and mu (``methods.occupancy``); every pair weighs the same. 0: demonstrations alone."""
    method: ReprValueDICEConfig
    training: TrainingConfig


@config
class WeightedPolicyConfig:
    """A policy cloned from the arbitrary dataset, with weights that the demonstrations determine.

    ``repr_smodice`` computes the weights in the pretrained dynamics representation.
    """

    kind: Literal["smodice", "repr_smodice"]
    absorbing: bool = False
    """Lead terminated episodes into an absorbing state; the encoder must have been trained so, too."""
    method: SMODICEConfig
    discriminator: TrainingConfig = TrainingConfig(updates=800)
    """Training of the discriminator. A longer one separates a few expert transitions from the data ever further."""
    value: TrainingConfig = TrainingConfig(updates=2000)
    """Training of V."""
    training: TrainingConfig
    """Training of the policy."""


NOISE = 4
"""States from p_n per transition of a batch of V's training with the dynamics representation."""

AnyPolicyConfig = CloningPolicyConfig | DualPolicyConfig | ReprDualPolicyConfig | WeightedPolicyConfig
PolicyConfig = Annotated[AnyPolicyConfig, Field(discriminator="kind")]


@config
class ImitateConfig:
    """Section ``imitate``: which demonstrations, which arbitrary data, and the policies to train, by name."""

    demonstrations: str
    dataset: str
    policies: dict[str, PolicyConfig]


def needs_encoder(c: AnyPolicyConfig) -> bool:
    """Whether a policy reads the dynamics representation."""
    return c.kind in ("repr_value_dice", "repr_smodice")


def smoke(c: AnyPolicyConfig) -> AnyPolicyConfig:
    """The same policy with every training shrunk to a few small updates."""
    values: dict[str, Any] = {field.name: getattr(c, field.name) for field in fields(c)}
    shrunk: dict[str, Any] = {k: v.smoke() for k, v in values.items() if isinstance(v, TrainingConfig)}
    return replace(c, **shrunk)


def imitate(
    name: str,
    c: AnyPolicyConfig,
    demonstrations: Dataset,
    arbitrary: Dataset,
    encoder: DynamicsEncoder | None,
    run: Run,
) -> tuple[Policy, dict[str, Any]]:
    """Train one policy; returns it with the metadata that says what it saw.

    Args:
        name: of the policy, for messages.
        c: its configuration.
        demonstrations: expert episodes; ``smodice`` on states needs no actions.
        arbitrary: any episodes of the same system, with actions.
        encoder: the dynamics representation, for policies that ``needs_encoder``.
        run: names, seeds and folders.

    Raises:
        ValueError: if data it needs has no actions or no returns, or observation, action or replica counts disagree.
    """
    _check(name, c, demonstrations, arbitrary, encoder, run)
    torch.manual_seed(run.seed)
    device = training_device()
    shape = (run.replicas, c.training.batch_size)
    spec = demonstrations.spec if demonstrations.spec.action_dim else arbitrary.spec
    bounds = spec.action_low, spec.action_high
    absorbing = not isinstance(c, CloningPolicyConfig) and c.absorbing
    moments = observation_moments(arbitrary, absorbing=absorbing)

    def table_of(episodes: list[Episode]) -> TransitionTable:
        return TransitionTable.from_episodes(with_absorbing_states(episodes) if absorbing else episodes, device=device)

    def draw(table: TransitionTable, generator: torch.Generator) -> Batch:
        return table.gather(uniform(len(table), shape, generator, device))

    learner: BC | ValueDICE
    facts: dict[str, Any] = {"saw": _saw(c, demonstrations, arbitrary)}
    fingerprints = [demonstrations.fingerprint, arbitrary.fingerprint]
    used = encoder if needs_encoder(c) else None
    if used is not None:
        fingerprints.append(digest(*used.state_dict().values()))
    key = run_key(run, c, *fingerprints)
    if isinstance(c, CloningPolicyConfig):
        table = table_of(demonstrations.episodes if c.data == "demonstrations" else _best(arbitrary, c.top))
        learner = BC(c.method, run.replicas, *moments, *bounds)
        metrics = "loss", "squared_error"

        def sample(generator: torch.Generator) -> Any:
            return draw(table, generator)

    elif isinstance(c, WeightedPolicyConfig):
        if absorbing:
            expert, other = (
                TransitionTable.from_episodes(_discounted_absorption(x.episodes, c.method.gamma), device=device)
                for x in (demonstrations, arbitrary)
            )
        else:
            expert, other = table_of(demonstrations.episodes), table_of(arbitrary.episodes)
        cloning = BCConfig(hidden=c.method.hidden, learning_rate=c.method.learning_rate)
        learner = BC(cloning, run.replicas, *moments, *bounds, absorbing=absorbing)
        weights = _weights(c, expert, other, moments, used, run, fingerprints)
        facts["effective_share"] = effective_share(weights).tolist()
        metrics = "loss", "squared_error"
        cumulative = weights.double().cumsum(1)

        def sample(generator: torch.Generator) -> Any:
            u = torch.rand(shape, generator=generator, device=device, dtype=torch.float64) * cumulative[:, -1:]
            return other.gather(torch.searchsorted(cumulative, u, right=True).clamp(max=len(other) - 1))

    else:
        expert, other = table_of(demonstrations.episodes), table_of(arbitrary.episodes)
        learner = ValueDICE(c.method, run.replicas, *moments, *bounds, used, absorbing=absorbing)
        metrics = "objective", "squared_error"
        like_expert: list[Tensor] = []
        if isinstance(c, ReprDualPolicyConfig) and c.top > 0:
            assert used is not None
            like_expert = _like_expert(c, expert, other, used)
            share = torch.tensor([[len(expert) / (len(expert) + len(rows))] for rows in like_expert], device=device)

        def sample(generator: torch.Generator) -> Any:
            shown, seen = (_transitions(draw(table, generator)) for table in (expert, other))
            if not like_expert:
                return ImitationBatch(shown, seen)
            chosen = _transitions(other.gather(uniform_of(like_expert, c.training.batch_size, generator)))
            own = (torch.rand(shape, generator=generator, device=device) < share).unsqueeze(-1)
            names = (field.name for field in fields(Transitions))
            cloned = (torch.where(own, getattr(shown, name), getattr(chosen, name)) for name in names)
            return ImitationBatch(shown, seen, Transitions(*cloned))

    train(learner, sample, c.training, run=run, metrics=metrics, key=key)
    return learner.export().eval().requires_grad_(False), facts


@torch.no_grad()
def _like_expert(
    c: ReprDualPolicyConfig, expert: TransitionTable, data: TransitionTable, encoder: DynamicsEncoder
) -> list[Tensor]:
    """Rows of the episodes of the data with the highest expert occupancy ratio, for each replica."""
    encoder = deepcopy(encoder).to(data.packed.device)
    shown = expert.gather(torch.arange(len(expert), device=data.packed.device)[None])
    weights = expert_weights(encoder.phi(shown.observations, shown.actions), c.method.gamma)
    rows = torch.arange(len(data), device=data.packed.device)[None]
    rewards = [
        occupancy_reward(encoder.mu(data.gather(part).next_observations), weights, c.method.gamma, scale=1.0)
        for part in torch.split(rows, 8192, 1)
    ]
    return best_rows(torch.cat(rewards, 1), data.lengths.tolist(), c.top)


def _weights(
    c: WeightedPolicyConfig,
    expert: TransitionTable,
    data: TransitionTable,
    moments: tuple[Tensor, Tensor],
    encoder: DynamicsEncoder | None,
    run: Run,
    fingerprints: list[str],
) -> Tensor:
    """Train discriminator and V; the weight of every transition of the data, (R, N) with a mean of at most 1."""
    device = data.packed.device
    discriminator = Discriminator(c.method, run.replicas, *moments, data.action_dim, encoder)
    value = OccupancyValue(c.method, run.replicas, *moments, encoder)
    everything = torch.arange(len(data), device=device).expand(run.replicas, -1)

    def index(table: TransitionTable, training: TrainingConfig, generator: torch.Generator, times: int = 1) -> Tensor:
        return uniform(len(table), (run.replicas, times * training.batch_size), generator, device)

    def compare(generator: torch.Generator) -> Comparison:
        shown = expert.gather(index(expert, c.discriminator, generator))
        seen = data.gather(index(data, c.discriminator, generator))
        return Comparison(shown.observations, shown.actions, seen.observations, seen.actions)

    def rate(rows: Tensor, initial: Tensor, noise: Tensor) -> RatedBatch:
        b = data.gather(rows)
        return RatedBatch(b.observations, b.actions, b.next_observations, log_ratio.gather(1, rows), initial, noise)

    def states(generator: torch.Generator) -> RatedBatch:
        start = data.initial[uniform(len(data.initial), (run.replicas, c.value.batch_size), generator, device)]
        rows = index(data, c.value, generator)
        noise = start if encoder is None else data.gather(index(data, c.value, generator, NOISE)).next_observations
        return rate(rows, start, noise)

    @torch.no_grad()
    def over_all(of: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([of(rows) for rows in torch.split(everything, 8192, 1)], 1)

    def fit(name: str, part: nn.Module, sample: Sample, training: TrainingConfig, metrics: Sequence[str]) -> None:
        within = run.within(name)
        key = run_key(within, c, *fingerprints)
        train(part, sample, replace(training, snapshots=1), run=within, metrics=metrics, key=key)
        part.to(device)

    fit("discriminator", discriminator, compare, c.discriminator, ("expert_log_ratio", "data_log_ratio"))
    log_ratio = over_all(lambda rows: discriminator(data.gather(rows).observations, data.gather(rows).actions))
    fit("value", value, states, c.value, ("dual", "effective_share"))
    omega = None
    none = data.initial[:0].expand(run.replicas, -1, -1)
    if encoder is not None:
        with torch.no_grad():
            omega = torch.stack(
                [
                    value.omega(data.gather(rows).next_observations) * rows.shape[1]
                    for rows in torch.split(everything, 8192, 1)
                ]
            ).sum(0) / len(data)
    e = over_all(lambda rows: value.advantage(rate(rows, none, none), omega))
    return cloning_weights(e, c.method)


def _discounted_absorption(episodes: list[Episode], gamma: float) -> list[Episode]:
    """Episodes led into the absorbing state, for as many steps as it has mass in the discounted occupancy.

    After T steps that mass is gamma^T, that of the steps before 1 - gamma^T; so T gamma^T / (1 - gamma^T) steps stand
    for it where all of the T steps weigh the same.
    """
    repeats = [round(e.length * gamma**e.length / (1.0 - gamma**e.length)) for e in episodes]
    return [with_absorbing_states([e], n)[0] for e, n in zip(episodes, repeats, strict=True)]


def _best(dataset: Dataset, top: float) -> list[Episode]:
    if top == 1.0:
        return dataset.episodes
    assert dataset.returns is not None
    chosen = best_episodes(dataset.returns, [e.length for e in dataset.episodes], top)
    return [dataset.episodes[i] for i in chosen]


def _transitions(batch: Batch) -> Transitions:
    return Transitions(batch.observations, batch.actions, batch.next_observations)


def _check(
    name: str,
    c: AnyPolicyConfig,
    demonstrations: Dataset,
    arbitrary: Dataset,
    encoder: DynamicsEncoder | None,
    run: Run,
) -> None:
    where = f"imitate.policies.{name}"
    from_states = isinstance(c, WeightedPolicyConfig) and c.method.observe == "states"
    from_dataset = isinstance(c, CloningPolicyConfig) and c.data == "dataset"
    for dataset, needed in ((arbitrary, True), (demonstrations, not from_states and not from_dataset)):
        if needed and dataset.spec.action_dim == 0:
            raise ValueError(f"{where}: dataset {dataset.name} has no actions; {c.kind} imitates actions")
    if isinstance(c, CloningPolicyConfig) and c.top < 1:
        if c.data == "demonstrations":
            raise ValueError(f"{where}.top: found {c.top} with data: demonstrations, expected data: dataset")
        if arbitrary.returns is None:
            raise ValueError(f"{where}.top: found {c.top}, but dataset {arbitrary.name} has no returns to choose by")
    for field in ("observation_dim", "action_dim"):
        found, expected = getattr(demonstrations.spec, field), getattr(arbitrary.spec, field)
        if found != expected and not (field == "action_dim" and found == 0):
            raise ValueError(
                f"{where}: {field}: found {found} in demonstrations {demonstrations.name}, expected {expected} as in "
                f"{arbitrary.name}"
            )
    if not needs_encoder(c):
        return
    assert not isinstance(c, CloningPolicyConfig)
    if from_states:
        raise ValueError(f"{where}.method.observe: found states, expected state_actions; {c.kind} compares phi(s, a)")
    if encoder is None:
        raise ValueError(f"{where}: {c.kind} needs a dynamics encoder")
    architecture = encoder.architecture
    for field, got, wanted in (
        ("observation_dim", architecture.observation_dim, arbitrary.spec.observation_dim),
        ("action_dim", architecture.action_dim, arbitrary.spec.action_dim),
        ("replicas", architecture.replicas, run.replicas),
        ("absorbing", architecture.absorbing, c.absorbing),
    ):
        if got != wanted:
            raise ValueError(f"{where}: the dynamics encoder has {field} {got}, this run needs {wanted}")


def _saw(c: AnyPolicyConfig, demonstrations: Dataset, arbitrary: Dataset) -> dict[str, str]:
    expert = describe(demonstrations)
    transitions = f"{sum(e.length for e in arbitrary.episodes):,} transitions without rewards"
    if isinstance(c, CloningPolicyConfig):
        if c.data == "demonstrations":
            return {"expert": expert, "other": "nothing"}
        if c.top < 1:
            best = _best(arbitrary, c.top)
            steps = sum(e.length for e in best)
            return {
                "expert": "nothing",
                "other": f"{steps:,} transitions of the {len(best)} episodes of highest return",
            }
        return {"expert": "nothing", "other": transitions}
    if needs_encoder(c):
        itself = isinstance(c, WeightedPolicyConfig) or (isinstance(c, ReprDualPolicyConfig) and c.top > 0)
        also = "also " if itself else ""
        return {"expert": expert, "other": f"{transitions}, {also}through phi and mu"}
    if isinstance(c, WeightedPolicyConfig) and c.method.observe == "states":
        return {"expert": describe(demonstrations, actions=False), "other": transitions}
    return {"expert": expert, "other": transitions}


def describe(demonstrations: Dataset, *, actions: bool = True) -> str:
    """What a demonstration dataset shows, in words; with ``actions`` false its actions, if any, are not used."""
    count, steps = len(demonstrations.episodes), sum(e.length for e in demonstrations.episodes)
    content = "observations and actions" if actions and demonstrations.spec.action_dim else "observations only"
    return f"{count} episode{'s' if count > 1 else ''} ({steps:,} steps), {content}"
