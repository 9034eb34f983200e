"""The Python of the pages runs; what the page of other libraries calls the same is the same."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from emabench import averaging
from tests.docs.pages import ROOT, Block, blocks

PYTHON = [block for block in blocks("python") if block.note != "not run"]
FROM = "docs/coming-from.md"


def names() -> dict[str, Any]:
    """What a block may use without making it: a model in training, its data, its loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)).double()
    batches = [(torch.randn(12, 8).double(), torch.randint(4, (12,))) for _ in range(25)]

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    @torch.no_grad()
    def evaluate(net: nn.Module) -> float:
        return float(sum(loss(net.eval(), batch) for batch in batches[:3]))

    return {
        "torch": torch,
        "nn": nn,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.3),
        "loader": batches,
        "loss": loss,
        "evaluate": evaluate,
        "x": batches[0][0],
    }


def pages_of_python() -> dict[str, list[Block]]:
    found: dict[str, list[Block]] = {}
    for block in PYTHON:
        if block.page != FROM:
            found.setdefault(block.page, []).append(block)
    return found


@pytest.mark.parametrize("page", pages_of_python())
def test_the_blocks_of_a_page_run_one_after_the_other(
    page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    scope = names()
    for block in pages_of_python()[page]:
        exec(compile("\n" * block.line + block.text, block.page, "exec"), scope)


def pairs() -> Iterator[tuple[Block, Block]]:
    found = [block for block in PYTHON if block.page == FROM and block.title]
    for theirs, ours in zip(found[::2], found[1::2], strict=True):
        assert ours.title == "emabench", str(ours)
        yield theirs, ours


@pytest.mark.parametrize(("theirs", "ours"), list(pairs()), ids=lambda block: block.title)
def test_both_ways_give_the_same_weights(
    theirs: Block, ours: Block, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    results = []
    for block in (theirs, ours):
        scope = names()
        exec(compile("\n" * block.line + block.text, block.page, "exec"), scope)
        results.append({key: value.detach().clone() for key, value in scope["weights"].items()})
    assert results[0].keys() == results[1].keys()
    rtol = 1e-5 if theirs.title == "ema-pytorch" else 1e-9  # its ramp is computed in float32
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=rtol, atol=1e-3 * rtol)


ROW = re.compile(r"^\| `(?P<theirs>[^`]+)` \| `(?P<call>[^`]+)` \| `(?P<ours>[^`]+)` \|", re.MULTILINE)
AVERAGED: dict[str, Callable[[Any], Any]] = {
    "ModelEmaV3": lambda peer: peer.module.parameters(),
    "EMAModel": lambda peer: peer.shadow_params,
    "AveragedModel": lambda peer: peer.module.parameters(),
    "EMA": lambda peer: peer.ema_model.parameters(),
    "ExponentialMovingAverage": lambda peer: peer.shadow_params,
}


def rows() -> list[tuple[str, str, str]]:
    found = [m.groups() for m in ROW.finditer((ROOT / FROM).read_text(encoding="utf-8"))]
    assert len(found) > 8
    return found  # type: ignore[return-value]


@pytest.mark.parametrize(("theirs", "call", "ours"), rows())
def test_every_row_is_the_same_average(theirs: str, call: str, ours: str) -> None:
    ema_pytorch = pytest.importorskip("ema_pytorch", reason="extra `peers` is not installed")
    from diffusers.training_utils import EMAModel
    from timm.utils import ModelEmaV3
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
    from torch_ema import ExponentialMovingAverage

    model = names()["model"]
    peers = {
        "ModelEmaV3": ModelEmaV3,
        "EMAModel": EMAModel,
        "AveragedModel": AveragedModel,
        "get_ema_multi_avg_fn": get_ema_multi_avg_fn,
        "EMA": ema_pytorch.EMA,
        "ExponentialMovingAverage": ExponentialMovingAverage,
    }
    peer = eval(theirs, {**peers, "model": model})
    profile = eval(ours, {name: getattr(averaging, name) for name in averaging.__all__})
    averager = averaging.Averager(model, {"ema": profile})
    initial = copy.deepcopy(list(model.parameters()))
    read = AVERAGED[theirs.partition("(")[0]]
    for step in range(1, 61):
        for parameter in model.parameters():
            parameter.data += torch.randn(parameter.shape, dtype=parameter.dtype)
        eval(call, {"ema": peer, "model": model, "step": step})
        averager.update()
        with averager.applied("ema"):
            for mine, other in zip(model.parameters(), read(peer), strict=True):
                torch.testing.assert_close(mine, other.detach(), rtol=2e-6, atol=2e-6)
    assert not torch.equal(initial[0], next(iter(read(peer))))
