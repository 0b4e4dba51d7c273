"""The first picture of the report: per mode, every round as a dot on one axis, the median as a bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qosd.lab.demo import chart
from qosd.lab.demo.figures import median
from qosd.lab.demo.table import digits

if TYPE_CHECKING:
    from qosd.lab.demo.results import Figure, Result

ROW = 46
NAMES: dict[str, str] = {
    "frozen": "BE frozen",
    "uncontrolled": "without qosd",
    "floor": "qosd's slices only",
    "qosd": "with qosd",
}


def strip(result: Result, figure: Figure, caption: str) -> str:
    """One figure for all modes."""
    values = {mode: [figure.of(one, result.slo_ms) for one in result.of(mode)] for mode in result.modes}
    high = max(max(found) for found in values.values()) * 1.05 or 1.0
    rows = len(values)
    panel = chart.Panel(132, 34, 268, rows * ROW, (0, high), (0, rows))
    parts = [chart.text(0, 16, caption, "strip-title")]
    for at in chart.ticks(0, high, about=4):
        x = panel.px(at)
        parts.append(f'<line class="grid" x1="{x:g}" x2="{x:g}" y1="{panel.top:g}" y2="{panel.bottom:g}"/>')
        parts.append(chart.text(x, panel.bottom + 18, f"{at:g}", "tick", "middle"))
    for row, (mode, found) in enumerate(values.items()):
        parts.append(_row(panel, row, mode, found, figure.unit))
    return chart.svg(480, panel.bottom + 28, caption, *parts)


def _row(panel: chart.Panel, row: int, mode: str, found: list[float], unit: str) -> str:
    y = panel.top + row * ROW + ROW / 2
    middle = median(found)
    width = panel.px(middle) - panel.left
    parts = [
        chart.text(panel.left - 10, y + 5, NAMES[mode], f"row-name {mode}", "end"),
        f'<rect class="bar {mode}" x="{panel.left:g}" y="{y - 11:g}" width="{max(width, 1):g}" height="22"/>',
    ]
    parts += [chart.dot(panel.px(value), y, 4, f"round {mode}", f"{digits(value)} {unit}") for value in found]
    last = max(panel.px(max(found)), panel.px(middle))
    parts.append(chart.text(last + 9, y + 5, f"{digits(middle)} {unit}", "value"))
    return "\n".join(parts)
