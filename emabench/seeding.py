"""Every random draw of a run comes from a generator derived from (seed, purpose, step).

So a run that is stopped and started again draws what it would have drawn, in whatever order things happen.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, purpose: str, step: int = 0) -> int:
    """A 63-bit seed for one purpose at one step of a run; different for any other purpose, step or seed."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, step: int = 0, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator for one purpose at one step, on `device`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, purpose, step))


def seed_default(seed: int, purpose: str, step: int, device: torch.device) -> None:
    """Derive torch's own generators (dropout and the like draw from them) on the CPU and on `device`.

    `torch.manual_seed` does it for every backend there might be, at 0.1 ms a call; a step cannot afford that.
    """
    import torch

    value = derive(seed, purpose, step)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)
