"""The command line: a word of `emabench/commands/` is a verb, anything else is a training run.

A bare word is never a valid Hydra override, so the first word decides.
"""

from __future__ import annotations

import ast
import os
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module

from emabench import plugins
from emabench.errors import DONE, FAILED, INTERRUPTED, MISTAKE, Interrupted, RunFailed, UserError, nearest
from emabench.masking import masked
from emabench.paths import COMMAND, PACKAGE
from emabench.training.interruption import interrupting, was_interrupted

HELP = """\
emabench: does averaging the weights help, by how much, with which decay?

  emabench [key=value …]        train one task, with its averages, and measure them
  emabench -m key=v1,v2 …       the same for every combination (a Hydra multirun)
{verbs}

  emabench task=ddpm ema.decay=0.9999                one run
  emabench task=ddpm ema.decay=[0.99,0.999,0.9999]   one training, three averages
  emabench table ddpm_cifar10                        every row of a reported table, and the verdicts

Keys: {keys}
Your own tasks, tables, averages and sweeps: --path DIR (or EMABENCH_PATH) with any command
Every key with its meaning: {conf}; what a command would run with: emabench --cfg key=value …
Exit status: 0 done, 1 the run failed, 2 a mistake in the command, 75 interrupted and resumable."""

KEYS = (
    "task scale seed steps batch_size ema.decay ema.every ema.start ema.warmup ema.debias averages "
    "clip.max_norm optimizer.lr schedule.name results_dir device precision log rerun"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ[COMMAND] = masked(shlex.join(["emabench", *words]))  # results of workers record it too
    # Processes that are started import nothing from the working directory: a yaml.py may lie in it.
    os.environ["PYTHONSAFEPATH"] = "1"
    with interrupting():
        return _run(words)


def _run(words: list[str]) -> int:
    """Run a command; an error becomes a message and an exit status."""
    try:
        words, given = plugins.split(words)
        with plugins.using(given):
            if words[:1] != ["new"]:  # which makes the folder
                plugins.check(given)
            return _dispatch(words)
    except BrokenPipeError:
        # The reader closed the pipe (`| head`): nothing failed. Keep Python from reporting it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Interrupted as error:
        _say(str(error))
        return INTERRUPTED
    except (Exception, KeyboardInterrupt) as error:
        if (
            isinstance(error, KeyboardInterrupt) or was_interrupted()
        ):  # imports and parsers turn it into other errors
            _say("interrupted; the same command resumes it")
            return INTERRUPTED
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("emabench"):
            _say(
                f"the command line needs the package {error.name}, which is not installed; "
                "pip install 'emabench[bench]' installs all of them"
            )
            return MISTAKE
        if not isinstance(error, UserError | RunFailed):
            raise
        _say(str(error))
        return MISTAKE if isinstance(error, UserError) else FAILED


def _say(text: str) -> None:
    """One line on stderr; of the processes that torchrun starts, rank 0 prints."""
    if os.environ.get("RANK", "0") == "0":
        print(f"emabench: {text}", file=sys.stderr)


def _dispatch(words: list[str]) -> int:
    first = words[0] if words else ""
    if first in ("-h", "--help", "help"):
        from emabench.paths import conf_dir

        verbs = "\n".join(
            f"  emabench {verb:<20} {text}" for verb, text in _verbs().items() if verb != "train"
        )
        print(HELP.format(verbs=verbs, keys=KEYS, conf=conf_dir() / "config.yaml"))
        return DONE
    if first == "--version":
        from emabench import __version__

        print(f"emabench {__version__}")
        return DONE
    if first in _verbs():
        if words[-1] in ("-h", "--help") and not (
            len(words) > 2 and (first == "bench" or words[1] == "numerics")
        ):
            print(_usage(first))  # those two have options of their own and print them
            return DONE
        return import_module(f"emabench.commands.{first}").main(words[1:])
    if first and first.replace("_", "").isalpha():
        if first in plugins.find("conf/task") or first == "task":
            raise UserError(f"{first}: write task={first if first != 'task' else 'NAME'}")
        raise UserError(
            f"{first!r} is neither a verb nor an override{nearest(first, _verbs())} (all: emabench --help)"
        )
    return import_module("emabench.commands.train").main(words)


def _usage(verb: str) -> str:
    """What a verb does and takes: the docstrings of its module and of its `main`, read without importing it."""
    tree = ast.parse((PACKAGE / "commands" / f"{verb}.py").read_text(encoding="utf-8"))
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    return "\n\n".join(filter(None, (ast.get_docstring(tree), ast.get_docstring(main)))).replace("`", "")


def _verbs() -> dict[str, str]:
    """Each verb with the first line of its module's docstring, read without importing the module."""
    verbs = {}
    for path in sorted((PACKAGE / "commands").glob("*.py")):
        if path.stem != "__init__":
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            verbs[path.stem] = text.partition("\n")[0]
    return verbs
