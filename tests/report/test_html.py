"""The page holds the right numbers, is complete in itself, and is sound HTML."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from emabench.report import format as say
from emabench.report import html
from emabench.runs.result import RAW
from emabench.tables import spec
from emabench.tables.gather import Run
from emabench.tables.judge import Judged, judge
from tests.tables import golden

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Text, attributes, and whether every element is closed where it should be."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert not self.open, f"left open: {self.open}"
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def check_self_contained(source: str) -> Page:
    page = Page(source)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "srcset", "data", "poster", "action", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,")), (
                f"<{tag} {name}={value[:60]}> points elsewhere"
            )
    style = "".join(re.findall(r"<style>(.*?)</style>", source, re.S))
    assert "url(" not in style and "@import" not in style
    assert "<script" not in source and "http:" not in source and "https:" not in source
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, name, value in page.attributes if name == "href"}
    assert targets <= set(ids), "every link of the page leads somewhere on it"
    return page


def test_the_page_of_a_table(ddpm: Judged) -> None:
    page = check_self_contained(html.page([ddpm]))
    for row in ddpm.rows.values():
        for metric, cell in row.cells.items():
            assert say.measured(cell.mean) in page.text
            assert f"{row.spec.reported[metric]:g}" in page.text
    assert "8.06–12.14" in page.text and "3.17–3.21" in page.text, "published"
    for ruling in ddpm.rulings:
        assert ruling.claim.text in page.text
    assert (
        "✓ seen in the stand-in (exploratory)" in page.text
        and "◐ direction seen, larger in the stand-in" in page.text
    )
    assert "reproduced" not in page.text and "contradicted" not in page.text, (
        "nothing of the published setting was run"
    )
    assert (
        "the relative change of FID from no EMA to β = 0.9999 is −40% to −38% (± 8%) or −74% to −60% (± 8%)"
        in page.text
    )
    assert "1 of 12 runs diverged (seed 11)" in page.text and "n = 11/12" in page.text
    assert (
        "ema_0.998 (a window of 500 steps or 10% of the run) has the best mean FID of 5 and beats"
        in page.text
    )
    assert "better in 11 of 11 seeds" in page.text and "is best" not in page.text
    assert "emabench table ddpm_cifar10 seeds=12" in page.text
    assert "features of a digits classifier, 5000 samples" in page.text
    assert "Salimans et al. 2016" in page.text and "is_real 9.960" in page.text
    for run in ddpm.all_runs:
        assert run.result.run_id in page.text
    assert "abc123def456" in page.text, "the commit"
    assert "data: digits" in page.text, "the configuration"


def test_samples_are_in_the_page_raw_first(ddpm: Judged) -> None:
    page = Page(html.page([ddpm]))
    pictures = [value for tag, name, value in page.attributes if tag == "img" and name == "src"]
    run = ddpm.runs["constant"][0]
    assert run
    wanted = [run.picture(average) for average in (RAW, "ema_0.9", "ema_0.99", "ema_0.998")]
    assert [base64.b64decode(uri.partition(",")[2]) for uri in pictures] == [
        p.read_bytes() for p in wanted if p
    ]


def test_a_picture_that_is_none_is_left_out(ddpm: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ddpm.runs["constant"][0]
    path = run.picture(RAW) if run else None
    assert path
    path.write_bytes(b"not a picture")
    shown = Page(html.page([ddpm]))
    assert sum(tag == "img" and name == "src" for tag, name, _ in shown.attributes) == 3
    monkeypatch.setattr(html, "PICTURE_LIMIT", 10)
    assert "<img" not in html.page([ddpm]), "too large a one is not embedded"


def test_plots_show_what_was_measured(ddpm: Judged) -> None:
    source = html.page([ddpm])
    assert "published: −74…−60%" in source and "article: −38%" in source
    relative = ddpm.rows["b9999"].cells["fid"].relative
    assert f"measured: {say.percent(relative)}, n = 11" in source
    assert "ema_0.995, window 200 (4% of the run)" in source, "averages that are no rows are shown as well"
    assert source.count('class="dot halo"') == 2, "one optimum a metric"


def test_the_report_over_all_tables(ddpm: Judged, classifiers: Judged, tmp_path: Path) -> None:
    law = judge(
        spec.load("ddpm_cifar10").model_copy(update={"name": "not_run", "title": "Not run"}),
        "small",
        {"constant": {0: None}},
    )
    lone = Run(
        golden.result(
            {"raw": {"loss": 2.0}, "ema_0.9": {"loss": 1.5}},
            {"loss": "lower"},
            task="other",
            run_id="small-seed0-lone",
        )
    )
    lost = Run(
        golden.result(
            {"raw": {"loss": None}},
            {"loss": "lower"},
            task="other",
            status="diverged",
            run_id="small-seed0-lost",
        )
    )
    path = html.write_report(
        [ddpm, classifiers, law], tmp_path / "report", [lone, lost], ["x/result.json: schema 7"]
    )
    page = check_self_contained(path.read_text())
    assert path == tmp_path / "report" / "index.html"
    cards = {value for tag, name, value in page.attributes if tag == "a" and name == "href"}
    assert {"#ddpm_cifar10", "#imagenet_resnet50", "#not_run"} <= cards
    assert "· not run" in page.text and "emabench table not_run" in page.text
    assert "ema_0.9 1.500" in page.text and "x/result.json: schema 7" in page.text
    assert "diverged: loss was not finite" in page.text
    assert (tmp_path / "report" / "ddpm_cifar10.csv").exists()
    assert not (tmp_path / "report" / "not_run.csv").exists()


def test_a_table_that_was_not_run_shows_what_is_reported() -> None:
    page = check_self_contained(
        html.page([judge(spec.load("imagenet_resnet50"), "small", {"annealed": {0: None}})])
    )
    assert "Not run yet" in page.text and "76.83" in page.text
    assert "measured" not in page.text.partition("How to read")[0]


def test_no_more_is_said_of_the_best_than_is_shown(classifiers: Judged, tmp_path: Path) -> None:
    text = Page(html.page([classifiers])).text
    assert "Annealed. No average" in text
    assert "Constant. swa (a window of" in text and "corrected for having been chosen" in text
    assert "ema_0.998 is not shown to be worse" in text
    noisy = judge(spec.load("ddpm_cifar10"), "small", golden.diffusion(tmp_path / "one", 1))
    assert "No average is shown to beat the raw weights" in Page(html.page([noisy])).text, (
        "one seed shows nothing"
    )


def test_one_seed_gives_a_page_without_intervals(tmp_path: Path) -> None:
    judged = judge(spec.load("ddpm_cifar10"), "small", golden.diffusion(tmp_path, 1))
    page = check_self_contained(html.page([judged]))
    assert "? undecided" in page.text and "at the shares seen so far" in page.text
    assert "✓" not in page.text.partition("How to read")[0]


def test_what_runs_say_is_escaped() -> None:
    lost = Run(
        golden.result(
            {"raw": {"loss": None}}, {"loss": "lower"}, status="diverged", run_id="<script>alert(1)</script>"
        )
    )
    source = html.page([], [lost], ["<img src=x onerror=alert(1)>"])
    assert "<script" not in source and "<img" not in source
    check_self_contained(source)


def test_light_dark_and_phone_are_in_the_style() -> None:
    source = html.page([])
    assert "prefers-color-scheme: dark" in source and "max-width: 44rem" in source
    assert 'name="viewport"' in source
    style = "".join(re.findall(r"<style>(.*?)</style>", source, re.S))
    defined = set(re.findall(r"(--[\w-]+):", style))
    assert set(re.findall(r"var\((--[\w-]+)", style)) <= defined
    dark = style.partition("prefers-color-scheme: dark")[2].partition("}\n}")[0]
    assert set(re.findall(r"(--[\w-]+):", dark)) == defined, "every colour has its dark twin"


def test_neither_tables_nor_report_import_torch() -> None:
    code = (
        "import sys, emabench.tables.judge, emabench.tables.compare, emabench.report.html, emabench.report.terminal\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_table_of_target_networks_has_its_curve_over_rows() -> None:
    table, runs = golden.target_networks()
    page = check_self_contained(html.page([judge(table, "small", runs)]))
    assert "m99 (a window of 100 steps or 2% of the run) has the best mean" in page.text
    assert "of none, better in 8 of 8 seeds" in page.text


def test_one_table_at_two_scales_is_two_sections(ddpm: Judged) -> None:
    page = check_self_contained(html.page([ddpm, judge(ddpm.table, "paper", {"constant": {0: None}})]))
    assert {value for tag, name, value in page.attributes if tag == "section" and name == "id"} >= {
        "ddpm_cifar10",
        "ddpm_cifar10-paper",
    }
