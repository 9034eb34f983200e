"""BEMA, blends with the current weights, and the EMA of an EMA."""

import numpy as np
import pytest
import torch
from torch import nn

from emabench.averaging import (
    BEMA,
    EMA,
    Averager,
    EMAOfEMA,
    Mixture,
    PowerEMA,
    TailBlend,
    blend_curve,
    from_dict,
)
from emabench.averaging.profiles import expand


def test_bema_is_its_paper_s_algorithm_by_hand():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    averager = Averager(model, {"bema": BEMA()})
    ema = 0.0
    for t in range(1, 6):
        with torch.no_grad():
            model.weight.fill_(float(t))
        averager.update()
        ema += (10 + t) ** -0.5 * (t - ema)
        assert averager.export("bema")["weight"].item() == pytest.approx(ema + (10 + t) ** -0.2 * t, rel=1e-6)


def test_bema_has_less_lag_than_the_ema_it_corrects():
    T = 2000
    weights = BEMA().weights(T)
    age = np.arange(T, -1, -1)
    plain = weights.copy()
    plain[-1] -= BEMA().correction(T)
    plain[0] += BEMA().correction(T)
    assert (weights * age).sum() < 0.5 * (plain * age).sum()
    assert weights.sum() == pytest.approx(1)
    assert weights[0] < 0
    described = BEMA().describe(T)
    assert described["half_life"] <= (age * (weights > 0)).max()
    assert described["start_weight"] == pytest.approx(weights[0])
    assert described["half_life"] == pytest.approx(
        np.interp(0.5, np.cumsum(weights[::-1])[:40], np.arange(1, 41)), abs=1
    )


def test_a_tail_blend_is_modded_nanogpt_s():
    torch.manual_seed(0)
    model = nn.Linear(3, 3, bias=False)
    averager = Averager(model, {"tail": TailBlend(window=5, start=4, weight=0.6)})
    for t in range(1, 12):
        with torch.no_grad():
            model.weight.add_(torch.randn(3, 3))
        averager.update()
        theta = model.weight.detach().double()
        if t == 4:
            ema = theta.clone()
        elif t > 4:
            ema = ema + (theta - ema) / 5
        expected = 0.4 * theta + 0.6 * ema if t >= 4 else theta
        torch.testing.assert_close(averager.export("tail")["weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_a_list_of_weights_keeps_one_ema_for_a_curve():
    averages = expand("tail", {"kind": "tail_blend", "window": 5, "start": 4, "weight": [0.25, 1]})
    assert averages == {
        "tail": EMA(window=5, start=4),
        "tail_0.25": Mixture(of={"tail": 0.25, "raw": 0.75}),
        "tail_1": Mixture(of={"tail": 1.0, "raw": 0.0}),
    }
    assert expand("e", {"kind": "ema", "decay": 0.9}) == {"e": EMA(decay=0.9)}
    with pytest.raises(ValueError, match=r"weight=1\.5: give the weight of the EMA"):
        expand("tail", {"kind": "tail_blend", "window": 5, "weight": [1.5]})


def test_a_curve_over_blends_from_one_training():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    averager = Averager(model, {"ema": EMA(decay=0.5)})
    with torch.no_grad():
        model.weight.fill_(3.0)
    averager.update()  # the EMA is 2 now
    curve = blend_curve(averager, "ema", lambda: model.weight.item(), (0, 0.5, 1))
    assert curve == {0.0: 3.0, 0.5: 2.5, 1.0: 2.0}
    assert model.weight.item() == 3.0


def test_an_ema_of_an_ema_at_equal_decays():
    b = 0.9
    w = EMAOfEMA(decay=b, debias=False).weights(400)
    n = np.arange(400)
    assert w[::-1][:400] == pytest.approx((n + 1) * b**n * (1 - b) ** 2, abs=1e-12)
    assert EMAOfEMA(decay=b).effective_window(2000) - 1 == pytest.approx(2 * 9)


def test_an_ema_of_an_ema_is_given_in_any_way():
    by_decay = EMAOfEMA(decay=0.5**0.1, every=2, start=3, warmup=4)
    by_half_life = EMAOfEMA(half_life=10, every=2, start=3, warmup=4)
    assert by_half_life.weights(40) == pytest.approx(by_decay.weights(40))
    assert EMAOfEMA(window=10).weights(40) == pytest.approx(EMAOfEMA(decay=0.9).weights(40))
    assert EMAOfEMA(share=0.1).bound(steps=100) == EMAOfEMA(window=10.0)
    assert not np.allclose(EMAOfEMA(decay=0.9, second=0.5).weights(40), EMAOfEMA(decay=0.9).weights(40))


def test_half_life_fraction_is_a_power_profile():
    """torchtitan's decays against (t/T)^γ: the two profiles share all but a little of their weight."""
    for fraction, apart in ((0.05, 0.02), (0.2, 0.005)):
        ours = PowerEMA(half_life_fraction=fraction)
        power = PowerEMA(gamma=np.log(2) / fraction - 1)
        assert ours.exponent == pytest.approx(power.exponent)
        assert np.abs(ours.weights(2000) - power.weights(2000)).sum() / 2 < apart
        half_life = ours.describe(2000)["half_life"]
        assert half_life / 2000 == pytest.approx(1 - np.exp(-fraction), rel=0.02)


@pytest.mark.parametrize(
    "profile",
    [
        BEMA(lag=5, start=3),
        TailBlend(half_life=9, weight=0.3),
        EMAOfEMA(window=9, second=0.5),
        PowerEMA(half_life_fraction=0.1),
    ],
)
def test_plain_data_and_back(profile):
    assert from_dict(profile.to_dict()) == profile
    assert profile.describe(100)["centre_of_mass"] == pytest.approx(
        float((profile.weights(100) * np.arange(100, -1, -1)).sum())
    )
    with pytest.raises(ValueError, match="T=None: say after how many updates"):
        profile.describe()


def test_they_are_bound_to_a_run():
    assert TailBlend(share=0.1, start=0.5, weight=0.3).bound(steps=100) == TailBlend(
        window=10.0, start=50, weight=0.3
    )
    assert EMAOfEMA(half_life=0.5, unit="epochs", second=0.5).bound(steps_per_epoch=10) == EMAOfEMA(
        half_life=5.0, second=0.5
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BEMA(ema_power=1.5), r"ema_power=1.5: give a power in \[0, 1\]"),
        (lambda: BEMA(bias_power=-1), "bias_power=-1"),
        (lambda: BEMA(lag=0), "lag=0: give a number of at least 1"),
        (lambda: BEMA(multiplier=0), "multiplier=0"),
        (lambda: TailBlend(decay=0.9, weight=1.1), "weight=1.1"),
        (lambda: EMAOfEMA(decay=0.9, second=1.0), "second=1.0"),
        (lambda: PowerEMA(half_life_fraction=0), "half_life_fraction=0"),
        (lambda: PowerEMA(sigma_rel=0.1, gamma=3), "got sigma_rel=0.1, gamma=3"),
        (PowerEMA, "got none of them"),
    ],
)
def test_wrong_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
