"""How fast averages are updated, beside the other libraries: time ÷ what memory bandwidth alone would take.

    emabench bench averaging [--rounds 40] [--threads 1 2] [--model resnet50 unet] [--k 1 4] [--out benchmarks]

All variants take turns, and each sample stands between two passes of one `lerp_` over a buffer of the model's size,
which measure the bandwidth of that moment: on a shared machine milliseconds drift, the ratio much less. The floor
of an update with K averages is 4 + 8K bytes a parameter: read the weights once, read and write every average.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages, read when torch is imported

import torch
from torch import nn

from emabench.averaging import EMA, Averager, native

DECAY = 0.999


@dataclass
class Row:
    """One variant: ratio is time ÷ floor (median, with its quartiles); temporary the largest allocation, bytes."""

    model: str
    device: str
    threads: int
    k: int
    variant: str
    ratio: float
    ratio_low: float
    ratio_high: float
    milliseconds: float
    temporary: int
    swap_milliseconds: float | None = None


Update = Callable[[], Any]
Swap = Callable[[], AbstractContextManager[Any]]


def ours(model: nn.Module, k: int, **options: Any) -> tuple[Update, Swap]:
    decays = {str(i): EMA(decay=DECAY ** (1 + i)) for i in range(k)}
    averager = Averager(model, decays, buffers="copy", **options)
    return averager.update, lambda: averager.applied("0")


def plain_torch(model: nn.Module, k: int) -> tuple[Update, Swap]:
    """Ours with torch's operations alone, as it runs where nothing can be compiled."""
    with mock.patch.object(native, "table", lambda *given: None):
        update, swap = ours(model, k, check_finite=False)
        update()  # makes the plan
    return update, swap


def each(updates: Sequence[Update]) -> tuple[Update, None]:
    """One update of all averages of a library that carries one each, and no swap."""

    def update() -> None:
        for one in updates:
            one()

    return update, None


def torch_averaged_model(model: nn.Module, k: int) -> tuple[Update, None]:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    averages = [AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY)) for _ in range(k)]
    for average in averages:
        average.update_parameters(model)  # the first call only copies
    return each([partial(a.update_parameters, model) for a in averages])


def lightning(model: nn.Module, k: int) -> tuple[Update, None]:
    """The callback's own hook, called as the trainer would after each batch."""
    from lightning.pytorch import LightningModule
    from lightning.pytorch.callbacks import WeightAveraging
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    module, trainer = LightningModule(), SimpleNamespace(global_step=0, current_epoch=0)
    module.model = model
    callbacks = [
        WeightAveraging(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(DECAY)) for _ in range(k)
    ]
    for callback in callbacks:
        callback.setup(trainer, module, "fit")  # type: ignore[arg-type]

    def update() -> None:
        trainer.global_step += 1
        for callback in callbacks:
            callback.on_train_batch_end(trainer, module, None, None, 0)  # type: ignore[arg-type]

    update()  # the first call only copies
    return update, None


def timm_v3(model: nn.Module, k: int) -> tuple[Update, None]:
    from timm.utils import ModelEmaV3

    averages = [ModelEmaV3(model, decay=DECAY) for _ in range(k)]
    return each([partial(a.update, model) for a in averages])


def ema_pytorch(model: nn.Module, k: int) -> tuple[Update, None]:
    from ema_pytorch import EMA as Peer

    averages = [
        Peer(model, beta=DECAY, update_every=1, update_after_step=0, include_online_model=False)
        for _ in range(k)
    ]
    for average in averages:
        average.update()
        average.update()  # the first calls only copy
    return each([a.update for a in averages])


def torch_ema(model: nn.Module, k: int) -> tuple[Update, Swap]:
    from torch_ema import ExponentialMovingAverage

    parameters = list(model.parameters())
    averages = [ExponentialMovingAverage(parameters, decay=DECAY, use_num_updates=False) for _ in range(k)]
    return each([a.update for a in averages])[0], averages[0].average_parameters


def diffusers_ema(model: nn.Module, k: int) -> tuple[Update, Swap]:
    from contextlib import contextmanager

    from diffusers.training_utils import EMAModel

    parameters = list(model.parameters())
    averages = [EMAModel(parameters, decay=DECAY, min_decay=DECAY) for _ in range(k)]

    @contextmanager
    def swap() -> Iterator[None]:
        averages[0].store(parameters)
        averages[0].copy_to(parameters)
        yield
        averages[0].restore(parameters)

    for average in averages:
        average.step(parameters)
    return each([partial(a.step, parameters) for a in averages])[0], swap


def small(device: str) -> float:
    """Microseconds of one update of a model of about a thousand weights: the median of 2000."""
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 14)).to(device)
    update, _ = ours(model, 1)
    update()
    return round(1e6 * statistics.median(seconds(update, device) for _ in range(2000)), 1)


OURS: dict[str, Callable[[nn.Module, int], tuple[Update, Swap]]] = {
    "emabench, unchecked": partial(ours, check_finite=False),
    "emabench": ours,
    "emabench, compensated": partial(ours, check_finite=False, compensated=True),
    "emabench, bfloat16 averages": partial(ours, dtype=torch.bfloat16, rounding="stochastic"),
    "emabench without a C compiler, unchecked": plain_torch,
}
PEERS: dict[str, tuple[str, Callable[[nn.Module, int], tuple[Update, Swap | None]]]] = {
    "torch AveragedModel": ("torch", torch_averaged_model),
    "Lightning WeightAveraging": ("lightning", lightning),
    "timm ModelEmaV3": ("timm", timm_v3),
    "ema-pytorch": ("ema-pytorch", ema_pytorch),
    "torch-ema": ("torch-ema", torch_ema),
    "diffusers EMAModel": ("diffusers", diffusers_ema),
}


def resnet50() -> nn.Module:
    from torchvision.models import resnet50 as build

    return build()


def unet() -> nn.Module:
    """The DDPM of CIFAR-10, 35.7M parameters (Ho et al. 2020)."""
    from diffusers import UNet2DModel

    built: nn.Module = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=None,
    )
    return built


MODELS = {"resnet50": resnet50, "unet": unet}


def seconds(work: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def largest_allocation(work: Callable[[], Any]) -> int:
    """Bytes of the largest single allocation that `work` makes."""
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    events = profile.events() or []
    return max((max(e.self_cpu_memory_usage, e.self_device_memory_usage) for e in events), default=0)


def measure(name: str, k: int, device: str, rounds: int, missing: list[str]) -> list[Row]:
    """All variants on one model, interleaved."""
    torch.manual_seed(0)
    model = MODELS[name]().to(device)
    count = sum(p.numel() for p in model.parameters())
    variants: dict[str, tuple[Update, Swap | None]] = {n: build(model, k) for n, build in OURS.items()}
    for peer, (package, build) in PEERS.items():
        try:
            version(package)
            variants[peer] = build(model, k)
        except (PackageNotFoundError, ImportError):
            if package not in missing:
                missing.append(package)
    buffer, other = torch.zeros(count, device=device), torch.ones(count, device=device)

    def calibration() -> float:
        return seconds(lambda: buffer.lerp_(other, 0.001), device)

    ratios: dict[str, list[float]] = {n: [] for n in variants}
    taken: dict[str, list[float]] = {n: [] for n in variants}
    order = list(variants)
    with torch.no_grad():
        for update, _ in variants.values():
            update()
        for round_ in range(rounds):
            for variant in order[round_ % len(order) :] + order[: round_ % len(order)]:
                before = calibration()
                spent = seconds(variants[variant][0], device)
                floor = (before + calibration()) / 2 * (4 + 8 * k) / 12
                ratios[variant].append(spent / floor)
                taken[variant].append(spent)
    rows = []
    for variant, (update, swap) in variants.items():
        low, middle, high = statistics.quantiles(ratios[variant], n=4)
        rows.append(
            Row(
                name,
                device,
                torch.get_num_threads(),
                k,
                variant,
                round(middle, 3),
                round(low, 3),
                round(high, 3),
                round(1e3 * statistics.median(taken[variant]), 3),
                largest_allocation(update),
                swap_time(swap, device) if swap and k == 1 else None,
            )
        )
    return rows


def swap_time(swap: Swap, device: str) -> float:
    """Milliseconds for putting an average in and out again: the median of 50."""

    def once() -> None:
        with swap():
            pass

    return round(1e3 * statistics.median(seconds(once, device) for _ in range(50)), 3)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    packages = {}
    for package in ("torch", "lightning", "timm", "ema-pytorch", "torch-ema", "diffusers"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "absent"
    buffer, other = torch.zeros(2**25), torch.ones(2**25)
    fastest = min(seconds(lambda: buffer.lerp_(other, 0.1), "cpu") for _ in range(20))
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gigabytes_per_second": round(12 * 2**25 / fastest / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "packages": packages,
    }


def markdown(rows: Sequence[Row], about: dict[str, Any], missing: Sequence[str]) -> str:
    """The page that `benchmarks/` keeps."""
    packages = ", ".join(f"{name} {v}" for name, v in about["packages"].items())
    shared = ", on a machine shared with other work" if (about["load"] or 0) > 1 else ""
    lines = [
        "# One update of the averages: time ÷ memory-bandwidth floor",
        "",
        f"{about['cpu']}, {about['cores']} cores, {about['gigabytes_per_second']} GB/s; "
        f"load {about['load']} before the measurement{shared}; GPU: {about['gpu'] or 'none'}; Python {about['python']}; {packages}.",
        "",
        "Floor: 4 + 8K bytes a parameter at the bandwidth measured around each sample. Median [quartiles] of "
        f"{about['rounds']} interleaved rounds. `emabench` leaves its averages as they were when a weight is not finite, as it does by "
        "default; the others, and `unchecked`, do not look. `bfloat16 averages` are rounded stochastically and take half the "
        "memory; their floor is that of float32. Temporary: the largest allocation of one update.",
        "",
        f"A model of about 1 000 weights: {about['small_microseconds']} µs an update (median of 2 000).",
    ]
    cells = dict.fromkeys((r.model, r.device, r.threads, r.k) for r in rows)
    for cell in sorted(cells):
        model, device, threads, k = cell
        here = sorted((r for r in rows if (r.model, r.device, r.threads, r.k) == cell), key=lambda r: r.ratio)
        if here:
            words = f"{threads} thread{'s' * (threads > 1)}" if device == "cpu" else device
            lines += ["", f"## {model}, {words}, K = {k}", ""]
            lines += ["| | × floor | ms | temporary | swap in and out, ms |", "|---|---|---|---|---|"]
            for r in here:
                swap = "" if r.swap_milliseconds is None else f"{r.swap_milliseconds:.2f}"
                size = f"{r.temporary / 2**20:.1f} MiB" if r.temporary > 2**16 else f"{r.temporary} B"
                spread = f"{r.ratio:.2f} [{r.ratio_low:.2f}–{r.ratio_high:.2f}]"
                lines.append(f"| {r.variant} | {spread} | {r.milliseconds:.1f} | {size} | {swap} |")
    if missing:
        lines += [
            "",
            f"Not installed, so not measured: {', '.join(missing)} (`pip install emabench[peers]`).",
        ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    """Measure, print the tables and write `averaging.md` and `averaging.json` into the output directory."""
    parser = argparse.ArgumentParser(prog="emabench bench averaging", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="samples of each variant (at least 2)")
    parser.add_argument("--model", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--k", nargs="+", type=int, default=[1, 4], help="numbers of averages")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="of torch, on a CPU")
    parser.add_argument("--device", nargs="+", choices=["cpu", "cuda"], default=None)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    options = parser.parse_args(list(argv))
    devices = options.device or (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
    before = torch.get_num_threads()
    about, rows = machine() | {"small_microseconds": small(devices[0])}, []
    missing: list[str] = []
    options.out.mkdir(parents=True, exist_ok=True)
    for device, name in itertools.product(devices, options.model):
        for threads, k in itertools.product(options.threads if device == "cpu" else [before], options.k):
            torch.set_num_threads(threads)
            rows += measure(name, k, device, max(2, options.rounds), missing)
            torch.set_num_threads(before)
            gc.collect()
            about["rounds"] = options.rounds
            page = markdown(
                rows, about, missing
            )  # written as it grows: an interruption leaves what was measured
            (options.out / "averaging.md").write_text(page)
            record = {"machine": about, "rows": [asdict(r) for r in rows]}
            (options.out / "averaging.json").write_text(json.dumps(record, indent=1) + "\n")
    print(page)
