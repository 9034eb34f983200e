"""States: files, what fits of a changed profile or model, and those of other libraries against the libraries."""

import copy
import json

import pytest
import torch
from torch import nn

from emabench.averaging import EMA, LAWA, Averager, Mean, PerLayer, foreign

from .support import Small, walk
from .test_averager import assert_same

PROFILES = {
    "ema": EMA(decay=0.9),
    "debiased": EMA(decay=0.99, debias=True),
    "swa": Mean(start=1),
    "lawa": LAWA(k=2),
}


def trained(model, profiles, updates=3, **options):
    averager = Averager(model, profiles, **options)
    for step in range(updates):
        walk(model, step)
        averager.update()
    return averager


@pytest.mark.parametrize("updates", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_comes_back_from_a_file_bit_for_bit(model, tmp_path, updates, dtype):
    averager = trained(model.to(dtype), PROFILES, updates, compensated=["ema"])
    averager.save(tmp_path / "state.safetensors")
    resumed = Averager(copy.deepcopy(model), PROFILES, compensated=["ema"])
    assert resumed.load(tmp_path / "state.safetensors") == []
    for one in (averager, resumed):
        walk(one.model, 9)
        one.update()
    assert_same(resumed.state_dict(), averager.state_dict())


def test_files_are_read_by_safetensors_own_library(model, tmp_path):
    pytest.importorskip("safetensors")
    from safetensors import safe_open
    from safetensors.torch import load_file

    averager = trained(model, PROFILES)
    averager.save(tmp_path / "state.safetensors")
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        described = json.loads(file.metadata()["emabench"])
        assert described["updates"] == 3
        assert described["averages"]["ema"]["profile"] == {"kind": "ema", "decay": 0.9}
        weight = averager.state_dict()["averages"]["lawa"]["weights"][1]["norm.bias"]
        assert torch.equal(file.get_tensor("lawa/1/norm.bias"), weight)
    averager.save_model(tmp_path / "ema.safetensors", "ema", torch.bfloat16)
    state = load_file(tmp_path / "ema.safetensors")
    assert_same(state, averager.export("ema", torch.bfloat16))
    Small().load_state_dict(state)
    with safe_open(tmp_path / "ema.safetensors", "pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "average": "ema",
            "profile": '{"kind": "ema", "decay": 0.9}',
            "updates": "3",
        }


def test_an_export_is_taken_by_safetensors_and_by_the_compiled_model(model, tmp_path):
    pytest.importorskip("safetensors")
    from safetensors.torch import load_file, save_file

    model.conv = nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)
    compiled = torch.compile(nn.DataParallel(model), backend="eager")
    averager = trained(compiled, EMA(decay=0.5))
    save_file(averager.export(device="cpu", dtype=torch.float16), tmp_path / "model.safetensors")
    plain = load_file(tmp_path / "model.safetensors")
    model.load_state_dict(plain)
    assert plain["tied.weight"].dtype == torch.float16
    compiled.load_state_dict(averager.export(names="model"))
    assert averager.export(names="model").keys() == compiled.state_dict().keys()
    with pytest.raises(ValueError, match="names='wrapped' is unknown"):
        averager.export(names="wrapped")


@pytest.mark.parametrize("damage", ["empty", "cut off", "another file", "another state"])
def test_damaged_files_are_named(model, tmp_path, damage):
    path = tmp_path / "state.safetensors"
    averager = trained(model, EMA(decay=0.5))
    averager.save(path)
    content = path.read_bytes()
    if damage == "another state":
        averager.save_model(path)
    else:
        path.write_bytes(
            {"empty": b"", "cut off": content[:-8], "another file": b"PK\3\4" + content[4:]}[damage]
        )
    with pytest.raises(ValueError, match=r"state.safetensors: not a"):
        averager.load(path)
    assert [*tmp_path.iterdir()] == [path]


# -- what fits


def test_a_changed_profile_keeps_its_weights_on_request(model):
    state = copy.deepcopy(trained(model, {"a": EMA(decay=0.9), "b": Mean()}).state_dict())
    averager = Averager(copy.deepcopy(model), {"a": EMA(decay=0.99, debias=True), "c": Mean()})
    with pytest.raises(ValueError, match="holds averages"):
        averager.load_state_dict(state)
    reported = averager.load_state_dict(state, strict=False)
    assert "average 'b' of the state is not one of this averager's" in reported
    assert "average 'c' is not in the state: it starts from the current weights" in reported
    assert any(line.startswith("average 'a' was {'kind': 'ema', 'decay': 0.9} and is ") for line in reported)
    assert averager.updates == 3
    exported = averager.export("a")
    assert torch.equal(exported["first.weight"], state["averages"]["a"]["weights"][0]["first.weight"])
    assert torch.equal(averager.export("c")["first.weight"], model.first.weight)
    start = exported["first.weight"]
    walk(averager.model, 7)
    averager.update()
    alpha = EMA(decay=0.99, debias=True).alphas(4)[3]  # it has made three updates
    expected = start + alpha * (averager.model.first.weight.detach() - start)
    torch.testing.assert_close(averager.export("a")["first.weight"], expected)


def test_a_changed_model_keeps_what_is_in_both_on_request(model):
    state = copy.deepcopy(trained(model, PROFILES, dtype=torch.float64).state_dict())
    other = copy.deepcopy(model)
    other.head = nn.Linear(4, 2)
    other.first.bias = nn.Parameter(torch.zeros(7))
    del other.norm
    averager = Averager(other, PROFILES)
    reported = averager.load_state_dict(state, strict=False)
    assert "average 'ema': 'head.weight' is not in the state and starts from the current weights" in reported
    assert (
        "average 'ema': 'first.bias' has shape (4,) in the state and starts from the current weights"
        in reported
    )
    assert "average 'ema': 'norm.weight' of the state is not followed" in reported
    exported = averager.export("ema")
    assert torch.equal(exported["head.weight"], other.head.weight)
    kept = state["averages"]["ema"]["weights"][0]["first.weight"]
    assert torch.equal(exported["first.weight"], kept.float())
    averager.update()


# -- other libraries


def peer_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    return model


def torch_averaged_model(model):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    return lambda: average.update_parameters(model), average.state_dict, lambda: average.module


def timm_v3(model):
    pytest.importorskip("timm")
    from timm.utils import ModelEmaV3

    average = ModelEmaV3(model, decay=0.9)
    return lambda: average.update(model), average.state_dict, lambda: average.module


def timm_checkpoint(model):
    pytest.importorskip("timm")
    from timm.utils import ModelEmaV2, get_state_dict

    average = ModelEmaV2(model, decay=0.9)
    state = lambda: {"state_dict": model.state_dict(), "state_dict_ema": get_state_dict(average)}  # noqa: E731
    return lambda: average.update(model), state, lambda: average.module


def ema_pytorch(model):
    pytest.importorskip("ema_pytorch")
    from ema_pytorch import EMA as Peer

    average = Peer(model, beta=0.9, update_every=1, update_after_step=0)
    return average.update, average.state_dict, lambda: average.ema_model


def diffusers(model):
    pytest.importorskip("diffusers")
    from diffusers.training_utils import EMAModel

    average = EMAModel(model.parameters(), decay=0.9)
    return lambda: average.step(model.parameters()), average.state_dict, lambda: average.shadow_params


def torch_ema(model):
    pytest.importorskip("torch_ema")
    from torch_ema import ExponentialMovingAverage

    average = ExponentialMovingAverage(model.parameters(), decay=0.9)
    return average.update, average.state_dict, lambda: average.shadow_params


def lightning(model):
    pytest.importorskip("lightning")
    from lightning.pytorch import LightningModule
    from lightning.pytorch.callbacks import EMAWeightAveraging

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model

    module, callback = Module(), EMAWeightAveraging(decay=0.9)
    callback.setup(None, module, "fit")

    def state():
        checkpoint = {"state_dict": module.state_dict()}
        callback.on_save_checkpoint(None, module, checkpoint)
        return checkpoint

    model.lightning = [module]  # the module that is averaged
    return (
        lambda: callback._average_model.update_parameters(module),
        state,
        lambda: callback._average_model.module.net,
    )


def lit_ema(model):
    """latent-diffusion/ldm/modules/ema.py is not on a registry; its format: named without dots, trained ones only."""
    trained_ones = {n: p for n, p in model.named_parameters() if p.requires_grad}
    shadow = {n: p.detach().clone() for n, p in trained_ones.items()}
    count = torch.tensor(0, dtype=torch.int)

    def update():
        count.add_(1)
        for name, p in trained_ones.items():
            shadow[name].lerp_(p.detach(), 1 - min(0.9, (1 + int(count)) / (10 + int(count))))

    def state():
        flat = {f"model_ema.{name.replace('.', '')}": value for name, value in shadow.items()}
        own = {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": count}
        return {"state_dict": {**{f"model.{k}": v for k, v in model.state_dict().items()}, **own, **flat}}

    return update, state, lambda: list(shadow.values())


@pytest.mark.parametrize(
    ("peer", "kind", "count"),
    [
        (torch_averaged_model, "torch", 4),
        (timm_v3, "timm", 0),
        (timm_checkpoint, "timm", 0),
        (ema_pytorch, "ema_pytorch", 4),
        (diffusers, "diffusers", 4),
        (torch_ema, "torch_ema", 4),
        (lightning, "lightning", 4),
        (lit_ema, "litema", 4),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_averages_of_other_libraries_continue_here(peer, kind, count):
    model = peer_model()
    update, state, holder = peer(model)
    for step in range(4):
        walk(model, step)
        update()
    saved = copy.deepcopy(state())
    assert foreign.read(saved)[0] == kind
    followed = model.lightning[0] if kind == "lightning" else model
    options = {"frozen": "live"} if kind == "litema" else {}
    averager = Averager(followed, EMA(decay=0.9), **options)
    reported = averager.load_foreign(saved)
    assert averager.updates == count
    assert any("keeps no count" in line for line in reported) == (count == 0)
    held = holder()
    named = dict(held.named_parameters()) if isinstance(held, nn.Module) else None
    order = [n for n, p in model.named_parameters() if p.requires_grad or kind != "litema"]
    expected = named or dict(zip(order, held, strict=True))
    prefix = "net." if kind == "lightning" else ""
    exported = averager.export()
    for name in order:
        assert torch.equal(exported[prefix + name], expected[name]), name
    walk(model, 9)
    averager.update()
    for name in order:
        value = 0.9 * expected[name].double() + 0.1 * model.get_parameter(name).double()
        torch.testing.assert_close(
            averager.export()[prefix + name].double(), value.detach(), rtol=1e-5, atol=1e-6
        )


def test_foreign_states_that_do_not_fit_change_nothing(model):
    averager = trained(
        model,
        {"a": EMA(decay=0.9), "l": LAWA(k=2), "p": PerLayer(EMA(decay=0.9), {"norm.*": EMA(decay=0.5)})},
    )
    before = copy.deepcopy(averager.state_dict())
    plain = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    for saved, name, message in (
        (
            {**plain, "first.bias": torch.zeros(3)},
            "a",
            r"'first.bias' has shape \(3,\) in the state_dict state",
        ),
        ({k: v for k, v in plain.items() if k != "frozen"}, "a", "the state_dict state lacks 'frozen'"),
        (
            {"shadow_params": [torch.zeros(1)], "optimization_step": 1, "decay": 0.9},
            "a",
            "1 tensors in order",
        ),
        ({"weights": 3}, "a", r"with keys \['weights'\], is not of any known format"),
        ([1], "a", "a list is no state"),
        (plain, "l", "average 'l' is of kind 'lawa'"),
        (plain, "b", "no average 'b'"),
    ):
        with pytest.raises(ValueError, match=message):
            averager.load_foreign(saved, name)
        assert_same(averager.state_dict(), before)
    with pytest.raises(ValueError, match="not of the format 'timm'"):
        averager.load_foreign({"weights": 3}, "a", kind="timm")
    averager.load_foreign(plain, "p")
    assert not averager.export("p")["first.weight"].any()
