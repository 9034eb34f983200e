"""Which pages are written where: of a run its own tables', elsewhere by `out=`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emabench.cli import main
from emabench.errors import DONE, MISTAKE
from emabench.runs import result

RUN = ["task=quadratic", "scale=smoke", "device=cpu"]


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder mounted read-only on itself; skips where this machine does not let us."""
    if os.geteuid():
        pytest.skip("only root mounts")
    for options in (["--bind"], ["-o", "remount,ro,bind"]):
        if subprocess.run(["mount", *options, str(folder), str(folder)], capture_output=True).returncode:
            pytest.skip("this machine mounts nothing")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_run_reads_and_writes_the_pages_of_its_own_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    here = f"results_dir={results}"
    # Runs of another task, and of no table: however many there are, they are not looked at.
    assert main([*RUN, here, "steps=21"]) == DONE
    assert "page" not in capsys.readouterr().out
    assert not (results / "report").exists()
    other = next((results / "quadratic").iterdir())
    opened: list[Path] = []
    inner = result.read_result

    def counted(path: Path) -> result.Result:
        opened.append(path)
        return inner(path)

    monkeypatch.setattr("emabench.tables.gather.read_result", counted)
    assert main([*RUN, here]) == DONE
    shown = capsys.readouterr().out
    page = results / "report" / "variance_law-smoke.html"
    assert f"page    {page}" in shown
    assert not (results / "report" / "index.html").exists()
    assert opened and other / "result.json" not in opened

    # Asked for again it is shown, and its page is left as it is.
    before = page.stat().st_mtime_ns
    assert main([*RUN, here]) == DONE
    shown = capsys.readouterr().out
    assert "not trained again" in shown and f"page    {page}" in shown
    assert page.stat().st_mtime_ns == before
    page.unlink()
    assert main([*RUN, here]) == DONE
    assert page.exists()


def test_results_that_may_not_be_written_are_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, elsewhere = tmp_path / "results", tmp_path / "pages"
    here = f"results_dir={results}"
    table = ["table", "variance_law", "scale=smoke", "seeds=1", here]
    assert main([*RUN, here]) == DONE
    (run,) = (results / "quadratic").iterdir()
    (results / "report" / "variance_law-smoke.html").unlink()
    capsys.readouterr()
    with read_only(results):
        assert main([*table, "--collect"]) == DONE
        assert "page not written" in capsys.readouterr().out
        assert main([*table, "--status"]) == DONE
        assert "1 finished" in capsys.readouterr().out
        assert main(["compare", str(run)]) == DONE
        assert main([*RUN, here]) == DONE
        assert "page not written" in capsys.readouterr().out
        assert main(["report", here]) == MISTAKE
        message = capsys.readouterr().err
        assert "cannot be written" in message and "out=DIR" in message
        assert main(["report", here, f"out={elsewhere}"]) == DONE
        assert main([*table, "--collect", f"out={elsewhere}"]) == DONE
    assert {"index.html", "variance_law-smoke.html"} <= {path.name for path in elsewhere.iterdir()}
    assert "1 run\n" in capsys.readouterr().out
