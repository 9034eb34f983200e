"""The GPU kernel, run by Triton's interpreter on the CPU and, where there is one, on a GPU."""

import os
import subprocess
import sys

import pytest
import torch

from emabench.averaging import EMA, Averager, Mean

CHECK = """
import torch
from emabench.averaging import fused
torch.manual_seed(0)
shapes = [(3,), (5000,), (17, 300), (2, 3, 4, 5)]
for theta_type in (torch.float32, torch.bfloat16, torch.float16):
    live = [torch.randn(s).to(theta_type) for s in shapes]
    live[3] = live[3].to(memory_format=torch.channels_last)
    sets = [[torch.randn(s) for s in shapes] for _ in range(4)]
    for one in sets:
        one[3] = one[3].to(memory_format=torch.channels_last)
    sets[2] = [torch.full_like(t, float("nan")) for t in sets[2]]
    before = [[t.clone() for t in one] for one in sets]
    table = fused.table(live, sets, devices=("cpu",))
    assert table is not None
    moves = [(0, [0.1, 0.2, 0.3, 0.4]), (2, [1.0] * 4), (3, [0.6, 0.7, 0.0, 0.9])]
    fused.run(table, moves)
    expected = before
    for of, fresh in moves:
        for i, share in enumerate(fresh):
            theta = live[i].float()
            expected[of][i] = theta if share == 1 else torch.lerp(before[of][i], theta, share)
    for got, want in zip(sets, expected):
        for g, w in zip(got, want):
            torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-6)
"""


def test_the_kernel_equals_the_cpu_path():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", CHECK], check=True, env=environment)


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
