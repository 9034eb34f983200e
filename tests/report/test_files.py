from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from emabench.bench import tables
from emabench.report import files, tex
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


def documents() -> Iterator[tuple[str, str]]:
    for file in sorted(tables.FOLDER.glob("*.json")):
        yield file.stem, files.latex(tables.judged(file))


def test_latex_is_ascii_with_numbers_and_verdicts(ddpm: Judged) -> None:
    for name, text in [("planted", files.latex(ddpm)), *documents()]:
        assert text.isascii(), name
        assert "[U+" not in text, f"{name}: every letter has its sign"
        numbers, claims = re.findall(r"\\toprule(.*?)\\bottomrule", text, re.S)
        for body, gaps in ((numbers, 6), (claims, 3)):
            rows = [line for line in body.splitlines() if line.endswith("\\\\")]
            assert rows and all(len(re.findall(r"(?<!\\)&", row)) == gaps for row in rows)
            assert all(
                "%" not in row.replace(r"\%", "") and "_" not in row.replace(r"\_", "") for row in rows
            )
    assert r"$\checkmark$ seen in the stand-in" in files.latex(ddpm)


@pytest.mark.skipif(
    not shutil.which("pdflatex"), reason="pdflatex (texlive-latex-recommended) is not installed"
)
def test_latex_compiles(ddpm: Judged, tmp_path: Path) -> None:
    parts = [
        files.latex(ddpm),
        tex.text("ő ² ᵗ ⁻ é ß 中 […] <a|b> ~^\\{}#$%&_"),
        *(text for _, text in documents()),
    ]
    body = "\n\\clearpage\n".join(parts)
    source = f"\\documentclass{{article}}\n\\usepackage{{booktabs,amssymb}}\n\\begin{{document}}\n{body}\n\\end{{document}}\n"
    (tmp_path / "all.tex").write_text(source, encoding="ascii")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-1500:]


def test_verdicts_are_in_a_csv_of_their_own(ddpm: Judged) -> None:
    lines = list(csv.DictReader(io.StringIO(files.claims_csv(ddpm))))
    gain = next(each for each in lines if each["claim"] == "How far β = 0.9999 lowers FID")
    effect = next(r for r in ddpm.rulings if r.claim.text == gain["claim"]).effects[0]
    assert effect.estimate and float(gain["mean"]) == effect.estimate.mean
    assert (gain["verdict"], gain["better"], gain["expected_by"]) == ("partly", "11", "article")
    assert {line["claim"] for line in lines} == {ruling.claim.text for ruling in ddpm.rulings}


def test_files_are_written_by_scale(ddpm: Judged, tmp_path: Path) -> None:
    assert [path.name for path in files.write(ddpm, tmp_path)] == [
        "ddpm_cifar10.md",
        "ddpm_cifar10.tex",
        "ddpm_cifar10.csv",
        "ddpm_cifar10.claims.csv",
        "ddpm_cifar10.json",
    ]
    assert files.stem(ddpm) == "ddpm_cifar10"


def test_no_cell_of_a_spreadsheet_is_a_formula(ddpm: Judged) -> None:
    text = files.as_csv(replace(ddpm, measured_with=dict.fromkeys(ddpm.table.metrics, '=HYPERLINK("x")')))
    cells = [cell for line in csv.reader(io.StringIO(text)) for cell in line]
    assert any(cell.startswith("'=HYPERLINK") for cell in cells)
    assert not any(cell.startswith(("=", "+", "@", "\t")) for cell in cells)
