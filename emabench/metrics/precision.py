"""Full precision where it matters: losses and metrics must not be computed in the precision of the forward passes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Call the function with autocast off, on the device type of its first tensor argument.

    The trainer runs a task inside autocast, which would round the inputs of every matrix product to bf16 or fp16.
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((each.device.type for each in args if isinstance(each, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return called
