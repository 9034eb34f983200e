"""The engine: what it averages, lends, exports, saves, and refuses."""

import copy
import io

import pytest
import torch
from torch import nn

from emabench.averaging import EMA, Averager, Mean

from .support import History, Small, assert_close, walk

PROFILES = {
    "ema": EMA(decay=0.9),
    "debiased": EMA(decay=0.99, debias=True, every=2),
    "ramped": EMA(half_life=30, warmup=5, start=2),
    "swa": Mean(start=3, every=2),
}


def test_averages_are_the_weighted_sums_of_the_history(model):
    averager, history = Averager(model, PROFILES), History(model)
    for step in range(12):
        for name, profile in PROFILES.items():
            assert_close(averager.export(name), history.average(profile.weights(step)))
        walk(model, step)
        averager.update()
        history.record()


def test_export_loads_into_the_plain_model_and_is_a_copy(model):
    averager = Averager(model, {"ema": EMA(decay=0.5)})
    walk(model, 0)
    averager.update()
    state = averager.export("ema")
    assert {k: v.dtype for k, v in state.items()} == {k: v.dtype for k, v in model.state_dict().items()}
    other = Small()
    other.load_state_dict(state)
    state["first.weight"].zero_()
    assert averager.export("ema")["first.weight"].any()
    assert_close(averager.export("raw"), model.state_dict())


def test_applied_lends_the_weights_and_takes_them_back(model):
    averager = Averager(model, PROFILES)
    for step in range(6):
        walk(model, step)
        averager.update()
    before = copy.deepcopy(model.state_dict())
    for name in averager.names:
        with averager.applied(name) as applied:
            assert applied is model
            assert_close(model.state_dict(), other := averager_state(averager, name))
            assert model.tied.weight is model.first.weight
        assert_close(model.state_dict(), before, 0, 0)
        assert not torch.equal(other["first.weight"], before["first.weight"])


def averager_state(averager, name):
    return {f.name: v for f, v in averager.state_of(name)} | {
        "tied.weight": dict_of(averager, name)["first.weight"]
    }


def dict_of(averager, name):
    return {f.name: v for f, v in averager.state_of(name)}


def test_training_weights_return_when_the_block_raises(model):
    averager = Averager(model, {"ema": EMA(decay=0.5)})
    walk(model, 0)
    averager.update()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyError), averager.applied("ema"):
        raise KeyError
    assert_close(model.state_dict(), before, 0, 0)
    averager.update()  # and the averager goes on


def test_while_applied_nothing_may_train_nest_or_update(model):
    averager = Averager(model, {"ema": EMA(decay=0.5)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    unrelated = nn.Linear(2, 2)
    other = torch.optim.SGD(unrelated.parameters(), lr=0.1)
    for name in ("ema", "raw"):
        with averager.applied(name):
            with pytest.raises(RuntimeError, match="update while average"):
                averager.update()
            with pytest.raises(RuntimeError, match="apply another average while"), averager.applied("ema"):
                pass
            with pytest.raises(RuntimeError, match="optimiser step while an average is applied"):
                optimizer.step()
            other.step()
    optimizer.step()


def test_a_training_mode_forward_inside_leaves_no_trace(model):
    averager = Averager(model, {"ema": EMA(decay=0.5)})
    walk(model, 0)
    averager.update()
    before, average = copy.deepcopy(model.state_dict()), averager.export("ema")
    for name in ("ema", "raw"):
        with averager.applied(name):
            model.train()(torch.randn(8, 4))
    assert_close(model.state_dict(), before, 0, 0)
    assert_close(averager.export("ema"), average, 0, 0)


@pytest.mark.parametrize("policy", ["copy", "recompute"])
def test_buffers_can_be_the_models_own(model, policy):
    averager = Averager(model, {"ema": EMA(decay=0.5)}, buffers=policy)
    walk(model, 0)
    averager.update()
    exported = averager.export("ema")
    assert torch.equal(exported["norm.running_mean"], model.norm.running_mean)
    assert not torch.equal(exported["norm.weight"], model.norm.weight)


def test_integer_buffers_are_copied(model):
    averager = Averager(model, {"ema": EMA(decay=0.5)})
    for step in range(5):
        walk(model, step)
        averager.update()
    assert averager.export("ema")["norm.num_batches_tracked"] == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_non_finite_weights_are_refused_by_name_and_change_nothing(model, dtype, path):
    model.to(dtype)
    averager = Averager(model, PROFILES)
    for step in range(5):
        walk(model, step)
        averager.update()
    before = copy.deepcopy(averager.state_dict())
    good = model.norm.bias.detach().clone()
    for bad in (float("nan"), float("inf"), -float("inf")):
        with torch.no_grad():
            model.norm.bias[1] = bad
        with pytest.raises(ValueError, match=r"'norm.bias' is not finite at update 6"):
            averager.update()
        assert_same(averager.state_dict(), before)
    with torch.no_grad():
        model.norm.bias.copy_(good)
    averager.update()


def test_huge_finite_weights_are_no_mistake(path):
    model = nn.Linear(4, 4)
    averager = Averager(model, {"ema": EMA(decay=0.5)})
    with torch.no_grad():
        model.weight.fill_(3e38)
    averager.update()


def assert_same(got, expected):
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key in expected:
            assert_same(got[key], expected[key])
    elif isinstance(expected, list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected)
        assert got.dtype == expected.dtype
    else:
        assert got == expected


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 9])
def test_resume_is_bitwise(model, stop):
    averager = Averager(model, PROFILES)
    twin = copy.deepcopy(model)
    for step in range(14):
        if step == stop:
            file = io.BytesIO()
            torch.save({"model": model.state_dict(), "averager": averager.state_dict()}, file)
        walk(model, step)
        averager.update()
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin.load_state_dict(saved["model"])
    resumed = Averager(twin, PROFILES)
    resumed.load_state_dict(saved["averager"])
    for step in range(stop, 14):
        walk(twin, step)
        resumed.update()
    assert_same(resumed.state_dict(), averager.state_dict())


def test_loading_is_strict_and_changes_nothing_when_it_refuses(model):
    averager = Averager(model, {"ema": EMA(decay=0.5)})
    walk(model, 0)
    averager.update()
    good = copy.deepcopy(averager.state_dict())

    def refuses(change, message):
        state = copy.deepcopy(good)
        change(state)
        walk(model, 1)
        with pytest.raises(ValueError, match=message):
            averager.load_state_dict(state)
        assert_same(averager.state_dict(), good)

    weights = lambda s: s["averages"]["ema"]["weights"][0]  # noqa: E731
    refuses(lambda s: s.update(format=7), "another format of Averager: 7")
    refuses(lambda s: s.pop("averages"), "not a state of an Averager")
    refuses(lambda s: s["averages"].update(other={}), r"holds averages \['ema', 'other'\]")
    refuses(lambda s: s["averages"]["ema"].update(profile={"kind": "ema", "decay": 0.6}), "'decay': 0.6")
    refuses(lambda s: weights(s).pop("norm.bias"), "lacks tensor 'norm.bias'")
    refuses(lambda s: weights(s).update(extra=torch.zeros(1)), "has the unknown tensor 'extra'")
    refuses(lambda s: weights(s).update({"norm.bias": torch.zeros(5)}), r"'norm.bias' has shape \(5,\)")
    refuses(lambda s: weights(s).update({"norm.bias": torch.zeros(4).double()}), "narrowed")


def test_states_of_the_first_format_still_load(model):
    averager = Averager(model, {"ema": EMA(decay=0.9, debias=True), "swa": Mean()})
    for step in range(3):
        walk(model, step)
        averager.update()
    renamed = {"updates_done": "acts", "log_initial_weight": "log_kept", "compensation": "lost"}
    now = averager.state_dict()
    old = {n: {renamed.get(k, k): v for k, v in a.items()} for n, a in now["averages"].items()}
    resumed = Averager(copy.deepcopy(model), {"ema": EMA(decay=0.9, debias=True), "swa": Mean()})
    resumed.load_state_dict({**now, "format": 1, "averages": old})
    assert_same(resumed.state_dict(), now)


def test_names_of_wrappers_are_stripped(model):
    wrapped = torch.compile(nn.DataParallel(model), backend="eager")
    averager = Averager(wrapped, {"ema": EMA(decay=0.5)})
    assert averager.export("ema").keys() == model.state_dict().keys()


def test_a_submodule_called_module_keeps_its_name():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    assert "module.weight" in Averager(Holder(), {"ema": EMA(decay=0.5)}).export("ema")


def test_frozen_parameters_can_be_left_out_until_they_are_trained(model):
    averager = Averager(model, {"ema": EMA(decay=0.5)}, frozen="live")
    walk(model, 0)
    averager.update()
    assert "frozen" not in averager.state_dict()["averages"]["ema"]["weights"][0]
    assert torch.equal(averager.export("ema")["frozen"], model.frozen)
    model.frozen.requires_grad_(True)
    with pytest.raises(ValueError, match="'frozen' was frozen"):
        averager.update()


def test_mistakes_are_named(model):
    with pytest.raises(ValueError, match="buffers='mean' is unknown"):
        Averager(model, {}, buffers="mean")
    with pytest.raises(ValueError, match="'raw'"):
        Averager(model, {"raw": EMA(decay=0.5)})
    with pytest.raises(ValueError, match="no average 'emma'; did you mean 'ema'"):
        Averager(model, {"ema": EMA(decay=0.5)}).export("emma")
    with pytest.raises(ValueError, match=r"share=0\.1 is relative"):
        Averager(model, {"ema": EMA(share=0.1)})
    with pytest.raises(ValueError, match="meta device"):
        Averager(nn.Linear(2, 2, device="meta"), {"ema": EMA(decay=0.5)})
    with pytest.warns(UserWarning, match="compensated"):
        Averager(model, {"ema": EMA(decay=0.999999)})
