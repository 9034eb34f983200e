"""Being asked to stop: the signal sets a flag, the loop acts on it at the next step boundary."""

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


def heeded() -> list[signal.Signals]:
    """The signals that ask this process to stop: all of SIGNALS but a hang-up that `nohup` had it ignore."""
    return [s for s in SIGNALS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]


class StopRequest:
    """True once a signal has come. A second Ctrl-C stops at once, as everywhere."""

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
        """Inside the block a signal raises `error()` then and there: for what need not be finished first."""
        self._error = error
        try:
            if self:
                raise error()
            yield
        finally:
            self._error = None


_listening: StopRequest | None = None
_asked: signal.Signals | None = None  # by a signal that came where nothing listened


@contextmanager
def interrupting() -> Iterator[None]:
    """Have the signals interrupt (KeyboardInterrupt) where nothing is trained yet, or any more.

    What is interrupted may swallow that, as imports and parsers do: `was_asked` knows, and so does the next
    `stop_requests`.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in heeded()}
    try:
        yield
    finally:
        _asked = None
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = signal.Signals(number)
    if number == signal.SIGHUP:
        leave_terminal()
    torch = sys.modules.get("torch")
    if torch and getattr(torch.__spec__, "_initializing", False):
        return  # an exception while its C++ is loaded would abort the process; `stop_requests` hears of it
    raise KeyboardInterrupt


def was_asked() -> bool:
    """Whether a signal came within `interrupting`."""
    return _asked is not None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listen for the signals while training; the handlers that were there before come back afterwards.

    Within another such block it is that one's request: whoever runs several runs hears of what came during one.
    """
    global _listening
    if _listening is not None:
        yield _listening
        return
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest()  # only the main thread may install handlers
        return
    request = _listening = StopRequest()
    request.signal = _asked
    before: dict[signal.Signals, Any] = {s: signal.signal(s, request._handle) for s in heeded()}
    try:
        yield request
    finally:
        _listening = None
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_terminal() -> None:
    """Write no more to a terminal that has hung up: that would be an error each time. Files are written on."""
    for number in (1, 2):
        with suppress(OSError):  # closed already
            if stat.S_ISCHR(os.fstat(number).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def stop_without(parent: int) -> None:
    """Ask this process to stop (SIGTERM) once the one that started it, `parent`, is gone: killed, say."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
