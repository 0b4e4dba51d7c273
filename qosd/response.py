"""How fast and how cleanly BE followed LS, read off a trace. Pure."""

from __future__ import annotations

import statistics
from typing import NamedTuple

import msgspec

_BAND_PCT = 5.0  # of all CPUs: as near as that is settled
_BACK = 0.9
_SHORTEST = 4  # ticks: a step shorter than this never settles


class Point(msgspec.Struct, frozen=True, gc=False):
    """One tick of the trace, in CPUs."""

    at: float
    elapsed: float
    offered: float
    ls: float
    be: float
    allowance: float | None
    wrote: int


class Edge(NamedTuple):
    """LS's load changed at `at` and stayed so until `until`."""

    at: float
    until: float
    rise: bool


class Response(NamedTuple):
    """None where the schedule has no step long enough to tell."""

    overshoot_pct: float | None
    settle_ticks: float | None
    yield_sec: float | None
    recover_sec: float | None


def response(points: list[Point], edges: list[Edge], nr_cpus: int) -> Response:
    overshoot: list[float] = []
    settle: list[float] = []
    fell: list[float] = []
    rose: list[float] = []
    for edge in edges:
        # The first tick that began after the edge is the first that could know of it.
        span = [point for point in points if edge.at <= point.at < edge.until]
        if len(span) < _SHORTEST:
            continue
        rest = span[len(span) // 2 :]
        allowed = [point.allowance for point in rest if point.allowance is not None]
        if allowed:
            target = statistics.median(allowed)
            overshoot.append(_overshoot(span, target, edge.rise) / nr_cpus * 100)
            settle.append(_settled(span, target, nr_cpus * _BAND_PCT / 100))
        used = statistics.median(point.be for point in rest)
        reached = _reached(span, used, edge.rise, nr_cpus * _BAND_PCT / 100)
        (fell if edge.rise else rose).append(reached - edge.at)
    return Response(max(overshoot, default=None), _median(settle), _median(fell), _median(rose))


def _overshoot(span: list[Point], target: float, rise: bool) -> float:  # noqa: FBT001 - Edge's own field
    """How far the allowance went past its target: below it after a rise of LS, above it after a fall."""
    past = [
        (target - point.allowance) if rise else (point.allowance - target)
        for point in span
        if point.allowance is not None
    ]
    return max([0.0, *past])


def _settled(span: list[Point], target: float, band: float) -> float:
    """Ticks until the allowance stays within the band."""
    ticks = 0
    for number, point in enumerate(span, 1):
        if point.allowance is None or abs(point.allowance - target) > band:
            ticks = number
    return ticks


def _reached(span: list[Point], used: float, rise: bool, band: float) -> float:  # noqa: FBT001 - same
    """When BE's use first was where it would stay."""
    for point in span:
        if (point.be <= used + band) if rise else (point.be >= used * _BACK):
            return point.at
    return span[-1].at


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
