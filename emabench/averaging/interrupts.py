"""Ctrl-C waits for the end of an update: half an update would leave averages that belong to no step."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

# CPython's own functions behind those of `signal`, which turn every number into an enum: that would be a third of
# a small model's update.
_raw: Any = sys.modules.get("_signal", signal)
_SIGINT = int(signal.SIGINT)


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Inside the block SIGINT is only noted; its handler is called after it. Without effect off the main thread."""
    handler = _raw.getsignal(_SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    noted: list[tuple[int, Any]] = []
    _raw.signal(_SIGINT, lambda number, frame: noted.append((number, frame)))
    try:
        yield
    finally:
        _raw.signal(_SIGINT, handler)
        if noted:
            handler(*noted[-1])
