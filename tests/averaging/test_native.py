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
