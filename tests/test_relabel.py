import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from dynarep.configs.params import ParamsError, validate
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, read_rewards, write_dataset
from dynarep.pipeline import relabel as module
from dynarep.pipeline.artifacts.storage import load_dynamics_encoder, save_model
from dynarep.pipeline.encoders import DynamicsArchitecture, DynamicsEncoder, IntentArchitecture, IntentEncoder
from dynarep.pipeline.training.loop import Run, TrainingConfig, training_device
from dynarep.pipeline.methods import ailot, distance
from dynarep.pipeline.methods.rewards.ailot import AILOTConfig
from dynarep.pipeline.methods.rewards.nearest import NearestConfig, SegmentConfig
from dynarep.pipeline.methods.rewards.otr import OTRConfig
from dynarep.pipeline.methods.rewards.rnd import RNDConfig, transitions
from dynarep.pipeline.relabel import (
    AILOTMethodConfig,
    AnyMethodConfig,
    NearestMethodConfig,
    OTRMethodConfig,
    RelabelConfig,
    Relabelling,
    RNDMethodConfig,
    SegmentMethodConfig,
    agreement,
    example_episodes,
    moments,
    relabel,
    smoke,
    write_examples,
)
from dynarep.pipeline.spaces import Space, SpaceName, dynamics_space, load_space, observation_space

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


AILOT = AILOTMethodConfig(kind="ailot", space="raw", method=AILOTConfig(temperature=0.1))
NEAREST = NearestMethodConfig(kind="nearest", method=NearestConfig(temperature=0.1))
SEGMENT = SegmentMethodConfig(kind="segment", method=SegmentConfig(temperature=0.1, segments=4))
INTENT = Space(two_replicas, torch.tensor([1.0, 0.25]))
UNTRAINED = Run("relabel/name", 0, 1, Path("nowhere"), Path("nowhere"))


def run(
    agents: Dataset, experts: Dataset, c: AnyMethodConfig, intent: Space = INTENT, shown: str = "agent-1"
) -> Relabelling:
    space = intent if c.space == "intent" else observation_space(agents, CPU, standardise=c.space == "standardised")
    examples = [episode for episode in agents.episodes if episode.id == shown]
    return relabel("name", c, agents, experts, {c.space: space}, CPU, UNTRAINED, examples=examples)


def test_rewards_are_the_methods_for_each_episode(agents: Dataset, experts: Dataset) -> None:
    found = run(agents, experts, AILOT)
    assert list(found.rewards) == [e.id for e in agents.episodes]
    calibration = observation_space(agents, CPU, standardise=False).calibration
    for episode in agents.episodes:
        expected = ailot.label(
            torch.from_numpy(episode.current)[None],
            torch.tensor([episode.length]),
            torch.from_numpy(EXPERT[:-1])[None],
            torch.tensor([24]),
            calibration,
            AILOT.method,
        )
        values = found.rewards[episode.id]
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected.rewards, rtol=1e-5)


@pytest.mark.parametrize("c", [AILOT, OTRMethodConfig(kind="otr", space="standardised"), NEAREST, SEGMENT])
def test_closer_episodes_earn_more(c: AnyMethodConfig, experts: Dataset, tmp_path: Path) -> None:
    noises = [0.3, 0.03, 1.0, 0.1, 3.0]
    found = run(
        prepared(tmp_path / "equal", [walk(f"agent-{i}", 24, noise) for i, noise in enumerate(noises)]), experts, c
    )
    returns = [float(found.rewards[f"agent-{i}"].sum()) for i in np.argsort(noises)]
    assert (np.diff(returns) < 0).all()
    assert found.metrics["spearman_true_return"] == pytest.approx(1.0)


@pytest.mark.parametrize("method", [AILOT, NEAREST, SEGMENT])
def test_replicas_are_labelled_apart(method: AnyMethodConfig, agents: Dataset, experts: Dataset) -> None:
    c = replace(method, space="intent")
    found = run(agents, experts, c, INTENT)
    first = run(agents, experts, c, Space(lambda x, a: two_replicas(x)[:1], INTENT.calibration[:1]))
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
        replace(AILOT, space="intent"),
        replace(AILOT, method=AILOTConfig(best_expert="state")),
        OTRMethodConfig(kind="otr"),
        replace(NEAREST, method=NearestConfig(lookahead=2)),
        replace(SEGMENT, space="intent"),
    ],
)
def test_batches_of_episodes_give_the_same_rewards(
    c: AILOTMethodConfig | OTRMethodConfig | NearestMethodConfig | SegmentMethodConfig,
    agents: Dataset,
    experts: Dataset,
    tmp_path: Path,
) -> None:
    both = prepared(
        tmp_path / "both", [*experts.episodes, replace(walk("expert-1", 15, 0.2, rewards=False), actions=None)]
    )
    expected = run(agents, both, c, INTENT).rewards
    space = INTENT if c.space == "intent" else observation_space(agents, CPU, standardise=False)
    solver = module._Comparison(c, space, both.episodes, 1, CPU)
    found = {**solver.rewards(agents.episodes[:3])[0], **solver.rewards(agents.episodes[3:])[0]}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-5)


def test_batches_fit_the_budget_and_hold_each_episode_once(
    agents: Dataset, experts: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = module._Comparison(AILOT, observation_space(agents, CPU, standardise=False), experts.episodes, 1, CPU)
    assert [len(chunk) for chunk in solver.chunks(agents.episodes)] == [1] * 7
    solver.device = torch.device("cuda")
    monkeypatch.setattr(module, "BATCH_ELEMENTS", 24 * 50)
    chunks = list(solver.chunks(agents.episodes))
    assert len(chunks) < 7
    assert sorted(e.id for chunk in chunks for e in chunk) == sorted(e.id for e in agents.episodes)
    for chunk in chunks:
        assert len(chunk) * max(e.length for e in chunk) * 24 <= 24 * 50
    monkeypatch.setattr(module, "BATCH_ELEMENTS", 1)
    assert len(list(solver.chunks(agents.episodes))) == 7


@pytest.mark.parametrize("by", ["episode", "state"])
def test_several_experts(by: str, agents: Dataset, experts: Dataset, tmp_path: Path) -> None:
    c = replace(AILOT, method=validate(AILOTConfig, {"best_expert": by, "temperature": 0.1}, "method"))
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
def test_several_experts_are_searched_as_one(
    c: NearestMethodConfig | SegmentMethodConfig, agents: Dataset, experts: Dataset, tmp_path: Path
) -> None:
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
    published = NearestConfig(scale=1.0, temperature=0.5, power=1, units="raw", divide_by_action_dim=True, lookahead=1)
    states = torch.from_numpy(EXPERT[:-1])
    for c in (replace(NEAREST, method=published), SEGMENT):
        found = run(agents, experts, c)
        assert set(found.metrics) == {
            "replicas",
            "experts",
            "reward_mean",
            "spearman_true_return",
            "spearman_true_reward",
        }
        calibration = observation_space(agents, CPU, standardise=False).calibration
        for episode in agents.episodes:
            lengths = torch.tensor([episode.length]), torch.tensor([24])
            x = torch.from_numpy(episode.current)
            expected = distance.label(x[None], lengths[0], states[None], lengths[1], calibration, c.method, 1)
            np.testing.assert_allclose(found.rewards[episode.id], expected.rewards, rtol=1e-6)
        (example,) = found.examples
        paid = (example["coupling"] * example["cost"]).sum(1) * 14  # the one entry of each row, 1 / 14
        expected = published.scale * np.exp(-0.5 * np.sqrt(paid)) if c is not SEGMENT else 5.0 * np.exp(-0.1 * paid)
        np.testing.assert_allclose(example["rewards"], expected, rtol=1e-3)


def test_metrics_and_returns(agents: Dataset, experts: Dataset) -> None:
    found = run(agents, experts, replace(AILOT, method=AILOTConfig(epsilon=0.3, temperature=0.1)))
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
    (found,) = run(agents, experts, replace(AILOT, space="intent"), INTENT, "agent-5").examples
    assert found["agent"] == "agent-5"
    assert found["expert"] == "expert-0"
    assert found["coupling"].shape == found["cost"].shape == (22, 24)
    np.testing.assert_allclose(found["coupling"].sum(1), 1 / 22, rtol=1e-5)
    assert found["rewards"].shape == found["true_rewards"].shape == (22,)


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
    for standardise in (False, True):
        space = observation_space(agents, CPU, standardise=standardise)
        steps = [
            torch.sub(*(space.embed(torch.from_numpy(x), None) for x in (e.successors, e.current))).square().sum(-1)[0]
            for e in agents.episodes
        ]
        assert float(space.calibration * torch.cat(steps).mean()) == pytest.approx(1.0, rel=1e-4)
    observations = torch.from_numpy(agents.episodes[0].current)
    assert torch.equal(observation_space(agents, CPU, standardise=False).embed(observations, None)[0], observations)


def test_refusals(agents: Dataset, experts: Dataset, tmp_path: Path) -> None:
    wide = Episode(id="wide", observations=np.zeros((5, 4), np.float32), terminated=False, truncated=True)
    with pytest.raises(ValueError, match="observations of wide have 4 numbers, those of agents 3"):
        run(agents, prepared(tmp_path / "wide", [wide]), AILOT)
    still = Episode(id="still", observations=np.zeros((5, 3), np.float32), terminated=False, truncated=True)
    with pytest.raises(ValueError, match="dataset still: no point of space raw differs from its successor"):
        run(prepared(tmp_path / "still", [still]), experts, AILOT)
    broken = Space(lambda x, a: torch.full((1, len(x), 2), torch.nan), torch.ones(1))
    with pytest.raises(
        ValueError, match="name: agents against experts: episode expert-0: its points in space intent are not finite"
    ):
        run(agents, experts, replace(AILOT, space="intent"), broken)
    uncalibrated = Space(two_replicas, torch.tensor([1.0, torch.inf]))
    with pytest.raises(ValueError, match="expected positive numbers"):
        run(agents, experts, replace(AILOT, space="intent"), uncalibrated)


def test_config() -> None:
    values = {
        "dataset": "a",
        "demonstrations": "b",
        "methods": {
            "x": {"kind": "ailot", "method": {"lookahead": 5}},
            "y": {"kind": "otr", "space": "raw"},
            "n": {"kind": "nearest", "space": "phi", "method": {"power": 1}},
            "s": {"kind": "segment", "space": "mu", "method": {"segments": 3, "lookahead": 1}},
            "r": {"kind": "rnd", "training": {"updates": 1000}},
        },
    }
    c = validate(RelabelConfig, values, "relabel")
    assert c.methods == {
        "x": AILOTMethodConfig(kind="ailot", space="intent", method=AILOTConfig(lookahead=5)),
        "y": OTRMethodConfig(kind="otr", space="raw", method=OTRConfig()),
        "n": NearestMethodConfig(kind="nearest", space="phi", method=NearestConfig(power=1)),
        "s": SegmentMethodConfig(kind="segment", space="mu", method=SegmentConfig(segments=3, lookahead=1)),
        "r": RNDMethodConfig(kind="rnd", space="raw", method=RNDConfig(), training=TrainingConfig(updates=1000)),
    }
    short = smoke(c).methods
    assert [short[name].method.max_iterations for name in ("x", "y")] == [3, 3]  # type: ignore[union-attr]
    assert (short["n"], short["s"]) == (c.methods["n"], c.methods["s"])
    assert short["r"].training.updates == 20  # type: ignore[union-attr]
    for wrong in (
        {"x": {"kind": "sqil"}},
        {"x": {"kind": "otr", "lookahead": 1}},
        {"x": {"kind": "nearest", "method": {"segments": 2}}},
        {"x": {"kind": "nearest", "method": {"power": 3}}},
        {"x": {"kind": "segment", "space": "psi"}},
        {"x": {"kind": "rnd"}},
        {"x": {"kind": "rnd", "training": {"updates": 10, "snapshots": 2}}},
        {"true": {"kind": "otr"}},
        {"a/b": {"kind": "otr"}},
    ):
        with pytest.raises(ParamsError, match="relabel"):
            validate(RelabelConfig, {**values, "methods": wrong}, "relabel")


@pytest.fixture
def encoders(agents: Dataset) -> Path:
    """An artifacts folder with encoders of two replicas."""
    folder = agents.folder.parent / "artifacts"
    torch.manual_seed(0)
    for name, encoder in (
        (
            "pretrain_intent",
            IntentEncoder(IntentArchitecture(replicas=2, observation_dim=3, hidden=(8,), latent_dim=4)),
        ),
        (
            "pretrain_dynamics",
            DynamicsEncoder(
                DynamicsArchitecture(replicas=2, observation_dim=3, action_dim=1, hidden=(8,), feature_dim=5)
            ),
        ),
    ):
        save_model(folder / name, encoder)
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Dataset:
    """An expert whose actions are known."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (24, 1)).astype(np.float32)
    clean = Episode(id="expert-0", observations=EXPERT, actions=actions, terminated=False, truncated=True)
    return prepared(tmp_path / "pairs", [clean])


def test_spaces_of_the_dynamics_are_those_of_the_encoder_and_count_in_steps(pairs: Dataset, encoders: Path) -> None:
    encoder = load_dynamics_encoder(encoders / "pretrain_dynamics")
    episode = pairs.episodes[0]
    s, following, a = (torch.from_numpy(x)[None] for x in (episode.current, episode.successors, episode.actions))
    phi, mu = (load_space(name, pairs, encoders, CPU) for name in ("phi", "mu"))
    assert (phi.reads_actions, mu.reads_actions) == (True, False)
    torch.testing.assert_close(phi.embed(s[0], a[0]), encoder.phi(s, a))
    torch.testing.assert_close(mu.embed(s[0], None), encoder.mu(s))
    steps = {"mu": encoder.mu(following) - encoder.mu(s), "phi": encoder.phi(s, a).diff(dim=1)}
    for name, space in (("mu", mu), ("phi", phi)):
        lengths = space.calibration * steps[name].square().sum(-1).mean(1)
        torch.testing.assert_close(lengths, torch.ones(2))
        assert space.calibration[0] != space.calibration[1]


def test_actions_are_asked_for_where_they_are_read(agents: Dataset, experts: Dataset, encoders: Path) -> None:
    space = load_space("phi", agents, encoders, CPU)
    c = replace(NEAREST, space="phi")
    with pytest.raises(ValueError, match=r"^relabel\.methods\.name: space phi needs actions, but experts has none$"):
        relabel("name", c, agents, experts, {"phi": space}, CPU, UNTRAINED)
    relabel("name", c, agents, agents, {"phi": space}, CPU, UNTRAINED)
    with pytest.raises(ValueError, match="space phi: actions of experts have 0 numbers, the encoder reads 1"):
        load_space("phi", experts, encoders, CPU)
    blind = replace(NEAREST, method=NearestConfig(divide_by_action_dim=True))
    with pytest.raises(ValueError, match=r"name\.method\.divide_by_action_dim: experts has no actions"):
        run(experts, agents, blind)
    two = DynamicsEncoder(DynamicsArchitecture(replicas=1, observation_dim=3, action_dim=2, hidden=(8,), feature_dim=5))
    with pytest.raises(ValueError, match="space phi: actions of agents have 1 numbers, the encoder reads 2"):
        dynamics_space(two, "phi", agents, CPU)


@pytest.mark.parametrize(("name", "stage"), [("intent", "intent"), ("phi", "dynamics"), ("mu", "dynamics")])
def test_a_missing_encoder_is_named(name: SpaceName, stage: str, agents: Dataset, tmp_path: Path) -> None:
    message = (
        rf"methods: space {name} needs the encoder of pretrain_{stage}: .*pretrain_{stage}.config\.json: no such file"
    )
    with pytest.raises(ValueError, match=message):
        load_space(name, agents, tmp_path, CPU)


def test_moments_are_of_all_states_and_coordinates() -> None:
    x = 3.0 + torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    mean, unit = moments([x[:, :20], x[:, 20:]])
    torch.testing.assert_close(mean, x.mean(1))
    torch.testing.assert_close(unit, x.var(1, correction=0).mean(1).sqrt())


RND = RNDMethodConfig(
    kind="rnd",
    method=RNDConfig(hidden=(16,), embedding_dim=4),
    training=TrainingConfig(updates=150, batch_size=32, updates_per_chunk=50),
)


def trained(agents: Dataset, experts: Dataset, c: RNDMethodConfig, space: Space, folder: Path) -> Relabelling:
    folder.mkdir()
    run = Run("name", 0, 2, folder, folder / "kept")
    return relabel("name", c, agents, experts, {c.space: space}, training_device(), run, examples=agents.episodes[-1:])


def test_distillation_rewards_what_the_expert_does(experts: Dataset, tmp_path: Path) -> None:
    noises = [0.5, 0.0, 3.0]
    agents = prepared(tmp_path / "agents", [walk(f"agent-{i}", 24, noise) for i, noise in enumerate(noises)])
    space = observation_space(agents, training_device(), standardise=False)
    found = trained(agents, experts, RND, space, tmp_path / "run")
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
    np.testing.assert_array_equal(example["rewards"], values[2][0])
    again = trained(agents, experts, RND, space, tmp_path / "again")
    assert all(np.array_equal(again.rewards[name], x) for name, x in found.rewards.items())


def test_distillation_learns_from_the_transitions_of_every_expert(
    agents: Dataset, experts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = replace(walk("expert-1", 20, 0.5, rewards=False), actions=None)
    both = prepared(tmp_path / "both", [*experts.episodes, far])
    shown: list[torch.Tensor] = []

    def no_training(learner: torch.nn.Module, sample: module.Any, *arguments: object, **keywords: object) -> None:
        shown.append(sample(torch.Generator(training_device()).manual_seed(0)).cpu())

    monkeypatch.setattr(module, "train", no_training)
    trained(
        agents,
        both,
        replace(RND, space="intent", training=TrainingConfig(updates=1, batch_size=2000)),
        INTENT,
        tmp_path / "run",
    )
    known = torch.cat([transitions(two_replicas(torch.from_numpy(e.current))) for e in both.episodes], 1)
    assert shown[0].shape == (2, 2000, 6)
    for rows, of_replica in zip(shown[0], known, strict=True):
        assert torch.equal(rows.unique(dim=0), of_replica.unique(dim=0))


def test_distillation_needs_as_many_replicas_as_the_space(agents: Dataset, experts: Dataset) -> None:
    with pytest.raises(ValueError, match="name: agents against experts: space intent has 2 replicas, this run has 1"):
        run(agents, experts, replace(RND, space="intent"))


def test_every_method_works_in_every_space(agents: Dataset, pairs: Dataset, encoders: Path, tmp_path: Path) -> None:
    device = training_device()
    spaces: tuple[SpaceName, ...] = ("raw", "standardised", "intent", "phi", "mu")
    quick = replace(RND, training=TrainingConfig(updates=1))
    for name in spaces:
        space = load_space(name, agents, encoders, device)
        for c in (AILOT, OTRMethodConfig(kind="otr"), NEAREST, SEGMENT, quick):
            folder = tmp_path / name / c.kind
            folder.mkdir(parents=True)
            found = relabel(
                c.kind, replace(c, space=name), agents, pairs, {name: space}, device, Run("x", 0, 2, folder, folder)
            )
            replicas = 1 if name in ("raw", "standardised") and c is not quick else 2
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
  dataset: agents
  demonstrations: experts
  examples: 2
  methods:
    ailot: {kind: ailot}
    otr: {kind: otr}
    nearest: {kind: nearest, space: intent}
    segment: {kind: segment}
    rnd: {kind: rnd, method: {hidden: [8]}, training: {updates: 4, batch_size: 8}}
"""
COUPLED = {"ailot": 2, "otr": 1, "nearest": 2, "segment": 1}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shards = tmp_path / "artifacts" / "shards"
    prepared(shards / "agents", [walk(f"agent-{i}", 10 + i, 0.1 * i) for i in range(4)])
    prepared(shards / "experts", [Episode(id="expert-0", observations=EXPERT, terminated=False, truncated=True)])
    (tmp_path / "params.yaml").write_text(PARAMS)
    torch.manual_seed(0)
    encoder = IntentEncoder(IntentArchitecture(replicas=2, observation_dim=3, hidden=(8,), latent_dim=4))
    save_model(tmp_path / "artifacts" / "pretrain_intent", encoder)
    return tmp_path


def test_stage_writes_its_folder(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dynarep.pipeline.run import stage_main
    from dynarep.stages.relabel import main

    arguments = ["--params", str(project / "params.yaml")]
    stage_main("relabel", main, arguments)
    folder = project / "artifacts" / "relabel"
    dataset = load_dataset(project / "artifacts" / "shards" / "agents")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics) == [*COUPLED, "rnd"]
    assert dataset.returns is not None
    best = dataset.episodes[int(np.argmax(dataset.returns))].id
    for name, replicas in {**COUPLED, "rnd": 2}.items():
        rewards = read_rewards(folder / name, dataset)
        assert {key: value.shape for key, value in rewards.items()} == {
            e.id: (replicas, e.length) for e in dataset.episodes
        }
        with (folder / name / "returns.tsv").open() as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert [row["episode"] for row in rows] == [e.id for e in dataset.episodes]
        assert metrics[name]["replicas"] == replicas
        assert sorted(path.name for path in (folder / name / "examples").iterdir()) == ["0.npz", "1.npz"]
        with np.load(folder / name / "examples" / "1.npz", allow_pickle=False) as example:
            agent = str(example["agent"])
            assert agent == best
            np.testing.assert_array_equal(example["rewards"], rewards[agent][0])
            assert ("coupling" in example) == (name in COUPLED)
            if name in COUPLED:
                assert example["coupling"].shape == (rewards[agent].shape[1], 24)
                mass = example["coupling"].sum(1)
                np.testing.assert_allclose(mass, mass.mean(), rtol=1e-3)
    assert (folder / "rnd" / "curves.tsv").exists()
    metadata = json.loads((folder / "metadata.json").read_text())
    assert (metadata["dataset"], metadata["demonstrations"]) == ("agents", "experts")
    assert metadata["datasets"]["agents"] == dataset.fingerprint
    assert "relabel/ailot: 4/4" in capsys.readouterr().err

    before = (folder / "ailot" / "returns.tsv").read_bytes()
    for old, new, message in (
        ("demonstrations: experts", "demonstrations: nobody", "nobody"),
        ("{kind: otr}", "{kind: otr, space: mu}", "space mu needs the encoder of pretrain_dynamics"),
    ):
        (project / "params.yaml").write_text(PARAMS.replace(old, new))
        with pytest.raises(SystemExit):
            stage_main("relabel", main, arguments)
        assert message in capsys.readouterr().err
    assert (folder / "ailot" / "returns.tsv").read_bytes() == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["pretrain_intent", "relabel", "shards"]
