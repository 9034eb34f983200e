from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from emabench.report import files
from emabench.tables.judge import Judged


def test_csv_holds_the_numbers_unrounded(ddpm: Judged) -> None:
    lines = list(csv.DictReader(io.StringIO(files.as_csv(ddpm))))
    assert len(lines) == len(ddpm.rows) * len(ddpm.table.metrics)
    line = next(each for each in lines if each["row"] == "β = 0.9999" and each["metric"] == "fid")
    cell = ddpm.rows["b9999"].cells["fid"]
    assert cell.mean and cell.relative and cell.relative.low is not None
    assert float(line["mean"]) == cell.mean.mean
    assert float(line["relative_low"]) == pytest.approx(cell.relative.low)
    assert (line["n"], line["planned"], line["diverged"]) == ("11", "12", "1")
    assert (line["article"], line["published"]) == ("3.2", "3.17; 3.21; 3.21")
    assert line["against"] == "no EMA"


def test_markdown_is_tables_of_equal_width(ddpm: Judged) -> None:
    text = files.markdown(ddpm)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count("|") - line.count("\\|") for line in block.splitlines()}) == 1
    assert "| How far β = 0.9999 lowers FID<br>" in text and "✓ seen in the stand-in" in text
    assert text.count("1 of 12 runs diverged") == 1


def test_latex_has_nothing_that_latex_would_not_take(ddpm: Judged) -> None:
    text = files.latex(ddpm)
    assert not [letter for letter in text if ord(letter) > 127]
    body = text.partition("\\toprule")[2].partition("\\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith("\\\\")]
    assert rows and all(len(re.findall(r"(?<!\\)&", row)) == 6 for row in rows)
    assert all("%" not in re.sub(r"\\%", "", row) and "_" not in re.sub(r"\\_", "", row) for row in rows)


def test_files_are_written_by_scale(ddpm: Judged, tmp_path: Path) -> None:
    assert [path.name for path in files.write(ddpm, tmp_path)] == [
        "ddpm_cifar10.md",
        "ddpm_cifar10.tex",
        "ddpm_cifar10.csv",
        "ddpm_cifar10.json",
    ]
    assert files.stem(ddpm) == "ddpm_cifar10"


def test_no_cell_of_a_spreadsheet_is_a_formula(ddpm: Judged) -> None:
    text = files.as_csv(replace(ddpm, measured_with=dict.fromkeys(ddpm.table.metrics, '=HYPERLINK("x")')))
    cells = [cell for line in csv.reader(io.StringIO(text)) for cell in line]
    assert any(cell.startswith("'=HYPERLINK") for cell in cells)
    assert not any(cell.startswith(("=", "+", "@", "\t")) for cell in cells)
