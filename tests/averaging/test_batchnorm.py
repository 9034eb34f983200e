"""Batch-norm statistics recomputed for averaged weights."""

import pytest
import torch
from torch import nn

from emabench.averaging import EMA, Averager, has_batchnorm, recalibrate


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3, momentum=0.3), nn.Linear(3, 1))


def test_statistics_are_the_plain_mean_over_batches(net):
    batches = [torch.randn(6, 4) for _ in range(5)]
    net.train()
    net[3].eval()
    assert recalibrate(net, batches) == 5
    with torch.no_grad():
        hidden = [net[0](x) for x in batches]
    assert torch.allclose(net[2].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0), atol=1e-6)
    assert torch.allclose(net[2].running_var, torch.stack([h.var(0) for h in hidden]).mean(0), atol=1e-6)
    assert net[2].num_batches_tracked == 5
    assert net[2].momentum == 0.3
    assert [m.training for m in net] == [True, True, True, False]


def test_batches_may_be_tuples_mappings_or_anything_with_a_forward(net):
    x = torch.randn(6, 4)
    means = []
    for batch, forward in (
        (x, None),
        ((x, "label"), None),
        ({"input": x}, None),
        ("key", lambda model, key: model({"key": x}[key])),
    ):
        recalibrate(net, [batch], forward)
        means.append(net[2].running_mean.clone())
    assert all(torch.equal(m, means[0]) for m in means)


def test_a_failure_leaves_everything_as_it_was(net):
    recalibrate(net, [torch.randn(6, 4)])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match="batches is empty"):
        recalibrate(net, [])
    with pytest.raises(RuntimeError):
        recalibrate(net, [torch.randn(6, 4), torch.randn(6, 5)])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net[2].momentum == 0.3


def test_without_batch_norm_nothing_runs():
    plain = nn.Linear(2, 2)
    assert not has_batchnorm(plain)
    assert not has_batchnorm(nn.BatchNorm1d(2, track_running_stats=False))
    assert recalibrate(plain, iter(())) == 0


def test_inside_applied_the_training_statistics_are_safe(net):
    assert has_batchnorm(net)
    averager = Averager(net, {"ema": EMA(decay=0.5)}, buffers="recompute")
    with torch.no_grad():
        net[0].weight.add_(1)
    averager.update()
    before = net[2].running_mean.clone()
    with averager.applied("ema"):
        recalibrate(net, [torch.randn(6, 4) + 3])
        assert not torch.allclose(net[2].running_mean, before)
    assert torch.equal(net[2].running_mean, before)
