"""Per-round ratios, their medians and bootstrap intervals; seeded, so that a table can be made again."""

from __future__ import annotations

import random
import statistics
from typing import NamedTuple

_RESAMPLES = 2000


class Interval(NamedTuple):
    median: float
    low: float
    high: float


def interval(values: list[float]) -> Interval:
    """The median and its 95 % percentile-bootstrap interval over rounds."""
    if len(values) == 1:
        return Interval(values[0], values[0], values[0])
    chance = random.Random(1)  # noqa: S311 - statistics, not secrets
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return Interval(
        statistics.median(values), medians[int(_RESAMPLES * 0.025)], medians[int(_RESAMPLES * 0.975)]
    )


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Round by round, so that what ailed a round ails both sides; rounds of zero say nothing."""
    return [one / two for one, two in zip(ours, theirs, strict=True) if two > 0]


def verdict(latency: Interval, work: Interval) -> str:
    """How a mode stands to the reference, from (its / the reference's) p99 and BE work.

    A difference is one whose interval is clear of 1.
    """
    if _clear(latency) == _clear(work) == 0:
        return "not different"
    words = [
        {-1: "faster", 0: "same p99", 1: "slower"}[_clear(latency)],
        {-1: "less BE", 0: "same BE", 1: "more BE"}[_clear(work)],
    ]
    if _clear(latency) <= 0 <= _clear(work):
        words.append("DOMINATES")
    return ", ".join(words)


def _clear(ratio: Interval) -> int:
    """1 or -1 where the whole interval is above or below 1."""
    return (ratio.low > 1) - (ratio.high < 1)
