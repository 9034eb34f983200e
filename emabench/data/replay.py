"""Transitions of an environment, kept for training: a ring of rows in one tensor (Lin 1992)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Transitions:
    """What was seen, done, gained and seen next; `goes_on` is 0 where the state after is terminal, else 1.

    observation, next_observation: (N, observations); action: (N, actions); reward, goes_on: (N,). All float32.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    goes_on: Tensor
    next_observation: Tensor


class Replay:
    """The latest `capacity` transitions on `device`, taken from uniformly.

    One row a transition, so that a batch is gathered at once: observation, action, reward, goes_on, next observation.
    """

    def __init__(self, capacity: int, observations: int, actions: int, device: torch.device) -> None:
        self.parts = [observations, actions, 1, 1, observations]
        self.rows = torch.zeros(capacity, sum(self.parts), device=device)
        self.added = 0  # ever; the next one goes to row added % capacity

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
        """One more transition, over the oldest where there is no room."""
        end = np.array([reward, not terminated], np.float32)
        row = np.concatenate([observation, action, end, next_observation], dtype=np.float32)
        self.rows[self.added % len(self.rows)].copy_(torch.from_numpy(row))
        self.added += 1

    def sample(self, n: int, draw: torch.Generator) -> Transitions:
        """n transitions, each drawn uniformly of all there are; `draw` lies on the CPU."""
        chosen = torch.randint(len(self), (n,), generator=draw).to(self.rows.device)
        parts = self.rows.index_select(0, chosen).split(self.parts, 1)
        observation, action, reward, goes_on, next_observation = parts
        return Transitions(observation, action, reward.squeeze(1), goes_on.squeeze(1), next_observation)

    def state_dict(self) -> dict[str, Any]:
        """The rows that are filled, and what comes after each only where that is not what the next row begins with.

        Within an episode it is: about half of the bytes are saved.
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
