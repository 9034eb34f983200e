"""A run that is named by its directory, as `emabench export RUN key=value` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from emabench.config import Config, checked
from emabench.errors import UserError, nearest
from emabench.runs.directory import RunDirectory


def named_run(
    verb: str, words: Sequence[str], options: Mapping[str, str]
) -> tuple[Config, RunDirectory, dict[str, str]]:
    """The run's configuration and directory, and the options with their defaults. Raises UserError."""
    if not words or "=" in words[0]:
        usage = " ".join(f"[{name}=…]" for name in options)
        raise UserError(
            f"emabench {verb} RUN {usage}: RUN is a run's directory, <results_dir>/<task>/<run_id>"
        )
    chosen = dict(options)
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals or key not in options:
            raise UserError(f"{word}: {verb} has no such option{nearest(key, options)}")
        chosen[key] = value
    directory = RunDirectory(Path(words[0]))
    try:
        data = yaml.safe_load(directory.config.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{words[0]}: holds no config.yaml; name <results_dir>/<task>/<run_id>") from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{directory.config}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise UserError(f"{directory.config}: is damaged")
    return checked(Config, data), directory, chosen
