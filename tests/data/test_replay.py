"""The replay: what is in it, how it is drawn from, and what of it is saved."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from emabench.data.replay import Replay

CPU = torch.device("cpu")


def observation(step: int) -> np.ndarray:
    return np.array([step, -step, 0.5 * step], np.float32)


def filled(capacity: int, steps: int, episode: int = 10) -> Replay:
    """Step n goes from observation n to n + 1 with action n/100 and reward 2n; episodes end by turns one way or other."""
    replay = Replay(capacity, 3, 2, CPU)
    for n in range(steps):
        ends = n % episode == episode - 1
        after = observation(n + 1) if not ends else observation(-n)
        action = np.array([n / 100, 0], np.float32)
        replay.add(observation(n), action, 2.0 * n, ends and n // episode % 2 == 0, after)
    return replay


def test_a_transition_comes_back_whole() -> None:
    batch = filled(100, 25).sample(500, torch.Generator().manual_seed(0))
    for i in range(500):
        n = int(batch.observation[i, 0])
        ends = n in (9, 19)
        assert batch.observation[i].tolist() == observation(n).tolist()
        assert batch.action[i].tolist() == pytest.approx([n / 100, 0])
        assert float(batch.reward[i]) == 2 * n
        assert float(batch.not_done[i]) == (
            0 if n == 9 else 1
        )  # the first episode was terminated, the other cut off
        expected = observation(-n) if ends else observation(n + 1)
        assert batch.next_observation[i].tolist() == expected.tolist()
    assert {int(n) for n in batch.observation[:, 0]} == set(range(25))


def test_the_latest_are_kept() -> None:
    replay = filled(8, 21)
    assert len(replay) == 8
    drawn = replay.sample(400, torch.Generator().manual_seed(0))
    assert {int(n) for n in drawn.observation[:, 0]} == set(range(13, 21))


def test_every_transition_is_as_likely() -> None:
    drawn = filled(64, 20).sample(20000, torch.Generator().manual_seed(0)).observation[:, 0].long()
    assert chisquare(torch.bincount(drawn, minlength=20).numpy()).pvalue > 0.001


@pytest.mark.parametrize("steps", [1, 7, 30, 50, 95])
def test_saved_and_loaded_it_is_the_same(steps: int) -> None:
    replay, again = filled(50, steps), Replay(50, 3, 2, CPU)
    file = io.BytesIO()
    torch.save(replay.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.added == replay.added
    assert torch.equal(again.rows, replay.rows)
    more = (np.ones(3), np.ones(2), 1.0, False, np.ones(3))
    replay.add(*more)
    again.add(*more)
    assert torch.equal(again.rows, replay.rows)


def test_what_is_saved_is_no_more_than_needed() -> None:
    replay = Replay(100_000, 40, 2, CPU)
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(2001, 40)).astype(np.float32)
    for n in range(2000):
        replay.add(seen[n], np.zeros(2), 0.0, False, seen[n + 1])
    file = io.BytesIO()
    torch.save(replay.state_dict(), file)
    once = seen.nbytes
    assert once < file.tell() < 1.2 * once  # each observation once, and nothing of the empty rows
