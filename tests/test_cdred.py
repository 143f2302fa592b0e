"""Coupled distillation: its golden numbers, what it learns on clusters, and the label that it is."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dynarep.data.prepare import prepare
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, write_dataset
from dynarep.data.split import held_out
from dynarep.pipeline.artifacts.storage import ArtifactError
from dynarep.pipeline.entries import Entry
from dynarep.pipeline.method import Sources
from dynarep.pipeline.methods.encoders.world_model import WorldModelArchitecture, WorldModelEncoder
from dynarep.pipeline.methods.rewards.cdred import CDRED, CDREDConfig, StepBatch
from dynarep.pipeline.nn.distillation import CoupledDistillation, DistillationConfig, bonus, coupled_reward, of_drawn
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.relabel import Relabelling, judgement, relabel
from dynarep.pipeline.training.config import TrainingConfig
from dynarep.pipeline.training.run import Run
from tests.entries import CPU, a_run, entry, raw, standardised

ROOT = Path(__file__).parents[1]
UNTRAINED = Run("relabel/name", 0, 1, Path("nowhere"), Path("nowhere"))
A, ZETA = 0.9, 0.8
SMALL: dict[str, Any] = {"hidden": (32, 32), "target_hidden": (32,), "embedding_dim": 16}


def test_the_mean_of_n_drawn_targets_estimates_one_over_n() -> None:
    """T1, with the bonus's second term alone: its square is the estimate where there is one output at a time."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(1, 5, 20000, 1, generator=generator)
    for n in (1, 2, 5, 20):
        drawn = torch.randint(5, (n, 1, 20000), generator=generator)
        f = torch.stack([of_drawn(targets, k) for k in drawn]).mean(0)
        mean, square = targets.mean(1), targets.square().mean(1)
        estimate = (f.square() - mean.square()) / (square - mean.square())
        assert estimate.mean().item() == pytest.approx(1 / n, abs=0.05)
        torch.testing.assert_close(bonus(f, targets, 0.0), estimate.abs().sqrt()[..., 0], rtol=1e-3, atol=1e-3)


def test_bonus_and_reward_by_hand() -> None:
    """T2."""
    targets = torch.tensor([[[1.0, 2.0], [3.0, -2.0]]]).unsqueeze(2)  # (1, 2, 1, 2)
    expert, behaviour = torch.tensor([[[2.0, 0.5]]]), torch.tensor([[[1.0, 2.0]]])
    assert bonus(expert, targets, A).item() == pytest.approx(0.2375, abs=1e-6)
    assert bonus(behaviour, targets, A).item() == pytest.approx(4.63660, abs=1e-5)
    assert coupled_reward(expert, behaviour, targets, A, ZETA).item() == pytest.approx(0.737321, abs=1e-6)


def some(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    expert, behaviour = torch.randn(2, 3, 40, 16, generator=generator)
    return expert, behaviour, torch.randn(3, 5, 40, 16, generator=generator)


def test_equal_predictors() -> None:
    """T3: 0 at mu, which no other f_E exceeds; (1 - 2 zeta) b where both are the same."""
    expert, _, targets = some()
    mean = targets.mean(1)
    known = coupled_reward(mean, mean, targets, A, ZETA)
    torch.testing.assert_close(known, torch.zeros(3, 40), atol=1e-6, rtol=0)
    assert (coupled_reward(expert, mean, targets, A, ZETA) < 0).all()
    same = coupled_reward(expert, expert, targets, A, ZETA)
    torch.testing.assert_close(same, (1 - 2 * ZETA) * bonus(expert, targets, A))


def test_swapped_buffers_flip_the_sign() -> None:
    """T6, with zeta = 1/2."""
    expert, behaviour, targets = some()
    there, back = (coupled_reward(*pair, targets, A, 0.5) for pair in ((expert, behaviour), (behaviour, expert)))
    torch.testing.assert_close(there, -back)
    assert there.abs().min() > 0


def test_the_first_term_sums_and_the_second_averages() -> None:
    expert, _, targets = some()
    twice, both = torch.cat([expert, expert], -1), torch.cat([targets, targets], -1)
    torch.testing.assert_close(bonus(twice, both, 1.0), 2 * bonus(expert, targets, 1.0))
    torch.testing.assert_close(bonus(twice, both, 0.0), bonus(expert, targets, 0.0))


def test_targets_that_agree_leave_the_bonus_finite() -> None:
    agreeing = torch.ones(1, 5, 2, 4)
    assert bonus(torch.zeros(1, 2, 4), agreeing, A).isfinite().all()
    assert bonus(torch.ones(1, 2, 4), agreeing, A).tolist() == [[0.0, 0.0]]


def networks(replicas: int = 2, inputs: int = 3) -> CoupledDistillation:
    torch.manual_seed(0)
    return CoupledDistillation(replicas, inputs, DistillationConfig(**SMALL))


def test_errors_are_those_of_plain_numpy() -> None:
    """On fixed weights and one batch: LayerNorm, Mish, one drawn target for each sample."""
    model = networks()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    expert, behaviour = torch.randn(2, 2, 6, 3)
    drawn = torch.randint(5, (2, 6, 2))
    found = model.errors(expert, behaviour, drawn)

    def network(mlp: Any, member: tuple[int, ...], x: np.ndarray) -> np.ndarray:
        for i, layer in enumerate(mlp.layers):
            state = {name: p[member].detach().double().numpy() for name, p in layer.named_parameters()}
            x = x @ state["weight"] + state["bias"][0]
            if i < len(mlp.layers) - 1:
                x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * state["scale"][0] + state["shift"][0]
                x = x * np.tanh(np.log1p(np.exp(x)))
        return x

    for r in range(2):
        for side, points in enumerate((expert, behaviour)):
            for b in range(6):
                x = points[r, b].double().numpy()
                k = int(drawn[r, b, side])
                gap = network(model.predictors, (r, side), x) - network(model.targets, (r, k), x)
                assert found[r, side, b].item() == pytest.approx(float(np.mean(gap**2)), rel=1e-4)


def test_targets_stay_and_are_part_of_the_state() -> None:
    model = networks()
    names = [name for name in model.state_dict() if name.startswith("targets")]
    assert names
    other = CoupledDistillation(2, 3, DistillationConfig(**SMALL))
    other.load_state_dict(model.state_dict())
    points = torch.randn(2, 4, 3)
    assert all(map(torch.equal, model.predictions(points), other.predictions(points)))
    points.requires_grad_()
    model.errors(points, points, torch.randint(5, (2, 4, 2))).sum().backward()  # type: ignore[no-untyped-call]
    assert points.grad is not None
    assert points.grad.abs().sum() > 0  # through the predictors
    assert not any(p.requires_grad for p in model.targets.parameters())
    assert all(p.grad is not None for p in model.predictors.parameters())


def distilled(expert: Any, behaviour: Any, updates: int) -> CoupledDistillation:
    """Predictors of what two functions of a batch size and a generator draw."""
    model, generator = networks(2, 3), torch.Generator().manual_seed(1)
    adam = torch.optim.Adam(model.predictors.parameters(), lr=1e-3)
    for _ in range(updates):
        drawn = torch.randint(5, (2, 64, 2), generator=generator)
        adam.zero_grad()
        model.errors(expert(generator), behaviour(generator), drawn).mean(-1).sum().backward()
        adam.step()
    return model.requires_grad_(False)


def cluster(x: float) -> Any:
    def draw(generator: torch.Generator) -> Tensor:
        return torch.cat(
            [torch.randn(2, 64, 2, generator=generator) * 0.3 + torch.tensor([x, 0.0]), torch.ones(2, 64, 1)], -1
        )

    return draw


def test_the_expert_s_cluster_is_worth_most() -> None:
    """T4: the expert around (0, 0), the behaviour around (3, 0); a far point is worth less than the expert's."""
    model = distilled(cluster(0.0), cluster(3.0), 250)
    points = torch.tensor([[0.0, 0.0, 1.0], [3.0, 0.0, 1.0], [0.0, -8.0, 1.0]]).expand(2, -1, -1)
    r = coupled_reward(*model.predictions(points), A, ZETA)
    assert (r[:, 0] > r[:, 1]).all()
    assert (r[:, 0] > r[:, 2]).all()


def test_the_bonus_falls_with_the_number_of_visits() -> None:
    """T5: three far points, seen 1, 10 and 100 times as often."""
    places = torch.tensor([[4.0, 0.0, 1.0], [0.0, 4.0, 1.0], [-4.0, -4.0, 1.0]])
    weights = torch.tensor([1.0, 10.0, 100.0])

    def visits(generator: torch.Generator) -> Tensor:
        return places[torch.multinomial(weights, 128, replacement=True, generator=generator)].view(2, 64, 3)

    model = distilled(visits, visits, 250)
    expert, behaviour, targets = model.predictions(places.expand(2, -1, -1))
    for f in (expert, behaviour):
        b = bonus(f, targets, A).mean(0)
        assert b[0] > b[1] > b[2]


# The label.


def walk(name: str, length: int, noise: float) -> Episode:
    rng = np.random.default_rng(len(name) + length)
    angle = np.linspace(0, 3, length + 1)
    states = np.stack([np.cos(angle), np.sin(angle), 0.1 * angle], 1) + noise * rng.normal(size=(length + 1, 3))
    return Episode(
        id=name,
        observations=states.astype(np.float32),
        actions=np.tanh(states[:-1, :1]).astype(np.float32),
        rewards=np.full(length, -noise, np.float32),
        terminated=False,
        truncated=True,
    )


def prepared(folder: Path, episodes: list[Episode]) -> Dataset:
    returns = [e.return_ for e in episodes if e.return_ is not None] or None
    bounds = (
        ([], [])
        if episodes[0].actions is None
        else ([-1.0] * episodes[0].actions.shape[1], [1.0] * episodes[0].actions.shape[1])
    )
    write_dataset(
        folder, folder.name, episodes, provenance={}, env=None, bounds=bounds, returns=returns, shard_bytes=10**6
    )
    return load_dataset(folder)


@pytest.fixture
def agents(tmp_path: Path) -> Dataset:
    return prepared(
        tmp_path / "agents", [walk(f"agent-{i}", 30, noise) for i, noise in enumerate((0.0, 1.0, 0.3, 2.0))]
    )


@pytest.fixture
def experts(tmp_path: Path) -> Dataset:
    return prepared(tmp_path / "experts", [walk("expert-0", 40, 0.0)])


LABEL = entry(
    "relabel",
    "cdred",
    CDREDConfig(hidden=(32,), target_hidden=(16,), embedding_dim=8, learning_rate=1e-3),
    space="raw",
    examples=1,
    training=TrainingConfig(updates=120, batch_size=32, updates_per_chunk=60),
)


def labelled(
    agents: Dataset, experts: Dataset, folder: Path, c: Entry[Any] = LABEL, encoder: Encoder | None = None
) -> Relabelling:
    return relabel(c, agents, experts, raw(agents) if encoder is None else encoder, a_run(folder, "name"))


def options(**values: Any) -> Entry[Any]:
    return replace(LABEL, config=replace(LABEL.config, **values))


@pytest.mark.parametrize("actions", [True, False])
def test_the_label_ranks_what_the_expert_does(agents: Dataset, experts: Dataset, tmp_path: Path, actions: bool) -> None:
    found = labelled(agents, experts, tmp_path / "run", options(actions=actions))
    means = [found.rewards[f"agent-{i}"].mean(1) for i in range(4)]
    assert all(found.rewards[e.id].shape == (2, e.length) for e in agents.episodes)
    assert (means[0] > means[2]).all()
    assert (means[2] > means[1]).all()
    assert (means[1] > means[3]).all()
    m = found.metrics
    assert m["expert_bonus"] < m["bonus"]
    assert m["expert_reward"] == pytest.approx(0.2 * m["expert_behaviour_bonus"] - 0.8 * m["expert_bonus"], rel=1e-4)
    again = labelled(agents, experts, tmp_path / "again", options(actions=actions))
    assert all(np.array_equal(again.rewards[name], x) for name, x in found.rewards.items())


def world_model(replicas: int = 2) -> WorldModelEncoder:
    torch.manual_seed(0)
    a = WorldModelArchitecture(
        replicas=replicas, observation_dim=3, action_low=(-1.0,), action_high=(1.0,), hidden=(8,), latent_dim=8
    )
    return WorldModelEncoder(replace(a, dynamics_hidden=(8,))).requires_grad_(False)


@pytest.mark.parametrize("space", ["z", "next"])
def test_the_label_in_latents_of_a_world_model(agents: Dataset, experts: Dataset, tmp_path: Path, space: str) -> None:
    c = options(normalise=False)
    inputs = replace(c.inputs, points=space, training=TrainingConfig(updates=2))
    found = labelled(agents, experts, tmp_path / "run", replace(c, inputs=inputs), world_model())
    assert all(np.isfinite(x).all() and x.shape[0] == 2 for x in found.rewards.values())


def test_a_batch_holds_steps_of_both_sides(agents: Dataset, experts: Dataset, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    made = CDRED.build(LABEL.config, judgement(LABEL, agents, experts, raw(agents), run, CPU))
    batch = made.batch(Sources({}, 2, 2000, CPU), torch.Generator().manual_seed(0))
    assert isinstance(batch, StepBatch)
    for drawn, side in ((batch.expert, experts), (batch.behaviour, agents)):
        known = torch.cat([made.inputs(e) for e in side.episodes], 1)[0]
        assert drawn.shape == (2, 2000, 3 + 1 + 1)  # the state, a constant and the action
        assert all(torch.equal(rows.unique(dim=0), known.unique(dim=0)) for rows in drawn)
        assert not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(batch.expert[..., 3], torch.full((2, 2000), math.sqrt(3.0)))
    assert set(batch.drawn.unique().tolist()) == {0, 1, 2, 3, 4}
    loss = made.learner.losses(batch)
    error = made.learner.networks.errors(batch.expert, batch.behaviour, batch.drawn)
    torch.testing.assert_close(loss.loss, error.mean(-1).sum(-1))


def test_bad_input_is_refused(agents: Dataset, experts: Dataset, tmp_path: Path) -> None:
    states = prepared(tmp_path / "states", [replace(e, actions=None) for e in experts.episodes])
    where = "name: agents against states: "
    with pytest.raises(ValueError, match=f"{where}actions: found none in states, expected some; actions: false does"):
        labelled(agents, states, tmp_path / "a")
    wide = prepared(
        tmp_path / "wide", [replace(e, actions=np.zeros((e.length, 2), np.float32)) for e in experts.episodes]
    )
    with pytest.raises(ValueError, match="actions: found 2 numbers in those of wide, expected 1 as in agents"):
        labelled(agents, wide, tmp_path / "b")
    with pytest.raises(ValueError, match=r"space raw\.z has 3 replicas, this run has 2"):
        labelled(agents, experts, tmp_path / "c", encoder=world_model(3))
    still = [replace(e, observations=np.zeros_like(e.observations)) for e in agents.episodes]
    with pytest.raises((ValueError, ArtifactError), match=r"differs from its successor|that are all the same"):
        labelled(prepared(tmp_path / "still", still), experts, tmp_path / "d")
    none = replace(LABEL, inputs=replace(LABEL.inputs, space="none"))
    with pytest.raises(ValueError, match="space: found none, expected an entry of pretrain"):
        relabel(none, agents, experts, None, a_run(tmp_path / "e"))


def area(expert: np.ndarray, other: np.ndarray) -> float:
    """How often an expert's step has the higher reward of two (AUC)."""
    order = np.argsort(np.concatenate([other, expert]), kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    return float((ranks[len(other) :].sum() - len(expert) * (len(expert) + 1) / 2) / len(expert) / len(other))


def test_area_by_hand() -> None:
    assert area(np.array([3.0, 1.0]), np.array([0.0, 2.0])) == 0.75


@pytest.mark.slow
def test_held_out_steps_of_an_expert_are_told_from_mixed_ones(tmp_path: Path) -> None:
    """On the embedded recordings of Hopper, from one demonstration: in standardised states, with and without actions."""
    cards, root = ROOT / "configs" / "datasets", ROOT
    prepare(["hopper-arbitrary", "hopper-expert", "hopper-expert-1"], cards=cards, root=root, out=tmp_path)
    mixed, every, one = (load_dataset(tmp_path / f"hopper-{name}") for name in ("arbitrary", "expert", "expert-1"))
    fit, kept = held_out(mixed.episodes, 0.1, 0)
    others = [e for e in every.episodes if not np.array_equal(e.observations, one.episodes[0].observations)]
    assert len(others) == 4
    found = {}
    for actions in (False, True):
        c = CDREDConfig(actions=actions, hidden=(128, 128), target_hidden=(64,), embedding_dim=32, learning_rate=1e-3)
        judged = judgement(LABEL, mixed, one, standardised(mixed), UNTRAINED, CPU)
        made = CDRED.build(c, replace(judged, dataset=replace(mixed, episodes=fit)))
        adam = torch.optim.Adam(made.learner.parameter_groups())
        sources, generator = Sources({}, 1, 64, CPU), torch.Generator().manual_seed(0)
        for _ in range(800):
            adam.zero_grad()
            made.learner.losses(made.batch(sources, generator)).loss.sum().backward()  # type: ignore[no-untyped-call]
            adam.step()
        with torch.no_grad():
            expert, other = (np.concatenate([*made.rewards(side)[0].values()], 1)[0] for side in (others, kept))
        found[actions] = area(expert, other)
    assert found[False] > 0.8, found
    assert found[True] > 0.8, found
