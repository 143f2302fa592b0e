import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import spearmanr

from dynarep.configs.params import ParamsError
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, read_rewards, write_dataset
from dynarep.pipeline import labelling, search
from dynarep.pipeline.agreement import agreement, example_episodes, remarks, write_examples
from dynarep.pipeline.artifacts.storage import save_model
from dynarep.pipeline.entries import Entry, parse_entry, read_params, section_of
from dynarep.pipeline.labelling import Comparison, moments
from dynarep.pipeline.methods.encoders.contrastive import DynamicsArchitecture, DynamicsEncoder
from dynarep.pipeline.methods.encoders.icvf import IntentArchitecture, IntentEncoder
from dynarep.pipeline.methods.rewards import ailot
from dynarep.pipeline.methods.rewards.ailot import AILOTConfig
from dynarep.pipeline.methods.rewards.rnd import RNDConfig, transitions
from dynarep.pipeline.methods.rewards.segment import SegmentConfig, segment_bounds
from dynarep.pipeline.nn.models import Encoder
from dynarep.pipeline.relabel import Relabelling, judgement, relabel
from dynarep.pipeline.run import Stage, stage_main
from dynarep.pipeline.search import SearchConfig
from dynarep.pipeline.spaces import space_of
from dynarep.pipeline.training.config import TrainingConfig
from dynarep.pipeline.training.device import training_device
from dynarep.pipeline.training.run import Run
from dynarep.stages import relabel as stage
from tests.entries import a_run, entry, raw, raw_space, standardised

CPU = torch.device("cpu")
EXPERT = np.stack([np.linspace(0, 4, 25), np.sin(np.linspace(0, 4, 25)), np.ones(25)], 1).astype(np.float32)


def walk(name: str, length: int, noise: float, *, rewards: bool = True) -> Episode:
    """Along the expert's path with noise; the true reward is the negative noise of a step."""
    rng = np.random.default_rng([length, int(1000 * noise)])
    offset = (noise * rng.normal(size=(length + 1, 3))).astype(np.float32)
    return Episode(
        id=name,
        observations=EXPERT[: length + 1] + offset,
        actions=np.zeros((length, 1), np.float32),
        rewards=-np.abs(offset[:-1]).sum(1) if rewards else None,
        terminated=False,
        truncated=True,
    )


def prepared(folder: Path, episodes: Sequence[Episode], returns: Sequence[float] | None = None) -> Dataset:
    write_dataset(
        folder,
        folder.name,
        episodes,
        provenance={},
        env=None,
        bounds=([-1.0], [1.0]),
        returns=returns,
        shard_bytes=2000,
    )
    return load_dataset(folder)


@pytest.fixture
def agents(tmp_path: Path) -> Dataset:
    noises = [0.0, 0.3, 0.1, 1.0, 0.6, 0.03, 2.0]
    return prepared(tmp_path / "agents", [walk(f"agent-{i}", 12 + 2 * i, noise) for i, noise in enumerate(noises)])


@pytest.fixture
def experts(tmp_path: Path) -> Dataset:
    clean = Episode(id="expert-0", observations=EXPERT, terminated=False, truncated=True)
    return prepared(tmp_path / "experts", [clean])


def two_replicas(observations: torch.Tensor, actions: torch.Tensor | None = None) -> torch.Tensor:
    return torch.stack([observations, 2.0 * observations + 1.0])


class Given(Encoder):
    """Points and calibration as they are given."""

    def __init__(self, points: Callable[..., torch.Tensor], calibration: torch.Tensor) -> None:
        super().__init__()
        self.points, self.calibration = points, calibration

    def embed(
        self, observations: torch.Tensor, actions: torch.Tensor | None = None, space: str | None = None
    ) -> torch.Tensor:
        return self.points(observations[0], actions)

    def calibration_of(self, space: str) -> torch.Tensor:
        return self.calibration


AILOT = entry("relabel", "ailot", AILOTConfig(temperature=0.1), space="raw", examples=1)
OTR = entry("relabel", "otr", space="raw", examples=1)
NEAREST = entry("relabel", "nearest", SearchConfig(temperature=0.1), space="raw", examples=1)
SEGMENT = entry("relabel", "segment", SegmentConfig(temperature=0.1, segments=4), space="raw", examples=1)
INTENT = Given(two_replicas, torch.tensor([1.0, 0.25]))
UNTRAINED = Run("relabel/name", 0, 1, Path("nowhere"), Path("nowhere"))


def within(c: Entry[Any], space: str) -> Entry[Any]:
    """The entry in another space."""
    return replace(c, inputs=replace(c.inputs, space=space))


def encoder_of(c: Entry[Any], agents: Dataset, intent: Encoder) -> Encoder:
    return {"raw": raw, "standardised": standardised}.get(c.inputs.space, lambda _: intent)(agents)


def run(agents: Dataset, experts: Dataset, c: Entry[Any], intent: Encoder = INTENT) -> Relabelling:
    return relabel(c, agents, experts, encoder_of(c, agents, intent), UNTRAINED)


def solver_of(c: Entry[Any], agents: Dataset, experts: Dataset) -> Comparison:
    world = judgement(c, agents, experts, encoder_of(c, agents, INTENT), UNTRAINED, CPU)
    found = c.method.build(c.config, world)  # type: ignore[arg-type]
    assert isinstance(found, Comparison)
    return found


def test_rewards_are_the_methods_for_each_episode(agents: Dataset, experts: Dataset) -> None:
    found = run(agents, experts, AILOT)
    assert list(found.rewards) == [e.id for e in agents.episodes]
    calibration = raw_space(agents).calibration
    for episode in agents.episodes:
        expected = ailot.label(
            torch.from_numpy(episode.current)[None],
            torch.tensor([episode.length]),
            torch.from_numpy(EXPERT[:-1])[None],
            torch.tensor([24]),
            calibration,
            AILOT.config,
        )
        values = found.rewards[episode.id]
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected.rewards, rtol=1e-5)


@pytest.mark.parametrize("c", [AILOT, within(OTR, "standardised"), NEAREST, SEGMENT])
def test_closer_episodes_earn_more(c: Entry[Any], experts: Dataset, tmp_path: Path) -> None:
    noises = [0.3, 0.03, 1.0, 0.1, 3.0]
    found = run(
        prepared(tmp_path / "equal", [walk(f"agent-{i}", 24, noise) for i, noise in enumerate(noises)]), experts, c
    )
    returns = [float(found.rewards[f"agent-{i}"].sum()) for i in np.argsort(noises)]
    assert (np.diff(returns) < 0).all()
    assert found.metrics["spearman_true_return"] == pytest.approx(1.0)


@pytest.mark.parametrize("method", [AILOT, NEAREST, SEGMENT])
def test_replicas_are_labelled_apart(method: Entry[Any], agents: Dataset, experts: Dataset) -> None:
    c = within(method, "intent")
    found = run(agents, experts, c, INTENT)
    first = run(agents, experts, c, Given(lambda x, a: two_replicas(x)[:1], INTENT.calibration[:1]))
    assert found.metrics["replicas"] == 2
    for episode in agents.episodes:
        values = found.rewards[episode.id]
        assert values.shape == (2, episode.length)
        np.testing.assert_allclose(values[:1], first.rewards[episode.id], rtol=1e-6)
        np.testing.assert_allclose(values[0], values[1], rtol=1e-3)


@pytest.mark.parametrize(
    "c",
    [
        AILOT,
        within(AILOT, "intent"),
        replace(AILOT, config=AILOTConfig(best_expert="state")),
        OTR,
        replace(NEAREST, config=SearchConfig(lookahead=2)),
        within(SEGMENT, "intent"),
    ],
)
def test_batches_of_episodes_give_the_same_rewards(
    c: Entry[Any],
    agents: Dataset,
    experts: Dataset,
    tmp_path: Path,
) -> None:
    both = prepared(
        tmp_path / "both", [*experts.episodes, replace(walk("expert-1", 15, 0.2, rewards=False), actions=None)]
    )
    expected = run(agents, both, c, INTENT).rewards
    solver = solver_of(c, agents, both)
    found = {**solver.rewards(agents.episodes[:3])[0], **solver.rewards(agents.episodes[3:])[0]}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-5)


def test_batches_fit_the_budget_and_hold_each_episode_once(
    agents: Dataset, experts: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = solver_of(AILOT, agents, experts)
    assert [len(chunk) for chunk in solver.chunks(agents.episodes)] == [1] * 7
    solver.device = torch.device("cuda")
    monkeypatch.setattr(labelling, "BATCH_ELEMENTS", 24 * 50)
    chunks = list(solver.chunks(agents.episodes))
    assert len(chunks) < 7
    assert sorted(e.id for chunk in chunks for e in chunk) == sorted(e.id for e in agents.episodes)
    for chunk in chunks:
        assert len(chunk) * max(e.length for e in chunk) * 24 <= 24 * 50
    monkeypatch.setattr(labelling, "BATCH_ELEMENTS", 1)
    assert len(list(solver.chunks(agents.episodes))) == 7


@pytest.mark.parametrize("by", ["episode", "state"])
def test_several_experts(by: str, agents: Dataset, experts: Dataset, tmp_path: Path) -> None:
    c = replace(AILOT, config=AILOTConfig(best_expert=by, temperature=0.1))  # type: ignore[arg-type]
    far = replace(walk("expert-1", 20, 0.5, rewards=False), actions=None)
    other = prepared(tmp_path / "far", [far])
    both = prepared(tmp_path / "both", [*experts.episodes, far])
    a, b, found = (run(agents, demonstrations, c) for demonstrations in (experts, other, both))
    assert found.metrics["experts"] == 2
    for name, values in found.rewards.items():
        one, two = a.rewards[name], b.rewards[name]
        expected = np.maximum(one, two) if by == "state" else (one if one.sum() >= two.sum() else two)
        np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize("c", [NEAREST, SEGMENT])
def test_several_experts_are_searched_as_one(c: Entry[Any], agents: Dataset, experts: Dataset, tmp_path: Path) -> None:
    far = replace(walk("expert-1", 20, 0.5, rewards=False), actions=None)
    a, b, found = (
        run(agents, demonstrations, c)
        for demonstrations in (
            experts,
            prepared(tmp_path / "far", [far]),
            prepared(tmp_path / "both", [*experts.episodes, far]),
        )
    )
    switches = 0
    for name, values in found.rewards.items():
        np.testing.assert_allclose(values, np.maximum(a.rewards[name], b.rewards[name]), rtol=1e-6)
        switches += int((b.rewards[name] > a.rewards[name]).any())
    assert switches > 0


def test_nearest_and_segment_are_those_of_each_episode(agents: Dataset, experts: Dataset) -> None:
    published = SearchConfig(scale=1.0, temperature=0.5, power=1, units="raw", divide_by_action_dim=True, lookahead=1)
    states = torch.from_numpy(EXPERT[:-1])
    for c in (replace(NEAREST, config=published), SEGMENT):
        found = run(agents, experts, c)
        assert set(found.metrics) == {
            "replicas",
            "experts",
            "reward_mean",
            "spearman_true_return",
            "spearman_true_reward",
        }
        calibration = raw_space(agents).calibration
        for episode in agents.episodes:
            lengths = torch.tensor([episode.length]), torch.tensor([24])
            x = torch.from_numpy(episode.current)
            bounds = None if c is not SEGMENT else segment_bounds(*lengths, episode.length, SEGMENT.config.segments)
            expected = search.label(x[None], lengths[0], states[None], lengths[1], calibration, c.config, 1, bounds)
            np.testing.assert_allclose(found.rewards[episode.id], expected.rewards, rtol=1e-6)
        (example,) = found.examples
        paid = (example["coupling"] * example["cost"]).sum(1) * 12  # the one entry of each row, 1 / 12
        expected = published.scale * np.exp(-0.5 * np.sqrt(paid)) if c is not SEGMENT else 5.0 * np.exp(-0.1 * paid)
        np.testing.assert_allclose(example["rewards"], expected, rtol=1e-3)


def test_metrics_and_returns(agents: Dataset, experts: Dataset) -> None:
    found = run(agents, experts, replace(AILOT, config=AILOTConfig(epsilon=0.3, temperature=0.1)))
    within = [spearmanr(found.rewards[e.id][0], e.rewards).statistic for e in agents.episodes if e.id != "agent-0"]
    assert found.metrics["spearman_true_reward"] == pytest.approx(np.mean(within))  # agent-0's true reward is constant
    assert 0 <= found.metrics["marginal_error"] <= found.metrics["marginal_error_max"] < 1.1e-4
    assert 10 <= found.metrics["iterations"] < 500
    assert 0 <= found.metrics["dropped_mass"] <= 1
    assert [row["episode"] for row in found.returns] == [e.id for e in agents.episodes]
    for row, episode in zip(found.returns, agents.episodes, strict=True):
        assert row["length"] == episode.length
        assert row["relabelled"] == pytest.approx(float(found.rewards[episode.id].sum()), rel=1e-5)
        assert row["true"] == pytest.approx(episode.return_)


def test_agreement_is_perfect_with_the_truth_and_reversed_with_its_negative(agents: Dataset) -> None:
    assert agents.returns is not None
    truth = {e.id: np.stack([np.asarray(e.rewards), -np.asarray(e.rewards)]) for e in agents.episodes}
    both = agreement(agents, truth)
    assert both["spearman_true_return"] == pytest.approx(0.0)
    for sign in (1, -1):
        one = agreement(agents, {e.id: sign * np.asarray(e.rewards)[None] for e in agents.episodes})
        assert one["spearman_true_return"] == pytest.approx(sign)
        assert one["spearman_true_reward"] == pytest.approx(sign)


def test_without_true_rewards(agents: Dataset, experts: Dataset, tmp_path: Path) -> None:
    blind = [replace(e, rewards=None, actions=None) for e in agents.episodes]
    unknown = run(prepared(tmp_path / "unknown", blind), experts, AILOT)
    assert unknown.metrics["spearman_true_return"] is unknown.metrics["spearman_true_reward"] is None
    (example,) = unknown.examples
    assert "true_rewards" not in example
    assert unknown.returns[0]["true"] is None
    kept = run(prepared(tmp_path / "kept", blind, agents.returns), experts, AILOT)
    assert kept.metrics["spearman_true_return"] is not None
    assert kept.metrics["spearman_true_reward"] is None


def test_an_example_is_an_episode_with_its_best_expert(agents: Dataset, experts: Dataset) -> None:
    (found,) = run(agents, experts, within(AILOT, "intent"), INTENT).examples
    assert found["agent"] == "agent-0"  # of the highest return
    assert found["expert"] == "expert-0"
    assert found["coupling"].shape == found["cost"].shape == (12, 24)
    np.testing.assert_allclose(found["coupling"].sum(1), 1 / 12, rtol=1e-5)
    assert found["rewards"].shape == found["true_rewards"].shape == (12,)


def test_examples_are_spread_over_the_transitions_by_return_and_end_with_the_best(tmp_path: Path) -> None:
    lengths, returns = [12, 4, 8, 16], [3.0, 1.0, 2.0, 4.0]
    data = prepared(tmp_path / "data", [walk(f"agent-{i}", n, 0.1) for i, n in enumerate(lengths)], returns)
    for count, expected in ((1, [3]), (2, [0, 3]), (4, [2, 0, 3]), (100, [1, 2, 0, 3])):
        assert [episode.id for episode in example_episodes(data, count)] == [f"agent-{i}" for i in expected]
    unknown = prepared(tmp_path / "unknown", [replace(e, rewards=None, actions=None) for e in data.episodes[:2]])
    assert [episode.id for episode in example_episodes(unknown, 1)] == ["agent-0"]  # the longest


def test_examples_on_disk_drop_costs_and_negligible_mass(tmp_path: Path) -> None:
    coupling = np.array([[0.5, 1e-6], [0.25, 0.25]])
    arrays = {"coupling": coupling, "cost": coupling, "rewards": np.ones(2), "agent": "a", "expert": "e"}
    write_examples(tmp_path / "examples", [arrays, {"rewards": np.ones(3), "agent": "b"}])
    with np.load(tmp_path / "examples" / "0.npz", allow_pickle=False) as stored:
        assert set(stored) == {"coupling", "rewards", "agent", "expert"}
        np.testing.assert_array_equal(stored["coupling"], [[0.5, 0.0], [0.25, 0.25]])
    with np.load(tmp_path / "examples" / "1.npz", allow_pickle=False) as stored:
        assert set(stored) == {"rewards", "agent"}
    assert arrays["coupling"] is coupling


def test_raw_and_standardised_spaces_count_in_steps(agents: Dataset) -> None:
    for make in (raw, standardised):
        space = space_of(make(agents), "states", agents, CPU)
        steps = [
            torch.sub(*(space.embed(torch.from_numpy(x), None) for x in (e.successors, e.current))).square().sum(-1)[0]
            for e in agents.episodes
        ]
        assert float(space.calibration * torch.cat(steps).mean()) == pytest.approx(1.0, rel=1e-4)
    observations = torch.from_numpy(agents.episodes[0].current)
    assert torch.equal(raw_space(agents).embed(observations, None)[0], observations)


def test_refusals(agents: Dataset, experts: Dataset, tmp_path: Path) -> None:
    wide = Episode(id="wide", observations=np.zeros((5, 4), np.float32), terminated=False, truncated=True)
    with pytest.raises(ValueError, match="observations of wide have 4 numbers, those of agents 3"):
        run(agents, prepared(tmp_path / "wide", [wide]), AILOT)
    still = Episode(id="still", observations=np.zeros((5, 3), np.float32), terminated=False, truncated=True)
    with pytest.raises(ValueError, match=r"dataset still: no point of space raw\.states differs from its successor"):
        run(prepared(tmp_path / "still", [still]), experts, AILOT)
    broken = Given(lambda x, a: torch.full((1, len(x), 2), torch.nan), torch.ones(1))
    with pytest.raises(
        ValueError,
        match=r"name: agents against experts: episode expert-0: its points in space intent\.psi are not finite",
    ):
        run(agents, experts, within(AILOT, "intent"), broken)
    uncalibrated = Given(two_replicas, torch.tensor([1.0, torch.inf]))
    with pytest.raises(ValueError, match="expected positive numbers"):
        run(agents, experts, within(AILOT, "intent"), uncalibrated)


def test_config() -> None:
    shared = {"dataset": "a", "demonstrations": "b"}
    values: dict[str, dict[str, Any]] = {
        "x": {"kind": "ailot", "space": "intent", "lookahead": 5},
        "y": {"kind": "otr", "space": "raw"},
        "n": {"kind": "nearest", "space": "dynamics", "points": "phi", "power": 1},
        "s": {"kind": "segment", "space": "dynamics", "points": "mu", "segments": 3, "lookahead": 1},
        "r": {"kind": "rnd", "space": "raw", "training": {"updates": 1000}},
        "true": {"kind": "recorded"},
    }
    c = {name: parse_entry("relabel", name, {**shared, **value}) for name, value in values.items()}
    assert c["x"] == entry("relabel", "ailot", AILOTConfig(lookahead=5), name="x", space="intent", **shared)
    assert c["n"].config == SearchConfig(power=1)
    assert (c["n"].inputs.space, c["n"].inputs.points) == ("dynamics", "phi")
    assert c["s"].config == SegmentConfig(segments=3, lookahead=1)
    assert c["r"].inputs.training == TrainingConfig(updates=1000)
    short = {name: one.smoke() for name, one in c.items()}
    assert [short[name].config.max_iterations for name in ("x", "y")] == [3, 3]
    assert (short["n"], short["s"]) == (c["n"], c["s"])
    assert short["r"].inputs.training.updates == 20
    for wrong, message in (
        ({"kind": "sqil"}, "kind: found 'sqil', expected one of ailot, cdred, constant"),
        ({"kind": "otr", "lookahead": 1}, "lookahead: unknown key"),
        ({"kind": "nearest", "segments": 2}, "segments: unknown key"),
        ({"kind": "nearest", "power": 3}, "power: found 3"),
        ({"kind": "rnd"}, "training: missing; rnd is trained"),
        ({"kind": "otr", "training": {"updates": 10}}, "training: unknown key; otr is not trained"),
        ({"kind": "rnd", "training": {"updates": 10, "snapshots": 2}}, "snapshots: found 2, expected 1"),
    ):
        with pytest.raises(ParamsError, match=rf"relabel\.x\.(training\.)?{message}"):
            parse_entry("relabel", "x", {**shared, **wrong})
    for name in ("a/b", "none"):
        with pytest.raises(ParamsError, match=r"params: relabel: found .*, expected a"):
            section_of({"relabel": {name: {**shared, "kind": "recorded"}}}, "relabel", "params")


def dynamics(replicas: int = 2, action_dim: int = 1) -> DynamicsEncoder:
    return DynamicsEncoder(
        DynamicsArchitecture(replicas=replicas, observation_dim=3, action_dim=action_dim, hidden=(8,), feature_dim=5)
    ).requires_grad_(False)


@pytest.fixture
def pairs(tmp_path: Path) -> Dataset:
    """An expert whose actions are known."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (24, 1)).astype(np.float32)
    clean = Episode(id="expert-0", observations=EXPERT, actions=actions, terminated=False, truncated=True)
    return prepared(tmp_path / "pairs", [clean])


def test_spaces_of_the_dynamics_are_those_of_the_encoder_and_count_in_steps(pairs: Dataset) -> None:
    torch.manual_seed(0)
    encoder = dynamics()
    episode = pairs.episodes[0]
    s, following, a = (torch.from_numpy(x)[None] for x in (episode.current, episode.successors, episode.actions))
    phi, mu = (space_of(encoder, which, pairs, CPU) for which in ("phi", "mu"))
    assert (phi.reads_actions, mu.reads_actions) == (True, False)
    torch.testing.assert_close(phi.embed(s[0], a[0]), encoder.phi(s, a))
    torch.testing.assert_close(mu.embed(s[0], None), encoder.mu(s))
    steps = {"mu": encoder.mu(following) - encoder.mu(s), "phi": encoder.phi(s, a).diff(dim=1)}
    for name, space in (("mu", mu), ("phi", phi)):
        lengths = space.calibration * steps[name].square().sum(-1).mean(1)
        torch.testing.assert_close(lengths, torch.ones(2))
        assert space.calibration[0] != space.calibration[1]


def test_points_of_an_encoder_are_chosen_by_name(agents: Dataset, pairs: Dataset) -> None:
    """The first space by default; one that the encoder does not have is named with those that it has."""
    encoder = dynamics()
    c = within(NEAREST, "dynamics")
    chosen = {
        points: relabel(replace(c, inputs=replace(c.inputs, points=points)), agents, pairs, encoder, UNTRAINED).rewards
        for points in (None, "phi", "mu")
    }
    for name, values in chosen[None].items():
        np.testing.assert_array_equal(values, chosen["phi"][name])
        assert not np.allclose(values, chosen["mu"][name])
    with pytest.raises(ValueError, match="found points 'psi', expected one of phi, mu"):
        relabel(replace(c, inputs=replace(c.inputs, points="psi")), agents, pairs, encoder, UNTRAINED)


def test_actions_are_asked_for_where_they_are_read(agents: Dataset, experts: Dataset) -> None:
    c = within(NEAREST, "dynamics")
    with pytest.raises(
        ValueError, match=r"^relabel\.name: .*: space dynamics\.phi needs actions, but experts has none$"
    ):
        relabel(c, agents, experts, dynamics(), UNTRAINED)
    relabel(c, agents, agents, dynamics(), UNTRAINED)
    with pytest.raises(
        ValueError, match=r"space dynamics\.phi: actions of experts have 0 numbers, the encoder reads 1"
    ):
        relabel(c, experts, agents, dynamics(), UNTRAINED)
    blind = replace(NEAREST, config=SearchConfig(divide_by_action_dim=True))
    with pytest.raises(ValueError, match=r"name: .*: divide_by_action_dim: experts has no actions"):
        run(experts, agents, blind)
    with pytest.raises(ValueError, match=r"space dynamics\.phi: actions of agents have 1 numbers, the encoder reads 2"):
        relabel(c, agents, agents, dynamics(action_dim=2), UNTRAINED)


def test_a_missing_encoder_is_named(agents: Dataset, experts: Dataset, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    message = r"relabel\.x\.space: needs the encoder of pretrain\.intent: .*pretrain.intent.config\.json: no such file"
    with pytest.raises(ValueError, match=message):
        Stage("relabel", tmp_path / "params.yaml", "x").encoder("intent", "relabel.x.space", 3)
    for c in (AILOT, OTR, NEAREST, SEGMENT):
        with pytest.raises(ValueError, match="space: found none, expected an entry of pretrain"):
            relabel(within(c, "none"), agents, experts, None, UNTRAINED)


def test_moments_are_of_all_states_and_coordinates() -> None:
    x = 3.0 + torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    mean, unit = moments([x[:, :20], x[:, 20:]])
    torch.testing.assert_close(mean, x.mean(1))
    torch.testing.assert_close(unit, x.var(1, correction=0).mean(1).sqrt())


RND = entry(
    "relabel",
    "rnd",
    RNDConfig(hidden=(16,), embedding_dim=4),
    space="raw",
    examples=1,
    training=TrainingConfig(updates=150, batch_size=32, updates_per_chunk=50),
)


def trained(agents: Dataset, experts: Dataset, c: Entry[Any], folder: Path) -> Relabelling:
    return relabel(c, agents, experts, encoder_of(c, agents, INTENT), a_run(folder, "name"))


def test_distillation_rewards_what_the_expert_does(experts: Dataset, tmp_path: Path) -> None:
    noises = [0.5, 0.0, 3.0]
    agents = prepared(tmp_path / "agents", [walk(f"agent-{i}", 24, noise) for i, noise in enumerate(noises)])
    found = trained(agents, experts, RND, tmp_path / "run")
    values = [found.rewards[f"agent-{i}"] for i in range(3)]
    assert all(x.shape == (2, 24) and x.dtype == np.float32 for x in values)
    assert (values[1].mean(1) > values[0].mean(1)).all()
    assert (values[0].mean(1) > values[2].mean(1)).all()
    assert not np.allclose(values[0][0], values[0][1])
    assert found.metrics["replicas"] == 2
    assert found.metrics["experts"] == 1
    assert 0 < found.metrics["expert_error"] < 0.1 * found.metrics["error"]
    assert found.metrics["spearman_true_return"] == pytest.approx(1.0)
    (example,) = found.examples
    assert set(example) == {"agent", "rewards", "true_rewards"}
    np.testing.assert_array_equal(example["rewards"], values[1][0])
    again = trained(agents, experts, RND, tmp_path / "again")
    assert all(np.array_equal(again.rewards[name], x) for name, x in found.rewards.items())


def test_distillation_learns_from_the_transitions_of_every_expert(
    agents: Dataset, experts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = replace(walk("expert-1", 20, 0.5, rewards=False), actions=None)
    both = prepared(tmp_path / "both", [*experts.episodes, far])
    shown: list[torch.Tensor] = []

    def no_training(learner: torch.nn.Module, sources: Any, batch: Any, *arguments: object, **keywords: object) -> None:
        shown.append(batch(sources, torch.Generator(training_device()).manual_seed(0)).cpu())

    monkeypatch.setattr("dynarep.pipeline.training.loop.train", no_training)
    inputs = replace(RND.inputs, space="intent", training=TrainingConfig(updates=1, batch_size=2000))
    trained(agents, both, replace(RND, inputs=inputs), tmp_path / "run")
    known = torch.cat([transitions(two_replicas(torch.from_numpy(e.current))) for e in both.episodes], 1)
    assert shown[0].shape == (2, 2000, 6)
    for rows, of_replica in zip(shown[0], known, strict=True):
        assert torch.equal(rows.unique(dim=0), of_replica.unique(dim=0))


def test_distillation_needs_as_many_replicas_as_the_space(agents: Dataset, experts: Dataset) -> None:
    with pytest.raises(
        ValueError, match=r"name: agents against experts: space intent\.psi has 2 replicas, this run has 1"
    ):
        run(agents, experts, within(RND, "intent"))


def test_every_method_works_in_every_space(agents: Dataset, pairs: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    intent = IntentEncoder(IntentArchitecture(replicas=2, observation_dim=3, hidden=(8,), latent_dim=4))
    encoders = (raw(agents), standardised(agents), intent.requires_grad_(False), dynamics())
    quick = replace(RND, inputs=replace(RND.inputs, training=TrainingConfig(updates=1)))
    for number, encoder in enumerate(encoders):
        for points in encoder.spaces:
            for c in (AILOT, OTR, NEAREST, SEGMENT, quick):
                inputs = replace(c.inputs, space="encoder", points=points)
                folder = tmp_path / str(number) / points / c.kind
                found = relabel(replace(c, inputs=inputs), agents, pairs, encoder, a_run(folder))
                replicas = 1 if number < 2 and c is not quick else 2
                for episode in agents.episodes:
                    values = found.rewards[episode.id]
                    assert values.shape == (replicas, episode.length)
                    assert (values >= 0).all()
                    assert np.isfinite(values).all()
                    assert values.max() > 0


PARAMS = """
seed: 0
replicas: 2
relabel:
  ailot: {kind: ailot, space: intent, dataset: agents, demonstrations: experts, examples: 2}
  otr: {kind: otr, space: raw, dataset: agents, demonstrations: experts, examples: 2}
  nearest: {kind: nearest, space: intent, dataset: agents, demonstrations: experts, examples: 2}
  segment: {kind: segment, space: raw, dataset: agents, demonstrations: experts, examples: 2}
  rnd:
    {kind: rnd, space: raw, dataset: agents, demonstrations: experts, examples: 2, hidden: [8],
     training: {updates: 4, batch_size: 8}}
  constant: {kind: constant, dataset: agents, demonstrations: experts, examples: 2}
  recorded: {kind: recorded, dataset: agents, demonstrations: experts, examples: 2}
"""
COUPLED = {"ailot": 2, "otr": 1, "nearest": 2, "segment": 1}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shards = tmp_path / "artifacts" / "shards"
    agents = prepared(shards / "agents", [walk(f"agent-{i}", 10 + i, 0.1 * i) for i in range(4)])
    prepared(shards / "experts", [Episode(id="expert-0", observations=EXPERT, terminated=False, truncated=True)])
    (tmp_path / "params.yaml").write_text(PARAMS)
    torch.manual_seed(0)
    encoder = IntentEncoder(IntentArchitecture(replicas=2, observation_dim=3, hidden=(8,), latent_dim=4))
    save_model(tmp_path / "artifacts" / "pretrain" / "intent", encoder)
    save_model(tmp_path / "artifacts" / "pretrain" / "raw", raw(agents))
    return tmp_path


def relabelled(project: Path, name: str) -> Path:
    """The folder of an entry, after its stage."""
    stage_main("relabel", stage.main, [name, "--params", str(project / "params.yaml")], entries=True)
    return project / "artifacts" / "relabel" / name


@pytest.mark.parametrize("name", section_of(yaml.safe_load(PARAMS), "relabel", "params"))
def test_the_stage_writes_the_folder_of_an_entry(name: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = relabelled(project, name)
    dataset = load_dataset(project / "artifacts" / "shards" / "agents")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert dataset.returns is not None
    best = dataset.episodes[int(np.argmax(dataset.returns))].id
    replicas = {**COUPLED, "rnd": 2}.get(name, 1)
    rewards = read_rewards(folder, dataset)
    assert {key: value.shape for key, value in rewards.items()} == {
        e.id: (replicas, e.length) for e in dataset.episodes
    }
    with (folder / "returns.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["episode"] for row in rows] == [e.id for e in dataset.episodes]
    assert metrics.get("replicas", 1) == replicas
    assert sorted(path.name for path in (folder / "examples").iterdir()) == ["0.npz", "1.npz"]
    with np.load(folder / "examples" / "1.npz", allow_pickle=False) as example:
        agent = str(example["agent"])
        assert agent == best
        np.testing.assert_array_equal(example["rewards"], rewards[agent][0])
        assert ("coupling" in example) == (name in COUPLED)
        if name in COUPLED:
            assert example["coupling"].shape == (rewards[agent].shape[1], 24)
            mass = example["coupling"].sum(1)
            np.testing.assert_allclose(mass, mass.mean(), rtol=1e-3)
    if name == "recorded":
        assert metrics["spearman_true_return"] == pytest.approx(1.0)
        assert all(np.array_equal(rewards[e.id][0], e.rewards) for e in dataset.episodes)
    if name == "constant":
        assert len({float(x) for values in rewards.values() for x in values.ravel()}) == 1
        assert metrics["spearman_true_reward"] is None
    assert (folder / "curves.tsv").exists() == (name == "rnd")
    metadata = json.loads((folder / "metadata.json").read_text())
    assert (metadata["dataset"], metadata["demonstrations"]) == ("agents", "experts")
    assert metadata["kind"] == name
    assert metadata["datasets"]["agents"] == dataset.fingerprint
    assert f"relabel/{name}: 4/4" in capsys.readouterr().err


def test_a_failing_stage_keeps_what_was_there(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = relabelled(project, "ailot")
    before = (folder / "returns.tsv").read_bytes()
    for old, new, message in (
        ("ailot, space: intent, dataset: agents", "ailot, space: intent, dataset: nobody", "nobody"),
        ("ailot, space: intent", "ailot, space: other", "relabel.ailot.space: needs the encoder of pretrain.other"),
        ("ailot, space: intent", "ailot, space: intent, points: mu", "found points 'mu', expected one of psi"),
    ):
        (project / "params.yaml").write_text(PARAMS.replace(old, new))
        with pytest.raises(SystemExit):
            relabelled(project, "ailot")
        assert message in capsys.readouterr().err
    assert (folder / "returns.tsv").read_bytes() == before
    assert sorted(path.name for path in folder.parent.parent.iterdir()) == ["pretrain", "relabel", "shards"]


def test_a_file_without_labels_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "params.yaml"
    for text in ("relabel: {}\n", "relabel:\n"):
        path.write_text(text)
        assert section_of(read_params(path), "relabel", str(path)) == {}
        with pytest.raises(SystemExit):
            relabelled(tmp_path, "ailot")
        assert "relabel" in capsys.readouterr().err


def test_remarks_on_a_label() -> None:
    even = {"a": np.linspace(0.1, 1.0, 100)}
    assert remarks({"dropped_mass": 0.1}, even, tempered=True) == []
    (free,) = remarks({"dropped_mass": 0.47}, even, tempered=True)
    assert free.startswith("47 % of the mass pays nothing")
    assert "before_entry: rematched" in free
    silent, full = np.r_[np.full(95, 1e-3), np.ones(5)], np.r_[np.full(95, 4.99), np.full(5, 1.0)]
    for values, words in ((silent, "a lower temperature"), (full, "a higher temperature"), (np.zeros(3), "a lower")):
        (found,) = remarks({}, {"a": values[None]}, tempered=True)
        assert words in found
        assert remarks({}, {"a": values[None]}, tempered=False) == []
