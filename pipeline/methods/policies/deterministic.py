"""A deterministic policy on standardised observations, or on what an encoder makes of them.

With several ``components`` it is a mixture of Gaussians (Bishop 1994, "Mixture Density Networks"): modes tanh(f_k(s)) with
weights softmax(g(s)), of which it plays the one of largest weight.
"""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from dynarep.configs.params import config, validate
from dynarep.pipeline.method import World
from dynarep.pipeline.nn.functional import gaussian_log_prob
from dynarep.pipeline.nn.models import ActingModel, Encoder
from dynarep.pipeline.nn.networks import MLP, Normaliser, StackedLinear


@config
class PolicyArchitecture:
    """Architecture of ``Policy``.

    ``encoder`` is the kind and architecture of the encoder that the policy reads through, None for one that reads observations;
    with ``beside`` it reads both. ``components`` is the number of modes.
    """

    replicas: int
    observation_dim: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    hidden: tuple[int, ...]
    absorbing: bool = False
    encoder: dict[str, Any] | None = None
    beside: bool = False
    layer_norm: bool = False
    components: int = 1


FIRST_LOG_STD = -1.5
"""Where cloning starts with the log deviation of several modes: narrow, else all of them stand between those of the data."""


class Policy(ActingModel):
    """A deterministic policy: tanh of a perceptron, scaled to the action bounds."""

    kind = "deterministic"
    Architecture = PolicyArchitecture
    architecture: PolicyArchitecture
    encoder: Encoder | None

    def __init__(self, architecture: PolicyArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        a = architecture
        inputs = a.observation_dim + a.absorbing
        self.normaliser = Normaliser.identity(inputs)
        self.encoder = None
        if a.encoder is not None:
            self.encoder = encoder_of(a.encoder)
            latent_dim = self.encoder.latent_dim()
            self.latents = Normaliser(torch.zeros(a.replicas, 1, latent_dim), torch.ones(a.replicas, 1, latent_dim))
            inputs = latent_dim + (inputs if a.beside else 0)
        sizes = inputs, *a.hidden, self.outputs
        self.network = MLP((a.replicas,), sizes, layer_norm=a.layer_norm, final_gain=0.01)
        if a.components > 1:  # modes that begin alike would stay alike
            nn.init.uniform_(cast(Tensor, self.network.layers[-1].bias), -1.0, 1.0)
        self.register_buffer("low", torch.tensor(a.action_low, dtype=torch.float32))
        self.register_buffer("high", torch.tensor(a.action_high, dtype=torch.float32))

    @property
    def outputs(self) -> int:
        """Numbers that the network gives: an action before tanh, or for each mode that and a logit."""
        a = self.architecture
        return len(a.action_low) if a.components == 1 else a.components * (len(a.action_low) + 1)

    @property
    def first_log_std(self) -> float:
        """Where cloning starts with the log deviation."""
        return 0.0 if self.architecture.components == 1 else FIRST_LOG_STD

    @classmethod
    def build(
        cls,
        world: World,
        hidden: tuple[int, ...],
        *,
        beside: bool = False,
        layer_norm: bool = False,
        components: int = 1,
    ) -> Policy:
        """For the observations, actions and encoder of a world; its normalisers are those of the world."""
        part = world.encoder
        encoder = None
        if part is not None:
            encoder = {"kind": part.kind, "architecture": dataclasses.asdict(part.architecture_for(world.replicas))}
        policy = cls(
            PolicyArchitecture(
                replicas=world.replicas,
                observation_dim=world.observation_dim,
                action_low=world.action_low,
                action_high=world.action_high,
                hidden=hidden,
                absorbing=world.absorbing,
                encoder=encoder,
                beside=beside and encoder is not None,
                layer_norm=layer_norm,
                components=components,
            )
        )
        policy.normaliser = Normaliser(world.mean, world.std)
        if part is not None:
            assert world.latents is not None
            rows = range(world.replicas) if part.architecture.replicas > 1 else [0] * world.replicas
            policy.encoder = cast(Encoder, deepcopy(part).cpu().replica_rows(rows))
            policy.latents = Normaliser(*(x.expand(world.replicas, *x.shape[1:]).clone() for x in world.latents))
        return policy

    def is_shared(self, name: str) -> bool:
        """Also what replicas of the encoder share."""
        of_encoder = self.encoder is not None and self.encoder.is_shared(name.removeprefix("encoder."))
        return of_encoder if name.startswith("encoder.") else super().is_shared(name)

    def architecture_for(self, replicas: int) -> PolicyArchitecture:
        """Also of the encoder."""
        encoder = self.architecture.encoder
        if encoder is not None:
            encoder = {**encoder, "architecture": {**encoder["architecture"], "replicas": replicas}}
        return dataclasses.replace(self.architecture, replicas=replicas, encoder=encoder)

    def features(self, observations: Tensor) -> Tensor:
        """What the network reads: (R or 1, B, obs_dim) -> (R or 1, B, inputs)."""
        if self.architecture.absorbing and observations.shape[-1] == self.architecture.observation_dim:
            observations = nn.functional.pad(observations, (0, 1))
        if self.encoder is None:
            return self.normaliser(observations)  # type: ignore[no-any-return]
        with torch.no_grad():
            latents: Tensor = self.latents(self.encoder.embed(observations))
        if not self.architecture.beside:
            return latents
        own = self.normaliser(observations)
        return torch.cat([latents, own.expand(*latents.shape[:-1], -1)], -1)

    def mean(self, observations: Tensor) -> Tensor:
        """Network output before tanh: (R or 1, B, obs_dim) -> (R, B, act_dim)."""
        return self.network(self.features(observations))  # type: ignore[no-any-return]

    def rescale(self, unit_actions: Tensor) -> Tensor:
        """Map actions from [-1, 1] to the bounds."""
        return self.low + (unit_actions + 1.0) * 0.5 * (self.high - self.low)

    def unit(self, actions: Tensor) -> Tensor:
        """Map actions from the bounds to [-1, 1]."""
        return (actions - 0.5 * (self.low + self.high)) / (0.5 * (self.high - self.low))

    @property
    def width(self) -> int:
        """Numbers that the network reads."""
        first: StackedLinear = self.network.layers[0]  # type: ignore[assignment]
        return first.weight.shape[-2]

    def modes(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Modes in [-1, 1] and log weights by an output of the network: (R, B, outputs) -> (R, B, K, act_dim), (R, B, K)."""
        parts = output.view(*output.shape[:-1], self.architecture.components, -1)
        return torch.tanh(parts[..., :-1]), torch.log_softmax(parts[..., -1], -1)

    def mode(self, output: Tensor) -> Tensor:
        """The action in [-1, 1] that is played: (R, B, outputs) -> (R, B, act_dim)."""
        if self.architecture.components == 1:
            return torch.tanh(output)
        modes, weights = self.modes(output)
        index = weights.argmax(-1, keepdim=True).unsqueeze(-1).expand(*weights.shape[:-1], 1, modes.shape[-1])
        return modes.gather(-2, index).squeeze(-2)

    def log_prob(self, output: Tensor, unit_actions: Tensor, log_std: Tensor) -> Tensor:
        """Log density of actions in [-1, 1]: (R, B, outputs), (R, B, act_dim), (R, 1, act_dim) -> (R, B)."""
        if self.architecture.components == 1:
            return gaussian_log_prob(unit_actions, torch.tanh(output), log_std)
        modes, weights = self.modes(output)
        each = gaussian_log_prob(unit_actions.unsqueeze(-2), modes, log_std.unsqueeze(-2))
        return torch.logsumexp(weights + each, -1)

    def act(self, observations: Tensor) -> Tensor:
        """Actions of every replica within the bounds: (R or 1, B, obs_dim) -> (R, B, act_dim)."""
        return self.rescale(self.mode(self.mean(observations)))


def encoder_of(part: dict[str, Any]) -> Encoder:
    """The encoder that an architecture names, with new weights."""
    from dynarep.pipeline.registry import find_model

    model = find_model("encoders", part.get("kind"), "architecture.encoder.kind")
    chosen: Any = validate(model.Architecture, part.get("architecture"), "architecture.encoder.architecture")
    return cast(Encoder, model(chosen).requires_grad_(False))
