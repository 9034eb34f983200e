"""Every profile, interval, start and type against float64 sums over the explicit history."""

import copy
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from emabench.averaging import (
    BEMA,
    EMA,
    LAWA,
    Annealing,
    Averager,
    EMAOfEMA,
    Mean,
    PowerEMA,
    SqrtEMA,
    TailBlend,
    Warmup,
    from_dict,
    native,
)

from . import oracle
from .support import History, Small, assert_close, walk
from .test_averager import assert_same

starts, intervals = st.integers(0, 6), st.integers(1, 4)
warmups = st.builds(
    Warmup,
    shape=st.sampled_from(
        ["linear", "log", "ratio", "power", "exponential", "cosine", "two_phase", "article_eq35"]
    ),
    steps=st.integers(1, 12),
    initial=st.sampled_from([0.0, 0.3]),
)
emas = st.builds(
    lambda given, **rest: EMA(**given, **rest),
    st.one_of(
        st.sampled_from([0.0, 0.5, 0.9, 0.999]).map(lambda x: {"decay": x}),
        st.floats(0.5, 50).map(lambda x: {"half_life": x}),
        st.floats(1, 100).map(lambda x: {"window": x}),
    ),
    every=intervals,
    start=starts,
    debias=st.booleans(),
    warmup=st.none() | warmups,
)
profiles = st.one_of(
    emas,
    st.builds(Mean, every=intervals, start=starts),
    st.builds(SqrtEMA, every=intervals, start=starts),
    st.builds(LAWA, k=st.integers(1, 4), every=intervals, start=starts),
    st.builds(PowerEMA, sigma_rel=st.floats(0.02, 0.28), every=intervals, start=starts),
    st.builds(PowerEMA, gamma=st.floats(0, 40), every=intervals, start=starts),
    st.builds(PowerEMA, half_life_fraction=st.floats(0.02, 1), every=intervals, start=starts),
    st.builds(
        BEMA,
        ema_power=st.floats(0.1, 1),
        bias_power=st.floats(0, 1),
        lag=st.floats(1, 20),
        multiplier=st.floats(0.1, 3),
        every=intervals,
        start=starts,
    ),
    st.builds(
        lambda decay, **rest: TailBlend(decay, **rest),
        st.sampled_from([0.0, 0.5, 0.9]),
        weight=st.sampled_from([0.0, 0.3, 1.0]),
        every=intervals,
        start=starts,
        debias=st.booleans(),
    ),
    st.builds(
        lambda decay, **rest: EMAOfEMA(decay, **rest),
        st.sampled_from([0.0, 0.5, 0.9]),
        second=st.sampled_from([None, 0.0, 0.8]),
        every=intervals,
        start=starts,
        debias=st.booleans(),
        warmup=st.none() | warmups,
    ),
    st.builds(
        lambda last, begin, every, schedule: Annealing(
            schedule=schedule, last=last * every, end=last * every + begin, every=every
        ),
        st.integers(1, 12),
        starts,
        intervals,
        st.sampled_from(["linear", "cosine", "1-sqrt", [1, 1, 0], [1, 0.5, 0.2]]),
    ),
)


@given(profiles, st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_weights_are_those_of_the_definition(profile, T):
    w = profile.weights(T)
    assert w.sum() == pytest.approx(1)
    assert w == pytest.approx(oracle.weights(profile, T), abs=1e-12)
    assert from_dict(profile.to_dict()) == profile


@given(
    profiles,
    st.integers(0, 14),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_the_engine_is_the_oracle(profile, T, dtype, compensated, in_c):
    table = native.table if in_c else lambda *given: None
    with mock.patch.object(native, "table", table):
        hold_against_the_oracle(profile, T, dtype, compensated)


def hold_against_the_oracle(profile, T, dtype, compensated):
    torch.manual_seed(0)
    model = Small().to(dtype)
    averager, history = Averager(model, {"a": profile}, compensated=compensated), History(model)
    for step in range(T):
        walk(model, step)
        averager.update()
        history.record()
    exact = {torch.float64: 1e-12}.get(dtype, 3e-6)  # low-precision models have float32 averages
    wide = torch.promote_types(dtype, torch.float32)
    expected = history.average(oracle.weights(profile, T))
    scale = max(float(v.abs().max()) for v in expected.values())
    assert_close(averager.export("a", dtype=wide), expected, exact, exact * scale)


ALL = {
    "ema": EMA(decay=0.9),
    "late": EMA(decay=0.9, start=4, every=2),
    "debiased": EMA(half_life=5, debias=True, start=2, every=3),
    **{
        s: EMA(decay=0.99, warmup=Warmup(s, 6, 0.2))
        for s in ("linear", "log", "ratio", "power", "exponential")
    },
    **{
        s: EMA(decay=0.99, warmup=Warmup(s, 6, 0.2), debias=True)
        for s in ("cosine", "two_phase", "article_eq35")
    },
    "mean": Mean(start=3),
    "cycle": Mean(start=3, every=4),
    "sqrt": SqrtEMA(every=2),
    "power": PowerEMA(sigma_rel=0.1, start=1),
    "lawa": LAWA(k=3, every=2, start=1),
    "bema": BEMA(start=2),
    "tail": TailBlend(decay=0.9, weight=0.6, start=3),
    "twice": EMAOfEMA(decay=0.9, second=0.8, every=2),
    "twice_debiased": EMAOfEMA(decay=0.9, debias=True, start=2),
    "annealing": Annealing(schedule="cosine", last=6, end=10),
    "per_layer": {"kind": "per_layer", "default": EMA(decay=0.9), "rules": {"norm.*": EMA(half_life=3)}},
    "per_layer_debiased": {
        "kind": "per_layer",
        "default": EMA(decay=0.9, debias=True, start=2),
        "rules": {"first.*": Mean(start=2)},
    },
    "eq26": {"kind": "article_eq26", "decay": 0.9},
    "share": {"kind": "gradient_share", "decay": 0.9, "every": 2},
    "eq37": {"kind": "article_eq37", "c": 0.1, "start": 3},
    "norm": {"kind": "gradient_norm", "c": 0.1},
    "mixture": {"kind": "mixture", "of": {"ema": 0.25, "late": 0.5, "raw": 0.25}},
}


def train(model, averager, step):
    walk(model, step)
    for i, p in enumerate(model.parameters()):
        if p.requires_grad:
            p.grad = torch.full_like(p, 0.1 * (i + 1) * (1 + step % 3))
    averager.update()


@pytest.mark.parametrize("stop", [0, 1, 2, 4, 7])
@pytest.mark.parametrize("compensated", [False, True])
def test_resume_is_bitwise_for_every_profile_before_and_after_its_start(model, stop, compensated):
    profiles = {k: from_dict(v) for k, v in ALL.items()}
    averager = Averager(model, profiles, compensated=compensated)
    twin = copy.deepcopy(model)
    for step in range(12):
        if step == stop:
            saved = copy.deepcopy((model.state_dict(), averager.state_dict()))
        train(model, averager, step)
    twin.load_state_dict(saved[0])
    resumed = Averager(twin, profiles, compensated=compensated)
    resumed.load_state_dict(saved[1])
    for step in range(stop, 12):
        train(twin, resumed, step)
    assert_same(resumed.state_dict(), averager.state_dict())
    for name in profiles:
        assert_same(resumed.export(name), averager.export(name))


@pytest.mark.parametrize("compensated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gaps", [False, True])
def test_large_tensors_are_cut_and_put_together_right(dtype, compensated, gaps, path):
    torch.manual_seed(0)

    class Big(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat = nn.Parameter(torch.randn(1_500_000).to(dtype))
            self.last = nn.Parameter(
                torch.randn(8, 16, 32, 33).to(dtype).to(memory_format=torch.channels_last)
            )
            self.middle = nn.Parameter(torch.randn(50_000).to(dtype))
            if gaps:  # tensors that only torch's own operations take
                self.gaps = nn.Parameter(torch.randn(2_200, 1_000).to(dtype)[:, ::2])
                self.wave = nn.Parameter(torch.randn(100, dtype=torch.complex64))

    model = Big()
    profiles = {"a": EMA(decay=0.9), "b": EMA(decay=0.3), "c": LAWA(k=2), "d": Mean()}
    averager, history = Averager(model, profiles, compensated=compensated), History(model)
    for _ in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        averager.update()
        history.record()
    for name, profile in profiles.items():
        weights = profile.weights(3)
        for key, value in averager.export(name, dtype=torch.float32).items():
            wide = torch.complex128 if value.is_complex() else torch.float64
            expected = sum(w * s[key].to(wide) for w, s in zip(weights, history.states, strict=True))
            torch.testing.assert_close(value.to(wide), expected, rtol=1e-5, atol=1e-5)


def test_weights_of_a_running_averager(model):
    averager = Averager(model, {k: from_dict(v) for k, v in ALL.items()})
    for step in range(5):
        train(model, averager, step)
    expected = 0.25 * ALL["ema"].weights(5) + 0.5 * ALL["late"].weights(5)
    expected[5] += 0.25
    assert averager.weights("mixture") == pytest.approx(expected)
    assert averager.weights("raw", 3).tolist() == [0, 0, 0, 1]
    assert np.array_equal(averager.weights("ema", 9), ALL["ema"].weights(9))
