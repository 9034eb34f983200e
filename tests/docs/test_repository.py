"""What people expect of a repository: one version, valid citation metadata, hooks that run."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

import emabench
from tests.docs.pages import ROOT

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CITATION: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_version_has_one_source() -> None:
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert metadata.version("emabench") == emabench.__version__
    assert str(CITATION["version"]) == emabench.__version__
    released = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released[0] == emabench.__version__


def test_the_citation_is_valid() -> None:
    """What the schema of CFF 1.2.0 asks of the keys that are used."""
    required = {"cff-version", "message", "title", "authors"}
    optional = {"abstract", "keywords", "license", "repository-code", "type", "version"}
    assert required <= CITATION.keys() <= required | optional
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] in ("software", "dataset")
    assert CITATION["license"] == PYPROJECT["project"]["license"]
    assert CITATION["authors"] and all(
        set(author) <= {"name", "website", "given-names", "family-names", "orcid", "affiliation"}
        for author in CITATION["authors"]
    )


def test_addresses_are_placeholders_and_say_so() -> None:
    lines = [
        line
        for name in ("pyproject.toml", "CITATION.cff")
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
        if "https://" in line
    ]
    assert lines and all("https://example.org/" in line for line in lines)
    assert "placeholder" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_pre_commit_runs_what_is_installed() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repo["repo"] for repo in config["repos"]] == ["local"]  # others would be fetched
    for hook in config["repos"][0]["hooks"]:
        tool = Path(shlex.split(hook["entry"])[0])
        assert hook["language"] == "system"
        assert (Path(sys.executable).parent / tool.name).exists(), hook["entry"]
