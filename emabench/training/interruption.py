"""Signals that ask a run to stop: they set a flag, on which the loop acts at the next step boundary."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)


def handled_signals() -> list[signal.Signals]:
    """The signals that ask this process to stop: all of SIGNALS, except a hang-up that `nohup` made it ignore."""
    return [s for s in SIGNALS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]


class StopRequest:
    """True once a signal has come. A second Ctrl-C stops immediately, as everywhere."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._error: Callable[[], BaseException] | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            leave_terminal()
        self.signal = signal.Signals(number)
        if self._error:
            raise self._error()

    @contextmanager
    def at_once(self, error: Callable[[], BaseException]) -> Iterator[None]:
        """Inside the block a signal raises `error()` immediately: for work that need not be finished first."""
        self._error = error
        try:
            if self:
                raise error()
            yield
        finally:
            self._error = None


_listening: StopRequest | None = None
_received: signal.Signals | None = None  # a signal that came while no `stop_requests` was active


@contextmanager
def interrupting() -> Iterator[None]:
    """Let the signals raise KeyboardInterrupt, before training begins and after it has ended.

    The interrupted code may swallow the exception, as imports and parsers do: `was_interrupted` still tells, and
    the next `stop_requests` starts out stopped.
    """
    global _received
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in handled_signals()}
    try:
        yield
    finally:
        _received = None
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _received
    _received = signal.Signals(number)
    if number == signal.SIGHUP:
        leave_terminal()
    torch = sys.modules.get("torch")
    if torch and getattr(torch.__spec__, "_initializing", False):
        return  # an exception while its C++ is loaded would abort the process; `stop_requests` takes it up
    raise KeyboardInterrupt


def was_interrupted() -> bool:
    """Whether a signal came within `interrupting`."""
    return _received is not None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Handle the signals while training; the previous handlers are restored afterwards.

    Inside another such block it yields that one's request: whoever runs several runs learns of a signal during one.
    """
    global _listening
    if _listening is not None:
        yield _listening
        return
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest()  # only the main thread may install handlers
        return
    request = _listening = StopRequest()
    request.signal = _received
    before: dict[signal.Signals, Any] = {s: signal.signal(s, request._handle) for s in handled_signals()}
    try:
        yield request
    finally:
        _listening = None
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_terminal() -> None:
    """Stop writing to a terminal that has hung up, which would raise each time. Output to files continues."""
    for number in (1, 2):
        with suppress(OSError):  # closed already
            if stat.S_ISCHR(os.fstat(number).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def stop_if_parent_dies(parent: int) -> None:
    """Ask this process to stop (SIGTERM) once its parent process `parent` is gone (killed, for example)."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
