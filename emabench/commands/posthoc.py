"""rebuild any average after training, and measure it"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from emabench.averaging.profiles import Profile, from_dict
from emabench.config import Config
from emabench.errors import DONE, UserError
from emabench.runs.directory import RunDirectory
from emabench.runs.files import write_text
from emabench.runs.named import named_run

if TYPE_CHECKING:
    from emabench.training.trainer import Trainer

OPTIONS = ("decay", "half_life", "window", "sigma_rel")
SHARES = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3, 0.5)  # of the run, for --curve
UNTRUSTED = 0.1  # share of the weight on other steps than requested, above which a value is marked


def main(words: Sequence[str]) -> int:
    """`emabench posthoc RUN decay=0.9995` (or half_life=, window=, sigma_rel=), or `emabench posthoc RUN --curve`.

    The run has to have kept snapshots: `emabench … snapshots.every=500`.
    """
    curve = "--curve" in words
    config, directory, options = named_run(
        "posthoc", [word for word in words if word != "--curve"], dict.fromkeys(OPTIONS, "")
    )
    profiles = _curve(config) if curve else [_requested(options)]

    from emabench.training.failures import explained
    from emabench.training.start import restored

    with explained(directory):
        training = restored(config, directory, options)
        _report_missing(training)
        rows = [_measured(training, profile) for profile in profiles]
    main_metric = next(iter(training.task.metrics))
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("average", "window", *training.evaluator.metrics, "misplaced weight"):
        shown.add_column(title, justify="left" if title == "average" else "right")
    for name, window, metrics, moved in rows:
        mark = " ?" if moved > UNTRUSTED else ""
        values = (f"{value:.4g}" for value in metrics.values())
        shown.add_row(name, f"{window:.4g}", *values, f"{moved:.1%}{mark}")
    console = Console()
    console.print(shown)
    if any(moved > UNTRUSTED for *_, moved in rows):
        console.print(
            f"? more than {UNTRUSTED:.0%} of the weight lies on other steps than requested: too few snapshots for this average",
            highlight=False,
        )
    if curve:
        points = [(window, metrics[main_metric]) for _, window, metrics, moved in rows if moved <= UNTRUSTED]
        print(f"\ncurve   {_drawn(directory, main_metric, points)}")
    return DONE


def _requested(options: dict[str, str]) -> Profile:
    given = {key: value for key, value in options.items() if value and key in OPTIONS}
    if len(given) != 1:
        raise UserError(
            f"emabench posthoc RUN: give one of {', '.join(f'{key}=…' for key in OPTIONS)}, or --curve"
        )
    key, text = next(iter(given.items()))
    try:
        kind = "power_ema" if key == "sigma_rel" else "ema"
        return from_dict({"kind": kind, key: float(text)} | ({} if kind == "power_ema" else {"debias": True}))
    except ValueError as error:
        raise UserError(f"{key}={text}: {error}") from error


def _curve(config: Config) -> list[Profile]:
    """EMAs over a ladder of windows."""
    windows = sorted({max(1.0, share * config.steps) for share in SHARES})
    return [from_dict({"kind": "ema", "window": window, "debias": True}) for window in windows]


def _report_missing(training: Trainer) -> None:
    from emabench.training import snapshots

    directory, every = training.directory.snapshots, training.config.snapshots.every
    if every and directory.is_dir():
        missing = snapshots.missing(directory, training.averager, every, training.step)
        if missing:
            print(
                f"emabench: {directory}: {len(missing)} snapshots are missing, {missing[0]} for one; what is rebuilt "
                "without them is less exact",
                file=sys.stderr,
            )


def _measured(training: Trainer, profile: Profile) -> tuple[str, float, dict[str, float], float]:
    """Name, window, metrics, and the share of the weight that the fit puts on other steps."""
    from emabench.averaging.posthoc import rebuild
    from emabench.training import snapshots

    kept = snapshots.list_snapshots(training.directory.snapshots, training.averager)
    if not kept:
        raise UserError(
            f"{training.directory.path}: kept no snapshots; train with snapshots.every={training.config.steps // 10}"
        )
    paths = [path for _, path in kept]
    weights, fit = rebuild([s for s, _ in kept], snapshots.load_states(paths), profile, training.config.steps)
    with training.evaluator.loaded(weights):
        metrics = training.evaluator.evaluate()
    about = {key: value for key, value in profile.to_dict().items() if key in OPTIONS}
    name = " ".join(f"{key} {value:.6g}" for key, value in about.items())
    return name, profile.effective_window(training.config.steps), metrics, fit.moved


def _drawn(directory: RunDirectory, metric: str, points: list[tuple[float, float]]) -> str:
    """The metric against the window, as a picture that stands on its own."""
    from emabench.report.svg import Axis, Figure

    if len(points) < 2:
        raise UserError(
            f"{directory.path}: too few snapshots for a curve; train with a smaller snapshots.every"
        )
    figure = Figure(
        Axis.around([x for x, _ in points], log=True), Axis.around([y for _, y in points], margin=0.1)
    )
    figure.axes("averaging window, steps", metric)
    figure.line(points, "measured")
    for x, y in points:
        figure.dot(x, y, "measured", f"window {x:.4g}: {y:.4g}")
    style = (
        "<style>text{font:12px system-ui,sans-serif;fill:#555}.grid{stroke:#ddd}.axis{stroke:#888}"
        ".line{fill:none;stroke:#2563eb;stroke-width:2}.dot{fill:#2563eb}</style>"
    )
    svg = figure.svg(f"{metric} against the averaging window").replace(
        "<svg ", '<svg xmlns="http://www.w3.org/2000/svg" '
    )
    head, _, body = svg.partition("\n")
    path = directory.path / f"posthoc_{metric}.svg"
    write_text(path, f"{head}\n{style}\n{body}\n")
    return str(path)
