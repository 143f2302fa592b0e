"""Encoders as ONNX models; needs ``dynarep[onnx]``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from dynarep.pipeline.artifacts.storage import ArtifactError, example_inputs
from dynarep.pipeline.artifacts.pretrained import PretrainedDynamics, PretrainedIntent


def export_onnx(encoder: PretrainedIntent | PretrainedDynamics, path: str | os.PathLike[str]) -> None:
    """Write ``encoder(...)`` as one ONNX file with a dynamic batch.

    Inputs are ``observation`` (batch, observation_dim) and, for a dynamics encoder, ``action`` (batch, action_dim); the
    output is ``latent`` (batch, latent_dim); all float32. Distances and ratios are not in it.

    Args:
        encoder: of type float32, on the CPU.
        path: of the file; appears whole or not at all.

    Raises:
        ArtifactError: if the ``onnx`` or ``onnxscript`` package is missing, or the encoder is of another type or elsewhere.
    """
    if encoder.dtype != torch.float32 or encoder.device.type != "cpu":
        raise ArtifactError(
            f"{encoder.source}: found {encoder.dtype} on {encoder.device}, expected torch.float32 on cpu"
        )
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ArtifactError(f"exporting to ONNX needs {error.name}: pip install 'dynarep[onnx]'") from None

    inputs = example_inputs(encoder.model)
    batch = torch.export.Dim("batch", min=1)
    target = Path(path)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".dynarep-") as folder:
        new = Path(folder) / target.name
        torch.onnx.export(
            encoder.model,
            inputs,
            new,
            input_names=["observation", "action"][: len(inputs)],
            output_names=["latent"],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            external_data=False,
            dynamo=True,
            verbose=False,
        )
        new.replace(target)
