from __future__ import annotations

import pytest
import torch

from emabench.averaging import native

from .support import Small


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.fixture(params=["native", "torch"])
def path(request, monkeypatch) -> str:
    """Both ways of the CPU: the C library (where there is a compiler) and torch's operations."""
    if request.param == "torch":
        monkeypatch.setattr(native, "table", lambda *given: None)
    return request.param
