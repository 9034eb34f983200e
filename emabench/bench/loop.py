"""What the loop costs: a run's step beside the same model trained by a bare loop of twenty lines.

Both train task ddpm's network at the small scale in this process, in turn, a block of steps each, so that a
machine whose speed drifts slows both. Quoted are medians of the ratios of neighbouring blocks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from emabench.compose import configuration
from emabench.config import Config
from emabench.runs.directory import RunDirectory
from emabench.tasks import ddpm
from emabench.training import checkpoint, environment
from emabench.training.interruption import StopRequest
from emabench.training.trainer import Trainer

TASK = ["task=ddpm", "scale=small", "log_every=50", "checkpoint.minutes=1000", "steps=1000000"]


def main(argv: Sequence[str]) -> None:
    """`emabench bench loop [--rounds N] [--steps N] [--out FILE]`"""
    parser = argparse.ArgumentParser(prog="emabench bench loop", description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="blocks of each kind")
    parser.add_argument("--steps", type=int, default=50, help="steps a block")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        # `ema.active` without a target network: a run that carries no average at all.
        without = _training(folder, "ema.active=true", "ema.decay=0.9")
        one = _training(folder, "ema.decay=0.999")
        five = _training(folder, "ema.decay=[0.9,0.99,0.995,0.998,0.999]")
        kinds = {
            "bare loop": bare(without),
            "run, no average": lambda steps: _advance(without, steps),
            "run, one average": lambda steps: _advance(one, steps),
            "run, five averages": lambda steps: _advance(five, steps),
        }
        seconds = _measure(kinds, args.rounds, args.steps)
        saving = _seconds_of_a_checkpoint(five)
    figures = _figures(seconds, saving, args, without.config)
    print(_shown(figures))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


def bare(training: Trainer) -> Callable[[int], None]:
    """The loop one would write by hand: same network, data, optimiser and clipping."""
    task, config = training.task, training.config
    assert isinstance(task, ddpm.Task)
    model = ddpm.unet(task.options, task.images.shape[1]).to(training.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optimizer.lr)

    def steps(count: int) -> None:
        for _ in range(count):
            x = task.images[torch.randint(len(task.images), (config.batch_size,), device=training.device)]
            noise = torch.randn_like(x)
            t = torch.randint(task.options.timesteps, (len(x),), device=training.device)
            loss = F.mse_loss(model(task.noise.add_noise(x, noise, t), t).sample, noise)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip.max_norm or 1.0)
            optimizer.step()

    return steps


def _training(folder: str, *overrides: str) -> Trainer:
    config = configuration([*TASK, f"results_dir={folder}", *overrides])
    directory = RunDirectory(config.directory())
    directory.prepare(config)
    training = Trainer(config, directory, StopRequest())
    training.begin()
    return training


def _advance(training: Trainer, steps: int) -> None:
    training.train(training.step + steps)


def _measure(kinds: dict[str, Callable[[int], None]], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step of every block, by kind; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for round_ in range(rounds + 1):
        for name, advance in kinds.items():
            began = time.perf_counter()
            advance(steps)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                seconds[name].append((time.perf_counter() - began) / steps)
    return seconds


def _seconds_of_a_checkpoint(training: Trainer) -> dict[str, float]:
    """How long a checkpoint holds training up, and until it is on the disk."""
    writer = checkpoint.Writer(training.directory.checkpoints, keep=1)
    held, written = [], []
    for _ in range(9):
        began = time.perf_counter()
        writer.save(training.step, training.state(), first=training.history.sync)
        held.append(time.perf_counter() - began)
        writer.join()
        written.append(time.perf_counter() - began)
    return {"held up": statistics.median(held), "until written": statistics.median(written)}


def _figures(
    seconds: dict[str, list[float]], saving: dict[str, float], args: argparse.Namespace, config: Config
) -> dict[str, object]:
    first = next(iter(seconds.values()))
    ratios = {
        name: statistics.median(own / bare for own, bare in zip(times, first, strict=True))
        for name, times in seconds.items()
    }
    return {
        "rounds": args.rounds,
        "steps": args.steps,
        "ms_per_step": {name: 1e3 * statistics.median(times) for name, times in seconds.items()},
        "ratio_to_bare": ratios,
        "checkpoint_ms": {name: 1e3 * value for name, value in saving.items()},
        "environment": environment.describe(config, environment.resolve_device("auto")),
    }


def _shown(figures: dict[str, object]) -> str:
    ratios, times, saving = figures["ratio_to_bare"], figures["ms_per_step"], figures["checkpoint_ms"]
    assert isinstance(ratios, dict)
    assert isinstance(times, dict)
    assert isinstance(saving, dict)
    lines = [f"{'':<20}{'ms a step':>10}{'to bare':>10}"]
    lines += [f"{name:<20}{times[name]:>10.2f}{ratio:>10.3f}" for name, ratio in ratios.items()]
    lines += [f"{f'checkpoint {name}':<24}{value:>6.2f}" for name, value in saving.items()]
    return "\n".join(lines)
