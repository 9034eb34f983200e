"""Batches are a function of (seed, step) and pass over everything."""

from __future__ import annotations

import torch

from emabench.data.batches import Batches


def test_each_pass_holds_every_example_once_in_a_new_order() -> None:
    batches = Batches(12, 4, seed=0)
    passes = [torch.cat([batches.indices(step) for step in range(3 * e, 3 * e + 3)]) for e in range(3)]
    assert all(sorted(order.tolist()) == list(range(12)) for order in passes)
    assert not torch.equal(passes[0], passes[1])


def test_any_step_can_be_begun_at() -> None:
    whole = Batches(100, 8, seed=3)
    in_turn = [whole.indices(step) for step in range(40)]
    for step in (39, 0, 12, 11, 25):
        assert torch.equal(Batches(100, 8, seed=3).indices(step), in_turn[step])
        assert torch.equal(whole.indices(step), in_turn[step])
    assert not torch.equal(Batches(100, 8, seed=4).indices(0), in_turn[0])


def test_fewer_examples_than_a_batch_fill_it_by_drawing_again() -> None:
    batches = Batches(3, 50, seed=0)
    assert set(batches.indices(0).tolist()) == {0, 1, 2}
    assert len(batches.indices(7)) == 50
    assert not torch.equal(batches.indices(0), batches.indices(1))
