"""Weights & Biases next to the local files: `log=wandb`, `log=offline`, `log=none`.

The files of the run are the truth; W&B is a view of them. Nothing here may stop or slow a training: a missing
login or a dead network falls back to offline and says so once, and nothing waits for the network without an end.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from emabench.averaging.profiles import window_of
from emabench.config import Config, identity
from emabench.runs import history
from emabench.runs.directory import RunDirectory
from emabench.runs.result import RAW, Result, Row

Mode = Literal["online", "offline"]
PROJECT = "emabench"
REACH = 5  # seconds to wait for an answer before logging offline
UPLOAD = 60  # seconds that a run's end may wait for what is not uploaded yet
UPLOAD_WEIGHTS = 1800  # the same with weights, which may be gigabytes


def project() -> str:
    """Where runs, workspaces and reports go; the entity is W&B's own default, or WANDB_ENTITY."""
    return os.environ.get("WANDB_PROJECT") or PROJECT


class Tracker(Protocol):
    """What the trainer reports of a run, as it happens."""

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
        self.config, self.directory, self.say = config, directory, say
        self.run: Any = None
        modes: tuple[Mode, ...] = ("online", "offline") if config.log == "wandb" else ("offline",)
        for mode in modes:
            try:
                self.run = _init(config, directory, mode)
                self._log_history(mode)
                if mode == "online" and self.run.url:  # reports link to it
                    (directory.path / "wandb" / "address.txt").write_text(f"{self.run.url}\n")
                return
            except Exception as error:  # whatever wandb raises: training continues
                then = "logging offline; `emabench wandb sync` uploads the run later"
                self._give_up(error, then if mode == "online" else "continuing without it")

    def _log_history(self, mode: Mode) -> None:
        """Log what `history.jsonl` has up to where the run resumes: one that was killed has not logged all.

        Online, W&B takes none of the steps that it has. Parts of the run that are not uploaded have had their use
        then; offline too, where nothing is uploaded yet, for the new part has all of theirs.
        """
        folder = Path(self.run.dir).parent
        earlier = [path for path in wandb_files(self.directory.path) if not path.parent.samefile(folder)]
        kept = [path for path in earlier if path.parent.name.startswith("run-") or is_synced(path)]
        if mode == "offline" and kept:
            return  # they are continued
        for line in history.lines(self.directory.history) if _has_history(self.directory) else ():
            step = line.pop("step")
            if "eval" in line:
                self._send_rows(step, line["eval"])
            else:
                line.pop("wall", None)
                self.log(step, line)
        for path in set(earlier) - set(kept) if self.run else ():
            shutil.rmtree(path.parent, ignore_errors=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._send(step, {f"train/{name}": value for name, value in values.items()})

    def measure(self, step: int, rows: Sequence[Row]) -> None:
        self._send_rows(step, {row.average: row.metrics for row in rows})

    def _send_rows(self, step: int, rows: Mapping[str, Mapping[str, float | None]]) -> None:
        self._send(
            step, {f"eval/{average}/{name}": v for average, row in rows.items() for name, v in row.items()}
        )

    def finish(self, result: Result | None) -> None:
        """`result` is None where the run ended early; W&B shows it as failed, until it is resumed."""
        if not self.run:
            return
        try:
            self.run.summary["status"] = result.status if result else "stopped"
            if result and result.reason:
                self.run.summary["reason"] = result.reason
            if result and result.status == "finished":
                averages = [row.average for row in result.rows]
                self._send(
                    result.steps, {"result": _table(result)} | _pictures(self.directory.artifacts, averages)
                )
                if self.config.log_weights and self.run:
                    self.run.log_artifact(_weights(result, self.directory.exported))
            if self.run:
                folder, online = Path(self.run.dir).parent, not self.run.offline
                self.run.finish(exit_code=0 if result and result.status == "finished" else 1)
                for path in folder.glob("*.wandb") if online else ():
                    _synced(path).touch()
        except Exception as error:
            self._give_up(error, "the run's files are complete, and `emabench wandb sync` uploads the rest")

    def _send(self, step: int, values: dict[str, Any]) -> None:
        """W&B's own step is the optimiser's: what a resumed run sends again, it drops."""
        if self.run:
            try:
                self.run.log({"step": step} | values, step=step)
            except Exception as error:
                self._give_up(error, "continuing without it")

    def _give_up(self, error: Exception, then: str) -> None:
        self.run = None
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        self.say(f"W&B: {first}; {then}")


def tracker(config: Config, directory: RunDirectory, say: Callable[[str], None]) -> Tracker:
    """The tracker that `log` asks for."""
    return NoTracker() if config.log == "none" else WandbTracker(config, directory, say)


def _has_history(directory: RunDirectory) -> bool:
    """Whether training was resumed: then the history holds what came before."""
    return directory.history.exists() and directory.history.stat().st_size > 0


def wandb_files(run: Path) -> list[Path]:
    """The files of a run's parts in W&B's own form, oldest first: `offline-run-…` and (online) `run-…`."""
    return sorted(run.glob("wandb/*run-*/*.wandb"), key=lambda path: path.parent.name.partition("run-")[2])


def is_synced(path: Path) -> bool:
    """Whether a part is uploaded to its end."""
    return _synced(path).exists()


def _synced(path: Path) -> Path:
    """The mark that `wandb sync` leaves, and a run that was online to its end."""
    return path.with_name(f"{path.name}.synced")


@functools.cache
def why_offline() -> str:
    """Why W&B cannot be used now, "" where it can. Asked once a process: each asking may take REACH seconds."""
    import wandb

    try:
        # Asked first: wandb.Api would stop and ask a person at a terminal for the key.
        if not wandb.login(prompt=False, verify=False):
            return "not logged in (`wandb login` does that)"
        wandb.Api(timeout=REACH)
    except Exception as error:
        address = wandb.setup().settings.base_url
        return f"{address} did not accept the login within {REACH} s ({type(error).__name__})"
    return ""


def _init(config: Config, directory: RunDirectory, mode: Mode) -> Any:
    import wandb

    if mode == "online" and (why := why_offline()):
        raise RuntimeError(why)
    run = wandb.init(
        project=project(),
        entity=os.environ.get("WANDB_ENTITY"),
        id=config.run_id(),
        name=f"{config.task_name} {config.run_id()}",
        group=config.group or config.task_name,
        tags=[config.task_name, config.scale],
        config=identity(config),
        dir=directory.path,
        mode=mode,
        # Resumed; None replaces an earlier training of the run. Offline parts are joined at sync.
        resume="allow" if mode == "online" and _has_history(directory) else None,
        reinit="create_new",
        settings=wandb.Settings(
            silent=True,
            console="off",
            init_timeout=2 * REACH,
            finish_timeout=UPLOAD_WEIGHTS if config.log_weights else UPLOAD,
            finish_timeout_raises=True,
            disable_git=True,  # the address of a remote may hold a password; results name the commit
            x_disable_meta=True,  # the command line word for word, the user, the host
        ),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _table(result: Result) -> Any:
    """A row for every set of weights: the window in steps (1 for the raw weights), then the metrics."""
    import wandb

    names = list(result.metrics)
    rows = [[row.average, _window(row), *(row.metrics.get(name) for name in names)] for row in result.rows]
    return wandb.Table(columns=["average", "window", *names], data=rows)


def _window(row: Row) -> float | None:
    return 1.0 if row.average == RAW else window_of(row.profile.get("describe") or {})


def _pictures(artifacts: Path, averages: Sequence[str]) -> dict[str, Any]:
    """By kind of picture: that of the raw weights with those of each average next to it."""
    import wandb

    pictures: dict[str, list[Any]] = {}
    for average in averages:
        for path in sorted((artifacts / average).glob("*.png")):
            pictures.setdefault(path.stem, []).append(wandb.Image(str(path), caption=average))
    return dict(pictures)


def _weights(result: Result, exported: Path) -> Any:
    """Every set of weights as `emabench export` writes it, in a folder of its name."""
    import wandb

    artifact = wandb.Artifact(f"weights-{result.run_id}", type="model", metadata={"steps": result.steps})
    for row in result.rows:
        artifact.add_dir(str(exported / row.average), name=row.average)
    return artifact
