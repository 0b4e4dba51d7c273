"""Charts as SVG text: panels with scales, lines, steps, dots. Colours and type are the style sheet's."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Point = tuple[float, float]
WIDE = 8
"""From this ratio of its ends on, a log axis has labels enough at 1, 2 and 5."""


class Panel(NamedTuple):
    """A rectangle of pixels with a range of values on each axis."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False
    """Of the y axis, whose range is then above 0."""

    def px(self, x: float) -> float:
        low, high = self.x
        return round(self.left + (x - low) / (high - low) * self.width, 1)

    def py(self, y: float) -> float:
        low, high = self.y
        if self.log:
            low, high, y = math.log(low), math.log(high), math.log(max(y, self.y[0]))
        return round(self.top + self.height - (y - low) / (high - low) * self.height, 1)

    @property
    def bottom(self) -> float:
        return self.top + self.height

    @property
    def right(self) -> float:
        return self.left + self.width


def svg(width: float, height: float, label: str, *parts: str) -> str:
    body = "\n".join(part for part in parts if part)
    name = html.escape(label)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{name}">\n{body}\n</svg>'


def text(x: float, y: float, words: str, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{css}" text-anchor="{anchor}">{html.escape(words)}</text>'


def line(points: Sequence[Point], css: str) -> str:
    """A polyline through pixel positions; nothing where there is nothing."""
    if not points:
        return ""
    return f'<polyline class="{css}" points="{" ".join(f"{x:g},{y:g}" for x, y in points)}"/>'


def stairs(panel: Panel, points: Sequence[Point]) -> list[Point]:
    """Pixel positions of a value that holds until the next point."""
    corners: list[Point] = []
    for x, y in points:
        if corners:
            corners.append((panel.px(x), corners[-1][1]))
        corners.append((panel.px(x), panel.py(y)))
    return corners


def area(panel: Panel, corners: Sequence[Point], css: str) -> str:
    """The surface below a line of pixel positions."""
    if not corners:
        return ""
    closed = [(corners[0][0], panel.bottom), *corners, (corners[-1][0], panel.bottom)]
    return f'<polygon class="{css}" points="{" ".join(f"{x:g},{y:g}" for x, y in closed)}"/>'


def band(panel: Panel, begin: float, end: float, css: str, title: str = "") -> str:
    """The full height of a panel from `begin` to `end` on x."""
    left, right = panel.px(max(begin, panel.x[0])), panel.px(min(end, panel.x[1]))
    hint = f"<title>{html.escape(title)}</title>" if title else ""
    return (
        f'<rect class="{css}" x="{left:g}" y="{panel.top:g}" width="{max(right - left, 0):g}"'
        f' height="{panel.height:g}">{hint}</rect>'
    )


def dot(x: float, y: float, radius: float, css: str, title: str) -> str:
    hint = html.escape(title)
    return f'<circle class="{css}" cx="{x:g}" cy="{y:g}" r="{radius:g}"><title>{hint}</title></circle>'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values within [low, high], about so many."""
    raw = (high - low) / max(about, 1)
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten within [low, high]; more of them where that leaves few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low > WIDE else (1, 1.5, 2, 3, 4, 5, 7)
    values = (factor * 10.0**decade for decade in decades for factor in factors)
    return [round(value, 10) for value in values if low <= value <= high]


def y_axis(panel: Panel, unit: str, values: Iterable[float] | None = None) -> str:
    """Grid lines with their values at the left; the unit goes with the highest."""
    shown = list(values) if values else log_ticks(*panel.y) if panel.log else ticks(*panel.y, about=4)
    parts = []
    for value in shown:
        y = panel.py(value)
        parts.append(f'<line class="grid" x1="{panel.left:g}" x2="{panel.right:g}" y1="{y:g}" y2="{y:g}"/>')
        label = f"{value:g} {unit}" if value == shown[-1] else f"{value:g}"
        parts.append(text(panel.left - 8, y + 4, label, "tick", "end"))
    return "\n".join(parts)


def x_axis(panel: Panel, unit: str, about: int = 8) -> str:
    shown = ticks(*panel.x, about=about)
    labels = [f"{value:g} {unit}" if value == shown[-1] else f"{value:g}" for value in shown]
    positions = [(panel.px(value), panel.bottom + 18) for value in shown]
    return "\n".join(
        text(x, y, label, "tick", "middle") for (x, y), label in zip(positions, labels, strict=True)
    )
