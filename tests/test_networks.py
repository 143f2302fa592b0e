import math

import pytest
import torch
from torch import Tensor, nn

from dynarep.pipeline.methods.encoders.contrastive import DynamicsArchitecture, DynamicsEncoder
from dynarep.pipeline.methods.encoders.icvf import IntentArchitecture, IntentEncoder
from dynarep.pipeline.methods.policies.deterministic import Policy, PolicyArchitecture
from dynarep.pipeline.nn.networks import MLP, Normaliser, StackedLinear

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def linears(layer: StackedLinear) -> list[nn.Linear]:
    """The members of a stack as PyTorch's own layers, last stack axis fastest."""
    inputs, outputs = layer.weight.shape[-2:]
    weights = layer.weight.reshape(-1, inputs, outputs)
    biases = None if layer.bias is None else layer.bias.reshape(-1, outputs)
    members = []
    for i, weight in enumerate(weights):
        member = nn.Linear(inputs, outputs, bias=biases is not None)
        with torch.no_grad():
            member.weight.copy_(weight.T)
            if biases is not None:
                member.bias.copy_(biases[i])
        members.append(member)
    return members


@pytest.mark.parametrize("stack", [(1,), (3,), (3, 2), (2, 2, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_stacked_linear_is_a_loop_of_linears(stack: tuple[int, ...], bias: bool) -> None:
    layer = StackedLinear(stack, 4, 5, bias=bias)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    x = torch.randn(*stack, 6, 4)
    expected = torch.stack([member(one) for member, one in zip(linears(layer), x.reshape(-1, 6, 4), strict=True)])
    torch.testing.assert_close(layer(x), expected.reshape(*stack, 6, 5))


def test_size_one_axes_are_shared_inputs() -> None:
    layer = StackedLinear((3, 2), 4, 5)
    x = torch.randn(3, 1, 6, 4)
    assert torch.equal(layer(x), layer(x.expand(3, 2, 6, 4)))
    assert torch.equal(layer(x[:1]), layer(x[:1].expand(3, 2, 6, 4)))


def test_initialisation() -> None:
    wide = StackedLinear((3,), 16, 4, gain=0.5)
    torch.testing.assert_close(wide.weight.mT @ wide.weight, 0.25 * torch.eye(4).expand(3, 4, 4), atol=1e-6, rtol=0)
    assert wide.bias is not None
    assert not wide.bias.any()
    xavier = StackedLinear((3,), 200, 100, init="xavier_uniform")
    bound = math.sqrt(6 / 300)
    assert xavier.weight.abs().max() <= bound
    torch.testing.assert_close(xavier.weight.std((1, 2)), torch.full((3,), bound / math.sqrt(3)), rtol=0.02, atol=0)
    for layer in (wide, xavier):
        assert not torch.equal(layer.weight[0], layer.weight[1])
        assert not torch.equal(layer.weight[1], layer.weight[2])


def test_mlp_is_a_sequence_of_layers() -> None:
    network = MLP((2,), (3, 8, 8, 4), hidden_activation="gelu", final_activation="relu", layer_norm=True)
    for layer in network.layers:
        nn.init.normal_(layer.bias)
    x = torch.randn(2, 5, 3)
    for replica in range(2):
        first, second, last = (linears(layer)[replica] for layer in network.layers)
        norm = nn.LayerNorm(8, elementwise_affine=False)
        member = nn.Sequential(first, nn.GELU(), norm, second, nn.GELU(), norm, last, nn.ReLU())
        torch.testing.assert_close(network(x)[replica], member(x[replica]))


def test_mlp_final_layer() -> None:
    plain = MLP((2,), (3, 8, 6))
    assert plain.layers[-1].bias is not None
    assert (plain(torch.randn(2, 100, 3)) < 0).any()  # no final activation
    open_end = MLP((2,), (3, 8, 4), final_bias=False, final_gain=0.01)
    assert open_end.layers[0].bias is not None
    assert open_end.layers[-1].bias is None
    torch.testing.assert_close(open_end.layers[-1].weight.norm(dim=1), torch.full((2, 4), 0.01))


def test_replicas_do_not_touch_each_other() -> None:
    network = MLP((2,), (3, 16, 16, 2))
    x = torch.randn(2, 5, 3)
    network(x)[0].square().sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad[0].any()
        assert not parameter.grad[1].any()
    other = x.clone()
    other[1] = 1e3 * torch.randn(5, 3)
    assert torch.equal(network(x)[0], network(other)[0])
    assert not torch.equal(network(x)[1], network(other)[1])


def test_normaliser() -> None:
    normaliser = Normaliser(torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.0, 3.999]))
    torch.testing.assert_close(normaliser(torch.tensor([[1.5, 2.0]])), torch.tensor([[500.0, 1.0]]))
    assert set(normaliser.state_dict()) == {"mean", "std"}
    assert normaliser.mean.dtype == torch.float32
    assert not list(normaliser.parameters())
    x = torch.randn(4, 2)
    torch.testing.assert_close(Normaliser.identity(2)(x), x, rtol=1e-6, atol=0)


def normalise(model: IntentEncoder | DynamicsEncoder | Policy) -> None:
    nn.init.normal_(model.normaliser.mean)
    nn.init.uniform_(model.normaliser.std, 0.5, 2.0)


@pytest.mark.parametrize("variant", ["icvf", "ailot"])
def test_intent_encoder(variant: str) -> None:
    architecture = IntentArchitecture(replicas=2, observation_dim=3, hidden=(8,), latent_dim=4, variant=variant)  # type: ignore[arg-type]
    encoder = IntentEncoder(architecture)
    normalise(encoder)
    encoder.calibration.copy_(torch.tensor([2.0, 5.0]))
    a, b = torch.randn(2, 50, 3)
    embedded = encoder.embed(a[None])
    assert embedded.shape == (2, 50, 4)
    assert torch.equal(encoder(a), embedded[0])
    activation = torch.relu if variant == "icvf" else nn.functional.gelu
    before = encoder.psi.layers[1](torch.relu(encoder.psi.layers[0](encoder.normaliser(a[None]))))
    torch.testing.assert_close(embedded, activation(before))
    torch.testing.assert_close(encoder.distance(a, b), 2.0 * (encoder(a) - encoder(b)).square().sum(-1))


@pytest.mark.parametrize("positive", [False, True])
def test_dynamics_encoder(positive: bool) -> None:
    architecture = DynamicsArchitecture(
        replicas=2, observation_dim=3, action_dim=2, hidden=(8,), feature_dim=16, positive=positive
    )
    encoder = DynamicsEncoder(architecture)
    normalise(encoder)
    s, a, s_next = torch.randn(50, 3), torch.randn(50, 2), torch.randn(50, 3)
    standard = (s - encoder.normaliser.mean) / (encoder.normaliser.std + 1e-3)
    raw = encoder.phi_network(torch.cat([standard, a], -1)[None])
    phi = encoder.phi(s[None], a[None])
    torch.testing.assert_close(phi, (nn.functional.softplus(raw) if positive else raw) / 4.0)
    assert (phi > 0).all() == positive
    mu = encoder.mu(s_next[None])
    assert phi.shape == mu.shape == (2, 50, 16)
    assert torch.equal(encoder(s, a), phi[0])
    torch.testing.assert_close(encoder.ratio(s, a, s_next), (phi[0] * mu[0]).sum(-1))
    assert encoder.phi_network.layers[-1].bias is None
    assert encoder.mu_network.layers[-1].bias is not None


def test_a_missing_absorbing_bit_is_zero() -> None:
    architecture = DynamicsArchitecture(
        replicas=1, observation_dim=3, action_dim=2, hidden=(8,), feature_dim=4, absorbing=True
    )
    encoder = DynamicsEncoder(architecture)
    normalise(encoder)
    s, a = torch.randn(1, 5, 3), torch.randn(1, 5, 2)
    alive, absorbed = (torch.cat([s, torch.full((1, 5, 1), bit)], -1) for bit in (0.0, 1.0))
    assert torch.equal(encoder.phi(s, a), encoder.phi(alive, a))
    assert torch.equal(encoder.mu(s), encoder.mu(alive))
    assert not torch.equal(encoder.mu(s), encoder.mu(absorbed))


def test_policy_acts_within_its_bounds() -> None:
    architecture = PolicyArchitecture(
        replicas=3, observation_dim=2, action_low=(-1.0, 2.0), action_high=(1.0, 10.0), hidden=(8,)
    )
    policy = Policy(architecture)
    normalise(policy)
    with torch.no_grad():
        policy.network.layers[-1].weight.mul_(1e3)
    observations = torch.randn(3, 200, 2)
    actions: Tensor = policy.act(observations)
    assert policy.replicas == 3
    assert actions.shape == (3, 200, 2)
    low, high = torch.tensor(architecture.action_low), torch.tensor(architecture.action_high)
    assert (actions >= low).all()
    assert (actions <= high).all()
    assert (actions.amin((0, 1)) < low + 0.1).all()
    assert (actions.amax((0, 1)) > high - 0.1).all()
    torch.testing.assert_close(actions, low + (torch.tanh(policy.mean(observations)) + 1) / 2 * (high - low))
    assert torch.equal(policy(observations[0]), policy.act(observations[:1])[0])
