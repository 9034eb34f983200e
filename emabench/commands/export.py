"""save averaged weights of a run in the field's own format"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emabench.errors import DONE, UserError, nearest
from emabench.runs.named import named_run


def main(words: Sequence[str]) -> int:
    """`emabench export RUN average=NAME [to=DIR]`: a diffusers pipeline for ddpm, a state_dict elsewhere."""
    config, directory, options = named_run("export", words, {"average": "", "to": ""})

    from emabench.training.failures import explained
    from emabench.training.start import restored

    with explained(directory):
        training = restored(config, directory, options)
    average = options["average"]
    names = ["raw", *training.averager.names]
    if not average:
        raise UserError(f"export RUN average=NAME: of this run {', '.join(names)}")
    if average not in names:
        raise UserError(f"average={average}: the run has none of that name{nearest(average, names)}")
    to = Path(options["to"]).expanduser() if options["to"] else directory.exported / average
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"to={to}: cannot be made ({error.strerror}); name another folder") from error
    with explained(directory), training.evaluator.in_place(average):
        training.task.export(to)
    print(f"{average} after {training.step} steps: {to}")
    return DONE
