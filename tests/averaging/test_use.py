"""Averages inside real training: compiled modules, optimisers, accumulation, AMP, offload, memory, speed of the swap."""

import copy
import pickle
import time

import pytest
import torch
from torch import nn

from emabench.averaging import EMA, Averager, Mean, recalibrate

from .support import History, walk


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_forward_sees_the_swapped_weights(backend):
    model, x = net(), torch.randn(16, 4)
    trained = torch.compile(model, backend="eager")  # compiling a backward pass takes long
    compiled = torch.compile(model, backend=backend)
    averager = Averager(compiled, {"ema": EMA(decay=0.5)})
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.5)

    def outputs():
        model.eval()
        with torch.no_grad():
            got, expected = compiled(x), model(x)
        model.train()
        return got, expected

    for _ in range(3):
        optimizer.zero_grad()
        trained(x).square().mean().backward()
        optimizer.step()
        averager.update()
        raw, eager = outputs()
        assert torch.allclose(raw, eager, atol=1e-6)
        with averager.applied("ema"):
            averaged, eager = outputs()
        assert torch.allclose(averaged, eager, atol=1e-6)
        plain = net()
        plain.load_state_dict(averager.export("ema"))
        assert torch.allclose(averaged, plain.eval()(x), atol=1e-6)
        assert not torch.allclose(averaged, raw, atol=1e-4)
        assert torch.equal(outputs()[0], raw)


def test_attached_it_counts_steps_not_backward_passes():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    averager = Averager(model, {"ema": EMA(decay=0.5)})
    handle = averager.attach(optimizer)
    for micro in range(6):
        model(torch.randn(4, 4)).mean().backward()
        if micro % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
    assert averager.updates == 2
    handle.remove()
    optimizer.step()
    assert averager.updates == 2


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_gradient_scaler_skips_do_not_count(fused):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    averager = Averager(model, {"ema": EMA(decay=0.5)})
    averager.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    for bad in (False, True, False):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 4)).mean()
        scaler.scale(loss * (float("inf") if bad else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert averager.updates == 2


def test_what_is_changed_inside_the_block_is_gone_after_it(model):
    averager = Averager(model, {"ema": EMA(decay=0.5)})
    walk(model, 0)
    averager.update()
    own, average = copy.deepcopy(model.state_dict()), averager.export("ema")
    for name in ("ema", "raw"):
        with averager.applied(name), torch.no_grad():
            model.first.bias.add_(1)
            model.first.weight.data.zero_()
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value, average[key]) for key, value in averager.export("ema").items())


def test_evaluation_before_the_first_update_uses_the_trained_weights(model):
    averager = Averager(model, {"swa": Mean(start=100)})
    walk(model, 0)
    with averager.applied("swa"):
        inside = model.first.weight.detach().clone()
    assert torch.equal(inside, model.first.weight)


def test_a_model_that_moves_afterwards_is_refused(model):
    averager = Averager(model, {"ema": EMA(decay=0.5)})
    model.first.weight.data = torch.zeros(5, 5)
    with pytest.raises(ValueError, match=r"'first.weight' is \(5, 5\) on cpu, its average \(4, 4\)"):
        averager.update()
    assert averager.updates == 0


def test_changing_type_between_updates_is_followed(model):
    averager = Averager(model, {"ema": EMA(decay=0.5)})
    history = History(model)
    for number, convert in enumerate((model.bfloat16, model.float)):
        convert()  # parameters get other memory, buffers become other objects
        walk(model, number)
        history.record()
        averager.update()
    assert averager.state_dict()["averages"]["ema"]["weights"][0]["first.weight"].dtype == torch.float32
    wanted = history.average(averager.weights("ema"))
    with averager.applied("ema"):
        for name, value in model.state_dict().items():
            assert torch.allclose(value.double(), wanted[name].double(), rtol=1e-6), name


@pytest.mark.parametrize("use", ["update", "applied", "export"])
def test_a_parameter_that_is_replaced_is_not_lost_sight_of(model, use):
    averager = Averager(model, {"ema": EMA(decay=0.5)})
    model.norm = nn.BatchNorm1d(4)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"'norm.weight' was replaced"):
            if use == "applied":
                with averager.applied("ema"):
                    pass
            else:
                getattr(averager, use)(*["ema"] * (use == "export"))


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_goes_on_by_itself(model, copied, offload):
    averager = Averager(model, {"ema": EMA(decay=0.9), "swa": Mean()}, offload=offload)
    walk(model, 0)
    averager.update()
    other, before = copied(averager), averager.export("ema")
    walk(other.model, 1)
    other.update()
    assert all(torch.equal(value, before[key]) for key, value in averager.export("ema").items())
    walk(model, 1)
    averager.update()
    for name in averager.names:
        with averager.applied(name), other.applied(name):
            for ours, theirs in zip(
                model.state_dict().values(), other.model.state_dict().values(), strict=True
            ):
                assert torch.equal(ours, theirs)
    optimizer = torch.optim.SGD(other.model.parameters(), 0.1)
    with pytest.raises(RuntimeError, match="would train the average"), other.applied("ema"):
        optimizer.step()


def test_offloaded_averages_are_the_same(model):
    profiles = {"ema": EMA(decay=0.9), "debiased": EMA(decay=0.9, debias=True), "swa": Mean(start=2)}
    here, away = Averager(model, profiles), Averager(model, profiles, offload=True)
    for step in range(6):
        walk(model, step)
        here.update()
        away.update()
    for name in profiles:
        for key, value in here.export(name).items():
            assert torch.equal(value, away.export(name)[key])
        with away.applied(name):
            inside = model.first.weight.detach().clone()
        assert torch.equal(inside, here.export(name)["first.weight"])


def test_offloaded_non_finite_weights_are_refused_at_the_next_call(model):
    averager = Averager(model, {"ema": EMA(decay=0.5)}, offload=True)
    walk(model, 0)
    averager.update()
    before = averager.export("ema")
    with torch.no_grad():
        model.first.bias[0] = float("nan")
    averager.update()
    with pytest.raises(ValueError, match=r"'first.bias' is not finite at update 2"):
        averager.export("ema")
    assert averager.updates == 1
    assert torch.equal(averager.export("ema")["first.weight"], before["first.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compensated", [False, True])
def test_an_update_allocates_nothing_the_size_of_the_model(dtype, compensated, path):
    model = nn.Linear(3000, 3000, bias=False).to(dtype)  # 9M weights, 36 MB of float32
    profiles = {"a": EMA(decay=0.9), "b": EMA(decay=0.99, debias=True)}
    averager = Averager(model, profiles, compensated=compensated)
    averager.update()  # the plan and its scratch are made once
    with torch.profiler.profile(profile_memory=True) as profile:
        averager.update()
    largest = max((event.self_cpu_memory_usage for event in profile.events()), default=0)
    assert largest < 100_000
    scratch = sum(t.numel() * t.element_size() for t in averager._updates._plan._scratch.values())
    assert scratch <= 3 * 4 * 2**20


def test_the_swap_of_a_resnet50_takes_about_a_millisecond():
    shapes = [(64, 3, 7, 7), *[(256, 64, 1, 1), (512,), (512,)] * 53, (1000, 100)]
    model = nn.ParameterList([torch.zeros(s) for s in shapes])
    averager = Averager(model, {"ema": EMA(decay=0.9)})

    def once():
        begun = time.perf_counter()
        with averager.applied("ema"):
            pass
        return time.perf_counter() - begun

    assert (
        min(once() for _ in range(50)) < 3e-3
    )  # the benchmark measures it; here a copy of the weights would fail


def test_recalibration_inside_applied(model):
    averager = Averager(model, {"ema": EMA(decay=0.5)}, buffers="recompute")
    walk(model, 0)
    averager.update()
    with averager.applied("ema"):
        recalibrate(model, [torch.randn(32, 4) for _ in range(3)])
        assert model.norm.num_batches_tracked == 3
        inside = model.state_dict()["norm.running_mean"].clone()
    assert not torch.equal(inside, model.norm.running_mean)
