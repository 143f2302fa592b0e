"""Small models with random weights and normalisers, for tests."""

from __future__ import annotations

import torch
from torch import nn

from dynarep.pipeline.methods.encoders.contrastive import DynamicsArchitecture, DynamicsEncoder
from dynarep.pipeline.methods.encoders.icvf import IntentArchitecture, IntentEncoder
from dynarep.pipeline.methods.policies.deterministic import Policy, PolicyArchitecture
from dynarep.pipeline.nn.networks import Normaliser

Model = IntentEncoder | DynamicsEncoder | Policy


def make(kind: str) -> Model:
    """An ``intent`` or ``dynamics`` encoder or a ``policy``: 2 replicas, 3 numbers in an observation, 2 in an action."""
    torch.manual_seed(0)
    model: Model
    if kind == "intent":
        model = IntentEncoder(
            IntentArchitecture(replicas=2, observation_dim=3, hidden=(8,), latent_dim=4, variant="ailot")
        )
        model.calibration.copy_(torch.tensor([2.0, 3.0]))
    elif kind == "dynamics":
        model = DynamicsEncoder(
            DynamicsArchitecture(
                replicas=2,
                observation_dim=3,
                action_dim=2,
                action_low=(-1.0, -1.0),
                action_high=(1.0, 1.0),
                hidden=(8, 8),
                feature_dim=4,
                positive=True,
                absorbing=True,
            )
        )
    else:
        model = Policy(
            PolicyArchitecture(
                replicas=2,
                observation_dim=3,
                action_low=(-1.0, 0.0),
                action_high=(1.0, 5.0),
                hidden=(8,),
                absorbing=True,
            )
        )
        nn.init.normal_(model.network.layers[-1].weight)
    size = model.normaliser.mean.shape[0]
    model.normaliser = Normaliser(torch.randn(size), torch.rand(size) + 0.5)
    return model
