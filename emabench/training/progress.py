"""What a person sees while a run trains: a live line on a terminal, plain lines in a log file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console
from rich.status import Status


class Progress:
    """Step, rate, time left and losses of one run; `say` for anything else worth a line."""

    SECONDS_BETWEEN_LINES = 20.0  # when standard error is not a terminal

    def __init__(self, name: str, steps: int, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.name, self.steps, self.first_step = name, steps, 0
        self.began = self.printed_at = time.monotonic()
        self.live: Status | None = None

    def start(self, step: int) -> None:
        """Training begins, at `step` if it was resumed."""
        self.first_step, self.began = step, time.monotonic()
        if self.console.is_terminal and not self.console.quiet:
            self.live = self.console.status(self.name, spinner="dots")
            self.live.start()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Called whenever losses are fetched; prints as often as is useful."""
        now = time.monotonic()
        elapsed = max(1e-9, now - self.began)
        rate = (step - self.first_step) / elapsed
        left = timedelta(seconds=round((self.steps - step) / rate)) if rate else "?"
        shown = "  ".join(f"{key} {value:.4g}" for key, value in values.items() if key != "lr")
        text = f"{self.name}  step {step}/{self.steps}  {_rate(rate)}  {left} left  {shown}"
        if self.live:
            self.live.update(text)
        elif now - self.printed_at >= self.SECONDS_BETWEEN_LINES or step == self.steps:
            self.printed_at = now
            self.say(text)

    def phase(self, text: str) -> None:
        """Show what is being done between training steps (evaluation)."""
        if self.live:
            self.live.update(f"{self.name}  {text}")

    def say(self, text: str) -> None:
        """Print one line that stays."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        if self.live:
            self.live.stop()


def _rate(rate: float) -> str:
    return f"{rate:.1f} steps/s" if rate >= 1 or rate == 0 else f"{1 / rate:.1f} s/step"
