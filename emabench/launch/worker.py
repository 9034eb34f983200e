"""`python -m emabench.launch.worker DIRECTORY PARENT`: one run in a process of its own, for as long as PARENT lives.

The run's directory holds its resolved configuration, so what was asked for is what is run, whatever has
happened to `conf/` meanwhile.
"""

from __future__ import annotations

import sys
from pathlib import Path

from emabench.errors import DONE, FAILED, INTERRUPTED, MISTAKE, Interrupted, RunFailed, UserError
from emabench.runs.directory import RunDirectory
from emabench.runs.named import read_config
from emabench.training.interruption import stop_if_parent_dies


def main(directory: Path) -> int:
    """Run the configuration in `directory`; returns the exit status."""
    try:
        from emabench.training.start import run

        run(read_config(RunDirectory(directory)))
    except UserError as error:
        print(f"emabench: {error}", file=sys.stderr)
        return MISTAKE
    except RunFailed as error:
        print(f"emabench: {error}", file=sys.stderr)
        return FAILED
    except Interrupted:
        return INTERRUPTED
    return DONE


if __name__ == "__main__":
    stop_if_parent_dies(int(sys.argv[2]))
    raise SystemExit(main(Path(sys.argv[1])))
