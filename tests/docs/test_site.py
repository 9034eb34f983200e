"""The site builds without a network and without a warning; its links hold, and it loads nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.pages import ROOT, pages

pytest.importorskip("mkdocs", reason="extra `docs` is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Proxies point nowhere, so that a build that asks a network fails."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


class Page(HTMLParser):
    """The anchors of a page, and what it refers to: (tag, address)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.references: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}  # type: ignore[misc]
        self.references += [(tag, given[key]) for key in ("href", "src") if given.get(key)]  # type: ignore[misc]


@pytest.fixture(scope="module")
def built(site: Path) -> dict[Path, Page]:
    found = {path: Page(path) for path in site.rglob("*.html")}
    assert len(found) > 25
    return found


def test_every_link_and_anchor_of_the_site_holds(site: Path, built: dict[Path, Page]) -> None:
    broken = []
    for path, page in built.items():
        if path.name == "404.html":  # its links start at the root of a server
            continue
        for _, address in page.references:
            if re.match(r"(https?:|mailto:|data:|javascript:)", address):
                continue
            place, _, anchor = unquote(address).partition("#")
            target = (path.parent / place).resolve() if place else path
            if not target.exists() or (
                anchor and target.suffix == ".html" and anchor not in built[target].anchors | {"__top"}
            ):
                broken.append(f"{path.relative_to(site)} → {address}")
    assert not broken


def test_nothing_is_loaded_from_elsewhere(built: dict[Path, Page]) -> None:
    loaded = {
        address
        for page in built.values()
        for tag, address in page.references
        if tag in ("script", "link", "img", "iframe") and re.match(r"(https?:)?//", address)
    }
    assert not {address for address in loaded if not address.startswith("https://example.org/emabench")}


def test_links_between_files_of_the_repository_hold() -> None:
    broken = []
    for path in pages():
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)\s#]+)", text):
            generated = path.is_relative_to(ROOT / "docs")  # the build checks those
            if not generated and not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)} → {target}")
    assert not broken


def test_the_readme_quotes_the_committed_tables() -> None:
    quoted, wrong, place = 0, [], ""
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        if match := re.search(r"\]\((benchmarks/tables/\w+\.md)\)", line):
            place = match[1]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and place and len(cells) == 4 and "[" in cells[1]:
            quoted += 1
            text = (ROOT / place).read_text(encoding="utf-8")
            claims = [claim for claim in text.splitlines() if cells[1] in claim]
            if judged_now(text):
                claims = [c for c in claims if f"better in {cells[2]} seeds" in c and verdict(c) == cells[3]]
            if not claims or (cells[3] != "undecided" and not judged_now(text)):
                wrong.append(line)
    assert quoted >= 8
    assert not wrong, "the README says otherwise than the committed pages"


def test_the_readme_quotes_the_audit() -> None:
    counts = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    (all_of_them,) = re.findall(r"^\| \*\*all\*\* \| \*\*(\d+)\*\*", counts, re.MULTILINE)
    (wrong,) = re.findall(r"^\| wrong \| (\d+) \|", counts, re.MULTILINE)
    assert f"{all_of_them} checked statements, {wrong} are wrong" in (ROOT / "README.md").read_text(
        encoding="utf-8"
    )


def judged_now(page: str) -> bool:
    """Whether a committed page was judged by the rule in force: intervals decide nothing."""
    return "decide nothing" in page


def verdict(claim: str) -> str:
    """The words of the verdict in a row of claims, without mark and reason: the article's, else the literature's."""
    article, literature = (cell.strip() for cell in claim.split("|")[3:5])
    return re.sub(r"^\W+|\s*[:(].*$", "", article or literature)


def test_the_readme_shows_the_committed_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "images"))
    import window
    from PIL import Image

    with Image.open(ROOT / "docs" / "images" / "window.png") as picture:
        assert json.loads(picture.text["Description"]) == window.numbers(), "run docs/images/window.py"  # type: ignore[attr-defined]


def test_the_readme_quotes_the_committed_benchmark() -> None:
    committed, place = {}, ""
    for line in (ROOT / "benchmarks" / "averaging.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            place = line.removeprefix("## ").replace(", cpu,", ", 2 threads,")  # as older pages have it
        if match := re.match(r"\| ([^|]+) \| (\S+) \[", line):
            committed[place, match[1]] = match[2]
    names = {
        "timm": "timm ModelEmaV3",
        "torch `AveragedModel`": "torch AveragedModel",
        "diffusers": "diffusers EMAModel",
    }
    places = [f"{model}, 2 threads, K = {averages}" for model in ("resnet50", "unet") for averages in (1, 4)]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) >= 5
    for name, *values in rows:
        for where, value in zip(places, values, strict=True):
            here = committed[where, names.get(name, name)]
            assert float(value) == pytest.approx(float(here), abs=0.05), (
                "README.md: quote benchmarks/averaging.md"
            )
