"""One update a step: optimisers, explicit steps, interruptions."""

import copy
import signal

import pytest
import torch
from torch import nn

from emabench.averaging import EMA, LAWA, Averager, Mean, kernels

from .support import walk


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))


def step(*optimizers, model):
    model(torch.ones(2, 4)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def test_attaching_twice_counts_once():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    averager = Averager(model, EMA(decay=0.9))
    assert averager.attach(optimizer) is averager.attach(optimizer)
    step(optimizer, model=model)
    assert averager.updates == 1
    with pytest.raises(RuntimeError, match=r"attached to an optimiser, whose steps update it"):
        averager.update()
    averager.attach(optimizer).remove()
    averager.update()
    with averager.attach(optimizer):
        step(optimizer, model=model)
    step(optimizer, model=model)
    assert averager.updates == 3


def test_two_optimisers_of_one_model_make_one_update():
    model = net()
    one, two = (torch.optim.SGD(part.parameters(), lr=0.1) for part in model)
    averager = Averager(model, EMA(decay=0.5))
    averager.attach(one)
    with pytest.raises(RuntimeError, match=r"attach\(first, second\), for one update"):
        averager.attach(two)
    averager.attach(one).remove()
    averager.attach(one, two)
    before = averager.export()
    step(one, two, model=model)
    assert averager.updates == 1
    for key, value in averager.export().items():  # after the step of the last, so that it has seen both
        torch.testing.assert_close(value, 0.5 * before[key] + 0.5 * model.state_dict()[key])


def test_an_optimiser_of_another_model_is_refused():
    with pytest.raises(ValueError, match="SGD trains none of the averaged parameters"):
        Averager(net(), EMA(decay=0.5)).attach(torch.optim.SGD(net().parameters(), lr=0.1))
    with pytest.raises(ValueError, match="give the optimiser"):
        Averager(net(), EMA(decay=0.5)).attach()


PROFILES = {
    "ema": EMA(decay=0.9),
    "debiased": EMA(decay=0.9, debias=True, every=2),
    "late": EMA(decay=0.9, start=3),
    "swa": Mean(start=2),
    "lawa": LAWA(k=3, every=2),
}


def test_loops_may_count_steps_themselves(model):
    averager, counted = Averager(model, PROFILES), Averager(model, PROFILES)
    for t in range(1, 8):
        walk(model, t)
        averager.update()
        for _micro_batch in range(3):
            counted.update(step=t)
    assert counted.updates == 7
    for name in PROFILES:
        for key, value in averager.export(name).items():
            assert torch.equal(counted.export(name)[key], value)
    with pytest.raises(ValueError, match="step=3: 7 steps were counted already"):
        counted.update(step=3)


def test_steps_that_were_not_seen_count_as_the_present_weights(model):
    averager, skipping = Averager(model, PROFILES), Averager(model, PROFILES)
    walk(model, 0)
    for _ in range(9):
        averager.update()
    skipping.update(step=9)
    for name in PROFILES:
        for key, value in averager.export(name).items():
            torch.testing.assert_close(skipping.export(name)[key], value)
    walk(model, 1)
    averager.update()
    skipping.update()
    for name in PROFILES:
        for key, value in averager.export(name).items():
            torch.testing.assert_close(skipping.export(name)[key], value)


def test_ctrl_c_in_an_update_waits_for_its_end(model, monkeypatch):
    averager = Averager(model, EMA(decay=0.5))
    twin = Averager(copy.deepcopy(model), EMA(decay=0.5))
    original = kernels.Plan.update

    def interrupted(self, *args):
        signal.raise_signal(signal.SIGINT)
        return original(self, *args)

    walk(model, 0)
    walk(twin.model, 0)
    with monkeypatch.context() as patched:
        patched.setattr(kernels.Plan, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            averager.update()
    twin.update()
    assert averager.updates == 1
    assert all(torch.equal(value, twin.export()[key]) for key, value in averager.export().items())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_half_an_update_is_not_used_as_if_it_were_one(model, monkeypatch):
    averager = Averager(model, EMA(decay=0.5))
    good = copy.deepcopy(averager.state_dict())

    def torn(self, *args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(kernels.Plan, "update", torn)
        with pytest.raises(KeyboardInterrupt):
            averager.update()
    for use in (averager.update, averager.state_dict):
        with pytest.raises(RuntimeError, match=r"update 1 was interrupted \(KeyboardInterrupt\)"):
            use()
    averager.load_state_dict(good)
    averager.update()
    assert averager.updates == 1
