"""Building the C library, and doing without it."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from emabench.averaging import EMA, Averager, native

USE = """
import torch
from emabench.averaging import EMA, Averager, native
assert (native.library() is None) == {absent}
model = torch.nn.Linear(3, 3)
Averager(model, {{"ema": EMA(decay=.5)}}).update()
"""


@pytest.mark.parametrize(
    ("change", "absent"),
    [
        ({"EMABENCH_NATIVE": "0"}, True),
        ({"PATH": "/nowhere"}, True),
        ({"XDG_CACHE_HOME": "/proc/nowhere"}, True),
    ],
)
def test_without_the_library_torch_serves(change, absent):
    environment = {**os.environ, **change}
    subprocess.run([sys.executable, "-c", USE.format(absent=absent)], check=True, env=environment)


def test_the_cache_is_built_once_and_whole(tmp_path, monkeypatch):
    if native.library() is None:  # no compiler here: nothing is built
        return
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    try:
        assert native.library() is not None
        [built] = (tmp_path / "emabench").iterdir()
        assert built.suffix == ".so"
    finally:
        native.library.cache_clear()


def test_it_takes_float32_averages_of_float32_and_bfloat16_weights_alone():
    if native.library() is None:
        return
    for dtype, served in (
        (torch.float32, True),
        (torch.bfloat16, True),
        (torch.float16, False),
        (torch.float64, False),
    ):
        averager = Averager(nn.Linear(3, 3).to(dtype), {"ema": EMA(decay=0.5)})
        averager.update()
        assert (averager._plan._native is not None) == served


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9])
def test_any_number_of_averages_is_what_each_alone_is(count, dtype):
    """Four at a time, and the rest: decays below .5 (their own form of the lerp) and compensated ones among them."""
    rules = {str(i): EMA(decay=(0.3, 0.9, 0.99, 0.6, 0.999, 0.7, 0.8, 0.95, 0.5)[i]) for i in range(count)}
    torch.manual_seed(0)
    model = nn.Linear(300, 70).to(dtype)
    together = Averager(model, rules, compensated={"2"} if count > 2 else False)
    alone = {n: Averager(model, {n: r}, compensated=n == "2") for n, r in rules.items()}
    for _ in range(5):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        for each in (together, *alone.values()):
            each.update()
    for name, each in alone.items():
        for key, value in each.export(name, torch.float32).items():
            assert torch.equal(value, together.export(name, torch.float32)[key]), (name, key)
