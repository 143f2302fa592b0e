"""ValueDICE and ReprValueDICE while acting: the same game on the actor's own steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dynarep.configs.params import ParamsError
from dynarep.data.replay import ReplayTable
from dynarep.data.schema import Episode
from dynarep.data.shards import Dataset, load_dataset, write_dataset
from dynarep.pipeline.entries import Entry
from dynarep.pipeline.learn import learn
from dynarep.pipeline.method import Sources
from dynarep.pipeline.methods.encoders.contrastive import DynamicsArchitecture, DynamicsEncoder
from dynarep.pipeline.methods.learners.value_dice import ValueDICE
from tests.line import STEPS, Line
from tests.test_sac import acting, run, trained

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def experts(folder: Path, count: int = 20, noise: float = 0.2) -> Dataset:
    """Episodes of the action -0.4 x and noise: x shrinks by a fifth in each step."""
    made, rng = [], np.random.default_rng(0)
    for number in range(count):
        line = Line()
        states, actions = [line.reset(seed=number)[0]], []
        for _ in range(STEPS):
            actions.append(np.clip(-0.4 * states[-1][:1] + noise * rng.normal(size=1), -1, 1))
            states.append(line.step(actions[-1])[0])
        columns = np.asarray(states, np.float32), np.asarray(actions, np.float32)
        made.append(
            Episode(
                id=f"e{number}",
                observations=columns[0],
                actions=columns[1],
                rewards=None,
                terminated=False,
                truncated=True,
            )
        )
    write_dataset(
        folder / "expert", "expert", made, provenance={"cards": {}, "sources": {}}, env=None, bounds=((-1.0,), (1.0,))
    )
    return load_dataset(folder / "expert")


def entry_of(kind: str = "value_dice", **values: Any) -> Entry[Any]:
    return acting(kind, demonstrations="expert", **values)


def test_the_data_are_the_actor_s_own_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, actors = [], []
    batch = ValueDICE.batch

    def watched(self: ValueDICE, sources: Sources, generator: torch.Generator) -> Any:
        tables.append(sources.table("dataset"))
        actors.append(self)
        return batch(self, sources, generator)

    monkeypatch.setattr(ValueDICE, "batch", watched)
    shown = experts(tmp_path)
    policy, account = learn(entry_of(actor_rate=1e-12), None, shown, None, None, run(tmp_path))
    replay, actor = tables[-1], actors[-1].actor
    assert isinstance(replay, ReplayTable)
    assert account["interaction"]["steps"] == len(replay) == 64 + 30
    own = replay.gather(torch.arange(64, 94))
    mean, log_std = actor(own.observations[None].expand(2, -1, -1))
    noise = (torch.atanh(own.actions.clamp(-0.9999, 0.9999)) - mean[0]) / log_std[0].exp()
    assert noise.mean().abs() < 0.6, "drawn from the actor, which has hardly moved"
    assert 0.5 < noise.std() < 1.6
    seen = torch.cat([torch.from_numpy(e.current) for e in shown.episodes])
    torch.testing.assert_close(policy.normaliser.mean, seen.mean(0))
    torch.testing.assert_close(policy.normaliser.std, seen.std(0, correction=0))
    assert "episode_return" in (tmp_path / "out" / "curves.tsv").read_text().split("\n")[0]


def test_the_representation_s_game_acts_too(tmp_path: Path) -> None:
    encoder = DynamicsEncoder(
        DynamicsArchitecture(replicas=2, observation_dim=2, action_dim=1, feature_dim=4, hidden=(8,))
    ).eval()
    policy, _ = learn(
        entry_of("repr_value_dice", encoder="dynamics"), None, experts(tmp_path), encoder, None, run(tmp_path)
    )
    assert all(value.isfinite().all() for value in policy.state_dict().values())


def test_the_replay_may_begin_with_a_dataset(tmp_path: Path) -> None:
    shown = experts(tmp_path)
    assert trained(tmp_path, entry_of(), shown, shown)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("value_dice", {"absorbing": True}, "absorbing: found True, expected false with an environment"),
        ("repr_value_dice", {"top": 0.1}, "top: found 0.1, expected 0 with an environment"),
    ],
)
def test_what_needs_whole_episodes_is_refused(kind: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message.replace("True", "true")):
        entry_of(kind, encoder="dynamics" if kind == "repr_value_dice" else "none", **values)


def test_offline_it_needs_a_dataset() -> None:
    c = ValueDICE.Config()
    assert ValueDICE.needs(c).without == ()
    assert ValueDICE.needs(c).environment is None
