"""Profiles as arithmetic: their weights, what they say of themselves, and what they answer to wrong values."""

import math
import subprocess
import sys

import numpy as np
import pytest

from emabench.averaging import EMA, LAWA, Mean, Warmup, from_dict
from emabench.averaging.profiles import window_of, window_of_decay


def test_importing_profiles_does_not_import_torch():
    code = "import sys, emabench.averaging as a, emabench.averaging.profiles; a.EMA(decay=.9); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ema_weights_are_equation_2_with_the_initial_weights():
    w = EMA(decay=0.9).weights(5)
    assert w == pytest.approx([0.9**5, *(0.1 * 0.9 ** (5 - s) for s in range(1, 6))])


def test_debiased_ema_gives_the_initial_weights_nothing():
    w = EMA(decay=0.9, debias=True).weights(5)
    plain = np.array([0.1 * 0.9 ** (5 - s) for s in range(1, 6)])
    assert w[0] == 0.0
    assert w[1:] == pytest.approx(plain / (1 - 0.9**5))


def test_every_m_updates_is_beta_to_the_m():
    w = EMA(decay=0.9, every=3).weights(7)
    b = 0.9**3
    assert w == pytest.approx([b * b, 0, 0, b * (1 - b), 0, 0, 1 - b, 0])


def test_start_shifts_the_profile():
    for profile in (EMA(decay=0.9), EMA(decay=0.9, debias=True, every=2), Mean(every=3)):
        late = from_dict({**profile.to_dict(), "start": 4})
        assert late.weights(15)[4:] == pytest.approx(profile.weights(11))
        assert not late.weights(15)[:4].any()


def test_before_it_begins_an_average_is_the_current_weights():
    assert Mean(start=3, every=2).weights(4).tolist() == [0, 0, 0, 0, 1]
    assert EMA(decay=0.9, start=3).weights(2).tolist() == [0, 0, 1]


def test_mean_is_uniform():
    assert Mean(start=2).weights(6) == pytest.approx([0, 0, 0, 0.25, 0.25, 0.25, 0.25])


def test_half_life_window_share_and_units_say_the_same():
    assert EMA(half_life=100).beta == pytest.approx(0.5**0.01)
    assert EMA(window=1000).beta == pytest.approx(0.999)
    assert EMA(share=0.01).bound(steps=50_000) == EMA(window=500.0)
    assert EMA(half_life=12_800, unit="samples").bound(batch_size=128) == EMA(half_life=100.0)
    assert EMA(half_life=2, unit="epochs").bound(steps_per_epoch=50) == EMA(half_life=100)
    assert Mean(start=0.75).bound(steps=1000) == Mean(start=750)


def test_every_unit_of_a_size_is_bound():
    assert EMA(window=640, unit="samples").bound(batch_size=64) == EMA(window=10.0)
    assert EMA(window=1, unit="samples").bound(batch_size=64) == EMA(window=1.0)  # at least one update
    assert EMA(window=0.5, unit="epochs").bound(steps_per_epoch=40) == EMA(window=20.0)
    assert EMA(half_life=1, unit="samples").bound(batch_size=64) == EMA(half_life=1 / 64)
    assert EMA(decay=0.9, unit="epochs").bound() == EMA(decay=0.9)  # a decay is per update in any unit
    assert EMA(share=1e-9).bound(steps=10) == EMA(window=1.0)
    ramped = EMA(decay=0.9, warmup=Warmup(steps=0.25), start=0.5).bound(steps=40)
    assert (ramped.warmup.steps, ramped.start) == (10, 20)
    assert EMA(decay=0.9, warmup=Warmup(steps=0.01)).bound(steps=10).warmup.steps == 1
    for rule, waits in (
        (EMA(window=5, unit="samples"), "window=5"),
        (EMA(half_life=5, unit="epochs"), "half_life=5"),
        (EMA(decay=0.9, warmup=Warmup(steps=0.25)), "warmup.steps=0.25"),
        (EMA(decay=0.9, start=0.5), "start=0.5"),
    ):
        assert rule.unbound() == waits
        with pytest.raises(ValueError, match=f"{waits} needs (batch_size|steps_per_epoch|steps) to be known"):
            rule.bound()


def test_what_is_relative_to_a_run_must_be_bound():
    with pytest.raises(ValueError, match=r"share=0.01 .*bound"):
        EMA(share=0.01).weights(10)
    with pytest.raises(ValueError, match="half_life=5 needs batch_size"):
        EMA(half_life=5, unit="samples").bound(steps=3)


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        (Warmup("linear", 4, 0.5), [0.6, 0.7, 0.8, 0.9, 0.9]),
        (Warmup("log", 2, 0.0), [1 - 0.1**0.5, 0.9, 0.9]),
        (Warmup("ratio"), [2 / 11, 3 / 12, 4 / 13]),
        (Warmup("power", 1.0, power=2 / 3), [1 - 2 ** (-2 / 3), 1 - 3 ** (-2 / 3)]),
        (Warmup("exponential", 5), [0.9 * (1 - math.exp(-0.2)), 0.9 * (1 - math.exp(-0.4))]),
        (Warmup("cosine", 2, 0.5), [0.7, 0.9, 0.9]),
        (Warmup("two_phase", 2, 0.5), [0.5, 0.5, 0.9]),
        (Warmup("article_eq35", 2, 0.5), [0.7, 0.5, 0.5]),
    ],
)
def test_ramps(warmup, expected):
    assert [warmup.decay(t, 0.9) for t in range(1, len(expected) + 1)] == pytest.approx(expected)


def test_the_ratio_ramp_caps_the_window():
    capped = EMA(decay=0.9999, warmup="ratio").weights(5000)
    shorter = EMA(decay=0.999, warmup="ratio").weights(5000)
    assert EMA(decay=0.9999, warmup="ratio").describe(5000)["start_weight"] < 1e-12
    assert np.abs(capped - shorter).max() < 1e-3


def test_describe_an_ema():
    d = EMA(decay=0.99).describe()
    assert d["half_life"] == pytest.approx(math.log(2) / -math.log(0.99))
    assert d["centre_of_mass"] == pytest.approx(99)
    assert d["effective_samples"] == pytest.approx(199)
    late = EMA(decay=0.99).describe(5000)
    assert late["half_life"] == pytest.approx(d["half_life"], rel=1e-2)
    assert late["centre_of_mass"] == pytest.approx(99, rel=1e-6)
    assert late["share"] == pytest.approx(99 / 5000)
    assert EMA(decay=0.9999).describe(1000)["start_weight"] == pytest.approx(0.9999**1000)
    assert EMA(decay=0.9999, debias=True).describe(1000)["start_weight"] == 0


def test_the_window_is_the_mean_age_and_one():
    assert EMA(decay=0.99).effective_window() == pytest.approx(100) == window_of_decay(0.99)
    assert EMA(window=250).effective_window(20_000) == pytest.approx(250)
    assert Mean().effective_window(9) == pytest.approx(5)
    assert LAWA(k=3, every=10).effective_window(100) == pytest.approx(11)
    assert EMA(decay=0.0).effective_window(5) == 1
    assert window_of(EMA(decay=0.9).describe(500)) == pytest.approx(10)
    assert window_of({}) is None


@pytest.mark.parametrize(
    "profile",
    [
        EMA(decay=0.99),
        EMA(half_life=10, every=4, start=0.5, debias=True),
        EMA(share=0.1, warmup={"shape": "cosine", "steps": 0.1, "initial": 0.9}),
        Mean(start=3000, every=20),
    ],
)
def test_plain_data_and_back(profile):
    assert from_dict(profile.to_dict()) == profile


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"kind": "emma"}, "kind='emma' is unknown; did you mean 'ema'"),
        ({"decay": 0.9}, "has no kind"),
        ({"kind": "ema", "decai": 0.9}, "no option 'decai'; did you mean 'decay'"),
        ({"kind": "ema", "decay": 1.0}, r"decay=1.0: give a number in \[0, 1\)"),
        ({"kind": "ema", "decay": "fast"}, "decay='fast'"),
        ({"kind": "ema"}, "exactly one of decay, half_life, window and share; got none"),
        ({"kind": "ema", "decay": 0.9, "window": 10}, "got decay=0.9, window=10"),
        ({"kind": "ema", "half_life": 0}, "half_life=0: give a number of steps above 0"),
        ({"kind": "ema", "window": 0.5}, "window=0.5"),
        ({"kind": "ema", "decay": 0.9, "every": 0}, "every=0: give a whole number of at least 1"),
        (
            {"kind": "ema", "decay": 0.9, "warmup": "linaer"},
            "warmup.shape='linaer' is unknown; did you mean 'linear'",
        ),
        (
            {"kind": "ema", "decay": 0.9, "warmup": {"step": 3}},
            "warmup has no option 'step'; did you mean 'steps'",
        ),
        ({"kind": "ema", "decay": 0.9, "debias": 1}, "debias=1: give true or false"),
        ({"kind": "mean", "start": -1}, "start=-1: give a whole number"),
        ({"kind": "mean", "start": 1.5}, "start=1.5"),
    ],
)
def test_wrong_values_are_named(plain, message):
    with pytest.raises(ValueError, match=message):
        from_dict(plain)
