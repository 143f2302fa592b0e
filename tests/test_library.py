"""The stages as functions, without params.yaml and DVC: the snippets of ``docs/library.md``, one after the other."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

DOCUMENT = Path(__file__).parents[1] / "docs" / "library.md"


def test_the_snippets_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, snippet in enumerate(re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)):
        exec(compile(snippet, f"{DOCUMENT.name}, snippet {number}", "exec"), names)

    data, replicas = names["data"], 2
    assert set(names["relabelled"].rewards) == {episode.id for episode in data.episodes}
    states = torch.from_numpy(data.episodes[0].observations[None])
    assert names["intent"].encoder.embed(states).shape == (replicas, states.shape[1], 8)
    assert names["steps"].shape == (data.episodes[0].length,)
    for policy in (names["iql"], names["imitator"]):
        actions = policy.act(states)
        assert actions.shape == (replicas, states.shape[1], data.spec.action_dim)
        assert actions.abs().max() <= 1
    np.testing.assert_allclose(names["action"], names["iql"].act(states)[1, 0], rtol=1e-5, atol=1e-6)
    assert set(names["scores"]) == {"iql", "repr"}
    assert str(names["scores"]["iql"]["return_mean"]) in capsys.readouterr().out
    assert "iql" in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.glob("**/params.yaml"))
