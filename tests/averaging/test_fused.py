"""The GPU kernel, run by Triton's interpreter on the CPU and, where there is one, on a GPU."""

import os
import subprocess
import sys

import pytest
import torch

from emabench.averaging import EMA, Averager, Mean, fused

CHECK = """
import torch
from emabench.averaging import fused
from emabench.averaging.kernels import Move
torch.manual_seed(0)
shapes = [(3,), (5000,), (17, 300), (2, 3, 4, 5)]
for theta_type in (torch.float32, torch.bfloat16, torch.float16):
    live = [torch.randn(s).to(theta_type) for s in shapes]
    live[3] = live[3].to(memory_format=torch.channels_last)
    sets = [[torch.randn(s) for s in shapes] for _ in range(5)]
    for one in sets:
        one[3] = one[3].to(memory_format=torch.channels_last)
    sets[2] = [torch.full_like(t, float("nan")) for t in sets[2]]
    expected = [[t.clone() for t in one] for one in sets]
    table = fused.table(live, sets, devices=("cpu",))
    assert table is not None
    moves = [
        Move(0, [0.1, 0.2, 0.3, 0.4]), Move(2, [1.0] * 4), Move(3, [0.6, 0.7, 0.0, 0.9]), Move(4, [0.2] * 4, source=3)
    ]
    fused.run(table, moves, 1, True)
    for move in moves:
        for i, alpha in enumerate(move.alphas):
            theta = live[i].float().clone() if move.source is None else expected[move.source][i]
            expected[move.set][i] = theta if alpha == 1 else torch.lerp(expected[move.set][i], theta, alpha)

    def check():
        for got, want in zip(sets, expected):
            for g, w in zip(got, want):
                torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-6)

    check()
    assert fused.progress(table, wait=False) == (0, 1)
    kept = live[2][3, 4].clone()
    for update, value in ((2, float("nan")), (3, 1.0), (4, float("inf"))):
        live[2][3, 4] = value
        fused.run(table, moves, update, True)
        check()  # neither the bad update nor those after it
        assert fused.progress(table, wait=True) == (2, update)
"""

ENGINE = """
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from emabench.averaging import EMA, Averager, EMAOfEMA, Mean, NotFinite, fused, native
native.table = lambda *given: None
table = fused.table
fused.table = lambda live, sets: table(live, sets, devices=("cpu",))

class Synchronisations(TorchDispatchMode):
    count = 0
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation is torch.ops.aten._local_scalar_dense.default
        return operation(*args, **(kwargs or {}))

torch.manual_seed(0)
model = torch.nn.Linear(5, 7)
rules = {"ema": EMA(decay=.9, warmup=5), "twice": EMAOfEMA(decay=.8), "late": Mean(start=3)}
averager, well = Averager(model, rules), Averager(model, rules)
assert averager._updates._plan is None or averager._updates._plan.arithmetic == "triton"
counted = Synchronisations()
def step():
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
for t in range(6):
    step()
    with counted:
        averager.update()
    well.update()
assert averager.arithmetic == "triton", averager.arithmetic
assert counted.count == 0, counted.count
before = {n: averager.export(n) for n in rules}
kept = {k: v.clone() for k, v in model.state_dict().items()}
with torch.no_grad():
    model.bias[2] = float("nan")
fused.progress, ask = (lambda t, wait: ask(t, wait) if wait else (0, 6)), fused.progress  # a device that lags behind
averager.update(); averager.update(); averager.update()
assert averager.updates == 9
try:
    averager.state_dict()
except NotFinite as error:
    text = str(error)
    assert "'bias' is not finite, first at update 7" in text and "3 updates" in text, text
else:
    raise AssertionError("not refused")
assert averager.updates == 6
fused.progress = ask
model.load_state_dict(kept)
for n in rules:
    assert all(torch.equal(v, before[n][k]) for k, v in averager.export(n).items())
for t in range(4):  # and it goes on as if nothing had been
    step()
    averager.update()
    well.update()
for n in rules:
    assert all(torch.equal(v, well.export(n)[k]) for k, v in averager.export(n).items()), n
with torch.no_grad():
    model.bias[2] = float("inf")
averager.update()  # not known yet ...
try:
    averager.update()  # ... but heard of by the next
except NotFinite:
    assert averager.updates == 10
else:
    raise AssertionError("not refused")
"""


@pytest.mark.parametrize("code", [CHECK, ENGINE], ids=["kernel", "engine"])
def test_the_kernel_equals_the_cpu_path_and_refuses_without_asking_the_host(code):
    pytest.importorskip("triton")
    if fused._kernel() is None:
        pytest.skip("the kernel is not used with a Triton this old")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_it_equals_the_cpu_within_rounding(dtype):
    torch.manual_seed(0)
    on_cpu = torch.nn.Sequential(*(torch.nn.Linear(n, n) for n in (3, 200, 700))).to(dtype)
    on_gpu = torch.nn.Sequential(*(torch.nn.Linear(n, n) for n in (3, 200, 700))).to("cuda", dtype)
    on_gpu.load_state_dict(on_cpu.state_dict())
    profiles = {"ema": EMA(decay=0.9), "swa": Mean(start=2), "slow": EMA(decay=0.999, debias=True)}
    for offload in (False, True):
        averagers = Averager(on_cpu, profiles), Averager(on_gpu, profiles, offload=offload)
        for _ in range(5):
            with torch.no_grad():
                for p, q in zip(on_cpu.parameters(), on_gpu.parameters(), strict=True):
                    p.add_(torch.randn_like(p))
                    q.copy_(p)
            for averager in averagers:
                averager.update()
        for name in profiles:
            cpu, gpu = (a.export(name, dtype=torch.float32) for a in averagers)
            for key, value in cpu.items():
                torch.testing.assert_close(gpu[key].cpu(), value, rtol=1e-5, atol=1e-6)
