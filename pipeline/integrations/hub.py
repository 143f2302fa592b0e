"""Encoders on the Hugging Face Hub, in this project's artifact format; needs ``dynarep[hub]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

try:
    from huggingface_hub import ModelCard, ModelHubMixin
except ImportError:
    raise ImportError("dynarep.pipeline.integrations.hub needs huggingface_hub: pip install 'dynarep[hub]'") from None

from dynarep.pipeline.artifacts.storage import NO_PATH
from dynarep.pipeline.artifacts.locations import HUB, hub_snapshot
from dynarep.pipeline.artifacts.pretrained import PretrainedDynamics, PretrainedEncoder, PretrainedIntent, load_encoder


class HubEncoder(  # type: ignore[call-arg]
    ModelHubMixin, library_name="dynarep", tags=["reinforcement-learning", "robotics", "representation-learning"]
):
    """What ``PretrainedEncoder.from_pretrained`` and ``.push_to_hub`` use: how an encoder is saved and loaded.

    Args:
        encoder: to be saved.
        name: ``<owner>/<name>``, for the model card.
    """

    encoder: PretrainedIntent | PretrainedDynamics

    def __init__(self, encoder: PretrainedEncoder, name: str) -> None:
        assert isinstance(encoder, PretrainedIntent | PretrainedDynamics)
        self.encoder, self.name = encoder, name

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the artifact; its README gets the Hub's header and address."""
        self.encoder.save_pretrained(save_directory)
        readme = save_directory / "README.md"
        path = self.encoder.metadata.get("path", NO_PATH)
        text = readme.read_text().replace(f'load_encoder("{path}")', f'load_encoder("{HUB}{self.name}")')
        card = ModelCard(f"---\n{self._hub_mixin_info.model_card_data.to_yaml()}\n---\n\n{text}")
        card.save(readme)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **options: Any,
    ) -> HubEncoder:
        if Path(model_id).is_dir():
            return cls(load_encoder(model_id, **options), model_id)
        folder = hub_snapshot(
            model_id,
            revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        encoder = load_encoder(folder, **options)
        encoder.source = f"{HUB}{model_id}" + (f"@{revision}" if revision else "")
        return cls(encoder, model_id)
