"""Against independent implementations, through outputs of theirs in ``tests/parity``; its README says how each was made."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dynarep.configs.params import validate
from dynarep.pipeline.labelling import better
from dynarep.pipeline.method import World
from dynarep.pipeline.methods.encoders.icvf import ICVF, GoalBatch, ICVFConfig, MultilinearValue
from dynarep.pipeline.methods.learners.iql import IQL, IQLConfig, RewardBatch
from dynarep.pipeline.methods.rewards import ailot, otr
from dynarep.pipeline.nn.networks import StackedLinear
from dynarep.pipeline.transport import pad_with_last, sinkhorn

torch.set_num_threads(1)


def fixture(name: str) -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "parity" / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "versions"}


def misplaced(found: Tensor, expected: Tensor) -> float:
    """The share of mass that one coupling has elsewhere than the other."""
    return float((found.double() - expected.double()).abs().sum() / (2 * expected.double().sum()))


PROBLEMS = ("square", "rectangular", "masses", "small_epsilon")


def test_couplings_are_pots() -> None:
    """In single precision, as one batch of four sizes padded with NaN; epsilon is 0.005 to 0.05 of the mean cost."""
    pot = fixture("transport")
    cost, a, b, epsilon = torch.full((4, 30, 40), torch.nan), torch.zeros(4, 30), torch.zeros(4, 40), torch.zeros(4)
    for i, name in enumerate(PROBLEMS):
        n, m = pot[f"{name}/cost"].shape
        cost[i, :n, :m], a[i, :n], b[i, :m] = (pot[f"{name}/{key}"] for key in ("cost", "a", "b"))
        epsilon[i] = pot[f"{name}/epsilon"]
    found = sinkhorn(cost, a, b, epsilon, max_iterations=5000, tolerance=1e-6).coupling
    for i, name in enumerate(PROBLEMS):
        n, m = pot[f"{name}/cost"].shape
        assert misplaced(found[i, :n, :m], pot[f"{name}/coupling"]) < 1e-5
        assert found[i, n:].sum() == found[i, :, m:].sum() == 0


@pytest.mark.parametrize("case", range(3))
def test_ailot_is_its_formula_on_pots_coupling(case: int) -> None:
    pot = fixture("transport")
    agent, expert = pot["ailot/agent"], pot["ailot/expert"]
    lookahead, epsilon, temperature = pot[f"ailot/{case}/settings"].tolist()
    settings = {"lookahead": int(lookahead), "epsilon": epsilon, "temperature": temperature, "units": "raw"}
    c = validate(ailot.AILOTConfig, {**settings, "max_iterations": 5000, "tolerance": 1e-6}, "ailot")
    lengths, expert_lengths = torch.tensor([len(agent)]), torch.tensor([len(expert)])
    found = ailot.label(agent[None], lengths, expert[None], expert_lengths, torch.ones(1), c)
    assert misplaced(found.transport.coupling[0], pot[f"ailot/{case}/coupling"]) < 1e-5
    assert int(ailot.entry_step(found.cost, expert_lengths)) == int(pot[f"ailot/{case}/entry"])
    torch.testing.assert_close(found.rewards[0].double(), pot[f"ailot/{case}/rewards"], rtol=1e-4, atol=0.0)


DOMAINS: dict[str, dict[str, object]] = {
    "locomotion": {},
    "antmaze": {"temperature": 1.0, "divide_by_observation_dim": False},
}


@pytest.mark.parametrize("domain", DOMAINS)
def test_otr_labels_as_published(domain: str) -> None:
    """Agents of 40, 30 and 55 steps, experts of 55 and 30, masses of 1/1000; more iterations would change the rewards."""
    published = fixture("otr")
    agent, lengths = pad_with_last([published[f"agent/{i}"] for i in range(3)])
    c = validate(otr.OTRConfig, DOMAINS[domain], "otr")
    rewards = []
    for k in range(2):
        expert = published[f"expert/{k}"].expand(3, -1, -1)
        found = otr.label(agent, lengths, expert, torch.full((3,), expert.shape[1]), torch.ones(3), c)
        assert (found.transport.iterations == 100).all()
        assert found.transport.marginal_error.max() > 1e-3
        for i, n in enumerate(lengths.tolist()):
            assert misplaced(found.transport.coupling[i, :n], published[f"coupling/{i}/{k}"]) < 1e-5
            expected = published[f"{domain}/{i}/{k}"]
            torch.testing.assert_close(found.rewards[i, :n].double(), expected, rtol=2e-6, atol=0.0)
        rewards.append(found.rewards)
    best = better(*rewards, by_state=False)
    for i, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(best[i, :n].double(), published[f"{domain}/{i}/best"], rtol=2e-6, atol=0.0)


CASES = 2
"""Sets of weights and batches; here they are the replicas of one model."""

Link = tuple[Tensor, list[str]]
"""A parameter (R, ...) or (R, members, ...) and the recorded names of its members."""


def link(layer: nn.Module, *names: str) -> list[Link]:
    assert isinstance(layer, StackedLinear)
    assert layer.bias is not None
    return [(layer.weight, [f"{name}/kernel" for name in names]), (layer.bias, [f"{name}/bias" for name in names])]


def stacked(arrays: dict[str, Tensor], *names: str) -> Tensor:
    """Recorded arrays in double precision: (cases, ...), or (cases, names, ...) for several names."""
    members = [torch.stack([arrays[f"{case}/{name}"] for case in range(CASES)]).double() for name in names]
    return members[0] if len(names) == 1 else torch.stack(members, 1)


@torch.no_grad()
def load(arrays: dict[str, Tensor], links: Iterable[Link]) -> None:
    for parameter, names in links:
        value = stacked(arrays, *names)
        assert value.numel() == parameter.numel()
        parameter.copy_(value.reshape(parameter.shape))


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Case by case, in double precision; but the observations of ``Normaliser.identity`` are off by 1e-8."""
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7 * float(theirs.abs().max()))


def assert_same_gradients(arrays: dict[str, Tensor], links: Iterable[Link]) -> None:
    for parameter, names in links:
        assert parameter.grad is not None
        expected = stacked(arrays, *(f"gradient/{name}" for name in names))
        assert expected.any()
        assert_same(parameter.grad, expected.reshape(parameter.shape))


def icvf_links(value: MultilinearValue, name: str) -> list[Link]:
    links = [*link(value.state_branch, f"{name}/matrix_a"), *link(value.outcome_branch, f"{name}/matrix_b")]
    for branch, network in (("phi", value.phi), ("psi", value.psi), ("T", value.modulation)):
        for i, layer in enumerate(network.layers):
            links += link(layer, f"{name}/{branch}/layers_{i}")
    return links


def test_icvfs_loss_and_gradients_are_the_published_ones() -> None:
    published = fixture("icvf")
    config = ICVFConfig(hidden=(12,), latent_dim=8, normalise=False)
    model = ICVF(config, CASES, torch.zeros(5), torch.ones(5)).double()
    links = icvf_links(model.online, "online")
    load(published, [*links, *icvf_links(model.target, "target")])
    inputs = [
        stacked(published, f"batch/{name}") for name in ("observations", "next_observations", "goals", "desired_goals")
    ]
    reached = [1.0 + stacked(published, f"batch/{name}") for name in ("rewards", "desired_rewards")]
    result = model.losses(GoalBatch(*inputs, *reached))
    result.loss.sum().backward()  # type: ignore[no-untyped-call]
    assert_same(result.loss, stacked(published, "loss"))
    assert_same(model.online(inputs[0], inputs[2], inputs[3]), stacked(published, "value"))
    assert_same(result.metrics["advantage"], stacked(published, "advantage"))
    assert_same(result.metrics["accepted"].double(), stacked(published, "accepted"))
    assert_same_gradients(published, links)
    assert len(links) == len(list(model.online.parameters()))


def iql_links(model: IQL, name: str) -> list[Link]:
    if name == "actor":
        *hidden, last = model.policy.network.layers
        links: list[Link] = [*link(last, "actor/Dense_0"), (model.log_std, ["actor/log_stds"])]
        return [*links, *(pair for i, layer in enumerate(hidden) for pair in link(layer, f"actor/MLP_0/Dense_{i}"))]
    network: Any = getattr(model, name)
    prefixes = [f"{name}/MLP_0"] if name == "value" else [f"{name}/Critic_{k}/MLP_0" for k in range(2)]
    return [
        pair
        for i, layer in enumerate(network.layers)
        for pair in link(layer, *(f"{prefix}/Dense_{i}" for prefix in prefixes))
    ]


def test_iqls_losses_and_gradients_are_the_published_ones() -> None:
    published = fixture("iql")
    config = IQLConfig(hidden=(12, 8), normalise=False)
    model = IQL.build(config, World(CASES, torch.zeros(5), torch.ones(5), (-1.0,) * 3, (1.0,) * 3)).double()
    trained = [pair for name in ("value", "critic", "actor") for pair in iql_links(model, name)]
    load(published, [*trained, *iql_links(model, "target_critic")])
    s, a, r, mask, s_next = (
        stacked(published, f"batch/{name}")
        for name in ("observations", "actions", "rewards", "masks", "next_observations")
    )
    result = model.losses(RewardBatch(s, a, r, 1.0 - mask, s_next))
    result.loss.sum().backward()  # type: ignore[no-untyped-call]
    for metric, name in (("value_loss", "value"), ("q_loss", "critic"), ("policy_loss", "actor")):
        assert_same(result.metrics[metric], stacked(published, f"loss/{name}"))
    assert_same_gradients(published, trained)
    assert len(trained) == sum(len(group["params"]) for group in model.parameter_groups())
