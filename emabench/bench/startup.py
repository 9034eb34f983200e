"""What commands take to start: user time of each as a ratio to that of `python -c "import torch"`.

Every command runs in a process of its own. A round runs each of them once, the import before, between and after, so
so that a machine whose speed drifts slows all of them; quoted are medians over the rounds of each command's time divided
by the mean of that round's imports. Runs are at the smoke scale, which is start-up above all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IMPORT = ["-c", "import torch"]
LIBRARIES = {  # what a task needs of libraries, imported as it imports them
    "ddpm": "import diffusers; diffusers.UNet2DModel; diffusers.DDPMPipeline; diffusers.DDIMScheduler; "
    "import torchmetrics.image.fid; import torchmetrics.image.inception",
    "bert": "import transformers; transformers.BertForPreTraining",
    "td3": "import torch; import gymnasium",
}


@dataclass(frozen=True)
class Command:
    """One command line. `limit`: what its ratio should stay below."""

    words: tuple[str, ...]
    limit: float
    status: int = 0


def commands() -> list[Command]:
    """The commands that are measured, in the order they are run in."""
    run = ("scale=smoke", "device=cpu", "rerun=true")
    limits = {"quadratic": 1.5, "ddpm": 2.5}
    tasks = ("quadratic", "classification", "lstm", "moco", "td3", "ddpm", "bert")
    return [
        Command(("--help",), 0.1),
        Command(("trian",), 0.1, 2),
        Command(("--frobnicate",), 0.1, 2),
        Command(("task=quadrtic",), 0.1, 2),
        Command(("ema.dcay=0.9",), 0.1, 2),
        Command(("table", "no_such"), 0.1, 2),
        Command(("list",), 0.4),
        *(Command((f"task={name}", *run), limits.get(name, 3.0)) for name in tasks),
        Command(("task=quadratic", "scale=smoke", "device=cpu"), 0.4),  # finished
        Command(("table", "variance_law", "scale=smoke", "--status"), 0.4),
    ]


def main(argv: Sequence[str]) -> None:
    """`emabench bench startup [--rounds N] [--out FILE.json]`: also writes FILE.md"""
    parser = argparse.ArgumentParser(prog="emabench bench startup", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--out", type=Path, help="a JSON file for the figures; a page of the same name beside it"
    )
    args = parser.parse_args(argv)
    seconds: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.rounds):
            imports: list[float] = []
            at_round: dict[str, float] = {}
            for number, command in enumerate(commands()):
                if number % 5 == 0:
                    imports.append(_seconds(IMPORT, folder))
                words = ["-m", "emabench", *command.words]
                at_round[" ".join(command.words)] = _seconds(words, folder, command.status)
            for name, program in LIBRARIES.items():
                at_round[f"libraries of {name}"] = _seconds(["-c", program], folder)
            imports.append(_seconds(IMPORT, folder))
            for name, value in {"import torch": statistics.mean(imports), **at_round}.items():
                seconds.setdefault(name, []).append(value)
                ratios.setdefault(name, []).append(value / statistics.mean(imports))
    page = _page(seconds, ratios, args.rounds)
    print(page)
    if args.out:
        figures = {"rounds": args.rounds, "user_seconds": seconds, "ratios": ratios}
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(page)


def _seconds(words: Sequence[str], folder: str, status: int = 0) -> float:
    """User time of a Python process, its children's included."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=environment, stdout=quiet, stderr=quiet
    )
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode != status:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}, not {status}")
    return used.ru_utime


def _page(seconds: dict[str, list[float]], ratios: dict[str, list[float]], rounds: int) -> str:
    torch = statistics.median(seconds["import torch"])
    lines = [
        "# Start-up",
        "",
        f'User time as a ratio to `python -c "import torch"` ({torch:.2f} s here), medians of {rounds} rounds,',
        f"`emabench bench startup --rounds {rounds}`. Where a ratio is above its limit, the last column says what",
        "importing the task's libraries alone takes, without any of emabench.",
        "",
        "| command | seconds | ratio | limit | its libraries alone |",
        "|---|--:|--:|--:|--:|",
    ]
    for command in commands():
        name = " ".join(command.words)
        ratio = statistics.median(ratios[name])
        task = next((word[5:] for word in command.words if word.startswith("task=")), "")
        alone = ratios.get(f"libraries of {task}") if ratio > command.limit else None
        shown = name.removesuffix(" rerun=true")
        if shown != name:
            shown += " (trains)"
        elif task and command.status == 0:
            shown += " (finished before)"
        lines.append(
            f"| `emabench {shown.partition(' (')[0]}`{shown[len(shown.partition(' (')[0]) :]} "
            f"| {statistics.median(seconds[name]):.2f} | {ratio:.2f} | {command.limit:g} "
            f"| {f'{statistics.median(alone):.2f}' if alone else ''} |"
        )
    return "\n".join(lines) + "\n"
