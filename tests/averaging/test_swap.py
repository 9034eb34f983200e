"""`applied` keeps its promise: what happens inside is gone after the block, and reaches no average."""

import copy

import pytest
import torch
from torch import nn

from emabench.averaging import EMA, Averager

from .support import walk


def prepared(model, **options):
    averager = Averager(model, EMA(decay=0.5), **options)
    walk(model, 0)
    averager.update()
    return averager


def same(state, other):
    assert state.keys() == other.keys()
    for key, value in state.items():
        assert value.dtype == other[key].dtype
        assert torch.equal(value, other[key]), key


def to_half(model):
    model.bfloat16()


def to_double_and_back(model):
    model.double()
    model.float()


def write_data(model):
    for p in model.parameters():
        p.data.zero_()


def clamp(model):
    with torch.no_grad():
        for p in model.parameters():
            p.clamp_(0, 0)


def reassign(model):
    model.norm.running_mean = torch.full((4,), 7.0)
    model.register_buffer("cache", torch.ones(2), persistent=False)
    model.first.weight = nn.Parameter(torch.zeros(4, 4))


def exchange_a_module(model):
    model.norm = nn.Identity()
    del model.tied


def load_other_weights(model):
    model.load_state_dict({k: torch.zeros_like(v) for k, v in model.state_dict().items()})


def backward(model):
    model.train()(torch.randn(8, 4)).sum().backward()


@pytest.mark.parametrize("name", ["ema", "raw"])
@pytest.mark.parametrize(
    "inside",
    [
        to_half,
        to_double_and_back,
        write_data,
        clamp,
        reassign,
        exchange_a_module,
        load_other_weights,
        backward,
    ],
)
def test_nothing_that_happens_inside_is_left(model, name, inside):
    averager = prepared(model)
    model(torch.randn(8, 4)).sum().backward()
    before, average = copy.deepcopy(model.state_dict()), averager.export()
    objects = {n: id(p) for n, p in model.named_parameters()} | {n: id(b) for n, b in model.named_buffers()}
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    with averager.applied(name):
        inside(model)
    same(model.state_dict(), before)
    same(averager.export(), average)
    assert objects == {n: id(p) for n, p in model.named_parameters()} | {
        n: id(b) for n, b in model.named_buffers()
    }
    assert len(gradients) == 4
    for n, p in model.named_parameters():
        assert n not in gradients or torch.equal(p.grad, gradients[n])
    walk(model, 1)
    averager.update()
    expected = {k: 0.5 * v + 0.5 * model.state_dict()[k] for k, v in average.items() if v.is_floating_point()}
    for key, value in expected.items():
        torch.testing.assert_close(averager.export()[key], value)


@pytest.mark.parametrize("mutable", [0, 1])
def test_a_forward_that_assigns_its_buffers_leaves_no_trace(mutable):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("mean", torch.tensor(0.0), persistent=bool(mutable))
            self.last = torch.zeros(2, 4)

        def forward(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.mean()
            self.last = x
            return self.layer(x) - self.mean

    model = Centred()
    averager = Averager(model, EMA(decay=0.9))
    for _ in range(3):
        model(torch.full((2, 4), 5.0))
        averager.update()
    mean, last = model.mean, model.last
    with averager.applied():
        model(torch.full((2, 4), 100.0))
        model.new = torch.ones(1)
    assert model.mean is mean and model.last is last and not hasattr(model, "new")
    assert mean.item() == pytest.approx(5 * (1 - 0.9**3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_taken_inside_holds_the_average_by_value(model, dtype):
    model.to(dtype)
    averager = prepared(model)
    average = averager.export()
    with averager.applied():
        checkpoint = model.state_dict()
    same(checkpoint, average)
    for step in range(3):
        walk(model, step)
        averager.update()
    same(checkpoint, average)
    assert not torch.equal(averager.export()["first.weight"], average["first.weight"])


def test_nothing_is_copied_unless_something_is_written():
    model = nn.Linear(2000, 2000, bias=False)
    averager = prepared(model)
    address = averager.averages["ema"].sets[0][0].data_ptr()
    with torch.profiler.profile(profile_memory=True) as profile, averager.applied():
        model(torch.ones(1, 2000))
    assert max((e.self_cpu_memory_usage for e in profile.events()), default=0) < 1_000_000
    assert averager.averages["ema"].sets[0][0].data_ptr() == address


def test_autocasts_cache_of_weights_is_not_carried_across():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 4), torch.ones(2, 4)
    averager = Averager(model, EMA(decay=0.9))
    with torch.no_grad():
        model.weight.add_(1)
    averager.update()

    def outputs():
        return model(x)

    with averager.applied(), torch.autocast("cpu", dtype=torch.bfloat16):
        averaged = outputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = outputs()
    with torch.autocast(
        "cpu", dtype=torch.bfloat16
    ):  # one region around both: weights are cast once and kept
        assert torch.equal(outputs(), raw)
        with averager.applied():
            assert torch.equal(outputs(), averaged)
        assert torch.equal(outputs(), raw)
    assert not torch.equal(raw, averaged)


def test_parametrizations_that_are_cached_are_computed_again():
    torch.manual_seed(0)
    model, x = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), torch.eye(4)
    averager = prepared(model)
    with averager.applied(), torch.no_grad():
        averaged = model(x)
    with torch.no_grad():
        raw = model(x)
    with nn.utils.parametrize.cached(), torch.no_grad():
        assert torch.equal(model(x), raw)
        with averager.applied():
            assert torch.equal(model(x), averaged)
        assert torch.equal(model(x), raw)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_weight_norm_is_averaged_and_leaves_no_stale_weight():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4))), torch.eye(4)
    averager = prepared(model)
    model(x).sum().backward()
    stale = model[0].weight
    with averager.applied():
        averaged = model(x)
    assert model[0].weight is stale
    other = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)))
    other.load_state_dict(averager.export())
    assert torch.allclose(other(x), averaged)


def test_a_second_averager_of_the_model_is_refused_inside_the_first_ones_block(model):
    first, second = Averager(model, {"one": EMA(decay=0.5)}), Averager(model, {"two": EMA(decay=0.9)})
    elsewhere = Averager(nn.Linear(2, 2), EMA(decay=0.5))
    with first.applied():
        for use in (second.update, second.export, second.state_dict, second.write_back, second.module):
            with pytest.raises(RuntimeError, match="while average 'one' is applied"):
                use()
        with pytest.raises(RuntimeError, match="while average 'one' is applied"), second.applied():
            pass
        elsewhere.update()
    second.update()
    assert (second.updates, elsewhere.updates) == (1, 1)
