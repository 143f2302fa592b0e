"""What was made of what: datasets, a card per section with its entries, and all parameters, folded away."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from dynarep.pipeline.report.html import as_text, details, facts, flatten, missing_note, or_missing, table
from dynarep.pipeline.report.inputs import NONE, SECTIONS, Artifacts, Scored, models, read_json
from dynarep.pipeline.tables import count, number_text

INPUTS = {
    "pretrain": ("dataset", "initial", "source"),
    "relabel": ("dataset", "demonstrations", "space", "points"),
    "learn": ("dataset", "demonstrations", "encoder", "rewards"),
}
"""Keys of an entry that name what it was made from, by section."""

PURPOSES = {
    "pretrain": "Makes representations of states, and of states with actions.",
    "relabel": "Rewards the dataset.",
    "learn": "Makes policies from demonstrations, data and rewards.",
}


def stages_section(artifacts: Artifacts, scored: Scored) -> str:
    """Datasets, entries, the evaluation, and the metrics and metadata of every entry."""
    entries = "".join(or_missing(_entries, artifacts, section) for section in SECTIONS)
    folded = "".join(
        or_missing(_metrics, artifacts, section, name) + or_missing(_metadata, artifacts, section, name)
        for section, name in models(artifacts)
    )
    evaluated = (
        f'<div class="cards"><article><h3>evaluate</h3><p>Plays every policy.</p>{_evaluated(scored)}</article></div>'
    )
    return (
        f"{_datasets(artifacts)}{entries}{evaluated}\n<h3>Metrics, parameters and fingerprints</h3>\n"
        '<p class="note">When and where each stage ran, and with which revision, lies in logs/: it differs from run to run.</p>'
        f"{folded}"
    )


def dataset_text(artifacts: Artifacts, name: str) -> str:
    """A dataset in a sentence, with its size where that is known."""
    path = artifacts.root / "shards" / name / "index.json"
    return f"{name} ({count(read_json(path)['transitions'], 'transition')})" if path.exists() else name


def _datasets(artifacts: Artifacts) -> str:
    """The prepared datasets that the entries were made from."""
    used: dict[str, None] = {}
    for section, name in models(artifacts):
        used |= dict.fromkeys(artifacts.metadata(section, name).get("datasets", {}))
    rows = []
    for name in used:
        path = artifacts.root / "shards" / name / "index.json"
        if path.exists():
            index = read_json(path)
            returns, episodes = index["returns"], sum(len(shard["episodes"]) for shard in index["shards"])
            mean, best = "–", "–"
            if returns:
                mean, best = (number_text(value, ",.0f") for value in (sum(returns) / len(returns), max(returns)))
            rows.append([name, index["env"] or "–", f"{episodes:,}", f"{index['transitions']:,}", mean, best])
    header = [("dataset", "name"), ("environment", "text")]
    header += [(title, "number") for title in ("episodes", "transitions", "mean return", "best return")]
    return table("Prepared datasets", header, rows) if rows else ""


def _entries(artifacts: Artifacts, section: str) -> str:
    names = artifacts.names(section)
    heading = f"<h3>{section}</h3><p>{escape(PURPOSES[section])}</p>"
    if not names:
        return heading + missing_note(artifacts, artifacts.root / section / "*" / "metadata.json")
    keys = [key for key in INPUTS[section] if any(_input(artifacts, section, name, key) for name in names)]
    rows = []
    for name in names:
        metadata = artifacts.metadata(section, name)
        updates = (artifacts.settings(section, name).get("training") or {}).get("updates")
        rows.append(
            [
                name,
                artifacts.kind(section, name) or "–",
                *(_input(artifacts, section, name, key) or "–" for key in keys),
                "–" if updates is None else f"{updates:,}",
                as_text(metadata.get("params", {}).get("replicas")),
                as_text(metadata.get("version")),
            ]
        )
    header = [("entry", "name"), ("kind", "text"), *((key, "text") for key in keys)]
    header += [("updates", "number"), ("replicas", "number"), ("dynarep", "text")]
    return heading + table(f"Entries of {section}", header, rows)


def _input(artifacts: Artifacts, section: str, name: str, key: str) -> str:
    value = artifacts.settings(section, name).get(key)
    return "" if value in (None, NONE) else str(value)


def _metrics(artifacts: Artifacts, section: str, name: str) -> str:
    path = artifacts.folder(section, name) / "metrics.json"
    if section == "learn" and not path.exists():
        return ""
    rows = flatten(read_json(path))
    title = f"{section}/{name}: metrics"
    return details(title, "", table(title, [("metric", "name"), ("value", "value")], rows)) if rows else ""


def _metadata(artifacts: Artifacts, section: str, name: str) -> str:
    values: dict[str, Any] = read_json(artifacts.folder(section, name) / "metadata.json")
    if section != "learn":
        values = {key: value for key, value in values.items() if key != "metrics"}
    title = f"{section}/{name}: parameters and fingerprints"
    return details(title, "", table(title, [("key", "name"), ("value", "value")], flatten(values)))


def _evaluated(scored: Scored) -> str:
    raw = scored.raw
    episodes = {score["episodes"] for score in scored.scores.values()}
    recording = raw.get("recording") or {}
    played = "" if raw["seed"] is None else f"{max(episodes)} per replica, from seed {raw['seed']}"
    return facts(
        [
            ("environment", raw["env"]),
            ("recording", str(recording.get("dataset", ""))),
            ("its own episodes", _worth(recording)),
            ("trained on it", ", ".join(name for name, score in scored.scores.items() if score["recording_seen"])),
            ("episodes", played),
            ("an action lasts", f"{repeat} steps" if (repeat := raw["action_repeat"] or 1) > 1 else ""),
            ("longest", "" if raw["max_steps"] is None else f"{raw['max_steps']:,} steps"),
            ("simulator", ", ".join(f"{package} {number}" for package, number in raw["versions"].items())),
        ]
    )


def _worth(recording: Mapping[str, Any]) -> str:
    own = recording.get("own")
    return "" if own is None else f"mean discounted return {number_text(own, ',.2f')} as far as they go"
