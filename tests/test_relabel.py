import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, read_rewards, write_dataset
from dynarep.pipeline import relabel as module
from dynarep.pipeline.methods import ailot
from dynarep.pipeline.methods.ailot import AILOTConfig
from dynarep.pipeline.methods.otr import OTRConfig
from dynarep.pipeline.params import ParamsError, validate
from dynarep.pipeline.relabel import (
    AILOTMethodConfig,
    OTRMethodConfig,
    RelabelConfig,
    Relabelling,
    Space,
    agreement,
    observation_space,
    relabel,
    smoke,
)

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


def two_replicas(observations: torch.Tensor) -> torch.Tensor:
    return torch.stack([observations, 2.0 * observations + 1.0])


AILOT = AILOTMethodConfig(kind="ailot", space="raw", method=AILOTConfig(temperature=0.1))
INTENT = Space(two_replicas, torch.tensor([1.0, 0.25]))


def run(
    agents: Dataset, experts: Dataset, c: AILOTMethodConfig | OTRMethodConfig, intent: Space | None = None
) -> Relabelling:
    return relabel("name", c, agents, experts, intent, CPU)


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


@pytest.mark.parametrize("kind", ["ailot", "otr"])
def test_closer_episodes_earn_more(kind: str, experts: Dataset, tmp_path: Path) -> None:
    c = AILOT if kind == "ailot" else OTRMethodConfig(kind="otr", space="standardised")
    noises = [0.3, 0.03, 1.0, 0.1, 3.0]
    found = run(
        prepared(tmp_path / "equal", [walk(f"agent-{i}", 24, noise) for i, noise in enumerate(noises)]), experts, c
    )
    returns = [float(found.rewards[f"agent-{i}"].sum()) for i in np.argsort(noises)]
    assert (np.diff(returns) < 0).all()
    assert found.metrics["spearman_true_return"] == pytest.approx(1.0)


def test_replicas_are_labelled_apart(agents: Dataset, experts: Dataset) -> None:
    c = replace(AILOT, space="intent")
    found = run(agents, experts, c, INTENT)
    first = run(agents, experts, c, Space(lambda x: two_replicas(x)[:1], INTENT.calibration[:1]))
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
    ],
)
def test_batches_of_episodes_give_the_same_rewards(
    c: AILOTMethodConfig | OTRMethodConfig, agents: Dataset, experts: Dataset, tmp_path: Path
) -> None:
    both = prepared(
        tmp_path / "both", [*experts.episodes, replace(walk("expert-1", 15, 0.2, rewards=False), actions=None)]
    )
    expected = run(agents, both, c, INTENT).rewards
    space = INTENT if c.space == "intent" else observation_space(agents, CPU, standardise=False)
    solver = module._Solver(c, space, both.episodes, CPU)
    found = {**solver.rewards(agents.episodes[:3]), **solver.rewards(agents.episodes[3:])}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-5)


def test_batches_fit_the_budget_and_hold_each_episode_once(
    agents: Dataset, experts: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = module._Solver(AILOT, observation_space(agents, CPU, standardise=False), experts.episodes, CPU)
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
    assert "true_rewards" not in unknown.example
    assert unknown.returns[0]["true"] is None
    kept = run(prepared(tmp_path / "kept", blind, agents.returns), experts, AILOT)
    assert kept.metrics["spearman_true_return"] is not None
    assert kept.metrics["spearman_true_reward"] is None


def test_example_is_of_median_length_among_the_longest_third(agents: Dataset, experts: Dataset) -> None:
    found = run(agents, experts, replace(AILOT, space="intent"), INTENT).example
    assert found["agent"] == "agent-5"  # lengths 24, 22, 20 are the longest third of seven
    assert found["expert"] == "expert-0"
    assert found["coupling"].shape == found["cost"].shape == (22, 24)
    np.testing.assert_allclose(found["coupling"].sum(1), 1 / 22, rtol=1e-5)
    assert found["rewards"].shape == found["true_rewards"].shape == (22,)


def test_raw_and_standardised_spaces_count_in_steps(agents: Dataset) -> None:
    for standardise in (False, True):
        space = observation_space(agents, CPU, standardise=standardise)
        steps = [
            (space.embed(torch.from_numpy(e.successors)) - space.embed(torch.from_numpy(e.current))).square().sum(-1)[0]
            for e in agents.episodes
        ]
        assert float(space.calibration * torch.cat(steps).mean()) == pytest.approx(1.0, rel=1e-4)
    observations = torch.from_numpy(agents.episodes[0].current)
    assert torch.equal(observation_space(agents, CPU, standardise=False).embed(observations)[0], observations)


def test_refusals(agents: Dataset, experts: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"relabel\.methods\.name\.space: intent needs an intent encoder"):
        run(agents, experts, replace(AILOT, space="intent"))
    wide = Episode(id="wide", observations=np.zeros((5, 4), np.float32), terminated=False, truncated=True)
    with pytest.raises(ValueError, match="observations of wide have 4 numbers, those of agents 3"):
        run(agents, prepared(tmp_path / "wide", [wide]), AILOT)
    still = Episode(id="still", observations=np.zeros((5, 3), np.float32), terminated=False, truncated=True)
    with pytest.raises(ValueError, match="no observation differs from its successor"):
        run(prepared(tmp_path / "still", [still]), experts, AILOT)
    broken = Space(lambda x: torch.full((1, len(x), 2), torch.nan), torch.ones(1))
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
        "methods": {"x": {"kind": "ailot", "method": {"lookahead": 5}}, "y": {"kind": "otr", "space": "raw"}},
    }
    c = validate(RelabelConfig, values, "relabel")
    assert c.methods == {
        "x": AILOTMethodConfig(kind="ailot", space="intent", method=AILOTConfig(lookahead=5)),
        "y": OTRMethodConfig(kind="otr", space="raw", method=OTRConfig()),
    }
    assert [method.method.max_iterations for method in smoke(c).methods.values()] == [3, 3]
    for wrong in (
        {"x": {"kind": "sqil"}},
        {"x": {"kind": "otr", "lookahead": 1}},
        {"true": {"kind": "otr"}},
        {"a/b": {"kind": "otr"}},
    ):
        with pytest.raises(ParamsError, match="relabel"):
            validate(RelabelConfig, {**values, "methods": wrong}, "relabel")


PARAMS = """
seed: 0
relabel:
  dataset: agents
  demonstrations: experts
  methods:
    ailot: {kind: ailot}
    otr: {kind: otr}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    from dynarep.pipeline.artifacts import save_artifact
    from dynarep.pipeline.encoders import IntentArchitecture, IntentEncoder

    shards = tmp_path / "artifacts" / "shards"
    prepared(shards / "agents", [walk(f"agent-{i}", 10 + i, 0.1 * i) for i in range(4)])
    prepared(shards / "experts", [Episode(id="expert-0", observations=EXPERT, terminated=False, truncated=True)])
    (tmp_path / "params.yaml").write_text(PARAMS)
    torch.manual_seed(0)
    encoder = IntentEncoder(IntentArchitecture(replicas=2, observation_dim=3, hidden=(8,), latent_dim=4))
    folder = tmp_path / "artifacts" / "pretrain_intent"
    folder.mkdir()
    save_artifact(folder, encoder, {})
    return tmp_path


def test_stage_writes_its_folder(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dynarep.pipeline.run import stage_main
    from dynarep.stages.relabel import main

    arguments = ["--params", str(project / "params.yaml")]
    stage_main("relabel", main, arguments)
    folder = project / "artifacts" / "relabel"
    dataset = load_dataset(project / "artifacts" / "shards" / "agents")
    metrics = json.loads((folder / "metrics.json").read_text())
    for name, replicas in (("ailot", 2), ("otr", 1)):
        rewards = read_rewards(folder / name, dataset)
        assert {key: value.shape for key, value in rewards.items()} == {
            e.id: (replicas, e.length) for e in dataset.episodes
        }
        with (folder / name / "returns.tsv").open() as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert [row["episode"] for row in rows] == [e.id for e in dataset.episodes]
        with np.load(folder / name / "example.npz", allow_pickle=False) as example:
            assert str(example["agent"]) in rewards
            np.testing.assert_array_equal(example["rewards"], rewards[str(example["agent"])][0])
        assert metrics[name]["replicas"] == replicas
    metadata = json.loads((folder / "metadata.json").read_text())
    assert (metadata["dataset"], metadata["demonstrations"]) == ("agents", "experts")
    assert metadata["datasets"]["agents"] == dataset.fingerprint
    assert "relabel/ailot: 4/4" in capsys.readouterr().err

    before = (folder / "ailot" / "returns.tsv").read_bytes()
    (project / "params.yaml").write_text(PARAMS.replace("demonstrations: experts", "demonstrations: nobody"))
    with pytest.raises(SystemExit):
        stage_main("relabel", main, arguments)
    assert "nobody" in capsys.readouterr().err
    assert (folder / "ailot" / "returns.tsv").read_bytes() == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["pretrain_intent", "relabel", "shards"]
