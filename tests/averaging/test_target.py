"""Target networks."""

import copy

import pytest
import torch
from torch import nn

from emabench.averaging import EMA, Mean, TargetNetwork

from .support import walk


def test_the_target_follows_the_model(model):
    initial = copy.deepcopy(model)
    target = TargetNetwork(model, EMA(decay=0.75))
    assert torch.equal(target.module.first.weight, initial.first.weight)
    walk(model, 0)
    target.update()
    expected = 0.75 * initial.first.weight + 0.25 * model.first.weight
    assert torch.allclose(target.module.first.weight, expected, atol=1e-6)
    assert target.module.tied.weight is target.module.first.weight
    assert target.module.norm.num_batches_tracked == 1


def test_no_gradient_reaches_it_but_inputs_get_theirs(model):
    target = TargetNetwork(model, EMA(decay=0.75))
    x = torch.randn(8, 4, requires_grad=True)
    target(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in target.module.parameters())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("profile", [EMA(decay=0.75), EMA(decay=0.75, start=2), Mean(start=2)])
@pytest.mark.parametrize("buffers", ["average", "own"])
def test_resume_is_bitwise(model, profile, buffers):
    target = TargetNetwork(model, profile, buffers=buffers)
    twin = copy.deepcopy(model)
    x = torch.randn(8, 4)
    for step in range(6):
        if step == 3:
            saved = copy.deepcopy((model.state_dict(), target.state_dict()))
        walk(model, step)
        target.update()
        target(x)
    twin.load_state_dict(saved[0])
    resumed = TargetNetwork(twin, profile, buffers=buffers)
    resumed.load_state_dict(saved[1])
    for step in range(3, 6):
        walk(twin, step)
        resumed.update()
        resumed(x)
    for key, value in target.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[key]), key


def test_its_own_batch_norm_statistics_are_left_alone(model):
    target = TargetNetwork(model, EMA(decay=0.75), buffers="own")
    target.module.train()(torch.randn(8, 4))
    own = target.module.norm.running_mean.clone()
    walk(model, 0)
    target.update()
    assert torch.equal(target.module.norm.running_mean, own)


def test_low_precision_models_keep_a_float32_average():
    online = nn.Linear(4, 4).bfloat16()
    target = TargetNetwork(online, EMA(decay=0.9999))
    before = online.weight.detach().float().clone()
    with torch.no_grad():
        online.weight.add_(1)
    for _ in range(2000):
        target.update()
    moved = target.module.weight.float() - before
    assert target.module.weight.dtype == torch.bfloat16
    assert moved.mean() == pytest.approx(1 - 0.9999**2000, abs=0.01)


def test_a_copy_that_is_converted_keeps_following(model):
    target = TargetNetwork(model, EMA(decay=0.5))
    for part in (model, target.module):
        part.bfloat16()  # gives it other buffers
    walk(model, 0)
    target.update()
    for name, value in target.averager.export("target").items():
        assert torch.equal(target.module.state_dict()[name], value), name


def test_a_deep_copy_goes_on_by_itself(model):
    target = TargetNetwork(model, EMA(decay=0.5))
    other = copy.deepcopy(target)
    walk(model, 0)
    target.update()
    before = copy.deepcopy(target.module.state_dict())
    walk(other.averager.model, 0)
    other.update()
    assert all(torch.equal(value, before[name]) for name, value in other.module.state_dict().items())
    walk(other.averager.model, 1)
    other.update()
    assert all(torch.equal(value, before[name]) for name, value in target.module.state_dict().items())
    assert not torch.equal(other.module.first.weight, target.module.first.weight)


def test_wrong_buffers_are_named(model):
    with pytest.raises(ValueError, match="buffers='recompute'"):
        TargetNetwork(model, EMA(decay=0.9), buffers="recompute")
