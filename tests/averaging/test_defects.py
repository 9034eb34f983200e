"""One test for each defect measured in the averaging code in use today."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from emabench.averaging import EMA, Averager, Mean, PowerEMA
from emabench.averaging.posthoc import Snapshot, fit

from .support import walk


def scalar(value=0.0, dtype=torch.float32, size=1):
    module = nn.Module()
    module.p = nn.Parameter(torch.full((size,), value, dtype=dtype))
    return module


def set_to(module, value):
    with torch.no_grad():
        module.p.fill_(value)


def spread(weights):
    """Standard deviation of a profile as a share of its length."""
    at = np.arange(len(weights))
    centre = (weights * at).sum()
    return ((weights * (at - centre) ** 2).sum()) ** 0.5 / (len(weights) - 1)


@pytest.mark.parametrize("every", [1, 10, 100])
@pytest.mark.parametrize("sigma_rel", [0.05, 0.10])
def test_1_power_profiles_are_right_at_any_interval(every, sigma_rel):
    profile = PowerEMA(sigma_rel=sigma_rel, every=every)
    assert spread(profile.weights(20_000)) == pytest.approx(sigma_rel, rel=0.02)
    kept = [
        Snapshot(PowerEMA(sigma_rel=s, every=every), t)
        for s in (0.05, 0.1)
        for t in range(1000, 20_001, 1000)
    ]
    rebuilt = fit(kept, PowerEMA(sigma_rel=0.15))
    assert spread(rebuilt.realised) == pytest.approx(0.15, rel=0.01)
    assert rebuilt.error(20 * every) < 0.06


@pytest.mark.parametrize(
    "profile", [EMA(decay=0.999, debias=True), EMA(decay=0.999), EMA(decay=0.999, every=10)]
)
def test_2_the_centre_of_mass_is_that_of_the_decay(profile):
    assert profile.describe(20_000)["centre_of_mass"] == pytest.approx(999, rel=0.01)


def test_3_tied_weights_move_once(model):
    averager = Averager(model, {"ema": EMA(decay=0.9)})
    before = model.first.weight.detach().clone()
    with torch.no_grad():
        model.first.weight.add_(1)
    averager.update()
    exported = averager.export("ema")
    assert torch.allclose(exported["first.weight"] - before, torch.tensor(0.1), atol=1e-6)
    assert torch.equal(exported["first.weight"], exported["tied.weight"])


def test_4_a_low_precision_model_does_not_stall():
    model = scalar(dtype=torch.bfloat16)
    averager = Averager(model, {"ema": EMA(decay=0.9999)})
    set_to(model, 1.0)
    for _ in range(2000):
        averager.update()
    assert float(averager.export("ema", dtype=torch.float32)["p"]) == pytest.approx(0.1813, abs=1e-4)


@pytest.mark.parametrize("compensated", [False, True])
def test_5_constant_weights_are_a_fixed_point(compensated, path):
    torch.manual_seed(0)
    model = scalar(size=1000)
    nn.init.normal_(model.p)
    averager = Averager(model, {"ema": EMA(decay=0.9999)}, compensated=compensated)
    for _ in range(1000):
        averager.update()
    assert torch.equal(averager.export("ema")["p"], model.p)


@pytest.mark.parametrize(("compensated", "bound"), [(False, 2e-4), (True, 3e-6)])
def test_6_little_is_lost_to_rounding(compensated, bound, path):
    torch.manual_seed(0)
    model, exact = scalar(1.0, size=256), torch.ones(256, dtype=torch.float64)
    averager = Averager(model, {"ema": EMA(decay=0.9999)}, compensated=compensated)
    for _ in range(3000):
        with torch.no_grad():
            model.p.copy_(1.5 + 0.1 * torch.randn(256))
        averager.update()
        exact.lerp_(model.p.detach().double(), 1e-4)
    error = (averager.export("ema", dtype=torch.float64)["p"] - exact).norm() / (exact - 1).norm()
    assert error < bound


def test_7_debiased_averages_forget_the_initial_weights_at_once():
    model = scalar(1000.0)
    averager = Averager(model, {"ema": EMA(decay=0.9999, debias=True), "plain": EMA(decay=0.9999)})
    set_to(model, 1.0)
    for _ in range(10):
        averager.update()
    assert float(averager.export("ema")["p"]) == 1.0
    assert averager.weights("plain")[0] == pytest.approx(0.9999**10)
    assert EMA(decay=0.9999).describe(10_000)["start_weight"] == pytest.approx(0.368, abs=1e-3)


@pytest.mark.parametrize("policy", ["average", "copy", "recompute"])
def test_8_counters_count(model, policy):
    averager = Averager(model, {"ema": EMA(decay=0.9)}, buffers=policy)
    for step in range(5):
        walk(model, step)
        averager.update()
    assert averager.export("ema")["norm.num_batches_tracked"] == 5
    with averager.applied("ema"):
        assert model.norm.num_batches_tracked == 5


def test_9_a_loaded_average_keeps_its_precision():
    model = scalar(dtype=torch.bfloat16)
    averager = Averager(model, {"ema": EMA(decay=0.9999)})
    set_to(model, 1.0)
    for _ in range(100):
        averager.update()
    resumed = Averager(copy.deepcopy(model), {"ema": EMA(decay=0.9999)})
    resumed.load_state_dict(averager.state_dict())
    value = resumed.export("ema", dtype=torch.float32)["p"]
    assert torch.equal(value, averager.export("ema", dtype=torch.float32)["p"])
    assert value != value.bfloat16().float()


def test_10_every_m_updates_keep_beta_to_the_m():
    model = scalar()
    averager = Averager(model, {"each": EMA(decay=0.99), "tenth": EMA(decay=0.99, every=10)})
    set_to(model, 1.0)
    for _ in range(50):
        averager.update()
    each, tenth = (float(averager.export(n)["p"]) for n in averager.names)
    assert each == pytest.approx(1 - 0.99**50, rel=1e-5)
    assert tenth == pytest.approx(each, rel=1e-5)


def test_11_several_decays_ride_on_one_pass(model):
    names = {f"{b}": EMA(decay=b, debias=d) for b, d in ((0.9, False), (0.99, True), (0.999, False))}
    together = Averager(model, {**names, "swa": Mean()})
    alone = {name: Averager(model, {name: profile}) for name, profile in names.items()}
    for step in range(4):
        walk(model, step)
        for averager in (together, *alone.values()):
            averager.update()
    for name in names:
        for key, value in alone[name].export(name).items():
            assert torch.equal(together.export(name)[key], value)
