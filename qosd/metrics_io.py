"""Metric families of IO by workload and of the operators' own signals, over the last Status."""

from __future__ import annotations

from collections.abc import Iterator

from qosd.exposition import CounterMetricFamily, GaugeMetricFamily, Metric
from qosd.model import Feed
from qosd.status import Status

_WORKLOADS_MAX = 50
_DEVICES_MAX = 16
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def collect(status: Status, now: float) -> Iterator[Metric]:
    """`now` is the wall clock. A value that is not known has no sample."""
    yield from _io(status)
    if status.feeds:
        yield from _signals(status.feeds, max(now - status.time, 0.0))


def _io(status: Status) -> Iterator[Metric]:
    labels = ["tier", "workload", "cgroup", "device", "direction"]
    sizes = CounterMetricFamily("qosd_workload_io_bytes", "io.stat: bytes read and written.", labels=labels)
    counts = CounterMetricFamily("qosd_workload_io_requests", "io.stat: requests.", labels=labels)
    ranked = sorted((each for each in status.workloads if each.io), key=lambda each: each.path)
    for workload in ranked[:_WORKLOADS_MAX]:
        names = [workload.tier.value, workload.name, workload.path]
        for device, did in sorted((workload.io or {}).items())[:_DEVICES_MAX]:
            sizes.add_metric([*names, device, "read"], did.rbytes)
            sizes.add_metric([*names, device, "write"], did.wbytes)
            counts.add_metric([*names, device, "read"], did.rios)
            counts.add_metric([*names, device, "write"], did.wios)
    yield from (sizes, counts)


def _signals(feeds: tuple[Feed, ...], since_tick: float) -> Iterator[Metric]:
    """Times in seconds, whatever they were fed in; other units stand as they are."""
    labels = ["signal", "workload", "unit"]
    values = GaugeMetricFamily("qosd_signal_value", "What a signal says now.", labels=labels)
    slos = GaugeMetricFamily("qosd_signal_slo", "Above it the workload suffers.", labels=labels)
    ages = GaugeMetricFamily("qosd_signal_age_seconds", "Since it was measured.", labels=["signal"])
    for feed in feeds:
        factor = _SECONDS.get(feed.unit, 1.0)
        names = [feed.name, feed.workload, "seconds" if feed.unit in _SECONDS else feed.unit]
        if feed.value is not None:
            values.add_metric(names, feed.value * factor)
        if feed.slo is not None:
            slos.add_metric(names, feed.slo * factor)
        if feed.age_usec is not None:
            ages.add_metric([feed.name], feed.age_usec / 1e6 + since_tick)
    yield from (values, slos, ages)
