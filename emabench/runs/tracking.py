"""Weights & Biases beside the local files: `log=wandb`, `log=offline`, `log=none`.

The files of the run are the truth; W&B is a view of them. Nothing here may stop or slow a training: a missing
login or a dead network falls back to offline and says so once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from emabench.config import Config, identity
from emabench.runs.directory import RunDirectory
from emabench.runs.result import Result, Row

Mode = Literal["online", "offline"]


class Tracker(Protocol):
    """What the trainer tells about a run, as it happens."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def measure(self, step: int, rows: Sequence[Row]) -> None: ...

    def finish(self, result: Result | None) -> None: ...


class NoTracker:
    """`log=none`."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def measure(self, step: int, rows: Sequence[Row]) -> None: ...

    def finish(self, result: Result | None) -> None: ...


class WandbTracker:
    """One W&B run a trajectory, its id the run's; a resumed run continues the same one."""

    def __init__(self, config: Config, directory: RunDirectory, say: Callable[[str], None]) -> None:
        self.say = say
        self.run: Any = None
        modes: tuple[Mode, ...] = ("online", "offline") if config.log == "wandb" else ("offline",)
        for mode in modes:
            try:
                self.run = _init(config, directory, mode)
                return
            except Exception as error:  # whatever wandb raises, training goes on
                self._give_up(error, "going on offline" if mode == "online" else "going on without it")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._send({"step": step} | {f"train/{name}": value for name, value in values.items()})

    def measure(self, step: int, rows: Sequence[Row]) -> None:
        self._send(
            {"step": step}
            | {f"eval/{row.average}/{name}": value for row in rows for name, value in row.metrics.items()}
        )

    def finish(self, result: Result | None) -> None:
        """`result` is None where the run ended early; W&B shows it as failed."""
        if not self.run:
            return
        try:
            if result and result.status == "finished":
                self._send({"result": _table(result)})
            self.run.finish(exit_code=0 if result and result.status == "finished" else 1)
        except Exception as error:
            self._give_up(error, "the run's files are whole")

    def _send(self, values: dict[str, Any]) -> None:
        if self.run:
            try:
                self.run.log(values)
            except Exception as error:
                self._give_up(error, "going on without it")

    def _give_up(self, error: Exception, then: str) -> None:
        self.run = None
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        self.say(f"W&B: {first}; {then}")


def tracker(config: Config, directory: RunDirectory, say: Callable[[str], None]) -> Tracker:
    """The tracker that `log` asks for."""
    return NoTracker() if config.log == "none" else WandbTracker(config, directory, say)


def _init(config: Config, directory: RunDirectory, mode: Mode) -> Any:
    import wandb

    if mode == "online" and not wandb.Api(timeout=10).api_key:
        raise RuntimeError("not logged in (`wandb login` does that)")
    run = wandb.init(
        project="emabench",
        id=config.run_id(),
        name=f"{config.task_name} {config.run_id()}",
        group=config.group or config.task_name,
        tags=[config.task_name, config.scale],
        config=identity(config),
        dir=directory.path,
        mode=mode,
        resume="allow" if mode == "online" else None,
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off", init_timeout=30),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _table(result: Result) -> Any:
    import wandb

    names = list(result.metrics)
    rows = [[row.average, *(row.metrics.get(name) for name in names)] for row in result.rows]
    return wandb.Table(columns=["average", *names], data=rows)
