"""Judging policies on recorded transitions, without an environment: error of the actions, and fitted Q evaluation.

A recording that no policy was trained on says how far the actions of a policy are from those that were recorded. With rewards
it also says what a policy is worth (``dynarep.pipeline.fitted_q``), as far as the recording covers what the policy does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynarep.data.resident import TransitionTable
from dynarep.pipeline.fitted_q import FittedQ, FittedQConfig
from dynarep.pipeline.nn.functional import suffix_returns
from dynarep.pipeline.playing.play import RecordingConfig

if TYPE_CHECKING:
    from dynarep.data.schema import Episode
    from dynarep.data.shards import Dataset
    from dynarep.pipeline.learn import Rewards
    from dynarep.pipeline.nn.models import ActingModel
    from dynarep.pipeline.training.run import Run

ROWS = 8192
"""Observations that a policy is asked about at once."""


@torch.no_grad()
def actions_of(policy: ActingModel, observations: Tensor) -> Tensor:
    """What every replica does in each of (N, obs_dim) observations: (R, N, act_dim)."""
    policy.reset((0,))
    return torch.cat([policy.act(part[None]).float() for part in torch.split(observations, ROWS)], 1)


def action_errors(policy: ActingModel, episodes: Iterable[Episode]) -> Tensor:
    """How far the actions of a policy are from recorded ones: (R, E).

    The root of the mean square over the steps and components of an episode, in units of half of the range between the bounds: 0
    where all are equal, 2 where one always takes the lower bound and the other the upper one.
    """
    half = (policy.high - policy.low) / 2
    found = []
    for episode in episodes:
        assert episode.actions is not None
        acted = actions_of(policy, torch.from_numpy(episode.current))
        found.append(((acted - torch.from_numpy(episode.actions)) / half).square().mean((1, 2)).sqrt())
    return torch.stack(found, 1)


def fitted_values(
    policy: ActingModel, dataset: Dataset, rewards: Rewards | None, c: FittedQConfig, run: Run, key: str
) -> Tensor:
    """V(s_0) of every episode's start, by fitted Q evaluation on the dataset: (R, E).

    Args:
        policy: whose value is estimated.
        dataset: transitions with actions.
        rewards: per episode id, (R or 1, T); None: the recorded ones.
        c: settings.
        run: names, seeds and folders of the training.
        key: that identifies it, from ``run_key``.

    Raises:
        ValueError: if the rewards have another number of replicas than the policy.
    """
    from dynarep.pipeline.method import Sources
    from dynarep.pipeline.training.device import training_device
    from dynarep.pipeline.training.loop import train

    episodes, device, spec = dataset.episodes, training_device(), dataset.spec
    table = TransitionTable.from_episodes(episodes, device=device)
    parts = [_rewards(episode, rewards) for episode in episodes]
    if len(parts[0]) not in (1, policy.replicas):
        raise ValueError(
            f"evaluate.recording.rewards: found {len(parts[0])} replicas, expected 1 or the {policy.replicas} of the policy"
        )
    given = torch.cat(parts, 1).expand(policy.replicas, -1).contiguous().to(device)
    following = actions_of(policy, table.next_observations.cpu()).to(device)
    gone = suffix_returns(given, table.lengths.tolist(), c.gamma)
    start = gone.mean(1, keepdim=True), gone.std(1, keepdim=True, correction=0)
    torch.manual_seed(run.seed)
    terminates = any(episode.terminated for episode in episodes)
    learner = FittedQ(c, table, given, following, (spec.action_low, spec.action_high), start, terminates).to(device)
    sources = Sources({"dataset": lambda: table}, policy.replicas, c.training.batch_size, device)
    train(learner, sources, learner.batch, c.training, run=run, shown=("loss", "value"), key=key)
    first = torch.stack([torch.from_numpy(episode.current[0]) for episode in episodes])
    return learner.start_values(first, actions_of(policy, first))


def _rewards(episode: Episode, rewards: Rewards | None) -> Tensor:
    """Rewards (R or 1, T) of an episode."""
    if rewards is not None:
        return torch.as_tensor(rewards[episode.id]).float()
    assert episode.rewards is not None
    return torch.from_numpy(episode.rewards)[None]


def judge(
    name: str,
    folders: Mapping[str, Path],
    c: RecordingConfig,
    dataset: Dataset,
    rewards: Rewards | None,
    run: Run,
) -> dict[str, Any]:
    """Judge a policy, and its snapshots if they are named, on a recording.

    Args:
        name: of the policy, for messages.
        folders: of the policy and its snapshots by name.
        c: settings.
        dataset: that of ``c.dataset``.
        rewards: those of ``c.rewards``; None: the recorded ones.
        run: names, seeds and folders of the trainings that fitted Q evaluation needs.

    Returns:
        ``recording``: dataset, fingerprint, rewards, gamma, and the mean discounted return of its own episodes; and
        ``policies``: per name ``errors`` and, with fitted Q evaluation, ``fitted_q``, lists of replicas of lists of episodes, and
        ``seen``, whether the policy was trained on this very dataset.

    Raises:
        ValueError: if the recording has no actions, or no rewards where they are needed, or its sizes are not the policy's.
    """
    from dynarep.pipeline.artifacts.storage import load_policy_model, read_metadata
    from dynarep.pipeline.training.run import digest, run_key

    where, spec = f"evaluate.recording.dataset: {dataset.name}", dataset.spec
    if not spec.action_dim:
        raise ValueError(f"{where}: has no actions; expected some to compare the policy's with")
    if c.fitted_q is not None and rewards is None and not spec.has_rewards:
        raise ValueError(
            f"{where}: has no rewards; expected some, or an entry of relabel in evaluate.recording.rewards"
        )
    trained_on = read_metadata(folders[name]).get("datasets")
    seen = isinstance(trained_on, dict) and dataset.fingerprint in trained_on.values()
    judged: dict[str, Any] = {}
    for policy_name, folder in folders.items():
        policy = load_policy_model(folder)
        for field, found in (("observation_dim", policy.architecture.observation_dim), ("action_dim", len(policy.low))):
            if found != getattr(spec, field):
                raise ValueError(f"{where}: {field}: found {getattr(spec, field)}, expected {found} as in learn.{name}")
        judged[policy_name] = {"errors": action_errors(policy, dataset.episodes).tolist(), "seen": seen}
        if c.fitted_q is not None:
            within = run.phase(f"fitted_q-{policy_name}")
            weights = digest(*policy.state_dict().values())
            key = run_key(within, c.fitted_q, dataset.fingerprint, c.rewards, weights)
            values = fitted_values(policy, dataset, rewards, c.fitted_q, within, key)
            judged[policy_name]["fitted_q"] = values.tolist()
    return {"recording": _about(c, dataset, rewards), "policies": judged}


def merged(returns: Mapping[str, Any], judged: Mapping[str, Any]) -> dict[str, Any]:
    """What ``evaluate`` and ``judge`` found of the same policies, as one."""
    played = returns["policies"]
    both = {name: {**played.get(name, {}), **found} for name, found in judged["policies"].items()}
    return {**returns, "recording": judged["recording"], "policies": {**played, **both}}


def _about(c: RecordingConfig, dataset: Dataset, rewards: Rewards | None) -> dict[str, Any]:
    about = {"dataset": dataset.name, "fingerprint": dataset.fingerprint, "rewards": c.rewards, "own": None}
    if c.fitted_q is None:
        return about
    own = [suffix_returns(_rewards(e, rewards), [e.length], c.fitted_q.gamma)[:, 0].mean() for e in dataset.episodes]
    return {**about, "gamma": c.fitted_q.gamma, "own": float(torch.stack(own).mean())}
