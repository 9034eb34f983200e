"""print versions, devices, available data and known problems"""

from __future__ import annotations

import importlib
import itertools
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

from emabench import plugins
from emabench.compose import configuration
from emabench.errors import DONE, FAILED
from emabench.paths import cache_dir, conf_dir

PACKAGES = ("torch", "torchvision", "diffusers", "torchmetrics", "hydra-core", "wandb")
MARKS = {"ok": "[green]ok[/]", "note": "[yellow]–[/]", "bad": "[red]!![/]"}
Finding = tuple[str, str, str]  # mark, subject, text


def main(words: Sequence[str]) -> int:
    """`emabench doctor`: print what is installed and available, what is missing, and how to get it. Exit status 1 if something is broken."""
    config = configuration(words)
    console = Console(soft_wrap=True)
    broken = False
    sections: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("software", lambda: itertools.chain(_software(), _averages())),
        ("devices", _devices),
        ("data", lambda: _data(Path(config.data_dir))),
        ("places", lambda: _places(Path(config.results_dir))),
        ("services", _services),
    ]
    for title, findings in sections:
        shown = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for mark, what, text in findings():
            shown.add_row(f" {MARKS[mark]}", what, text)
            broken |= mark == "bad"
        console.print(f"[bold]{title}[/]")
        console.print(shown)
    return FAILED if broken else DONE


def _software() -> Iterator[Finding]:
    yield "ok", "python", platform.python_version()
    for package in PACKAGES:
        try:
            yield "ok", package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield "bad", package, "is not installed; scripts/emabench installs what requirements.lock names"
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        # torchvision's wheel is linked against the standard build of torch; with a +cpu build its operators
        # are missing, and diffusers fails to import with it.
        import torch

        yield (
            "bad",
            "torchvision",
            f"does not import with torch {torch.__version__} ({error}). Both have to come from the same index: "
            "install torch with `uv pip install torch torchvision`, not a build ending in +cpu",
        )


def _averages() -> Iterator[Finding]:
    from emabench.averaging import build

    try:
        build.load()
        yield "ok", "averages", f"updated in C, by a library in {build.folder()}"
    except build.Unavailable as reason:
        yield "note", "averages", f"updated by torch's own operations, more slowly: {reason}"


def _devices() -> Iterator[Finding]:
    import torch

    yield "ok", "cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        yield "note", "cuda", "no device: scale=smoke and scale=small run on the CPU, scale=paper needs a GPU"
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield "ok", f"cuda:{index}", f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"


def _data(data_dir: Path) -> Iterator[Finding]:
    from emabench.data import catalog

    for name, dataset in catalog.DATASETS.items():
        place = catalog.found(name, data_dir)
        yield ("ok", name, str(place)) if place else ("note", name, f"not found: {dataset.how_to_get}")


def _places(results_dir: Path) -> Iterator[Finding]:
    yield "ok", "configuration", str(conf_dir())
    for source in plugins.sources():
        if not source.built_in:
            yield ("ok" if source.root.is_dir() else "bad"), "your own", f"{source.name} ({source.root})"
    for name, path in (("results_dir", results_dir), ("cache", cache_dir())):
        existing = path.absolute()
        while not existing.exists():
            existing = existing.parent
        if os.access(existing, os.W_OK):
            yield "ok", name, f"{path} ({shutil.disk_usage(existing).free / 2**30:.0f} GiB free)"
        else:
            yield (
                "bad",
                name,
                f"{path} is not writable; results_dir=… (or EMABENCH_CACHE) names another place",
            )


def _services() -> Iterator[Finding]:
    if shutil.which("sbatch"):
        yield "ok", "slurm", "sbatch found; slurm/README.md says how to submit"
    else:
        yield "note", "slurm", "no sbatch here"
    netrc = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    known = os.environ.get("WANDB_API_KEY") or (
        netrc.is_file() and "wandb" in netrc.read_text(errors="replace")
    )
    yield (
        ("ok" if known else "note"),
        "wandb",
        "logged in" if known else "not logged in: log=wandb logs offline",
    )
