"""Ramps that say they are another library's: held against that library."""

import pytest
import torch
from torch import nn

from emabench.averaging import EMA, Averager, Warmup


class LitEma:
    """The update of latent diffusion's LitEma: n counts from 1, from the initial weights."""

    def __init__(self, model):
        self.n, self.value = 0, model.weight.detach().clone()

    def __call__(self, model):
        self.n += 1
        decay = min(0.95, (1 + self.n) / (10 + self.n))
        self.value -= (1 - decay) * (self.value - model.weight.detach())
        return self.value


def diffusers(model, **options):
    peer = pytest.importorskip("diffusers.training_utils").EMAModel(model.parameters(), decay=0.95, **options)

    def step(model):
        peer.step(model.parameters())
        return peer.shadow_params[0]

    return step


def ema_pytorch(model):
    EMA = pytest.importorskip("ema_pytorch").EMA
    peer = EMA(model, beta=0.95, update_every=1, update_after_step=0, inv_gamma=2.0, power=0.75)

    def step(model):
        peer.update()
        return peer.ema_model.weight

    return step


def timm(model):
    options = {"use_warmup": True, "warmup_gamma": 2.0, "warmup_power": 0.75}
    peer = pytest.importorskip("timm.utils").ModelEmaV3(model, decay=0.95, **options)
    count = iter(range(1, 1000))

    def step(model):
        peer.update(model, step=next(count))
        return peer.module.weight

    return step


POWER = Warmup("power", 2.0, power=0.75)


@pytest.mark.parametrize(
    ("peer", "ours"),
    [
        (LitEma, EMA(decay=0.95, warmup="ratio")),
        (lambda m: diffusers(m, use_ema_warmup=False), EMA(decay=0.95, warmup="ratio", start=1)),
        (
            lambda m: diffusers(m, use_ema_warmup=True, inv_gamma=2.0, power=0.75),
            EMA(decay=0.95, warmup=POWER, start=1),
        ),
        (ema_pytorch, EMA(decay=0.95, warmup=POWER, start=1)),
        (timm, EMA(decay=0.95, warmup=POWER, start=1)),
    ],
    ids=["LitEma", "diffusers", "diffusers power", "ema-pytorch", "timm"],
)
def test_a_ramp_is_that_of_the_library_its_docstring_names(peer, ours):
    torch.manual_seed(0)
    model = nn.Linear(4, 4, bias=False)
    step, averager = peer(model), Averager(model, {"ours": ours})
    for _ in range(80):  # past the end of both ramps
        with torch.no_grad():
            model.weight.add_(torch.randn(4, 4))
        averager.update()
        torch.testing.assert_close(
            averager.export("ours")["weight"], step(model).detach(), rtol=1e-5, atol=1e-5
        )
