"""measure a trained run's weights again"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from emabench.errors import DONE, UserError
from emabench.runs.named import named_run
from emabench.runs.result import DamagedResult


def main(words: Sequence[str]) -> int:
    """`emabench evaluate RUN`: measure every set of weights of the last checkpoint and write `result.json`."""
    config, directory, _ = named_run("evaluate", words, {})

    from emabench.report import terminal
    from emabench.training.failures import explained
    from emabench.training.start import restored

    try:
        there = directory.result()
    except DamagedResult:
        there = None  # measured again, it is whole
    if there and there.status == "diverged":
        raise UserError(f"{directory.path}: diverged, there is nothing to measure ({there.reason})")
    with directory.locked(), explained(directory):
        training = restored(config, directory)
        if training.step < config.steps:
            raise UserError(
                f"{directory.path}: training stopped at step {training.step} of {config.steps}; "
                "the command that began it goes on from there"
            )
        directory.forget_rows()
        result = training.result()
        # Where it was trained, and by what, stays what is said of it.
        if there and there.status == "finished":
            result = replace(result, environment={**there.environment, "evaluated": result.environment})
        directory.write_result(result)
    terminal.show_run(result)
    return DONE
