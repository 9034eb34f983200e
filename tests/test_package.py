"""emabench works from a wheel, in any directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built wheel, installed by itself into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder / "site"),
        str(wheel),
    ]
    subprocess.run(pip, check=True, capture_output=True)
    return folder / "site"


def emabench(site: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "emabench", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_wheel_carries_its_configuration(site: Path, tmp_path: Path) -> None:
    assert (site / "emabench" / "conf" / "config.yaml").is_file()
    assert (site / "emabench" / "py.typed").is_file()
    done = emabench(site, tmp_path, "list")
    assert done.returncode == 0, done.stderr
    assert "ddpm" in done.stdout
    assert "imagenet_resnet50" in done.stdout


def test_the_wheel_trains_in_any_directory(site: Path, tmp_path: Path) -> None:
    done = emabench(site, tmp_path, "task=quadratic", "scale=smoke", "ema.decay=[0.9,0.99]")
    assert done.returncode == 0, done.stderr
    assert "ema_0.99" in done.stdout
    assert list((tmp_path / "results" / "quadratic").glob("*/result.json"))
