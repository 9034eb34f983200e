from __future__ import annotations

from pathlib import Path

import pytest

from emabench.tables import spec
from emabench.tables.judge import Judged, judge
from tests.tables import golden


@pytest.fixture
def ddpm(tmp_path: Path) -> Judged:
    return judge(spec.load("ddpm_cifar10"), "small", golden.diffusion(tmp_path, 12, diverged=(11,)))


@pytest.fixture
def classifiers(tmp_path: Path) -> Judged:
    return judge(spec.load("imagenet_resnet50"), "small", golden.classifiers(tmp_path, 12))
