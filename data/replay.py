"""What agents have seen lately: a table that grows by steps, with rows of its own for each replica."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynarep.data.resident import Batch, TransitionTable


class ReplayTable(TransitionTable):
    """The newest transitions of R agents; replica r draws from rows [r capacity, r capacity + size) and from no others.

    Every row carries a reward. Rows are in the order in which they were written, so they are no episodes: there is neither
    ``first`` nor ``last``. What follows a row in its environment is ``stride`` rows later, unless an episode starts there.

    Attributes:
        replicas: R.
        capacity: rows of each replica.
        written: transitions that each replica has ever written.
        stride: rows of each replica that are written at once, one of each environment.
        returns: (R,) true return of the last episodes of each replica; what is not finished counts where none is.
    """

    def __init__(
        self,
        replicas: int,
        capacity: int,
        *,
        observation_dim: int,
        action_dim: int,
        device: torch.device | str,
        stride: int = 1,
    ) -> None:
        """An empty table.

        Args:
            replicas: R.
            capacity: rows of each replica.
            observation_dim: numbers in an observation.
            action_dim: numbers in an action.
            device: where the table lives.
            stride: rows of each replica that are written at once.
        """
        self.observation_dim, self.action_dim, self.has_rewards = observation_dim, action_dim, True
        self.replicas, self.capacity, self.stride, self.written = replicas, capacity, stride, 0
        self.packed = torch.zeros(replicas * capacity, 2 * observation_dim + action_dim + 2, device=device)
        self._begins = torch.ones(replicas, capacity, device=device)
        self.returns = torch.zeros(replicas, device=device)

    def __len__(self) -> int:
        """Rows of each replica that are filled."""
        return min(self.written, self.capacity)

    @property
    def _regions(self) -> Tensor:
        return self.packed.view(self.replicas, self.capacity, -1)

    def extend(self, batch: Batch, starts: Tensor) -> None:
        """Write transitions (R, N, ...) with rewards, in place of the oldest ones where the table is full.

        Args:
            batch: the transitions.
            starts: (R, N), 1.0 where a transition follows none that is ``stride`` rows before it.

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
        self._begins[:, slots] = starts
        self.written += count

    def random_rows(self, replicas: int, count: int, generator: torch.Generator) -> Tensor:
        """Independent uniform rows of each replica's own: (R, count) int64."""
        assert replicas == self.replicas, (replicas, self.replicas)
        first = torch.arange(replicas, device=self.packed.device).unsqueeze(1) * self.capacity
        return first + super().random_rows(replicas, count, generator)

    def _window(self, rows: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        replica, own = rows // self.capacity, rows % self.capacity
        ahead = self.stride * torch.arange(steps, device=rows.device)
        oldest = self.written % self.capacity if self.written > self.capacity else 0
        age = ((own - oldest) % self.capacity).unsqueeze(-1) + ahead
        slots = (own.unsqueeze(-1) + ahead) % self.capacity
        goes_on = (self._begins[replica.unsqueeze(-1), slots] == 0) & (age < len(self))
        goes_on[..., 0] = True
        within = goes_on.float().cumprod(-1)
        return replica.unsqueeze(-1) * self.capacity + slots, within

    def state(self) -> dict[str, Any]:
        """What is in the table, on the CPU."""
        rows = self._regions[:, : len(self)].cpu().clone()
        starts = self._begins[:, : len(self)].cpu().clone()
        return {"rows": rows, "starts": starts, "written": self.written, "returns": self.returns.cpu().clone()}

    def restore(self, state: dict[str, Any]) -> None:
        """Hold what ``state`` told."""
        self.written = state["written"]
        self._regions[:, : len(self)] = state["rows"].to(self.packed.device)
        self._begins[:, : len(self)] = state["starts"].to(self.packed.device)
        self.returns.copy_(state["returns"])
