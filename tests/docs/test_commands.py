"""Every command that the pages show is run at smoke scale, or marked with the reason why not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from emabench import cli
from emabench.paths import PACKAGE
from tests.docs.pages import ROOT, Block, blocks, pages

SHELL = blocks("sh", "bash", "console", "shell")
VERBS = {path.stem for path in (PACKAGE / "commands").glob("[a-z]*.py")}
SMALL = ("scale=smoke", "device=cpu")
RUN_VERBS = ("compare", "evaluate", "export", "posthoc")  # they take the directory of a run


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command, without comments."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words:
            yield words


def test_what_is_not_shell_has_a_language() -> None:
    assert not [str(block) for block in blocks("")], (
        "say what a block is: ```sh, ```python, ```yaml or ```text"
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One results directory for all commands, so that what one of them trained is there for the next."""
    return tmp_path_factory.mktemp("documented") / "results"


def smoke(words: list[str], results: Path, dry: bool) -> list[str]:
    """The words as they are run here: at smoke scale, in one process, into the shared directory."""
    verb = words[0] if words and words[0] in VERBS else "train"
    kept = [
        word
        for word in words
        if not re.match(r"(scale|steps|results_dir|jobs|seeds|device|precision|log)=", word)
    ]
    if verb in RUN_VERBS:
        return [str(a_run(results)) if word == "RUN" else word for word in words]
    if verb == "train":
        several = "-m" in words and "--cfg" not in words
        return (
            kept
            + [*SMALL, f"results_dir={results}"]
            + (["jobs=1"] if several else [])
            + ["--dry-run"] * (several and dry)
        )
    if verb == "table" and not {"numerics", "--from"} & {*words}:
        return kept + [*SMALL, f"results_dir={results}", "seeds=2", "jobs=1"] + ["--dry-run"] * dry
    if words[:2] == ["wandb", "sync"]:
        return [*words, str(results)]
    return kept + ([f"results_dir={results}"] if verb in ("report", "doctor") else [])


def a_run(results: Path) -> Path:
    """A finished run that kept snapshots, for commands that take one."""
    words = ["task=quadratic", *SMALL, "snapshots.every=5", "ema.decay=[0.9,0.99]", f"results_dir={results}"]
    found = sorted(path.parent for path in results.glob("quadratic/*/snapshots"))
    if not found:
        assert cli.main(words) == 0
        found = sorted(path.parent for path in results.glob("quadratic/*/result.json"))
    return found[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")
@pytest.mark.parametrize("block", [b for b in SHELL if b.note != "not run"], ids=str)
def test_commands_run(
    block: Block,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for words in commands(block):
        name, *rest = words
        assert name in ("emabench", "scripts/emabench"), (
            f"{block}: {name} is not run by this test; mark the block"
        )
        asked = smoke(rest, results, block.note == "dry run")
        asked = [str(ROOT / word) if "/" in word and (ROOT / word).is_file() else word for word in asked]
        status = cli.main(asked)
        assert status == 0, (
            f"{block}: {shlex.join(words)}\nrun as {shlex.join(asked)}\n{capsys.readouterr().err}"
        )


@pytest.mark.parametrize("block", [b for b in SHELL if b.note == "not run"], ids=str)
def test_commands_that_are_not_run_exist(block: Block) -> None:
    for name, *rest in commands(block):
        if name.startswith(("scripts/", "slurm/")):
            assert (ROOT / name).exists(), f"{block}: {name}"
        if name in ("emabench", "scripts/emabench") and rest:
            assert rest[0] in VERBS or "=" in rest[0] or rest[0].startswith("-"), f"{block}: {rest[0]}"


def test_commands_in_running_text_exist() -> None:
    wrong = []
    for path in pages():
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for command in re.findall(r"`(?:scripts/)?emabench ([^`]+)`", text):
            first = command.split()[0]
            if not (first in VERBS or "=" in first or first.startswith(("-", "[", "…", "+", "'", "~"))):
                wrong.append(f"{path.relative_to(ROOT)}: emabench {command}")
    assert not wrong
