"""What agents have seen lately: a table that grows by steps, with rows of its own for each replica."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynarep.data.resident import Batch, TransitionTable


class ReplayTable(TransitionTable):
    """The newest transitions of R agents; replica r draws from rows [r capacity, r capacity + size) and from no others.

    Every row carries a reward. Rows are in the order in which they were written, so they are no episodes: there is neither
    ``first`` nor ``last``.

    Attributes:
        replicas: R.
        capacity: rows of each replica.
        written: transitions that each replica has ever written.
        returns: (R,) true return of the last episodes of each replica; what is not finished counts where none is.
    """

    def __init__(
        self, replicas: int, capacity: int, *, observation_dim: int, action_dim: int, device: torch.device | str
    ) -> None:
        """An empty table.

        Args:
            replicas: R.
            capacity: rows of each replica.
            observation_dim: numbers in an observation.
            action_dim: numbers in an action.
            device: where the table lives.
        """
        self.observation_dim, self.action_dim, self.has_rewards = observation_dim, action_dim, True
        self.replicas, self.capacity, self.written = replicas, capacity, 0
        self.packed = torch.zeros(replicas * capacity, 2 * observation_dim + action_dim + 2, device=device)
        self.returns = torch.zeros(replicas, device=device)

    def __len__(self) -> int:
        """Rows of each replica that are filled."""
        return min(self.written, self.capacity)

    @property
    def _regions(self) -> Tensor:
        return self.packed.view(self.replicas, self.capacity, -1)

    def extend(self, batch: Batch) -> None:
        """Write transitions (R, N, ...) with rewards, in place of the oldest ones where the table is full.

        Raises:
            ValueError: if there are more than ``capacity``.
        """
        assert batch.rewards is not None
        count = batch.observations.shape[1]
        if count > self.capacity:
            raise ValueError(f"capacity: found {self.capacity:,}, expected at least {count:,}, what is written at once")
        columns = [batch.observations, batch.actions, batch.next_observations]
        columns += [batch.terminated.unsqueeze(-1), batch.rewards.unsqueeze(-1)]
        first = self.written % self.capacity
        slots = torch.arange(first, first + count, device=self.packed.device) % self.capacity
        self._regions[:, slots] = torch.cat(columns, -1)
        self.written += count

    def random_rows(self, replicas: int, count: int, generator: torch.Generator) -> Tensor:
        """Independent uniform rows of each replica's own: (R, count) int64."""
        assert replicas == self.replicas, (replicas, self.replicas)
        first = torch.arange(replicas, device=self.packed.device).unsqueeze(1) * self.capacity
        return first + super().random_rows(replicas, count, generator)

    def state(self) -> dict[str, Any]:
        """What is in the table, on the CPU."""
        rows = self._regions[:, : len(self)].cpu().clone()
        return {"rows": rows, "written": self.written, "returns": self.returns.cpu().clone()}

    def restore(self, state: dict[str, Any]) -> None:
        """Hold what ``state`` told."""
        self.written = state["written"]
        self._regions[:, : len(self)] = state["rows"].to(self.packed.device)
        self.returns.copy_(state["returns"])
