import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from models import make

from dynarep.pipeline.artifacts.pretrained import (
    PretrainedDynamics,
    PretrainedIntent,
    PretrainedPolicy,
    load_encoder,
    load_policy,
)
from dynarep.pipeline.artifacts.storage import ArtifactError, save_model
from dynarep.pipeline.integrations.gymnasium import EncodeObservation, check_policy
from dynarep.pipeline.methods.policies.deterministic import Policy, PolicyArchitecture
from dynarep.pipeline.methods.policies.uniform import Uniform, UniformArchitecture


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_model(tmp_path / "intent", make("intent"))
    return tmp_path / "intent"


@pytest.fixture
def intent(path: Path) -> PretrainedIntent:
    encoder = load_encoder(path)
    assert isinstance(encoder, PretrainedIntent)
    return encoder


@pytest.fixture
def dynamics(tmp_path: Path) -> PretrainedDynamics:
    save_model(tmp_path / "dynamics", make("dynamics"))
    encoder = load_encoder(tmp_path / "dynamics")
    assert isinstance(encoder, PretrainedDynamics)
    return encoder


@pytest.fixture
def policy(tmp_path: Path) -> PretrainedPolicy:
    save_model(tmp_path / "policy", make("policy"))
    return load_policy(tmp_path / "policy")


class Drift(gym.Env[Any, Any]):
    """Observations of 3 float64 numbers that drift with the action; episodes of 5 steps."""

    def __init__(self, space: gym.Space[Any] | None = None, actions: gym.Space[Any] | None = None) -> None:
        self.observation_space = space or Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = actions or Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.state = 0, self.np_random.normal(size=3)
        return self.state, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.state = self.state + np.append(action, 1.0)
        return self.state, 0.0, False, self.steps == 5, {"raw": self.state}


def test_an_environment_of_latents(intent: PretrainedIntent) -> None:
    env = EncodeObservation(Drift(), intent)
    assert env.observation_space == Box(-np.inf, np.inf, (4,), np.float32)
    latent, _ = env.reset(seed=0)
    assert latent in env.observation_space
    torch.testing.assert_close(torch.from_numpy(latent), intent(torch.from_numpy(env.unwrapped.state)))
    latent, _, _, _, info = env.step(np.array([0.5, -0.5], np.float32))
    assert latent.dtype == np.float32
    np.testing.assert_allclose(latent, intent(info["raw"]), rtol=1e-5)
    intent.unfreeze()
    assert isinstance(env.step(env.action_space.sample())[0], np.ndarray)  # no gradient either way


@pytest.mark.filterwarnings("ignore::UserWarning")  # about wrappers and unbounded spaces
def test_the_environment_passes_gymnasiums_own_check(intent: PretrainedIntent) -> None:
    from gymnasium.utils.env_checker import check_env

    check_env(EncodeObservation(Drift(), intent), skip_render_check=True)


def test_environments_that_do_not_fit(intent: PretrainedIntent, dynamics: PretrainedDynamics) -> None:
    with pytest.raises(ArtifactError, match="observation: found 7 numbers in those of the environment, expected 3"):
        EncodeObservation(Drift(Box(-1, 1, (7,))), intent)
    for space in (Box(-1, 1, (3, 3)), Discrete(3), Dict({"observation": Box(-1, 1, (3,))})):
        with pytest.raises(ArtifactError, match="expected a Box of one axis"):
            EncodeObservation(Drift(space), intent)
    with pytest.raises(ArtifactError, match="found PretrainedDynamics, expected PretrainedIntent"):
        EncodeObservation(Drift(), dynamics)


def test_a_policy_in_an_environment(policy: PretrainedPolicy) -> None:
    env = Drift(actions=Box(np.array([-1, 0]), np.array([1, 5]), dtype=np.float32))
    check_policy(policy, env)
    observation, _ = env.reset(seed=0)
    done = False
    while not done:
        action = policy(observation)
        assert action in env.action_space
        observation, _, terminated, truncated, _ = env.step(action)
        done = terminated or truncated


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (Box(-1, 1, (7,)), None, "observation: found 7 numbers in those of the environment, expected 3"),
        (Box(-1, 1, (3, 3)), None, "expected a Box of one axis"),
        (None, Box(-1, 9, (3,)), "action: found 3 numbers in those of the environment, expected 2"),
        (None, Box(-1, 1, (2,)), r"expected one that holds the policy's actions, \[-1.0, 0.0\] to \[1.0, 5.0\]"),
        (None, Discrete(3), "found the action space Discrete"),
    ],
)
def test_environments_in_which_a_policy_cannot_act(
    observations: Any, actions: Any, message: str, policy: PretrainedPolicy
) -> None:
    with pytest.raises(ArtifactError, match=message):
        check_policy(policy, Drift(observations, actions))


@pytest.mark.parametrize("kind", ["intent", "dynamics", "policy"])
def test_onnx_equals_the_module(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs dynarep[onnx]")
    pytest.importorskip("onnxscript", reason="needs dynarep[onnx]")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs dynarep[onnx]")
    from dynarep.pipeline.integrations.onnx import export_onnx

    encoder = request.getfixturevalue(kind)
    output = "action" if kind == "policy" else "latent"
    export_onnx(encoder, tmp_path / "encoder.onnx")
    assert {entry.name for entry in tmp_path.iterdir()} == {kind, "encoder.onnx"}
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    for batch in (1, 2, 7):
        values = {"observation": generator.normal(size=(batch, 3)).astype(np.float32)}
        if kind == "dynamics":
            values["action"] = generator.normal(size=(batch, 2)).astype(np.float32)
        assert [value.name for value in session.get_inputs()] == list(values)
        (found,) = session.run([output], values)
        np.testing.assert_allclose(found, encoder(*values.values()), rtol=0, atol=1e-5)


def test_onnx_refuses_what_it_cannot_export(path: Path, tmp_path: Path) -> None:
    from dynarep.pipeline.integrations.onnx import export_onnx

    with pytest.raises(ArtifactError, match=r"found torch.float64 on cpu, expected torch.float32 on cpu"):
        export_onnx(load_encoder(path, dtype=torch.float64), tmp_path / "encoder.onnx")
    bounds = {"action_low": (-1.0, 0.0), "action_high": (1.0, 5.0)}
    noisy = PretrainedPolicy(Uniform(UniformArchitecture(replicas=1, observation_dim=3, **bounds)))
    with pytest.raises(ArtifactError, match="uniform: draws at random or keeps a state"):
        export_onnx(noisy, tmp_path / "encoder.onnx")
    assert not (tmp_path / "encoder.onnx").exists()


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize("trainable", [False, True])
def test_a_policy_on_psi(path: Path, intent: PretrainedIntent, tmp_path: Path, trainable: bool) -> None:
    stable_baselines3 = pytest.importorskip("stable_baselines3", reason="needs dynarep[sb3]")
    from dynarep.pipeline.integrations.stable_baselines3 import EncoderExtractor

    options = {"encoder": str(path), "trainable": trainable}
    policy = {"features_extractor_class": EncoderExtractor, "features_extractor_kwargs": options, "net_arch": [8]}
    agent = stable_baselines3.PPO("MlpPolicy", Drift(), policy_kwargs=policy, n_steps=16, batch_size=16, n_epochs=2)
    extractor = agent.policy.features_extractor
    assert extractor.features_dim == 4
    assert torch.equal(weights(extractor), weights(intent))  # SB3's orthogonal initialisation leaves them alone
    observation = agent.env.reset()
    torch.testing.assert_close(
        agent.policy.extract_features(agent.policy.obs_to_tensor(observation)[0]).detach(),
        torch.from_numpy(intent(observation)),
    )
    agent.learn(32)
    assert torch.equal(weights(extractor), weights(intent)) == (not trainable)
    agent.save(tmp_path / "agent.zip")
    loaded = stable_baselines3.PPO.load(tmp_path / "agent.zip")
    assert torch.equal(weights(loaded.policy), weights(agent.policy))


def test_policies_that_do_not_fit(path: Path, dynamics: PretrainedDynamics) -> None:
    pytest.importorskip("stable_baselines3", reason="needs dynarep[sb3]")
    from dynarep.pipeline.integrations.stable_baselines3 import EncoderExtractor

    with pytest.raises(ArtifactError, match="observation: found 7 numbers"):
        EncoderExtractor(Box(-1, 1, (7,)), str(path))
    with pytest.raises(ArtifactError, match="found PretrainedDynamics, expected PretrainedIntent"):
        EncoderExtractor(Box(-1, 1, (3,)), dynamics.source)


def test_a_transformer(path: Path, intent: PretrainedIntent) -> None:
    pytest.importorskip("sklearn", reason="needs dynarep[sklearn]")
    from sklearn.base import clone
    from sklearn.exceptions import NotFittedError
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    from dynarep.pipeline.integrations.scikit_learn import EncoderTransformer

    X = np.random.default_rng(0).normal(size=(20, 3))
    transformer = EncoderTransformer(str(path), replica=1, batch_size=7)
    with pytest.raises(NotFittedError):
        transformer.transform(X)
    Z = transformer.fit_transform(X)
    expected = load_encoder(path, replica=1)
    np.testing.assert_allclose(Z, expected(X), rtol=1e-4, atol=1e-6)
    assert not np.allclose(Z, intent(X))
    names = [f"encodertransformer{i}" for i in range(4)]
    assert transformer.get_feature_names_out().tolist() == names
    again = clone(transformer)
    assert again.get_params() == transformer.get_params()
    assert not hasattr(again, "encoder_")
    y = Z @ np.arange(1.0, 5.0)
    pipeline = make_pipeline(clone(transformer), Ridge(alpha=1e-6)).fit(X, y)
    assert pipeline.score(X, y) > 0.99
    with pytest.raises(ValueError, match="X has 4 features"):
        transformer.transform(np.ones((2, 4)))


def test_transformers_that_do_not_fit(path: Path, dynamics: PretrainedDynamics) -> None:
    pytest.importorskip("sklearn", reason="needs dynarep[sklearn]")
    from dynarep.pipeline.integrations.scikit_learn import EncoderTransformer

    with pytest.raises(ArtifactError, match="observation: found 7 numbers in those of X, expected 3"):
        EncoderTransformer(str(path)).fit(np.ones((2, 7)))
    with pytest.raises(ArtifactError, match="found PretrainedDynamics, expected PretrainedIntent"):
        EncoderTransformer(dynamics.source).fit(np.ones((2, 3)))
    with pytest.raises(ValueError, match="NaN"):
        EncoderTransformer(str(path)).fit(np.full((2, 3), np.nan))


@pytest.mark.filterwarnings("ignore")  # of the simulator
def test_the_pages_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of docs/policies.md, one after the other, with an upload that goes nowhere."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs dynarep[onnx]")
    bounds = {"action_low": (-1.0,) * 3, "action_high": (1.0,) * 3}
    torch.manual_seed(0)
    model = Policy(PolicyArchitecture(replicas=2, observation_dim=11, hidden=(16,), **bounds))
    save_model(tmp_path / "artifacts" / "learn" / "bc", model)
    monkeypatch.chdir(tmp_path)
    uploads = []
    monkeypatch.setattr(
        PretrainedPolicy, "push_to_hub", lambda policy, name, **options: uploads.append((name, options))
    )
    sent: list[Any] = []
    names: dict[str, Any] = {"read_sensors": lambda: np.zeros(11), "send_action": sent.append, "steps": 3}
    text = (Path(__file__).parents[1] / "docs" / "policies.md").read_text()
    for number, snippet in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)):
        exec(compile(snippet, f"policies.md, snippet {number}", "exec"), names)
    assert len(sent) == 3
    assert all(np.array_equal(action, names["policy"](np.zeros(11))) for action in sent)
    np.testing.assert_allclose(names["action"][0], names["policy"](names["observation"]), rtol=0, atol=1e-5)
    assert load_policy(tmp_path / "policies" / "hopper").metadata["license"] == "apache-2.0"
    assert (tmp_path / "model.pt2").is_file()
    assert uploads == [("owner/hopper-bc", {"license": "apache-2.0", "private": True})]
