"""Plots as inline SVG, drawn by hand: no library, no colour of their own.

Every shape carries a class; the page's style sheet gives it a colour for light and for dark. Text is set for a
figure about 440 wide that a phone shows a little smaller and a desktop a little larger.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440.0, 284.0
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A range of values, linear or logarithmic, with round ticks."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Sequence[float], log: bool = False, margin: float = 0.06) -> Axis:
        """An axis on which all of these are seen."""
        low, high = min(values), max(values)
        if log:
            a, b = math.log(low), math.log(high)
            pad = margin * (b - a) or 0.1
            return cls(math.exp(a - pad), math.exp(b + pad), log=True)
        pad = margin * (high - low) or 0.05 * abs(high) or 1.0
        return cls(low - pad, high + pad)

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def clip(self, value: float) -> float:
        """The value, or the end of the axis that it lies beyond."""
        return min(max(value, self.low), self.high)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values within the range."""
        if self.log and self.high / self.low > 3:
            for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7)):
                decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
                ticks = [
                    m * 10.0**d for d in decades for m in mantissas if self.low <= m * 10.0**d <= self.high
                ]
                if len(ticks) >= 4:
                    return ticks
            return ticks
        step = (self.high - self.low) / about
        size = 10 ** math.floor(math.log10(step))
        step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= step * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """A tick's text."""
    if abs(value) < 1e-12:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k".replace("-", "−")
    return f"{value:.6g}".replace("-", "−")


class Figure:
    """A plot: axes first, then shapes in the order they are to be seen."""

    def __init__(
        self,
        x: Axis,
        y: Axis,
        *,
        height: float = HEIGHT,
        left: float = 46,
        right: float = 14,
        top: float = 34,
        bottom: float = 38,
    ) -> None:
        self.x, self.y = x, y
        self.height = height
        self.left, self.right, self.top, self.bottom = left, right, top, bottom
        self.shapes: list[str] = []

    def at(self, x: float, y: float) -> Point:
        """A point of the data on the canvas."""
        return self.at_x(x), self.at_y(y)

    def at_x(self, x: float) -> float:
        return self.left + self.x.share(x) * (WIDTH - self.left - self.right)

    def at_y(self, y: float) -> float:
        return self.height - self.bottom - self.y.share(y) * (self.height - self.top - self.bottom)

    def axes(self, x_title: str, y_title: str, x_label: Callable[[float], str] = label) -> None:
        """Grid lines, tick labels and titles."""
        floor = self.height - self.bottom
        for value in self.y.ticks():
            y = self.at_y(value)
            self._add(
                f'<line class="grid" x1="{self.left:.1f}" x2="{WIDTH - self.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            self.text(self.left - 6, y + 4, label(value), anchor="end", kind="tick")
        for value in self.x.ticks():
            x = self.at_x(value)
            self._add(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{floor:.1f}" y2="{floor + 4:.1f}"/>')
            self.text(x, floor + 17, x_label(value), kind="tick")
        self._add(
            f'<line class="axis" x1="{self.left:.1f}" x2="{WIDTH - self.right:.1f}" y1="{floor:.1f}" y2="{floor:.1f}"/>'
        )
        self.text(WIDTH - self.right, floor + 33, x_title, anchor="end", kind="title")
        self.text(2, 12, y_title, anchor="start", kind="title")

    def line(self, points: Sequence[Point], kind: str, tip: str = "", seed: int | None = None) -> None:
        of = "" if seed is None else f' data-seed="{seed}"'
        self._add(f'<path class="line {kind}" d="M{self._path(points)}"{of}>{_tip(tip)}</path>')

    def level(self, y: float, kind: str) -> None:
        """A horizontal line across the plot."""
        self._add(
            f'<line class="line {kind}" x1="{self.left:.1f}" x2="{WIDTH - self.right:.1f}" '
            f'y1="{self.at_y(y):.1f}" y2="{self.at_y(y):.1f}"/>'
        )

    def upright(self, x: float, kind: str) -> None:
        """A vertical line across the plot."""
        self._add(
            f'<line class="line {kind}" x1="{self.at_x(x):.1f}" x2="{self.at_x(x):.1f}" '
            f'y1="{self.top:.1f}" y2="{self.height - self.bottom:.1f}"/>'
        )

    def dot(
        self, x: float, y: float, kind: str, tip: str = "", radius: float = 4, seed: int | None = None
    ) -> None:
        a, b = self.at(x, y)
        of = "" if seed is None else f' data-seed="{seed}"'
        self._add(
            f'<circle class="dot {kind}" cx="{a:.1f}" cy="{b:.1f}" r="{radius:g}"{of}>{_tip(tip)}</circle>'
        )

    def diamond(self, x: float, y: float, kind: str, tip: str = "", radius: float = 5) -> None:
        a, b = self.at(x, y)
        r = radius
        path = f"M{a:.1f} {b - r:.1f}L{a + r:.1f} {b:.1f}L{a:.1f} {b + r:.1f}L{a - r:.1f} {b:.1f}Z"
        self._add(f'<path class="dot {kind}" d="{path}">{_tip(tip)}</path>')

    def bar(self, low: float, high: float, y: float, kind: str, tip: str = "") -> None:
        """A horizontal interval."""
        (a, b), c = self.at(low, y), self.at_x(high)
        self._add(
            f'<line class="bar {kind}" x1="{a:.1f}" x2="{c:.1f}" y1="{b:.1f}" y2="{b:.1f}">{_tip(tip)}</line>'
        )

    def upright_bar(self, x: float, low: float, high: float, kind: str, tip: str = "") -> None:
        """A vertical interval."""
        (a, b), c = self.at(x, low), self.at_y(high)
        self._add(
            f'<line class="bar {kind}" x1="{a:.1f}" x2="{a:.1f}" y1="{b:.1f}" y2="{c:.1f}">{_tip(tip)}</line>'
        )

    def text(self, x: float, y: float, words: str, anchor: str = "middle", kind: str = "") -> None:
        """Words at a place on the canvas."""
        self._add(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def svg(self, title: str) -> str:
        """The whole figure; `title` says in a sentence what is seen, for those who do not see it."""
        body = "\n".join(self.shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {self.height:g}" role="img" '
            f'aria-label="{escape(title, quote=True)}">\n'
            f"{body}\n</svg>"
        )

    def _path(self, points: Sequence[Point]) -> str:
        return "L".join(f"{a:.1f} {b:.1f}" for a, b in (self.at(x, y) for x, y in points))

    def _add(self, shape: str) -> None:
        self.shapes.append(shape)


def standalone(svg: str, style: str) -> str:
    """A figure of a page as a file of its own, on white, with the style sheet in it."""
    box = svg.partition('viewBox="0 0 ')[2].partition('"')[0]
    width, height = box.split()
    head, rest = svg.split("\n", 1)
    head = head.replace("<svg ", f'<svg width="{width}" height="{height}" ')
    paper = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    return f"{head}\n<style>{style}</style>\n{paper}\n{rest}\n"


def literal(css: str, palette: str) -> str:
    """A style sheet with the colours of a palette (`:root {--name: value; …}`) in the place of its variables."""
    colours = dict(re.findall(r"--([\w-]+):\s*([^;}]+)", palette.partition("}")[0]))
    return re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]].strip(), css)


def _tip(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""
