"""Where artifacts come from: a folder, a DVC repository, the Hugging Face Hub. All become a local folder."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dynarep.pipeline.artifacts.storage import ArtifactError

FILES = ("config.json", "model.safetensors", "metadata.json")
"""What is fetched of an artifact; the last one may be missing."""

DVC, HUB = "dvc://", "hf://"


HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""``<owner>/<name>``."""


@contextmanager
def artifact_folder(
    source: str | os.PathLike[str], root: str | os.PathLike[str] = "", **options: Any
) -> Iterator[Path]:
    """The artifact at ``source`` as a local folder, which is there as long as the block runs.

    Args:
        source: one of

            - a path,
            - ``dvc://<repository>#<path>[@<revision>]``: a folder that a DVC or git repository tracks, at a git revision.
              The repository is a path or a git URL; none means the current folder's. Of a local repository without a
              revision the working tree is read.
            - ``hf://<owner>/<name>[@<revision>]``: a model repository on the Hugging Face Hub; needs ``dynarep[hub]``.
        root: relative paths start here, those of repositories too; by default the current folder.
        options: for the Hub, see ``hub_snapshot``.

    Raises:
        ArtifactError: if the source cannot be read as one of these, or is not there.
    """
    text = os.fspath(source)
    if text.startswith(DVC):
        with tempfile.TemporaryDirectory(prefix="dynarep-") as folder:
            _from_dvc(text, Path(folder), Path(root))
            yield Path(folder)
    elif text.startswith(HUB):
        name, _, revision = text.removeprefix(HUB).partition("@")
        yield hub_snapshot(name, revision or None, **options)
    elif re.match(r"\w{2,}:/", text):
        raise ArtifactError(
            f"{text}: expected a path, {DVC}<repository>#<path>[@<revision>] or {HUB}<owner>/<name>[@<revision>]"
        )
    else:
        path = Path(root, text)
        if not os.path.lexists(path):
            hint = f"; a model of the Hub is {HUB}{text}" if HUB_NAME.fullmatch(text) else ""
            raise ArtifactError(f"{text}: no such folder in {Path(root).absolute()}, expected an artifact{hint}")
        yield path


def pretrained_source(name: str, revision: str | None = None) -> str:
    """What ``from_pretrained`` means by a name: an existing folder, else a repository of the Hub.

    Args:
        name: a path, ``<owner>/<name>``, or anything with a prefix.
        revision: of the Hub's repository.

    Returns:
        A source for ``artifact_folder``.

    Raises:
        ArtifactError: if the name is that of a folder that is not there, or has a revision twice.
    """
    if name.startswith(HUB) or (not Path(name).exists() and HUB_NAME.fullmatch(name) and not _local(name)):
        source = name if name.startswith(HUB) else f"{HUB}{name}"
        if revision is None:
            return source
        if "@" in source:
            raise ArtifactError(f"{source}: found another revision, {revision}; expected one of them")
        return f"{source}@{revision}"
    return name


def _local(name: str) -> bool:
    """Whether a name of two parts starts like a path here, so that a mistyped folder is not looked for on the Hub."""
    owner = name.partition("/")[0]
    return owner in (".", "..") or Path(owner).is_dir()


def _from_dvc(source: str, folder: Path, root: Path) -> None:
    repository, mark, location = source.removeprefix(DVC).partition("#")
    path, _, revision = location.partition("@")
    path = path.strip("/")
    if not mark or not path:
        raise ArtifactError(f"{source}: expected {DVC}<repository>#<path>[@<revision>], the path inside the repository")

    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError
    from dvc_data.index import DataIndexDirError

    try:
        remote = re.match(r"\w+://|[^/]+@[^/]+:", repository)
        files = DVCFileSystem(repo=repository if remote else str(root / repository), rev=revision or None)
        for name in FILES:
            if name != "metadata.json" or files.exists(f"{path}/{name}"):
                files.get_file(f"{path}/{name}", str(folder / name))
    except (DvcException, SCMError, DataIndexDirError, OSError) as error:
        raise ArtifactError(
            f"{source}: cannot be fetched: {type(error).__name__}: {error}; expected the folder of an artifact, whose files "
            "are in git, in the DVC cache of a local repository, or on its default remote"
        ) from error


def hub_snapshot(name: str, revision: str | None = None, **options: Any) -> Path:
    """The artifact in a model repository on the Hugging Face Hub, as a folder of the local cache.

    Args:
        name: ``<owner>/<name>``.
        revision: branch, tag or commit; by default the main branch.
        options: ``token``, ``cache_dir``, ``force_download``, ``local_files_only`` of ``huggingface_hub.snapshot_download``.

    Raises:
        ArtifactError: if the name is not one, ``huggingface_hub`` is not installed, or the repository cannot be had.
    """
    where = f"{HUB}{name}" + (f"@{revision}" if revision else "")
    if not HUB_NAME.fullmatch(name):
        raise ArtifactError(f"{where}: expected {HUB}<owner>/<name>[@<revision>]")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ArtifactError(f"{where}: needs huggingface_hub: pip install 'dynarep[hub]'") from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES), **options))
    except Exception as error:  # the Hub's own errors and those of whatever it talks through
        raise ArtifactError(f"{where}: cannot be fetched: {type(error).__name__}: {error}") from error
