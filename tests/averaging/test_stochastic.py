"""Averages in bfloat16 with stochastic rounding."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from emabench.averaging import EMA, LAWA, Averager, EMAOfEMA, Mean, NotFinite, native, stochastic

RULES = {"ema": EMA(decay=0.99), "twice": EMAOfEMA(decay=0.8), "mean": Mean(start=2), "lawa": LAWA(k=2)}


def half(model, rules):
    return Averager(model, rules, dtype=torch.bfloat16, rounding="stochastic")


def walk(model):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)


def test_where_rounding_to_the_nearest_stalls_it_is_exact_in_expectation(path):
    """Exact: 1 − .9999^2000 = .1813 of the gap is closed."""
    model = nn.Linear(100, 100, bias=False)
    nn.init.zeros_(model.weight)
    stochastically, nearest = (
        Averager(model, {"e": EMA(decay=0.9999)}, dtype=torch.bfloat16, rounding=r)
        for r in ("stochastic", "nearest")
    )
    single = Averager(model, {"e": EMA(decay=0.9999)})
    nn.init.ones_(model.weight)
    for _ in range(2000):
        stochastically.update()
        nearest.update()
        single.update()
    got, stalled, exact = (a.export("e", torch.float32)["weight"] for a in (stochastically, nearest, single))
    assert exact.mean() == pytest.approx(0.1813, abs=1e-4)
    assert got.mean() == pytest.approx(0.1813, abs=1e-3)
    assert got.std() < 0.01
    assert stalled.max() < 0.1


def test_c_and_torch_draw_the_same_bits(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 500), nn.Linear(500, 3)).to(memory_format=torch.contiguous_format)
    twin = copy.deepcopy(model)
    if native.library() is None:
        return
    ours = half(model, RULES)
    assert ours.arithmetic == "c"
    steps = [torch.randn_like(p) for _ in range(4) for p in model.parameters()]

    def run(averager, model):
        moves = iter(steps)
        for _ in range(4):
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(next(moves))
            averager.update()
        return {name: averager.export(name, torch.float32) for name in RULES}

    in_c = run(ours, model)
    monkeypatch.setattr(native, "table", lambda *given: None)
    theirs = half(twin, RULES)
    assert theirs.arithmetic == "torch"
    in_torch = run(theirs, twin)
    for name in RULES:
        for key, value in in_c[name].items():
            same = (value == in_torch[name][key]).float().mean()
            assert same > 0.999, (
                name,
                key,
                float(same),
            )  # but for the last bit of a sum before it is rounded


def test_it_resumes_bit_for_bit(path):
    torch.manual_seed(0)
    model = nn.Linear(40, 30)
    averager = half(model, RULES)
    for step in range(6):
        if step == 3:
            saved, twin = copy.deepcopy(averager.state_dict()), copy.deepcopy(model)
        torch.manual_seed(step)
        walk(model)
        averager.update()
    resumed = half(twin, RULES)
    resumed.load_state_dict(saved)
    for step in range(3, 6):
        torch.manual_seed(step)
        walk(twin)
        resumed.update()
    for name in RULES:
        assert all(torch.equal(v, averager.export(name)[k]) for k, v in resumed.export(name).items())


def test_nothing_moves_when_a_weight_is_not_finite(path):
    torch.manual_seed(0)
    model = nn.Linear(600, 500)
    averager = half(model, {"ema": EMA(decay=0.9)})
    before = averager.export("ema", torch.float32)
    walk(model)
    with torch.no_grad():
        model.bias[-1] = float("nan")
    with pytest.raises(NotFinite, match="'bias'"):
        averager.update()
    assert all(torch.equal(v, before[k]) for k, v in averager.export("ema", torch.float32).items())


def test_the_random_bits_are_uniform_and_differ_between_updates_and_averages():
    like = torch.empty(200_000)
    bits = stochastic.noise(0, like, stochastic.seed(1, 0)).numpy()
    assert bits.min() >= 0
    assert bits.max() < 65536
    counts = np.bincount(bits // 4096, minlength=16)
    assert np.abs(counts / 12_500 - 1).max() < 0.05
    for other in (stochastic.seed(2, 0), stochastic.seed(1, 1)):
        mixed = stochastic.noise(0, like, other).numpy()
        assert abs(np.corrcoef(bits, mixed)[0, 1]) < 0.02
    assert abs(np.corrcoef(bits[1:], bits[:-1])[0, 1]) < 0.02
    later = stochastic.noise(1000, like[:50], stochastic.seed(1, 0)).numpy()
    assert np.array_equal(later, bits[1000:1050])  # by the place in the model, not in the piece


@pytest.mark.parametrize(
    "options", [{}, {"dtype": torch.float32}, {"dtype": torch.bfloat16, "compensated": True}]
)
def test_it_is_for_bfloat16_without_compensation(options):
    with pytest.raises(ValueError, match=r"rounding='stochastic' with dtype=.*pass dtype=torch\.bfloat16"):
        Averager(nn.Linear(2, 2), {"ema": EMA(decay=0.9)}, rounding="stochastic", **options)
