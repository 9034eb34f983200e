"""The page holds the right numbers, is complete in itself, and is sound HTML."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scipy import stats

from emabench.bench import tables
from emabench.report import figures, files, html, words
from emabench.report import format as say
from emabench.runs.result import RAW
from emabench.tables import curves, spec
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
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data


def check_self_contained(source: str) -> Page:
    page = Page(source)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "srcset", "data", "poster", "action", "xlink:href"):
            inside = (
                "#",
                "data:image/png;base64,",
                "data:text/csv;",
                "data:application/json;",
                "data:application/x-tex;",
            )
            assert value.startswith(inside), f"<{tag} {name}={value[:60]}> points elsewhere"
        assert not name.startswith("on"), f"<{tag} {name}> runs a script"
    style = "".join(re.findall(r"<style>(.*?)</style>", source, re.S))
    assert "url(" not in style and "@import" not in style
    scripts = re.findall(r"<script>(.*?)</script>", source, re.S)
    assert len(scripts) == source.count("<script") == 1
    allowed = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and "default-src" in value)
    assert policy.startswith("default-src 'none'; img-src data:;") and f"'sha256-{allowed}'" in policy
    assert not re.search(r"https?:", source.replace("http://www.w3.org/2000/svg", ""))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, name, value in page.attributes if name == "href" and value[0] == "#"}
    assert targets <= set(ids), "every link of the page leads somewhere on it"
    return page


def test_the_page_of_a_table(ddpm: Judged) -> None:
    page = check_self_contained(html.page([ddpm]))
    for row in ddpm.rows.values():
        for metric, cell in row.cells.items():
            assert say.typical(cell.values.values(), cell.mean) in page.text
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
        "EMA 0.998 (a window of 500 steps or 10% of the run) has the best mean FID of 5 and beats"
        in page.text
    )
    assert "better in 11 of 12 seeds" in page.text and "is best" not in page.text
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
    assert "EMA 0.995, window 200 (4% of the run)" in source, "averages that are no rows are shown as well"
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
    assert {"#ddpm_cifar10", "#imagenet_resnet50"} <= cards and "#not_run" not in cards
    assert "· Not run: Not run (emabench table not_run)." in page.text, "in one line"
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
    assert "SGD, annealed. No average" in text
    assert "SGD, constant. SWA (a window of" in text and "corrected for having been chosen" in text
    assert "EMA 0.998 is not shown to be worse" in text
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
    assert "<script>alert" not in source and "<img" not in source
    assert "&lt;script&gt;alert(1)" in source
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
    run = ddpm.runs["constant"][0]
    assert run
    paper = Run(replace(run.result, scale="paper"))
    page = check_self_contained(html.page([ddpm, judge(ddpm.table, "paper", {"constant": {0: paper}})]))
    assert {value for tag, name, value in page.attributes if tag == "section" and name == "id"} >= {
        "ddpm_cifar10",
        "ddpm_cifar10-paper",
    }


def test_the_page_answers_its_question_before_all_else(ddpm: Judged) -> None:
    page = check_self_contained(html.page([ddpm]))
    answer = words.answer(ddpm)
    assert answer.startswith(
        "How far β = 0.9999 lowers FID: direction seen, larger in the stand-in (exploratory)"
    )
    assert answer.endswith(", better in 11 of 12 seeds.")
    places = [
        page.text.index(each)
        for each in (ddpm.table.question, answer, "Trained: ", "Change of FID against no EMA")
    ]
    assert places == sorted(places) and places[-1] < page.text.index("Claims")
    assert "ema_0" not in page.text.partition("Runs, configuration")[0], "averages by their names"


def test_a_figure_has_its_seeds_and_one_baseline(classifiers: Judged) -> None:
    pictures = figures.changes(classifiers, "top1")
    assert [picture.name for picture in pictures] == ["top1-against-sgd", "top1-against-sgd_constant"]
    for picture, base in zip(pictures, ("sgd", "sgd_constant"), strict=True):
        rows = [row for row in classifiers.rows.values() if row.against == base]
        assert picture.svg.count('class="dot seed"') == 12 * len(rows)
        for row in rows:
            assert f">{row.spec.label}<" in picture.svg


def test_intervals_hold_for_all_rows_together(classifiers: Judged) -> None:
    """Against scipy: a paired t-interval of the logarithms at 1 − 5 %/6, six rows being compared."""
    changes, relative = curves.changes(classifiers, "top1")
    assert relative and sum(map(len, changes.values())) == 6
    paired = changes["sgd_constant"]["swa_constant"]
    own, base = (classifiers.rows[key].cells["top1"].values for key in ("swa_constant", "sgd_constant"))
    logs = [math.log(own[seed] / base[seed]) for seed in own]
    expected = stats.ttest_1samp(logs, 0).confidence_interval(1 - 0.05 / 6)
    assert paired and paired.mean
    assert (paired.mean.low, paired.mean.high) == pytest.approx(tuple(map(math.expm1, expected)))
    assert paired.by_seed[3] == pytest.approx(own[3] / base[3] - 1)


def test_numbers_are_in_the_page_to_be_saved(ddpm: Judged) -> None:
    page = check_self_contained(html.page([ddpm]))
    names = [value for tag, name, value in page.attributes if name == "download"]
    assert names == [
        "ddpm_cifar10.csv",
        "ddpm_cifar10.claims.csv",
        "ddpm_cifar10.judged.json",
        "ddpm_cifar10.tex",
    ]
    encoded = [
        value.partition("base64,")[2]
        for tag, name, value in page.attributes
        if value.startswith("data:") and tag == "a"
    ]
    numbers, claims, data, tex = (base64.b64decode(each).decode() for each in encoded)
    assert numbers == files.as_csv(ddpm) and tex == files.latex(ddpm)
    assert {line["verdict"] for line in csv.DictReader(io.StringIO(claims))} >= {"holds", "cannot hold"}
    assert json.loads(data)["answer"] == words.answer(ddpm)


def test_a_number_leads_to_the_run_that_made_it(ddpm: Judged) -> None:
    arm = dict(ddpm.runs["constant"])
    run = arm[3]
    assert run
    arm[3] = replace(run, path=None, known_address="https://wandb.example/runs/3")
    arm[4] = replace(arm[4], path=None, known_address="javascript:alert(1)")  # type: ignore[type-var]
    source = html.page([judge(ddpm.table, "small", {"constant": arm})])
    cell = source.partition("<li>seed 3: ")[2].partition("</li>")[0]
    assert 'href="#ddpm_cifar10-run-constant-3"' in cell and 'href="https://wandb.example/runs/3"' in cell
    assert 'id="ddpm_cifar10-run-constant-3"' in source and 'id="ddpm_cifar10-arm-constant"' in source
    assert "javascript:" not in source


def test_what_was_never_run_is_one_line(classifiers: Judged) -> None:
    runs = {"constant": dict.fromkeys(range(12)), "annealed": classifiers.runs["annealed"]}
    text = Page(html.page([judge(classifiers.table, "small", runs)])).text
    line = text.partition("· Not run: ")[2].partition("made by")[0]
    assert (
        "SGD, constant; EMA 0.99, constant" in line
        and "At a constant rate EMA 0.999 is better than SGD." in line
    )
    assert "SGD, constant" not in text.partition("top-1 ↑")[2].partition("Runs, configuration")[0]


def test_figures_are_written_as_files(ddpm: Judged, tmp_path: Path) -> None:
    html.write_table(ddpm, tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").glob("*.svg")}
    assert {"ddpm_cifar10-fid-against-none.svg", "ddpm_cifar10-fid-window-constant.svg"} <= written
    assert written == {f"ddpm_cifar10-{picture.name}.svg" for picture in figures.all_of(ddpm)}


def test_a_bias_is_drawn_by_its_size() -> None:
    judged = tables.judged(tables.FOLDER / "td3_target.json")
    (changes, relative) = curves.changes(judged, "q_bias")
    assert not relative
    paired = changes["none"]["d995"]
    own, base = (judged.rows[key].cells["q_bias"].values for key in ("d995", "none"))
    assert paired and paired.by_seed == {seed: abs(own[seed]) - abs(base[seed]) for seed in own}
    picture = figures.changes(judged, "q_bias")[0]
    assert "change of the size of Q bias   ← better" in picture.svg
