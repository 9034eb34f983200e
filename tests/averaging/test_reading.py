"""What an averager gives away: copies, a second model, a write-back, where it stands; and moves."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from emabench.averaging import EMA, Averager, GradientNorm, Mean, Mixture, TargetNetwork, Warmup

from .support import walk


def trained(model, profiles, updates=3, **options):
    averager = Averager(model, profiles, **options)
    for step in range(updates):
        walk(model, step)
        averager.update()
    return averager


def test_exports_share_no_memory_and_have_the_types_asked_for(model):
    averager = trained(model, EMA(decay=0.5))
    state = averager.export(dtype=torch.bfloat16, device="cpu")
    assert state["first.weight"].dtype == torch.bfloat16
    assert state["norm.num_batches_tracked"].dtype == torch.int64
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    assert all(value.is_contiguous() for value in state.values())
    assert averager.export(device="meta")["first.weight"].is_meta


def test_writing_back_trains_on_from_the_average(model):
    averager = trained(model, {"ema": EMA(decay=0.5), "swa": Mean()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    average, objects = averager.export("ema"), [id(p) for p in model.parameters()]
    swa = averager.export("swa")
    averager.write_back("ema")
    assert all(torch.equal(value, average[key]) for key, value in model.state_dict().items())
    assert objects == [id(p) for p in model.parameters()]
    model(torch.randn(4, 4)).sum().backward()
    optimizer.step()
    for name, before in (("ema", average), ("swa", swa)):
        now = averager.export(name)
        assert all(torch.equal(now[key], value) for key, value in before.items() if value.is_floating_point())
    assert averager.updates == 3


def test_a_second_model_holds_the_average_beside_training(model):
    averager = trained(torch.compile(model, backend="eager"), {"ema": EMA(decay=0.5), "swa": Mean()})
    served = averager.module("ema")
    assert type(served) is type(model) and not served.training
    assert not any(p.requires_grad for p in served.parameters())
    x = torch.randn(5, 4)
    for step in range(3):
        with averager.applied("ema"), torch.no_grad():
            model.eval()
            expected = model(x)
        assert torch.equal(served(x), expected)
        assert served.tied.weight is served.first.weight
        model.train()
        walk(model, step)
        averager.update()
    fixed, pickled = copy.deepcopy(served), pickle.loads(pickle.dumps(served))
    before = fixed(x)
    model.norm.eps = 0.5  # decides the forward and is no tensor
    walk(model, 9)
    averager.update()
    assert torch.equal(fixed(x), before) and torch.equal(pickled(x), before)
    with averager.applied("ema"), torch.no_grad():
        model.eval()
        assert torch.equal(served(x), model(x)) and not torch.equal(served(x), before)
        model.train()
    half = averager.module(Mixture(of={"ema": 0.5, "raw": 0.5})).bfloat16()
    walk(model, 10)
    averager.update()
    half(x.bfloat16())
    expected = 0.5 * averager.export("ema")["first.weight"] + 0.5 * model.first.weight
    assert torch.equal(half.first.weight, expected.bfloat16())


def test_status_says_where_an_average_stands(model):
    ramp = Warmup("ratio", 10, min_decay=0.3)
    averager = Averager(
        model,
        {
            "ema": EMA(decay=0.9),
            "ramped": EMA(decay=0.99, warmup=ramp),
            "late": Mean(start=50),
            "g": GradientNorm(),
        },
    )
    before = copy.deepcopy(model.state_dict())
    assert averager.status("ema").decay is None
    for step in range(20):
        walk(model, step)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        averager.update()
    status = averager.status("ema")
    weights = averager.weights("ema")
    assert status.updates == 20 and status.started
    assert status.decay == pytest.approx(0.9)
    assert status.initial_weight == pytest.approx(0.9**20)
    age = sum(w * (20 - t) for t, w in enumerate(weights))
    assert status.window == pytest.approx(age + 1)
    exported = averager.export("ema")
    parameters = {n for n, _ in model.named_parameters()}
    moved = math.sqrt(sum((exported[n] - model.state_dict()[n]).square().sum() for n in parameters))
    size = math.sqrt(sum(model.state_dict()[n].square().sum() for n in parameters))
    assert status.drift == pytest.approx(moved / size, rel=1e-5)
    assert averager.status("ramped").decay == pytest.approx(21 / 30)
    late = averager.status("late", drift=False)
    assert (late.started, late.decay, late.window, late.drift) == (False, None, 1.0, None)
    assert averager.status("late").drift == 0
    assert averager.status("g").window is None and averager.status("g").decay is not None
    assert before.keys() == exported.keys()
    with pytest.raises(ValueError, match="no average 'emma'; did you mean 'ema'"):
        averager.status("emma")


def test_a_ramp_has_a_floor():
    assert [Warmup("ratio", 10, min_decay=0.3).decay(t, 0.9) for t in (1, 20)] == [0.3, 21 / 30]
    assert EMA(decay=0.9, warmup={"shape": "ratio", "min_decay": 0.3}).to_dict()["warmup"]["min_decay"] == 0.3
    assert "min_decay" not in Warmup().to_dict()
    with pytest.raises(ValueError, match=r"warmup.min_decay=1.5"):
        Warmup(min_decay=1.5)


def test_averages_move_after_the_model(model):
    averager = trained(model, EMA(decay=0.5), compensated=True)
    assert averager.to("cpu") is averager
    walk(model, 5)
    averager.update()
    with pytest.raises(ValueError, match="offloaded averages stay on the CPU"):
        Averager(model, EMA(decay=0.5), offload=True).to("cpu")


# -- target networks


def test_targets_take_over_what_decides_the_forward_and_is_no_tensor():
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.temperature, self.drop = nn.Linear(2, 2), 1.0, nn.Dropout(0.1)

        def forward(self, x):
            return self.drop(self.layer(x)) / self.temperature

    online = Tempered().eval()
    target = TargetNetwork(online, EMA(decay=0.0))
    online.temperature, online.drop.p, online.scale = 0.5, 0.3, 2
    target.update()
    assert (target.module.temperature, target.module.drop.p, target.module.scale) == (0.5, 0.3, 2)
    x = torch.randn(3, 2)
    assert torch.equal(target(x), online(x))
    target.module.drop.p = 0.0  # of the copy's own
    target.update()
    assert target.module.drop.p == 0.0
    online.drop.p = 0.2
    target.update()
    assert target.module.drop.p == 0.2


@pytest.mark.parametrize(("mode", "expected"), [("own", True), ("eval", False), ("follow", None)])
def test_the_mode_of_a_target_is_chosen(mode, expected):
    online = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    target = TargetNetwork(online, EMA(decay=0.5), mode=mode)
    for training in (True, False):
        online.train(training)
        online[0].eval()
        target.module.train()
        target(torch.ones(1, 2))
        assert target.module[1].training == (training if expected is None else expected)
        if mode == "follow":
            assert not target.module[0].training
    with pytest.raises(ValueError, match="mode='test' is unknown"):
        TargetNetwork(online, EMA(decay=0.5), mode="test")


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "norm", [nn.utils.weight_norm, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm]
)
def test_targets_of_normalised_layers(norm):
    torch.manual_seed(0)
    online, x = nn.Sequential(norm(nn.Linear(4, 4))), torch.eye(4)
    online(x).sum().backward()
    target = TargetNetwork(online, EMA(decay=0.0), mode="eval")
    with torch.no_grad():
        for p in online.parameters():
            p.add_(torch.randn_like(p))
    online.train()
    for _ in range(30):
        online(x)
    target.update()
    assert torch.allclose(target(x), online.eval()(x), atol=1e-4)
    assert not any(p.requires_grad for p in target.module.parameters())
