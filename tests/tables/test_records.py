"""A table's runs in one file: what was judged from directories is judged the same from the file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from emabench.bench import tables
from emabench.cli import main
from emabench.commands.table import judged_of
from emabench.report import files
from emabench.tables import records, spec
from emabench.tables.judge import judge

from . import golden


def test_a_file_is_judged_as_the_directories_were(tmp_path: Path) -> None:
    table = spec.load("imagenet_resnet50")
    judged = judge(table, "small", golden.classifiers(tmp_path, 6))
    file = tmp_path / "table.json"
    file.write_text(records.to_json(judged, "emabench table"))
    scale, runs = records.read(file, table)
    again = judge(table, scale, runs)
    assert files.markdown(again) == files.markdown(judged)
    first, second = (each.runs["constant"][3] for each in (judged, again))
    assert first and second
    assert second.measured("raw", "top1") == [
        (step, pytest.approx(value, rel=1e-6)) for step, value in first.measured("raw", "top1")
    ]
    assert len(second.measured("raw", "top1")) == 20


def test_the_command_renders_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = spec.load("ddpm_cifar10")
    judged = judge(table, "small", golden.diffusion(tmp_path / "runs", 5))
    (source,) = (f for f in files.write(judged, tmp_path) if f.suffix == ".json")
    out = tmp_path / "out"
    assert main(["table", "ddpm_cifar10", "--from", str(source), f"results_dir={out}"]) == 0
    assert "A small DDPM on 8x8 digits  §16.1" in capsys.readouterr().out
    assert (out / "report" / "ddpm_cifar10.md").read_text() == files.markdown(
        judged_of(table, "small", judged.runs, [])
    )
    assert (out / "report" / "ddpm_cifar10.html").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "is not a table's JSON file"),
        ("{}", "is not a table's JSON file"),
        (json.dumps({"runs": [{"arm": "nowhere"}]}), "arm 'nowhere' is none of table ddpm_cifar10"),
        (json.dumps({"runs": [{"arm": "constant", "schema": 1}]}), "not a result file"),
    ],
)
def test_files_of_something_else_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    assert main(["table", "ddpm_cifar10", "--from", str(file)]) == 2
    assert message in capsys.readouterr().err
    assert main(["table", "ddpm_cifar10", "--from"]) == 2


@pytest.mark.parametrize("file", sorted(tables.FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_committed_pages_are_those_of_their_runs(file: Path) -> None:
    """Rendered again from its JSON, a committed table is what is committed; so is every verdict on it."""
    for ending, text in tables.pages(tables.judged(file)).items():
        committed = file.with_suffix(f".{ending}").read_text()
        message = f"emabench bench tables {file.stem} writes it again"
        assert without_history(text) == without_history(committed), message


def test_every_table_has_its_committed_page() -> None:
    committed = {file.stem for file in tables.FOLDER.glob("*.md")}
    assert committed == {*spec.names(), "numerics"}


def without_history(text: str) -> str:
    """What the commits of a checkout say (since when a claim stands, whether that is after its data) left out."""
    text = re.sub(r"; (stands since \w+ \([\d-]+\)|not committed yet)", "", text)
    return re.sub(r" \(chosen after seeing data\)|, chosen after seeing data", "", text)
