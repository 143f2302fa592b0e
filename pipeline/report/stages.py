"""One card per stage: what it made of what, how long that took, with which version; and all parameters, folded away."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from dynarep.pipeline.report.html import as_text, count, details, duration, facts, flatten, or_missing, table
from dynarep.pipeline.report.inputs import MissingInputError, models, read_json, read_returns

STAGES = ("pretrain_dynamics", "pretrain_intent", "imitate", "relabel", "offline_rl", "evaluate")
MEASURED = ("pretrain_dynamics", "pretrain_intent", "relabel")
"""Stages whose metrics are not on the page otherwise."""

PURPOSES = {
    "pretrain_dynamics": "Learns φ(s, a) and μ(s′), whose product says how likely a step is.",
    "pretrain_intent": "Learns ψ(s), in which distance is the number of steps from one state to another.",
    "imitate": "Imitates the demonstrations.",
    "relabel": "Rewards the dataset by comparison with the demonstrations.",
    "offline_rl": "Learns policies from the dataset and its new rewards.",
    "evaluate": "Plays every policy and scores it.",
}


def stages_section(artifacts: Path) -> str:
    """Datasets, cards, and the metadata of every model."""
    cards = "".join(_card(artifacts, stage) for stage in STAGES)
    metadata = "".join(or_missing(_metadata, artifacts, model) for model in models(artifacts))
    return f'{_datasets(artifacts)}<div class="cards">{cards}</div>\n<h3>Parameters and fingerprints</h3>\n{metadata}'


def dataset_text(artifacts: Path, name: str) -> str:
    """A dataset in a sentence, with its size where that is known."""
    path = artifacts / "shards" / name / "index.json"
    return f"{name} ({count(read_json(path)['transitions'], 'transition')})" if path.is_file() else name


def _datasets(artifacts: Path) -> str:
    """The prepared datasets that the models and labels were made from."""
    used: dict[str, None] = {}
    for folder in [*models(artifacts), "relabel"]:
        path = artifacts / folder / "metadata.json"
        if path.is_file():
            used |= dict.fromkeys(read_json(path).get("datasets", {}))
    rows = []
    for name in used:
        path = artifacts / "shards" / name / "index.json"
        if path.is_file():
            index = read_json(path)
            returns, episodes = index["returns"], sum(len(shard["episodes"]) for shard in index["shards"])
            mean, best = (f"{sum(returns) / len(returns):,.0f}", f"{max(returns):,.0f}") if returns else ("–", "–")
            rows.append([name, index["env"] or "–", f"{episodes:,}", f"{index['transitions']:,}", mean, best])
    header = [("dataset", "name"), ("environment", "text")]
    header += [(title, "number") for title in ("episodes", "transitions", "mean return", "best return")]
    return table("Prepared datasets", header, rows) if rows else ""


def _card(artifacts: Path, stage: str) -> str:
    parts = "".join(or_missing(part, artifacts, stage) for part in (_facts, _metrics))
    return f"<article><h3>{stage}</h3><p>{escape(PURPOSES[stage])}</p>{parts}</article>\n"


def _facts(artifacts: Path, stage: str) -> str:
    return facts([*FACTS[stage](artifacts, stage), *_timing(artifacts, stage), *_version(artifacts, stage)])


def _metrics(artifacts: Path, stage: str) -> str:
    if stage not in MEASURED:
        return ""
    rows = flatten(read_json(artifacts / stage / "metrics.json"))
    return details("metrics", "", table(f"Metrics of {stage}", [("metric", "name"), ("value", "value")], rows))


def _timing(artifacts: Path, stage: str) -> list[tuple[str, str]]:
    path = artifacts / stage / "timing.json"
    if not path.is_file():
        return []
    timing = read_json(path)
    began = datetime.fromisoformat(timing["started"]).strftime("%Y-%m-%d %H:%M UTC")
    return [("took", f"{duration(timing['seconds'])} on {count(timing['cores'], 'core')}"), ("began", began)]


def _version(artifacts: Path, stage: str) -> list[tuple[str, str]]:
    """Version and revision; those of the first model where there are several."""
    candidates = [artifacts / stage / "metadata.json", *sorted((artifacts / stage).glob("*/metadata.json"))]
    metadata = next((read_json(path) for path in candidates if path.is_file()), None)
    if metadata is None:
        return []
    revision = metadata.get("revision")
    return [("made by", f"dynarep {as_text(metadata.get('version'))}" + (f", revision {revision}" if revision else ""))]


def _pretrained(artifacts: Path, stage: str) -> list[tuple[str, str]]:
    metadata = read_json(artifacts / stage / "metadata.json")
    params = metadata.get("params", {})
    training = params.get(stage, {}).get("training", {})
    return [
        ("from", ", ".join(metadata.get("datasets", {}))),
        ("replicas", as_text(params["replicas"]) if "replicas" in params else ""),
        ("updates", f"{training['updates']:,}" if "updates" in training else ""),
    ]


def _trained(artifacts: Path, stage: str) -> list[tuple[str, str]]:
    folders = [path.parent for path in sorted((artifacts / stage).glob("*/config.json"))]
    if not folders:
        raise MissingInputError(artifacts / stage / "*" / "config.json")
    metadata = [read_json(folder / "metadata.json") for folder in folders]
    sources = dict.fromkeys(name for known in metadata for name in known.get("datasets", {}))
    return [("from", ", ".join(sources)), ("policies", ", ".join(folder.name for folder in folders))]


def _labelled(artifacts: Path, stage: str) -> list[tuple[str, str]]:
    metadata = read_json(artifacts / stage / "metadata.json")
    methods = [path.parent.name for path in sorted((artifacts / stage).glob("*/returns.tsv"))]
    return [
        ("dataset", as_text(metadata.get("dataset"))),
        ("demonstrations", as_text(metadata.get("demonstrations"))),
        ("methods", ", ".join(methods)),
    ]


def _evaluated(artifacts: Path, stage: str) -> list[tuple[str, str]]:
    raw = read_returns(artifacts)
    versions = ", ".join(f"{package} {number}" for package, number in raw["versions"].items())
    episodes = {len(row) for played in raw["policies"].values() for row in played["returns"]}
    return [
        ("environment", raw["env"]),
        ("episodes", f"{max(episodes)} per replica, from seed {raw['seed']}" if episodes else ""),
        ("simulator", versions),
    ]


FACTS: dict[str, Callable[[Path, str], list[tuple[str, str]]]] = {
    "pretrain_dynamics": _pretrained,
    "pretrain_intent": _pretrained,
    "imitate": _trained,
    "relabel": _labelled,
    "offline_rl": _trained,
    "evaluate": _evaluated,
}


def _metadata(artifacts: Path, model: str) -> str:
    values: dict[str, Any] = read_json(artifacts / model / "metadata.json")
    rows = flatten(values)
    return details(model, "", table(f"Metadata of {model}", [("key", "name"), ("value", "value")], rows))
