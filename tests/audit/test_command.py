"""`emabench audit` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from emabench.audit import Verdict, chosen, of_table, run, statements
from emabench.audit.catalog import EQUATIONS
from emabench.cli import main
from emabench.paths import conf_dir
from emabench.report import audit_page
from emabench.report.plain_math import plain


def test_every_numbered_equation_is_there() -> None:
    assert {each.id for each in statements()} >= {str(number) for number in EQUATIONS}


def test_tables_that_statements_name_are_there() -> None:
    tables = {path.stem for path in (conf_dir() / "table").glob("*.yaml")} | {"numerics"}
    assert {each.table for each in statements() if each.table} <= tables
    assert "10" in {each.id for each in of_table("variance_law")}
    assert ("(10)", "audit.html#eq-10") in audit_page.links("variance_law")


@pytest.mark.parametrize(
    ("words", "first", "count"),
    [
        (["35"], "35", 1),
        (["(35)"], "35", 1),
        (["7.3"], "35", None),
        (["§7"], "32", None),
        (["9.2-apply", "3"], "3", 2),
    ],
)
def test_statements_are_named_by_number_section_or_id(
    words: list[str], first: str, count: int | None
) -> None:
    named = chosen(words)
    assert named[0].id == first
    assert count is None or len(named) == count


def test_one_statement_is_shown_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "35"]) == 0
    shown = capsys.readouterr().out
    assert "(35)" in shown
    assert "wrong" in shown
    assert "from 0.9999 at t = 0 to 0.9 at t = T" in " ".join(shown.split())  # what was measured
    assert "β_max - 1/2(β_max - β_min)" in " ".join(shown.split())  # what is right


def test_json_is_a_list_of_objects(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "7.3", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    keys = {"id", "section", "statement", "verdict", "corrected", "expected", "measured"}
    assert all(keys <= set(record) for record in records)
    assert next(r for r in records if r["id"] == "35")["verdict"] == "wrong"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["117"], "117"),
        (["0"], "numbered 1 to 116"),
        (["§99"], "§99"),
        (["9.2-aply"], "9.2-apply"),
        (["35", "verdict=true"], "verdict=true"),
        (["35", "verdict="], "verdict=wrong"),
        (["35", "to=x"], "out=DIR"),
        (["--fast"], "--deep"),
    ],
)
def test_mistakes_name_the_word_and_the_fix(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *words]) == 2
    assert named in capsys.readouterr().err


def test_an_unsupported_verdict_fails_and_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from emabench.audit import catalog

    fixed = tuple(each.swapped() if each.id == "35" else each for each in statements())
    monkeypatch.setattr(catalog, "statements", lambda: fixed)
    assert main(["audit", "35"]) == 1
    captured = capsys.readouterr()
    assert "declared wrong, but the check says: holds" in captured.out
    assert "(35)" in captured.err


def test_no_torch_where_torch_is_not_the_subject() -> None:
    code = "import sys; from emabench.cli import main; main(['audit', '35', '10', '97']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).returncode == 0


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.math = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.math += tag == "math"
        if tag == "a" and (given.get("href") or "").startswith("#"):
            self.targets.append((given["href"] or "")[1:])
        if tag in ("script", "link", "img", "iframe") and ("src" in given or "href" in given):
            self.loaded.append(tag)


def test_files_are_written_and_the_page_is_whole(tmp_path: Path) -> None:
    results = [run(each) for each in chosen(["1", "10", "35", "37", "§15.2", "81"])]
    paths = audit_page.write(results, tmp_path)
    assert [path.suffix for path in paths] == [".html", ".md", ".tex", ".json"]
    page = _Page()
    text = paths[0].read_text(encoding="utf-8")
    page.feed(text)
    assert not page.loaded
    assert "@import" not in text
    assert page.math >= 2 * len(results) - 4
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.targets) <= set(page.ids)
    assert {"eq-35", "s-15.2-cancellation"} <= set(page.ids)
    assert text.index('id="worst"') < text.index('id="section-1"')
    assert paths[2].read_text(encoding="utf-8").isascii()
    assert json.loads(paths[3].read_text(encoding="utf-8"))[0]["id"] == "1"


def test_every_formula_is_rendered() -> None:
    """No command of LaTeX, brace or ampersand is left over in MathML or on the terminal."""
    import re

    for each in statements():
        for text in (each.formula, each.corrected):
            if text and not each.listing:
                shown = re.sub(r"<[^>]+>", " ", audit_page.mathml(text))
                assert not re.search(r"[\\{]|&amp;|&\s", shown.replace("&#x0007B;", "")), each.id
                assert not re.search(r"[\\{}&]", plain(text)), each.id


def test_a_page_links_tables_that_lie_next_to_it(tmp_path: Path) -> None:
    results = [run(each) for each in chosen(["10"])]
    assert "emabench table variance_law" in audit_page.page(results, tmp_path)
    (tmp_path / "variance_law.html").write_text("")
    assert 'href="variance_law.html"' in audit_page.page(results, tmp_path)


def test_verdicts_cover_the_vocabulary() -> None:
    assert {each.verdict for each in statements()} == set(Verdict)


def test_a_tables_page_names_the_statements_it_measures() -> None:
    from emabench.report import html
    from emabench.tables import spec
    from emabench.tables.judge import judge

    table = spec.load("variance_law")
    text = html.page([judge(table, "small", {arm: dict.fromkeys(range(5)) for arm in table.arms})])
    assert "(10)" in text
    assert "emabench audit" in text
