"""The replay buffer: a ring buffer of transitions in one tensor (Lin 1992)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Transitions:
    """A batch of transitions; `not_done` is 0 where the next state is terminal (not where it is truncated), else 1.

    observation, next_observation: (N, observation_dim); action: (N, action_dim); reward, not_done: (N,). All float32.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    not_done: Tensor
    next_observation: Tensor


class Replay:
    """The latest `capacity` transitions on `device`, sampled uniformly with replacement.

    One row per transition, so that a batch is one gather: observation, action, reward, not_done, next observation.
    """

    def __init__(self, capacity: int, observation_dim: int, action_dim: int, device: torch.device) -> None:
        self.parts = [observation_dim, action_dim, 1, 1, observation_dim]
        self.rows = torch.zeros(capacity, sum(self.parts), device=device)
        self.added = 0  # in total; the next one is written to row added % capacity

    def __len__(self) -> int:
        return min(self.added, len(self.rows))

    def add(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: float,
        terminated: bool,
        next_observation: np.ndarray,
    ) -> None:
        """Add a transition; the oldest is overwritten when the buffer is full."""
        reward_not_done = np.array([reward, not terminated], np.float32)
        row = np.concatenate([observation, action, reward_not_done, next_observation], dtype=np.float32)
        self.rows[self.added % len(self.rows)].copy_(torch.from_numpy(row))
        self.added += 1

    def sample(self, n: int, draw: torch.Generator) -> Transitions:
        """n transitions drawn uniformly with replacement; `draw` is a CPU generator."""
        chosen = torch.randint(len(self), (n,), generator=draw).to(self.rows.device)
        parts = self.rows.index_select(0, chosen).split(self.parts, 1)
        observation, action, reward, not_done, next_observation = parts
        return Transitions(observation, action, reward.squeeze(1), not_done.squeeze(1), next_observation)

    def state_dict(self) -> dict[str, Any]:
        """The filled rows; the next observation only where it differs from the observation of the next row.

        Within an episode the two are the same, which saves about half of the bytes.
        """
        rows = self.rows[: len(self)]
        before, after = rows[:, : -self.parts[-1]], rows[:, -self.parts[-1] :]
        breaks = (after != before.roll(-1, 0)[:, : self.parts[0]]).any(1)
        return {"added": self.added, "before": before.clone(), "breaks": breaks, "after": after[breaks]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.added = state["added"]
        before, breaks = (state[key].to(self.rows.device) for key in ("before", "breaks"))
        rows = self.rows[: len(self)]
        rows[:, : -self.parts[-1]] = before
        rows[:, -self.parts[-1] :] = before.roll(-1, 0)[:, : self.parts[0]]
        rows[breaks, -self.parts[-1] :] = state["after"].to(self.rows.device)
