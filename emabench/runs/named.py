"""A run that is named by its directory, as `emabench export RUN key=value` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emabench import plugins
from emabench.config import Config, checked
from emabench.errors import RunFailed, UserError, nearest
from emabench.runs.directory import ORIGIN, RunDirectory
from emabench.runs.files import read_yaml

HERE = ("device", "data_dir", "workers")  # what may differ where a run was moved to


def named_run(
    verb: str, words: Sequence[str], options: Mapping[str, str]
) -> tuple[Config, RunDirectory, dict[str, str]]:
    """The run's configuration and directory, and the options with their defaults.

    `device`, `data_dir` and `workers` replace what the run was trained with; `task.KEY=VALUE` repeats a value of the
    run, and is among the options then (`training.start.restored` asks for it). Raises UserError for a mistake in the
    words, RunFailed where the run's configuration cannot be used.
    """
    if not words or "=" in words[0]:
        usage = " ".join(f"[{name}=…]" for name in options)
        raise UserError(
            f"emabench {verb} RUN {usage}: RUN is a run's directory, <results_dir>/<task>/<run_id>"
        )
    chosen: dict[str, str] = dict(options)
    repeated: dict[str, str] = {}
    changes: dict[str, Any] = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if equals and key in HERE:
            changes[key] = int(value) if key == "workers" and value.isdecimal() else value
        elif equals and key in options:
            chosen[key] = value
        elif equals and key.startswith("task."):
            repeated[key] = value
        else:
            raise UserError(f"{word}: {verb} has no such option{nearest(key, [*options, *HERE])}")
    directory = RunDirectory(Path(words[0]).expanduser())
    config = read_config(directory)
    for key, value in repeated.items():
        of_run = config.task.get(key.removeprefix("task."))
        if value != str(of_run):
            raise UserError(f"{key}={value}: the run was trained with {of_run}, which {verb} does not change")
    chosen |= repeated
    return (checked(Config, config.model_dump() | changes) if changes else config), directory, chosen


def read_config(directory: RunDirectory) -> Config:
    """What a run was trained with. UserError where the run does not exist, RunFailed where it is damaged or not of this version."""
    file = directory.config
    try:
        data = read_yaml(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{directory.path}: holds no config.yaml; name <results_dir>/<task>/<run_id>"
        ) from error
    except (OSError, ValueError) as error:
        raise RunFailed(f"{file}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(data, dict):
        raise RunFailed(f"{file}: is damaged")
    origins = [
        line[len(ORIGIN) :] for line in file.read_text("utf-8").splitlines() if line.startswith(ORIGIN)
    ]
    try:
        config = checked(Config, data)
    except UserError as error:
        outside = f" ({'; '.join(origins)}: --path FOLDER finds it)" if origins else ""
        raise RunFailed(
            f"{file}: is damaged or of another version of emabench; nothing was changed: {error}{outside}"
        ) from error
    for origin in origins:
        kind, _, name = origin.partition(":")[0].partition("/")
        if name not in plugins.find(kind):
            raise UserError(
                f"{directory.path}: {origin} no longer exists; --path FOLDER names where it is now"
            )
    return config
