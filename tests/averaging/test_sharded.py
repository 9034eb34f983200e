"""FSDP2: two processes average their shards, and agree with one process that holds everything."""

import copy
import os
import tempfile

import pytest
import torch
import torch.distributed.fsdp
import torch.multiprocessing as mp
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def train(model, optimizer, step):
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def work(rank, folder):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    from emabench.averaging import EMA, Averager, Mean

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    profiles = {"ema": EMA(decay=0.5), "swa": Mean(start=1), "kahan": EMA(decay=0.9)}
    plain, sharded = build(), build()
    fully_shard(sharded[0], mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(99))
    runs = []
    for model in (plain, sharded):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        runs.append((model, optimizer, Averager(model, profiles, compensated=["kahan"])))

    def evaluated(model):
        model.eval()
        with torch.no_grad():
            out = model(x)
        model.train()
        return out

    for step in range(5):
        for model, optimizer, averager in runs:
            train(model, optimizer, step)
            averager.update()
        assert torch.allclose(evaluated(plain), evaluated(sharded), atol=1e-5)
        for name in profiles:
            exported = [averager.export(name) for _, _, averager in runs]
            assert isinstance(exported[1]["0.weight"], DTensor)
            for key, value in exported[0].items():
                got = exported[1][key]
                got = got.full_tensor() if isinstance(got, DTensor) else got
                assert torch.allclose(got, value, atol=1e-5), (name, key)
            raw = evaluated(sharded)
            out = []
            for model, _, averager in runs:
                with averager.applied(name):
                    out.append(evaluated(model))
            assert torch.allclose(out[0], out[1], atol=1e-5), name
            with averager.applied(name):
                checkpoint = sharded.state_dict()
            for key, value in averager.export(
                name
            ).items():  # by value, although FSDP2 keeps its shards in place
                local = [v.to_local() if isinstance(v, DTensor) else v for v in (checkpoint[key], value)]
                assert torch.equal(*local), (name, key)
            assert torch.equal(evaluated(sharded), raw), "the training weights are gathered anew"
    _, _, averager = runs[1]
    saved = copy.deepcopy(averager.state_dict())
    resumed = Averager(sharded, profiles, compensated=["kahan"])
    resumed.load_state_dict(saved)
    for name in profiles:
        for key, value in averager.export(name).items():
            mine = resumed.export(name)[key]
            local = [v.to_local() if isinstance(v, DTensor) else v for v in (value, mine)]
            assert torch.equal(*local)
    dist.destroy_process_group()


def test_shards_are_averaged_as_the_whole():
    if not hasattr(torch.distributed.fsdp, "fully_shard"):
        pytest.skip("FSDP2 is public since torch 2.6")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (folder,), nprocs=2)
