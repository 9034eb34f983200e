"""What several processes gain: steps a second of `devices=2` beside one process with as many threads.

    emabench bench devices [--rounds 12] [--seconds 6] [--out benchmarks]

Both train the same run with the same batch: one process with two threads, and two with one each (on the CPU, where
two processes compete with two threads for the same two cores). They take turns, a block of so many seconds' steps
each, and wait meanwhile. Quoted are medians of the ratios of neighbouring blocks, with their quartiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from emabench.bench.averaging import machine
from emabench.compose import configuration
from emabench.runs.directory import RunDirectory
from emabench.training.distributed import Group, RankInfo, process_group
from emabench.training.interruption import StopRequest
from emabench.training.trainer import Trainer

DEVICES = 2
COMMON = ["scale=small", "device=cpu", "log_every=1000000", "checkpoint.minutes=1000", "steps=1000000"]
RUNS = {
    "ddpm, U-Net of 64 and 128 channels, batch 128": [
        "task=ddpm",
        "task.image_size=16",
        "task.channels=[64,128]",
        "batch_size=128",
    ],
    "bert, 4 layers of 256, batch 64 of 64 tokens": [
        "task=bert",
        "task.layers=4",
        "task.hidden=256",
        "task.heads=4",
        "task.intermediate=1024",
        "batch_size=64",
    ],
    "lstm, 2 layers of 256, batch 64 of 50 characters": [
        "task=lstm",
        "task.layers=2",
        "task.hidden=256",
        "batch_size=64",
    ],
}


def main(argv: Sequence[str]) -> None:
    """Measure, print the page and, with --out, write `devices.md` and `devices.json` there."""
    parser = argparse.ArgumentParser(prog="emabench bench devices", description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="blocks of each kind (at least 2)")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a block")
    parser.add_argument("--out", type=Path, help="a folder for devices.md and devices.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(DEVICES)
    about = machine()
    rows = [_measured(name, words, max(2, args.rounds), args.seconds) for name, words in RUNS.items()]
    page = _page(rows, about, args)
    print(page)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "devices.md").write_text(page)
        (args.out / "devices.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


def _measured(name: str, words: Sequence[str], rounds: int, seconds: float) -> dict[str, Any]:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    spawn = mp.get_context("spawn")
    orders, times = [spawn.SimpleQueue() for _ in range(DEVICES)], spawn.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        given = ([*COMMON, *words, f"results_dir={folder}/two"], store.port, orders, times)
        members = mp.start_processes(_member, given, DEVICES, join=False, start_method="spawn")
        alone = _training([*COMMON, *words, f"results_dir={folder}/one"], Group())
        one, two, steps = [], [], 3
        for round_ in range(rounds + 1):  # the first warms up
            for order in orders:
                order.put(steps)
            together_s = times.get()
            alone_s = _seconds(alone, steps)
            if not round_:
                steps = max(3, round(seconds * steps / alone_s))
            else:
                one.append(alone_s / steps)
                two.append(together_s / steps)
        for order in orders:
            order.put(0)
        members.join()
    low, middle, high = statistics.quantiles([a / b for a, b in zip(one, two, strict=True)], n=4)
    return {
        "run": name,
        "rounds": rounds,
        "steps": steps,
        "one_process_steps_per_s": round(1 / statistics.median(one), 3),
        "devices_steps_per_s": round(1 / statistics.median(two), 3),
        "ratio": round(middle, 3),
        "ratio_low": round(low, 3),
        "ratio_high": round(high, 3),
    }


def _member(rank: int, words: list[str], port: int, orders: list[Any], times: Any) -> None:
    """One of the processes: trains as many steps as it is told to, until it is told none."""
    torch.set_num_threads(1)
    rank_info = RankInfo(rank, DEVICES, rank, dist.TCPStore("127.0.0.1", port, is_master=False))
    with process_group(rank_info, "cpu", sharded=False) as (group, _):
        training = _training(words, group)
        while steps := orders[rank].get():
            spent = _seconds(training, steps)
            if group.is_main:
                times.put(spent)


def _training(words: list[str], group: Group) -> Trainer:
    config = configuration(words)
    directory = RunDirectory(config.directory())
    directory.prepare(config)
    training = Trainer(config, directory, StopRequest(), group)
    training.begin()
    return training


def _seconds(training: Trainer, steps: int) -> float:
    began = time.perf_counter()
    training.train(training.step + steps)
    return time.perf_counter() - began


def _page(rows: list[dict[str, Any]], about: dict[str, Any], args: argparse.Namespace) -> str:
    lines = [
        f"# {DEVICES} processes of one thread beside one process of {DEVICES} threads",
        "",
        f"{about['cpu']}, {about['cores']} cores, load {about['load']} at the start; Python {about['python']}, "
        f"torch {about['packages']['torch']}. {args.rounds} interleaved blocks of {args.seconds:g} s; "
        "the same batch in both. A ratio above 1: several processes are faster. Median [quartiles].",
        "",
        f"| run | one process, steps/s | devices={DEVICES}, steps/s | ratio |",
        "|---|--:|--:|--:|",
    ]
    lines += [
        f"| {row['run']} | {row['one_process_steps_per_s']:.2f} | {row['devices_steps_per_s']:.2f} "
        f"| {row['ratio']:.2f} [{row['ratio_low']:.2f}–{row['ratio_high']:.2f}] |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"
