"""How long the ticks took."""

from __future__ import annotations

_HISTOGRAM_MS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


class TickTimes:
    """Histogram of tick durations in milliseconds, cumulative as Prometheus wants it."""

    def __init__(self) -> None:
        self.buckets = dict.fromkeys(_HISTOGRAM_MS, 0)
        self.count = 0
        self.sum_ms = 0.0

    def add(self, tick_ms: float) -> None:
        self.count += 1
        self.sum_ms += tick_ms
        for bound in self.buckets:
            if tick_ms <= bound:
                self.buckets[bound] += 1
