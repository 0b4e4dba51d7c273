"""From raw requests and samples to figures. Exact: every request counts, nothing is binned."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Spread(NamedTuple):
    """A figure over rounds."""

    median: float
    low: float
    high: float

    def overlaps(self, other: Spread) -> bool:
        return self.low <= other.high and other.low <= self.high


class Request(NamedTuple):
    at: float
    """Intended start, seconds from the beginning of what is counted."""
    latency_ms: float


def percentile(ordered: Sequence[float], pct: float) -> float:
    """The smallest value that at least `pct` per cent of all are not above (nearest rank). Sorted input."""
    if not ordered:
        raise ValueError("no requests: no percentile")
    return ordered[max(math.ceil(pct / 100 * len(ordered)), 1) - 1]


def median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no rounds: no median")
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def spread(values: Iterable[float]) -> Spread:
    kept = list(values)
    return Spread(median(kept), min(kept), max(kept))


def share_over(latencies: Sequence[float], limit: float) -> float:
    """The share of requests that took longer than `limit`, 0 to 1."""
    if not latencies:
        raise ValueError("no requests: no share")
    return sum(1 for latency in latencies if latency > limit) / len(latencies)


class Slot(NamedTuple):
    """What the requests intended to start in [at, at + width) took."""

    at: float
    p50: float
    p99: float
    requests: int


def slots(requests: Iterable[Request], width: float) -> list[Slot]:
    """Latency over time. A slot without requests is left out, not drawn as 0."""
    gathered: dict[int, list[float]] = {}
    for request in requests:
        gathered.setdefault(math.floor(request.at / width), []).append(request.latency_ms)
    return [
        Slot(number * width, percentile(ordered, 50), percentile(ordered, 99), len(ordered))
        for number, ordered in ((number, sorted(gathered[number])) for number in sorted(gathered))
    ]


def counter_at(points: Sequence[tuple[float, float]], at: float) -> float:
    """A growing counter between two looks at it, by the straight line; outside of all looks, the nearest."""
    if not points:
        raise ValueError("no samples: no counter")
    if at <= points[0][0]:
        return points[0][1]
    for (t0, v0), (t1, v1) in itertools.pairwise(points):
        if at <= t1:
            return v0 + (v1 - v0) * (at - t0) / (t1 - t0)
    return points[-1][1]


def rate(points: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """A counter's growth per second over [begin, end)."""
    return (counter_at(points, end) - counter_at(points, begin)) / (end - begin)
