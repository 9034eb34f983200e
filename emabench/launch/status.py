"""The state of several runs, from their directories and from the queue they were submitted to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console
from rich.table import Table

from emabench.config import Config
from emabench.errors import UserError
from emabench.launch import slurm
from emabench.launch.local import last_log_line
from emabench.runs import history
from emabench.runs.directory import RunDirectory
from emabench.runs.result import DamagedResult

ORDER = ("finished", "diverged", "failed", "damaged", "running", "completing", "pending", "stopped", "to do")


@dataclass(frozen=True)
class RunState:
    """How far a run is. `left` is in seconds, None where it is not known."""

    state: str
    step: int
    left: float | None
    job: str
    note: str


def run_state(config: Config, queue: Mapping[slurm.Submitted, slurm.Queued]) -> RunState:
    """The state of a run: of its result if it has one that counts, else of the queue, else of its files."""
    directory = RunDirectory(config.directory())
    step, left = history.progress(directory.history, config.steps)
    try:
        result = directory.result()
    except DamagedResult as error:
        return RunState("damaged", step, None, "", f"{error}; remove it")
    if result and result.status != "failed":
        return RunState(result.status, step, None, "", result.reason or "")
    sent = slurm.submitted(config)
    if sent and sent in queue:
        job, state, reason = queue[sent]
        running = state == "RUNNING"
        return RunState(state.lower(), step, left if running else None, job, "" if running else reason)
    if directory.held():
        return RunState("running", step, left, "", "")
    if result:
        return RunState(result.status, step, None, "", result.reason or "")
    if sent and (log := slurm.log(config, sent)):
        return RunState("stopped", step, None, "", f"see {log}")
    return RunState("stopped" if step else "to do", step, None, "", last_log_line(directory.path))


def run_states(runs: Mapping[str, Config]) -> dict[str, RunState]:
    """The state of every run, by its name. Prints a note where SLURM does not answer."""
    queue: Mapping[slurm.Submitted, slurm.Queued] = {}
    if any(slurm.submitted(config) for config in runs.values()):
        try:
            queue = slurm.queue()
        except UserError as error:
            Console(stderr=True).print(f"{error}; the following is from the runs' files", soft_wrap=True)
    return {name: run_state(config, queue) for name, config in runs.items()}


def show(runs: Mapping[str, Config]) -> None:
    """A line on each run, by its name, and one on all of them; then notes on some."""
    console = Console(markup=False)
    states = run_states(runs)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("run", "state", "steps", "left", "job"):
        right = title in ("steps", "left")
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    for name, at in states.items():
        steps = f"{at.step}/{runs[name].steps}"
        table.add_row(name, at.state, steps, _duration(at.left), at.job)
    console.print(table)
    notes = [f"{name}: {at.note}" for name, at in states.items() if at.note and at.note != "None"]
    if notes:  # in lines of their own: paths are to be copied
        console.print("\n" + "\n".join(notes), highlight=False, markup=False, soft_wrap=True)
    counts = Counter(at.state for at in states.values())
    words = [f"{counts[state]} {state}" for state in sorted(counts, key=_order)]
    longest = max((at.left for at in states.values() if at.left is not None), default=None)
    ends = "" if longest is None else f"; those running have up to {_duration(longest)} of training left"
    console.print(f"\n{', '.join(words)}{ends}", highlight=False, soft_wrap=True)


def _order(state: str) -> int:
    return ORDER.index(state) if state in ORDER else len(ORDER)


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))
