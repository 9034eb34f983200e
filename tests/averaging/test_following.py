"""What of a model is averaged: tensors themselves whatever its state_dict does, what is added later, what is refused."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from emabench.averaging import EMA, LAWA, Averager, Mean, PerLayer

from .support import Small, walk


def shift(model, by=1.0):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by)


def half_way(model, averager, weight):
    """Whether the average of a weight that moved by 1 once has moved by a half."""
    before = weight.detach().clone()
    shift(model)
    averager.update()
    with averager.applied():
        moved = (weight.detach() - before).mean().item()
    return moved == pytest.approx(0.5, abs=1e-6)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def state_dict(self, *args, **kwargs):
        return {"model": super().state_dict(*args, **kwargs)}


class Filtered(Nested):
    def state_dict(self, *args, **kwargs):
        own = nn.Module.state_dict(self, *args, **kwargs)
        return {name: value for name, value in own.items() if not name.startswith("b.")}


def hooked():
    model = Nested()

    def narrow(module, state, prefix, metadata):
        for key, value in list(state.items()):
            state[key] = value.bfloat16()

    model.a._register_state_dict_hook(narrow)
    return model


@pytest.mark.parametrize("make", [Nested, Filtered, hooked])
def test_what_a_models_state_dict_returns_does_not_matter(make):
    model = make()
    averager = Averager(model, EMA(decay=0.5))
    assert half_way(model, averager, model.a.weight)
    assert half_way(model, Averager(model, EMA(decay=0.5)), model.b.weight)
    state = averager.export()
    assert list(state) == ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert state["a.weight"].dtype == torch.float32
    other = make()
    other.load_state_dict(state)
    assert torch.equal(other.b.weight, state["b.weight"])


def test_what_modules_add_to_a_state_dict_is_exported():
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"seen": 3}

        def set_extra_state(self, state):
            self.seen = state["seen"]

    model = nn.Sequential(Counting(2, 2), nn.Linear(2, 2))
    state = Averager(model, EMA(decay=0.5)).export()
    assert sorted(state) == sorted(model.state_dict())
    model.load_state_dict(state)
    assert model[0].seen == 3


# -- what changes after the averager was made


@pytest.mark.parametrize("use", ["update", "export", "applied", "state_dict", "write_back"])
def test_a_head_added_later_is_refused_until_it_is_followed(use):
    model = nn.Sequential(nn.Linear(4, 4))
    averager = Averager(model, EMA(decay=0.5))
    model.add_module("head", nn.Linear(4, 2))
    if use != "state_dict":
        with pytest.raises(RuntimeError, match=r"'head.weight' was added .* call averager.follow\(\)"):
            if use == "applied":
                with averager.applied():
                    pass
            else:
                getattr(averager, use)()
    assert averager.follow() == [
        "'head.weight' is averaged from now on",
        "'head.bias' is averaged from now on",
    ]
    assert half_way(model, averager, model.head.weight)
    assert "head.weight" in averager.state_dict()["averages"]["ema"]["weights"][0]


def test_an_identity_that_becomes_a_layer_is_noticed():
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "head": nn.Identity()})
    averager = Averager(model, EMA(decay=0.5))
    model["head"] = nn.Linear(4, 2)
    with pytest.raises(RuntimeError, match=r"'head.weight' was added"):
        averager.update()


@pytest.mark.parametrize(
    "profile", [EMA(decay=0.9), EMA(decay=0.9, debias=True), Mean(), LAWA(k=3), Mean(start=10)]
)
def test_what_is_followed_later_counts_as_if_it_had_always_been_what_it_was(profile):
    model, twin = nn.Sequential(nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    twin[0].load_state_dict(model[0].state_dict())
    late, whole = Averager(model, {"a": profile}), Averager(twin, {"a": profile})
    for step in range(6):
        if step == 4:  # the new layer did not move before
            model.append(copy.deepcopy(twin[1]))
            late.follow()
        torch.manual_seed(step)
        shift(model[0], by := torch.randn(()))
        shift(twin[0], by)
        if step >= 4:
            shift(model[1], by)
            shift(twin[1], by)
        late.update()
        whole.update()
    for key, value in whole.export().items():
        torch.testing.assert_close(late.export()[key], value, rtol=1e-5, atol=1e-6)


def test_an_adapter_around_a_layer_keeps_the_layers_average_under_its_new_name():
    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.down = base, nn.Linear(4, 1, bias=False)

    model = nn.ModuleDict({"a": nn.Linear(4, 4)})
    averager = Averager(model, EMA(decay=0.5), new="follow")
    shift(model)
    averager.update()
    before = averager.export()["a.weight"]
    model["a"] = Adapter(model["a"])
    exported = averager.export()
    assert torch.equal(exported["a.base.weight"], before)
    assert "a.down.weight" in exported and "a.weight" not in exported


def test_a_layer_that_is_exchanged_keeps_its_average_on_request():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    averager = Averager(model, EMA(decay=0.5))
    shift(model)
    averager.update()
    before = averager.export()
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    with pytest.raises(RuntimeError, match=r"'0.weight' was replaced"):
        averager.update()
    assert averager.follow()[0] == "'0.weight' was replaced"
    assert all(torch.equal(value, before[key]) for key, value in averager.export().items())
    del model[1]
    assert averager.follow() == ["'1.weight' is no longer in the model", "'1.bias' is no longer in the model"]
    averager.update()


@pytest.mark.parametrize("change", ["shrink", "transpose", "narrow"])
def test_a_tensor_that_changes_under_its_pointer_is_noticed(change, path):
    model = nn.Linear(8, 8, bias=False)
    averager = Averager(model, EMA(decay=0.5))
    start = averager.export()["weight"].double()
    averager.update()
    if change == "shrink":
        model.weight.data = model.weight.data[:4]
        with pytest.raises(ValueError, match=r"'weight' is \(4, 8\) on cpu, its average \(8, 8\)"):
            averager.update()
        assert averager.updates == 1
        return
    if change == "transpose":
        model.weight.data = model.weight.data.t()
    else:  # the same bytes, read as other numbers
        half = model.weight.data.view(torch.bfloat16)[:, :8]
        half.copy_(torch.randn(8, 8))
        model.weight.data = half
    averager.update()
    expected = 0.5 * start + 0.5 * model.weight.detach().double()
    if change == "transpose":
        torch.testing.assert_close(averager.export()["weight"].double(), expected)
    else:
        torch.testing.assert_close(averager.export(dtype=torch.float64)["weight"], expected)


# -- by name


def test_parameters_are_left_out_or_ruled_by_pattern(model):
    averager = Averager(
        model,
        {"ema": EMA(decay=0.5), "mixed": PerLayer(EMA(decay=0.5), {"norm.weight": EMA(decay=0.25)})},
        parameters={"norm.*": EMA(decay=0.75), "*.bias": "live"},
    )
    before = copy.deepcopy(model.state_dict())
    shift(model)
    averager.update()
    for name in averager.names:
        moved = {k: float((v - before[k]).mean()) for k, v in averager.export(name).items() if "num" not in k}
        assert moved["first.weight"] == pytest.approx(0.5, abs=1e-6)
        assert moved["first.bias"] == pytest.approx(1.0, abs=1e-6)
        assert moved["norm.weight"] == pytest.approx({"ema": 0.25, "mixed": 0.75}[name], abs=1e-6)
    assert "first.bias" not in averager.state_dict()["averages"]["ema"]["weights"][0]


def test_an_adapter_alone_is_averaged_and_exported():
    model = nn.ModuleDict({"base": nn.Linear(4, 4), "lora_A": nn.Linear(4, 1), "lora_B": nn.Linear(1, 4)})
    model["base"].requires_grad_(False)
    for options in ({"frozen": "live"}, {"parameters": {"*lora_*": "average", "*": "live"}}):
        averager = Averager(model, EMA(decay=0.5), **options)
        assert {f.name for f in averager.followed} == {n for n, _ in model.named_parameters() if "lora" in n}
        assert {*averager.export(followed_only=True)} == {f.name for f in averager.followed}
        assert "base.weight" in averager.export()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"parameters": {"haed.*": "live"}},
            r"parameters=\{'haed.\*': …\}: no parameter of the model has such a name",
        ),
        ({"buffers": {"*.maks": "copy"}}, r"buffers=\{'\*.maks': …\}: no buffer"),
        ({"buffers": {"*": "mean"}}, r"buffers\['\*'\]='mean' is unknown"),
        ({"parameters": {"*": "leave"}}, r"parameters\['\*'\]='leave' is unknown"),
        ({"parameters": {"first.*": Mean()}}, "average 'ema': 'first.*': from_initial=False differs"),
        (
            {"parameters": {"*": "live"}},
            "Small has no parameter to average: all of them are frozen or left out",
        ),
        ({"new": "ignore"}, "new='ignore' is unknown"),
    ],
)
def test_rules_that_cannot_hold_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        Averager(model, EMA(decay=0.5), **options)


# -- what cannot be averaged


def lazy():
    return nn.Sequential(nn.LazyLinear(3))


def meta():
    return nn.Linear(2, 2, device="meta")


def narrow():
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(model.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return model


def sparse():
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.eye(2).to_sparse())
    return model


def quantised():
    model = nn.Linear(2, 2)
    values = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    model.weight = nn.Parameter(values, requires_grad=False)
    return model


def partitioned():
    model = nn.Linear(2, 2)
    model.weight.ds_id = 3  # what DeepSpeed leaves on its placeholders
    return model


def hidden():
    model = nn.Linear(2, 2)
    model.extra = [nn.Parameter(torch.zeros(2))]
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nn.Identity, "Identity has no parameter to average: it has none"),
        (lazy, "'0.weight' has no shape yet: run one forward pass"),
        (meta, "'weight' is on the meta device"),
        (narrow, r"'weight' is torch.float8_e4m3fn: 8-bit weights hold no step of an average"),
        (sparse, "'weight' is torch.sparse_coo, and only dense tensors are averaged"),
        (partitioned, "'weight' is partitioned by DeepSpeed ZeRO-3"),
        (hidden, r"extra\[0\] is a parameter that the module does not register"),
    ],
)
def test_models_that_cannot_be_averaged_are_refused_in_a_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        Averager(make(), EMA(decay=0.5))
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
def test_quantised_weights_are_refused_and_can_be_left_out():
    with pytest.raises(ValueError, match="'weight' is quantised"):
        Averager(quantised(), EMA(decay=0.5))
    averager = Averager(quantised(), EMA(decay=0.5), frozen="live")
    averager.update()
    assert averager.export()["weight"].is_quantized


def test_fsdp1_is_refused(monkeypatch):
    from torch.distributed import fsdp

    class Flat(nn.Linear):
        pass

    monkeypatch.setattr(fsdp, "FullyShardedDataParallel", Flat)
    with pytest.raises(ValueError, match=r"'0' is sharded by FSDP1.*shard with FSDP2"):
        Averager(nn.Sequential(Flat(2, 2)), EMA(decay=0.5))


def test_a_rule_alone_is_named_after_its_kind(model):
    for given in (EMA(decay=0.9), {"kind": "ema", "decay": 0.9}):
        averager = Averager(model, given)
        assert averager.profiles == {"ema": EMA(decay=0.9)}
        walk(model, 0)
        averager.update()
        assert averager.status().updates == 1
    with pytest.raises(ValueError, match=r"profiles=0.9: give a profile, like EMA\(decay=0.999\)"):
        Averager(model, 0.9)
    with pytest.raises(ValueError, match="say which average: a, b"):
        Averager(model, {"a": EMA(decay=0.9), "b": Mean()}).export()


def test_numbers_of_numpy_are_numbers():
    got = EMA(decay=np.float32(0.5), every=np.int64(2), start=np.int32(3))
    assert got == EMA(decay=0.5, every=2, start=3)
    assert all(type(value) in (str, int, float) for value in got.to_dict().values())
    assert LAWA(k=np.int64(3)) == LAWA(k=3)
    with pytest.raises(ValueError, match="every=0"):
        EMA(decay=0.5, every=np.int64(0))
    averager = Averager(Small(), got)
    averager.update(np.int64(1))
    assert averager.updates == 1 and type(averager.updates) is int
