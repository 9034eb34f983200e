"""measure a trained run's weights again"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from emabench.errors import DONE, UserError
from emabench.runs.named import named_run
from emabench.runs.result import DamagedResult


def main(words: Sequence[str]) -> int:
    """`emabench evaluate RUN`: measure every set of weights of the last checkpoint and write `result.json`."""
    config, directory, options = named_run("evaluate", words, {})

    from emabench.report import terminal
    from emabench.training.failures import explained
    from emabench.training.start import restored

    try:
        previous = directory.result()
    except DamagedResult:
        previous = None  # it is replaced
    if previous and previous.status == "diverged":
        raise UserError(f"{directory.path}: diverged, there is nothing to measure ({previous.reason})")
    with directory.locked(), explained(directory):
        training = restored(config, directory, options)
        if training.step < config.steps:
            raise UserError(
                f"{directory.path}: training stopped at step {training.step} of {config.steps}; "
                "the command that started it resumes it"
            )
        directory.forget_rows()
        result = training.result()
        # The environment stays the one that trained it.
        if previous and previous.status == "finished":
            result = replace(result, environment={**previous.environment, "evaluated": result.environment})
        directory.write_result(result)
    terminal.show_run(result, path=directory.path)
    return DONE
