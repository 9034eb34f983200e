"""Averages that imitate a decayed learning rate."""

import numpy as np
import pytest
import torch
from torch import nn

from emabench.averaging import Annealing, Averager, Mean, from_dict, merge_weights


@pytest.mark.parametrize(
    ("schedule", "f"),
    [
        ("linear", lambda x: 1 - x),
        ("cosine", lambda x: (1 + np.cos(np.pi * x)) / 2),
        ("1-sqrt", lambda x: 1 - np.sqrt(x)),
        ([1, 1, 0], lambda x: np.minimum(1, 2 - 2 * x)),
    ],
)
def test_it_is_what_the_decay_would_have_given(schedule, f):
    """Gradient descent whose steps do not depend on the weights: the imitation is exact."""
    torch.manual_seed(0)
    steps, last = 50, 20
    gradients = torch.randn(steps, 8, 1)
    constant, decayed = nn.Linear(8, 1, bias=False), nn.Linear(8, 1, bias=False)
    decayed.load_state_dict(constant.state_dict())
    rule = Annealing(schedule=schedule, last=last / steps).bound(steps=steps)
    averager = Averager(constant, {"annealed": rule})
    for t in range(steps):
        factor = f((t - (steps - last)) / last) if t >= steps - last else 1.0
        with torch.no_grad():
            constant.weight.sub_(gradients[t].T)
            decayed.weight.sub_(float(factor) * gradients[t].T)
        averager.update()
    torch.testing.assert_close(
        averager.export("annealed")["weight"], decayed.weight.detach(), rtol=1e-5, atol=1e-5
    )


def test_a_linear_decay_is_the_uniform_mean_of_the_last_part():
    rule = Annealing(schedule="linear", last=0.25).bound(steps=40)
    assert rule.weights(40) == pytest.approx(Mean(start=30).weights(40))
    assert rule.start == 30


def test_the_weights_that_merge_checkpoints():
    assert merge_weights("linear", 4) == pytest.approx([0.25] * 4)
    assert merge_weights("1-sqrt", 4) == pytest.approx(
        [0.5, 0.5**0.5 - 0.5, 0.75**0.5 - 0.5**0.5, 1 - 0.75**0.5]
    )
    for schedule in ("cosine", "1-sqrt", [1, 0.6, 0.1]):
        weights = merge_weights(schedule, 7)
        assert sum(weights) == pytest.approx(1)
        every = Annealing(schedule=schedule, last=70, end=100, every=10).weights(100)
        assert every[40:101:10] == pytest.approx(weights)
        assert np.count_nonzero(every) == 7

    with pytest.raises(ValueError, match="checkpoints=0: give a whole number of at least 1"):
        merge_weights("linear", 0)
    assert merge_weights("cosine", 1) == [1.0]


def test_it_stays_after_its_end():
    rule = Annealing(schedule="cosine", last=4, end=10)
    assert rule.weights(15)[:11] == pytest.approx(rule.weights(10))


def test_plain_data_and_what_is_relative():
    rule = Annealing(last=0.2, every=5)
    assert from_dict(rule.to_dict()) == rule
    bound = rule.bound(steps=1000)
    assert (bound.start, bound.last, bound.end, bound.checkpoints) == (800, 200, 1000, 40)
    assert from_dict(bound.to_dict()) == bound
    with pytest.raises(ValueError, match=r"last=0\.2 is relative to the run"):
        rule.weights(10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "sqrt"}, "schedule='sqrt' is unknown; did you mean '1-sqrt'"),
        ({"schedule": [0.5, 0]}, r"schedule=\[0.5, 0\]: give .* that fall from 1"),
        ({"schedule": [1, 0.2, 0.4]}, "that fall from 1"),
        ({"schedule": 3}, "schedule=3: give"),
        ({"last": 0}, "last=0"),
        ({"last": 30, "end": 20}, "last=30, end=20"),
        ({"last": 3, "end": 20, "every": 5}, "at least `every` long"),
        ({"start": 5}, "leave start out"),
        ({"start": 5, "last": 10, "end": 20}, "begins at 10; leave start out"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Annealing(**options)
