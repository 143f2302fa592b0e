"""Encoders and policies on the Hugging Face Hub, in this project's artifact format; needs ``dynarep[hub]``."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dynarep.pipeline.artifacts.locations import HUB, HUB_NAME
from dynarep.pipeline.artifacts.storage import ArtifactError, readme
from dynarep.pipeline.nn.models import ActingModel

if TYPE_CHECKING:
    from dynarep.pipeline.artifacts.pretrained import PretrainedModel

TAGS = ("reinforcement-learning", "robotics")


def upload(
    model: PretrainedModel[Any],
    name: str,
    *,
    license: str | None = None,  # noqa: A002
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    branch: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a model with its card.

    Args:
        model: an encoder or a policy.
        name: ``<owner>/<name>``; made if missing.
        license: under which you share it, one of the Hub's identifiers such as ``apache-2.0``; by default that of the metadata,
            else ``unknown``.
        private: whether others may not see a repository that is made now.
        token: of an account that may write there; by default that of ``hf auth login``.
        commit_message: of the commit.
        branch: to commit to; by default the main one.
        create_pr: propose the change instead of making it.

    Returns:
        URL of the commit.

    Raises:
        ArtifactError: if ``huggingface_hub`` is missing, the name is not one, or the Hub refuses or cannot be reached.
    """
    where = f"{HUB}{name}"
    if not HUB_NAME.fullmatch(name):
        raise ArtifactError(f"{where}: expected {HUB}<owner>/<name>")
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ArtifactError(f"{where}: needs huggingface_hub: pip install 'dynarep[hub]'") from None
    with TemporaryDirectory(prefix="dynarep-") as temporary:
        folder = Path(temporary) / "artifact"
        model.save_pretrained(folder, license=license)
        metadata = model.metadata if license is None else {**model.metadata, "license": license}
        (folder / "README.md").write_text(card(model, name, metadata), encoding="utf-8", errors="backslashreplace")
        try:
            api = HfApi(token=token)
            api.create_repo(name, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=name,
                folder_path=folder,
                commit_message=commit_message or "Upload with dynarep",
                revision=branch,
                create_pr=create_pr,
            )
        except Exception as error:  # the Hub's own errors and those of whatever it talks through
            raise ArtifactError(f"{where}: cannot be uploaded: {type(error).__name__}: {error}") from error
    return str(commit)


def card(model: PretrainedModel[Any], name: str, metadata: dict[str, Any]) -> str:
    """The model card: the Hub's front matter, and the artifact's README with the Hub's address.

    Args:
        model: an encoder or a policy.
        name: ``<owner>/<name>``.
        metadata: of the artifact; ``scores``, a mapping with ``env`` and numbers, become the Hub's results.

    Raises:
        ArtifactError: if ``huggingface_hub`` is missing.
    """
    try:
        from huggingface_hub import EvalResult, ModelCardData
    except ImportError:
        raise ArtifactError(f"{HUB}{name}: needs huggingface_hub: pip install 'dynarep[hub]'") from None
    policy = isinstance(model.model, ActingModel)
    scores = metadata.get("scores")
    results = []
    if isinstance(scores, dict) and isinstance(scores.get("env"), str):
        results = [
            EvalResult(
                task_type="reinforcement-learning",
                dataset_type=scores["env"],
                dataset_name=scores["env"],
                metric_type=key,
                metric_value=value,
            )
            for key, value in scores.items()
            if isinstance(value, int | float)
        ]
    data = ModelCardData(
        library_name="dynarep",
        license=str(metadata.get("license", "unknown")),
        pipeline_tag="reinforcement-learning" if policy else "feature-extraction",
        tags=[*TAGS, "imitation-learning" if policy else "representation-learning", model.model.kind],
        model_name=name,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{readme(model.model, metadata, f'{HUB}{name}')}"
