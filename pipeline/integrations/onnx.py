"""Encoders and policies as ONNX models; needs ``dynarep[onnx]``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from dynarep.pipeline.artifacts.pretrained import PretrainedModel, PretrainedPolicy
from dynarep.pipeline.artifacts.storage import ArtifactError, exportable


def export_onnx(model: PretrainedModel[Any], path: str | os.PathLike[str]) -> None:
    """Write what a call of an encoder or a policy computes as one ONNX file with a dynamic batch.

    Inputs are ``observation`` (batch, observation_dim) and, where actions are read, ``action`` (batch, action_dim). The output
    is ``latent`` (batch, latent_dim) of an encoder, ``action`` (batch, action_dim) of a policy. All are float32; give one
    observation as a batch of one. Distances and ratios are not in it.

    Args:
        model: of type float32, on the CPU.
        path: of the file; appears whole or not at all.

    Raises:
        ArtifactError: if the ``onnx`` or ``onnxscript`` package is missing, or the model is of another type, elsewhere, draws at
            random or keeps a state.
        OSError: if the file cannot be written.
    """
    model.check_exportable()
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ArtifactError(f"exporting to ONNX needs {error.name}: pip install 'dynarep[onnx]'") from None

    one = exportable(model.model)
    inputs = one.inputs()
    batch = torch.export.Dim("batch", min=1)
    target = Path(path)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".dynarep-") as folder:
        new = Path(folder) / target.name
        torch.onnx.export(
            one,
            inputs,
            new,
            input_names=["observation", "action"][: len(inputs)],
            output_names=["action" if isinstance(model, PretrainedPolicy) else "latent"],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            external_data=False,
            dynamo=True,
            verbose=False,
        )
        new.replace(target)
