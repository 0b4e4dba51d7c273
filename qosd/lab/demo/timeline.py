"""The charts over time: all rounds as they were played, and one round of qosd from close by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qosd.lab.demo import chart
from qosd.lab.demo.figures import rate, slots

if TYPE_CHECKING:
    from qosd.lab.demo.chart import Panel, Point
    from qosd.lab.demo.results import Result, Round
    from qosd.lab.scenario.planned import Mode

SLOT = 0.5
WIDTH = 1000
LEFT, RIGHT = 64, 918
"""The panels' edges; right of them the SLO has its name."""
GAP = 1.0
"""Seconds drawn between two rounds; what lies between them in truth is set-up and is not shown."""


def latency_range(rounds: list[Round], slo_ms: float) -> tuple[float, float]:
    """From a round value below all to one above all, the SLO included."""
    seen = [slo_ms]
    for one in rounds:
        for slot in slots(one.requests, SLOT):
            seen += [slot.p50, slot.p99]
    return max(min(seen) * 0.8, 0.01), max(seen) * 1.25


def usage(points: list[Point], measured: float) -> list[Point]:
    """CPUs in use, by half seconds; each value stands at the beginning of its half second."""
    count = int(measured / SLOT)
    return [(number * SLOT, rate(points, number * SLOT, (number + 1) * SLOT)) for number in range(count)]


def inside(points: list[Point], measured: float) -> list[Point]:
    """The steps within what is counted; the one in force at its beginning moved there."""
    before = [value for at, value in points if at <= 0]
    within = [(at, value) for at, value in points if 0 < at < measured]
    steps = ([(0.0, before[-1])] if before else []) + within
    return [*steps, (measured, steps[-1][1])] if steps else []


def all_rounds(result: Result) -> str:
    """Every counted round side by side in the order played, its mode as the colour behind it."""
    span = result.timing.measured + GAP
    end = span * len(result.rounds) - GAP
    low, high = latency_range(result.rounds, result.slo_ms)
    latency = chart.Panel(LEFT, 34, RIGHT - LEFT, 190, (0, end), (low, high), log=True)
    work = chart.Panel(LEFT, 262, RIGHT - LEFT, 90, (0, end), (0, result.facts["cpus"]))
    parts = []
    for position, one in enumerate(result.rounds):
        at = position * span
        parts.append(_round_band(latency, work, at, one))
        parts.append(_latency_lines(latency, one, at))
        parts.append(_work(work, one, at))
    return chart.svg(
        WIDTH,
        366,
        "LS latency and BE work over all rounds",
        chart.y_axis(latency, "ms"),
        chart.y_axis(work, "CPUs", range(result.facts["cpus"] + 1) if result.facts["cpus"] <= 4 else None),  # noqa: PLR2004 - a label each
        *parts,
        _slo(latency, result.slo_ms),
        chart.text(LEFT, 252, "BE at work, CPUs", "caption"),
        chart.text(LEFT, 12, "LS latency, log scale", "caption"),
    )


def _round_band(latency: Panel, work: Panel, at: float, one: Round) -> str:
    title = f"round {one.number}: {one.mode}"
    css = f"band {one.mode}"
    middle = latency.px(at + one.measured / 2)
    return "\n".join(
        (
            chart.band(latency, at, at + one.measured, css, title),
            chart.band(work, at, at + one.measured, css, title),
            chart.text(middle, latency.top - 6, SHORT[one.mode], f"name {one.mode}", "middle"),
        )
    )


SHORT: dict[Mode, str] = {"frozen": "frozen", "uncontrolled": "no qosd", "floor": "floor", "qosd": "qosd"}


def _latency_lines(panel: Panel, one: Round, at: float = 0.0) -> str:
    """p99 strong, p50 faint, each value in the middle of its half second."""
    gathered = slots(one.requests, SLOT)
    p99 = [(panel.px(at + slot.at + SLOT / 2), panel.py(slot.p99)) for slot in gathered]
    p50 = [(panel.px(at + slot.at + SLOT / 2), panel.py(slot.p50)) for slot in gathered]
    return chart.line(p50, f"p50 {one.mode}") + chart.line(p99, f"p99 {one.mode}")


def _work(panel: Panel, one: Round, at: float) -> str:
    used = usage(one.be_points, one.measured)
    shifted = [(at + x, y) for x, y in [*used, (one.measured, used[-1][1])]]
    return chart.area(panel, chart.stairs(panel, shifted), f"work {one.mode}")


def _slo(panel: Panel, slo_ms: float) -> str:
    y = panel.py(slo_ms)
    return f'<line class="slo" x1="{panel.left:g}" x2="{panel.right:g}" y1="{y:g}" y2="{y:g}"/>' + chart.text(
        panel.right + 6, y + 4, f"SLO {slo_ms:g} ms", "slo-name"
    )


def one_round(one: Round, result: Result) -> str:
    """Latency above, CPUs below, and every change of BE's settings as a mark across both."""
    x = (0.0, one.measured)
    low, high = latency_range([one], result.slo_ms)
    cpus = result.facts["cpus"]
    latency = chart.Panel(LEFT, 40, RIGHT - LEFT, 170, x, (low, high), log=True)
    power = chart.Panel(LEFT, 256, RIGHT - LEFT, 170, x, (0, cpus * 1.04))
    return chart.svg(
        WIDTH,
        470,
        f"Round {one.number} of {one.mode}: LS latency, BE allowance and decisions",
        _load_bands(one, result, latency, power),
        chart.y_axis(latency, "ms"),
        chart.y_axis(power, "CPUs", range(cpus + 1) if cpus <= 4 else None),  # noqa: PLR2004 - a label each
        chart.x_axis(power, "s", about=12),
        _power(power, one),
        _latency_lines(latency, one),
        _slo(latency, result.slo_ms),
        _marks(one, latency, power),
        chart.text(LEFT, 12, "LS latency, log scale", "caption"),
        chart.text(LEFT, 246, "CPUs: what BE may use, what BE and LS do use", "caption"),
    )


def _load_bands(one: Round, result: Result, latency: Panel, power: Panel) -> str:
    begin, end = (edge - result.timing.settle for edge in result.timing.burst)
    parts = [chart.band(panel, begin, end, "burst", "LS asks for more") for panel in (latency, power)]
    parts.append(
        chart.text(latency.px((begin + end) / 2), latency.top - 7, "LS bursts", "burst-name", "middle")
    )
    for at, what in one.events:
        if 0 <= at <= one.measured:
            x = power.px(at)
            parts.append(
                f'<line class="event" x1="{x:g}" x2="{x:g}" y1="{power.top:g}" y2="{power.bottom:g}"/>'
            )
            parts.append(chart.text(x + 5, power.bottom - 8, what, "event-name"))
    return "\n".join(parts)


def _power(panel: Panel, one: Round) -> str:
    be = usage(one.be_points, one.measured)
    ls = usage(one.ls_points, one.measured)
    ends = (one.measured, be[-1][1]), (one.measured, ls[-1][1])
    allowance = chart.stairs(panel, inside(one.allowance, one.measured))
    return "\n".join(
        (
            chart.area(panel, chart.stairs(panel, [*be, ends[0]]), "work qosd"),
            chart.line(chart.stairs(panel, [*ls, ends[1]]), "ls-use"),
            chart.line(allowance, "allowance"),
        )
    )


def _marks(one: Round, latency: Panel, power: Panel) -> str:
    parts = []
    for decision in one.decisions:
        if not 0 <= decision.at <= one.measured:
            continue
        x = power.px(decision.at)
        title = f"{decision.at:.1f} s: {decision.path} {decision.file} = {decision.value}\n{decision.reason}"
        parts.append(
            f'<line class="mark" x1="{x:g}" x2="{x:g}" y1="{latency.bottom + 14:g}" y2="{power.bottom:g}"/>'
        )
        parts.append(chart.dot(x, latency.bottom + 14, 4.5, "mark-dot", title))
    if parts:
        parts.append(
            chart.text(
                power.right, latency.bottom + 34, "● a write by qosd (hover for why)", "mark-name", "end"
            )
        )
    return "\n".join(parts)
