"""Numbers as they are shown, the same on the terminal, on the page and in the files."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import median

from emabench.runs.result import RAW
from emabench.tables.measure import Cell
from emabench.tables.parts import Published
from emabench.tables.statistics import Estimate

ACRONYMS = ("ema", "swa", "lawa")
SMALL = 1e-4  # below, numbers are written with an exponent


def number(value: float | None, digits: int = 4) -> str:
    """A number to so many significant digits; – for none."""
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) < SMALL:
        return _scientific(value, digits - 1)
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return _minus(f"{value:.{max(0, min(places, 10))}f}")


def measured(estimate: Estimate | None, signed: bool = False) -> str:
    """Mean ± half of the interval, as many decimals as the interval bears."""
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return ("+" if signed and estimate.mean > 0 else "") + number(estimate.mean)
    half = (estimate.high - estimate.low) / 2
    if 0 < abs(estimate.mean) < SMALL:
        return f"{_scientific(estimate.mean, 2)} ± {_scientific(half, 0)}"
    places = _places(half, estimate.mean)
    sign = "+" if signed else ""
    return _minus(f"{estimate.mean:{sign}.{places}f} ± {half:.{places}f}")


def typical(values: Collection[float], estimate: Estimate | None) -> str:
    """Mean ± half of the interval; median and range of values above zero that spread so widely that it says nothing."""
    if estimate is None or estimate.low is None or min(values) <= 0 or estimate.low > estimate.mean / 2:
        return measured(estimate)
    return f"{number(median(values), 3)} ({number(min(values), 3)} to {number(max(values), 3)})"


def percent(estimate: Estimate | None) -> str:
    """A relative change with the ends of its interval."""
    if estimate is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{_single(estimate.mean)}%"
    half = (estimate.high - estimate.low) / 2
    low, high = (_share(end, half) for end in (estimate.low, estimate.high))
    return f"{_share(estimate.mean, half)}% [{low}, {high}]"


def change_of(cell: Cell) -> str:
    """How a row differs from the one it is compared with: relative where that has a meaning."""
    if cell.relative:
        return percent(cell.relative)
    return interval(cell.change) if cell.change else ""


def share(count: int, planned: int) -> str:
    """How many seeds gave a number, of how many."""
    return str(count) if count == planned else f"{count}/{planned}"


def reported(value: float | None) -> str:
    """A number as the article prints it."""
    return "" if value is None else f"{value:g}"


def average(name: str) -> str:
    """An average as a reader calls it: `ema_0.998` is EMA 0.998."""
    if name == RAW:
        return "raw weights"
    words = name.split("_")
    return " ".join(word.upper() if word in ACRONYMS else word for word in words)


def arrow(better: str) -> str:
    """Which way a metric is better."""
    return "↓" if better == "lower" else "↑"


def with_change(value: str, change: str, gap: str = " ") -> str:
    """A number with the change that it amounts to."""
    return f"{value}{gap}({change})" if value and change else value


def change(value: float | None) -> str:
    """A single relative change."""
    return "" if value is None else f"{_single(value)}%"


def changes(values: Sequence[float]) -> str:
    """One relative change, or the range of several."""
    if not values:
        return ""
    low, high = _single(min(values)), _single(max(values))
    return f"{low}%" if low == high else f"{low}…{high}%"


def published(numbers: Sequence[Published]) -> str:
    """One published number, or the range of several."""
    values = sorted({n.value for n in numbers})
    if not values:
        return ""
    ends = [f"{v:g}" for v in (values[0], values[-1])]
    return ends[0] if len(values) == 1 else f"{ends[0]}–{ends[1]}"


def interval(estimate: Estimate) -> str:
    """A difference with the ends of its interval."""
    if estimate.low is None or estimate.high is None:
        return ("+" if estimate.mean > 0 else "") + number(estimate.mean, 3)
    if 0 < abs(estimate.mean) < SMALL:
        ends = ", ".join(_scientific(end, 2) for end in (estimate.low, estimate.high))
        return f"{_scientific(estimate.mean, 2)} [{ends}]"
    places = _places((estimate.high - estimate.low) / 2, estimate.mean)
    return _minus(f"{estimate.mean:+.{places}f} [{estimate.low:+.{places}f}, {estimate.high:+.{places}f}]")


def listed(words: Sequence[str]) -> str:
    """Words with commas and an "and"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def single(value: float) -> str:
    """A relative change of which the uncertainty is not known."""
    return f"{_single(value)}%"


def signed(value: float) -> str:
    """A difference of which the uncertainty is not known."""
    return _minus(f"{value:+.2g}")


def steps(value: float | None) -> str:
    """A number of steps, short."""
    if value is None:
        return "–"
    return f"{value:,.0f}".replace(",", " ") if value >= 10 else f"{value:.3g}"


def weight(value: float | None) -> str:
    """A weight left on something; "0" below what matters."""
    if value is None:
        return ""
    return f"{100 * value:.2g}%" if value >= 1e-4 else "0"


def share_of_run(window: float, steps: int) -> str:
    """A window as a share of the run."""
    share = 100 * window / steps
    return f"{share:.0f}%" if share >= 10 else f"{share:.2g}%"


def seconds(value: float) -> str:
    """A duration, short."""
    if value < 100:
        return f"{value:.3g} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


def _scientific(value: float, digits: int) -> str:
    """2.41e-7."""
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return _minus(f"{mantissa}e{int(exponent)}")


def _places(half: float, mean: float) -> int:
    """Decimals that show an uncertainty with one digit, with two where it begins with 1 or 2."""
    if half <= 0:
        return max(0, 3 - math.floor(math.log10(abs(mean)))) if mean else 0
    exponent = math.floor(math.log10(half))
    return max(0, min(8, -exponent + (half < 3 * 10**exponent)))


def _share(value: float, half: float) -> str:
    """A share in per cent, without the sign of per cent, with as many decimals as the uncertainty bears."""
    return _minus(f"{100 * value:+.{_places(100 * half, 0)}f}")


def _single(value: float) -> str:
    """A share in per cent of which the uncertainty is not known."""
    return _minus(f"{100 * value:+.2g}") if abs(value) < 0.995 else _minus(f"{100 * value:+.0f}")


def _minus(text: str) -> str:
    return text.replace("-", "−")
