"""measure a trained run's weights again"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from emabench.errors import DONE, UserError
from emabench.runs.named import named_run


def main(words: Sequence[str]) -> int:
    """`emabench evaluate RUN`: measure every set of weights of the last checkpoint and write `result.json`."""
    config, directory, _ = named_run("evaluate", words, {})

    from emabench.report import terminal
    from emabench.training.run import explained, restored

    there = directory.result()
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
        if (
            there and there.status == "finished"
        ):  # where it was trained, and by what, stays what is said of it
            result = replace(result, environment={**there.environment, "evaluated": result.environment})
        directory.write_result(result)
    terminal.show_run(result)
    return DONE
