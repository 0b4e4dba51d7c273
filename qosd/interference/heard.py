"""Signals of others in the form of ours: what the probes count, and what operators feed. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from qosd.interference.baseline import Reading
from qosd.interference.signals import Kind, Signal
from qosd.model import CgroupId, Feed, Snapshot, Tier
from qosd.plan import Input

_KINDS = {"runq": Kind.CPU, "reclaim": Kind.MEMORY, "blkio": Kind.IO}
"""Not tcp_rtt: what makes a round trip long may be at its other end, so nobody here is accused of it."""


def signals(now: Snapshot, readings: tuple[Reading, ...], min_evidence: int) -> tuple[Signal, ...]:
    return (*_probed(now, readings, min_evidence), *_fed(now))


def _probed(now: Snapshot, readings: tuple[Reading, ...], min_evidence: int) -> Iterator[Signal]:
    """Of too few waits nothing follows: such a tick counts as one in which nobody waited."""
    for reading in readings:
        if reading.signal not in _KINDS:
            continue
        counts = reading.value is not None and reading.count >= min_evidence
        yield Signal(
            reading.victim,
            reading.signal,
            _KINDS[reading.signal],
            (reading.value or 0.0) if counts else 0.0,
            reading.threshold,
            reading.baseline,
            reading.cold,
            (
                Input(f"{reading.signal} quantile", round(reading.value or 0.0, 1), "us"),
                Input("waits", float(reading.count), ""),
            ),
            reading.culprits,
            now.monotonic_usec,
        )


def _fed(now: Snapshot) -> Iterator[Signal]:
    """A value with an objective. The operator chose it, so it needs no baseline.

    Only news: one reading that stands for ten ticks must not count as ten in a row. Between two of them
    nothing is heard, which the ladders hold through.
    """
    for feed in now.feeds:
        if feed.value is None or feed.slo is None or not feed.news:
            continue
        for workload in now.tier(Tier.LS):
            if workload.name == feed.workload:
                yield _of_feed(workload.id, feed, feed.value, feed.slo, now.monotonic_usec)


def _of_feed(victim: CgroupId, feed: Feed, value: float, slo: float, now_usec: int) -> Signal:
    age = (feed.age_usec or 0) // 1000
    evidence = (Input(feed.name, value, feed.unit, age),)
    name = f"feed.{feed.name}"
    return Signal(
        victim, name, Kind.LATENCY, value, slo, None, cold=False, evidence=evidence, at_usec=now_usec
    )
