"""Decays that differ between layers."""

import math

import pytest
import torch
from torch import nn

from emabench.averaging import (
    EMA,
    LAWA,
    ArticleEq26,
    ArticleEq37,
    Averager,
    GradientNorm,
    GradientShare,
    Mean,
    PerLayer,
    from_dict,
)
from emabench.averaging import native as native_path


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def shift(model, by=1.0):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by)


def gradients(model, *norms):
    for layer, norm in zip(model, norms, strict=True):
        layer.weight.grad = torch.full((2, 2), norm * math.sqrt(0.8) / 2)
        layer.bias.grad = torch.full((2,), norm * math.sqrt(0.2) / math.sqrt(2))


def moved(averager, model):
    """How far each layer's average has come, when every weight has come by 1."""
    exported = averager.export(averager.names[0])
    return [float((exported[f"{i}.weight"] - model[i].weight.detach()).mean()) + 1.0 for i in range(2)]


def test_the_first_matching_pattern_decides():
    model = two_layers()
    rules = {"0.bias": EMA(decay=0.25), "0.*": {"kind": "ema", "decay": 0.5}}
    profile = PerLayer(default=EMA(decay=0.75), rules=rules)
    assert from_dict(profile.to_dict()) == profile
    averager = Averager(model, {"a": profile})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    shift(model)
    averager.update()
    got = {k: float((v - before[k]).mean()) for k, v in averager.export("a").items()}
    assert got == pytest.approx({"0.weight": 0.5, "0.bias": 0.75, "1.weight": 0.25, "1.bias": 0.25}, abs=1e-6)
    assert profile.weights(3) == pytest.approx(EMA(decay=0.75).weights(3))


def test_rules_that_cannot_hold_are_named():
    with pytest.raises(ValueError, match=r"'head': start=3 differs from the default's start=0"):
        PerLayer(default=EMA(decay=0.5), rules={"head": EMA(decay=0.5, start=3)})
    with pytest.raises(ValueError, match=r"'head': from_initial=False differs"):
        PerLayer(default=EMA(decay=0.5), rules={"head": Mean()})
    with pytest.raises(ValueError, match="a 'lawa' cannot be the rule of a layer"):
        PerLayer(default=Mean(), rules={"head": LAWA()})
    with pytest.raises(ValueError, match="default=None"):
        from_dict({"kind": "per_layer", "rules": {}})
    with pytest.raises(ValueError, match="no tensor follows the rule 'haed'"):
        Averager(two_layers(), {"a": PerLayer(default=EMA(decay=0.5), rules={"haed": EMA(decay=0.9)})})
    share = PerLayer(default=EMA(share=0.1), rules={"0.*": EMA(share=0.2)})
    with pytest.raises(ValueError, match=r"share=0\.1 is relative"):
        share.weights(10)
    assert share.bound(steps=100).components == (EMA(window=10.0), EMA(window=20.0))


@pytest.mark.parametrize(
    ("profile", "expected"),
    [  # gradients of norm 3 and 1: shares 3/4 and 1/4, total norm √10
        (ArticleEq26(decay=0.9), [1 - 0.9 * math.exp(-0.75), 1 - 0.9 * math.exp(-0.25)]),
        (GradientShare(decay=0.9), [0.1 * math.exp(0.5), 0.1 * math.exp(-0.5)]),
        (GradientShare(decay=0.0), [1.0, math.exp(-0.5)]),
        (ArticleEq37(c=0.2), [0.2 / math.sqrt(11)] * 2),
        (GradientNorm(c=0.2), [0.2 * math.sqrt(11)] * 2),
        (GradientNorm(c=0.5), [1.0] * 2),
    ],
)
def test_decays_by_the_gradients(profile, expected):
    model = two_layers()
    averager = Averager(model, {"a": profile})
    gradients(model, 3.0, 1.0)
    shift(model)
    averager.update()
    assert moved(averager, model) == pytest.approx(expected, abs=1e-6)
    assert from_dict(profile.to_dict()) == profile


def test_as_printed_the_signs_and_windows_are_wrong_and_as_mended_right():
    small, large = {"a": 0.01, "b": 0.01}, {"a": 10.0, "b": 10.0}
    assert ArticleEq37(c=0.05).decays(large)["a"] > ArticleEq37(c=0.05).decays(small)["a"]
    assert GradientNorm(c=0.05).decays(large)["a"] < GradientNorm(c=0.05).decays(small)["a"]
    ten = {str(i): 1.0 for i in range(10)}
    assert ArticleEq26(decay=0.999).decays(ten)["0"] == pytest.approx(
        0.999 * math.exp(-0.1)
    )  # a window of 10
    assert GradientShare(decay=0.999).decays(ten)["0"] == pytest.approx(0.999)


def test_every_takes_the_decay_to_its_power():
    model = two_layers()
    averager = Averager(model, {"a": GradientShare(decay=0.9, every=2)})
    gradients(model, 1.0, 1.0)
    shift(model)
    averager.update()
    assert moved(averager, model) == pytest.approx([0, 0], abs=1e-6)
    averager.update()
    assert moved(averager, model) == pytest.approx([1 - 0.81] * 2, abs=1e-6)


def test_without_usable_gradients_they_say_so():
    model = two_layers()
    averager = Averager(model, {"a": GradientNorm(c=0.1)})
    with pytest.raises(ValueError, match="before zero_grad"):
        averager.update()
    gradients(model, math.nan, 1.0)
    with pytest.raises(ValueError, match="the gradient of '0' is not finite"):
        averager.update()
    assert averager.updates == 0
    with pytest.raises(ValueError, match="depend on the gradients"):
        GradientNorm(c=0.1).weights(3)
    with pytest.raises(ValueError, match=r"c=0: give a number in \(0, 1\]"):
        GradientNorm(c=0)


@pytest.mark.parametrize("native", [True, False])
def test_a_rule_that_copies_leaves_the_others_compensated(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of several rules share a chunk, and one may have share 1."""
    if not native:
        monkeypatch.setattr(native_path, "table", lambda *given: None)
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(8, 8), "head": torch.nn.Linear(8, 8)})
    rule = PerLayer(EMA(decay=0.999999, debias=False), {"head.*": EMA(decay=0, debias=False)})
    averager = Averager(model, {"a": rule}, compensated=True)
    start = model["body"].weight.detach().double().clone()
    with torch.no_grad():
        model["body"].weight.add_(1.0)
    for _ in range(3000):
        averager.update()
    moved = averager.export("a")["body.weight"].double() - start
    expected = 1 - 0.999999**3000
    torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=0, atol=2e-7)
