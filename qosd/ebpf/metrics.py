"""The probes' metric families."""

from __future__ import annotations

from collections.abc import Iterator

from qosd.ebpf.status import Latency, ProbesView
from qosd.exposition import CounterMetricFamily, GaugeMetricFamily, Metric

_SERIES_MAX = 200
"""Workloads by what they waited most for; a rule with globs may match thousands of cgroups."""
_USEC = 1e6
_PCT = 100.0


def collect(view: ProbesView) -> Iterator[Metric]:
    attached = GaugeMetricFamily("qosd_probe_attached", "Whether the probe counts.", labels=["probe"])
    overhead = GaugeMetricFamily(
        "qosd_probe_overhead_ratio", "Share of the CPUs' time that the probe takes.", labels=["probe"]
    )
    for probe in view.probes:
        attached.add_metric([probe.name], float(probe.state == "attached"))
        if probe.overhead_pct is not None:
            overhead.add_metric([probe.name], probe.overhead_pct / _PCT)
    yield from (attached, overhead)
    breaches = CounterMetricFamily(
        "qosd_probe_breaches", "Waits above the threshold that were sent.", labels=["culprit"]
    )
    for culprit, count in view.breaches.items():
        breaches.add_metric([culprit], count)
    yield breaches
    lost = GaugeMetricFamily(
        "qosd_probe_lost", "What the probes could not keep since they were attached.", labels=["what"]
    )
    losses = {"events": view.lost_events, "evicted": view.evicted, "unseen": view.unseen}
    for what, count in losses.items():
        lost.add_metric([what], count)
    yield lost
    workloads = GaugeMetricFamily(
        "qosd_probe_unwatched_workloads", "Workloads that the maps have no room for."
    )
    workloads.add_metric([], view.unwatched)
    yield workloads
    failures = CounterMetricFamily(
        "qosd_walk_failures", "Times that walks over large workloads were given up for their files."
    )
    failures.add_metric([], view.walk_failures)
    yield failures
    yield from _latencies(view.latencies)
    yield _retransmits(view)
    yield from _rates(view)


def _latencies(latencies: tuple[Latency, ...]) -> Iterator[Metric]:
    labels = ["tier", "workload", "cgroup", "signal"]
    p99 = GaugeMetricFamily(
        "qosd_workload_latency_p99_seconds", "99 % of the last tick's waits were shorter.", labels=labels
    )
    limit = GaugeMetricFamily(
        "qosd_workload_latency_threshold_seconds", "From where on it is a breach.", labels=labels
    )
    cold = GaugeMetricFamily(
        "qosd_workload_latency_cold", "1 while the baseline is not learned.", labels=labels
    )
    ranked = sorted(latencies, key=lambda each: (each.tier != "ls", -(each.p99_usec or 0.0)))
    for each in ranked[:_SERIES_MAX]:
        values = [each.tier, each.workload, each.path, each.signal]
        if each.p99_usec is not None:
            p99.add_metric(values, each.p99_usec / _USEC)
        if each.threshold_usec is not None:
            limit.add_metric(values, each.threshold_usec / _USEC)
            cold.add_metric(values, float(each.cold))
    yield from (p99, limit, cold)


def _retransmits(view: ProbesView) -> Metric:
    labels = ["tier", "workload", "cgroup"]
    family = CounterMetricFamily(
        "qosd_workload_tcp_retransmits", "TCP segments that a workload sent again.", labels=labels
    )
    for each in sorted(view.retransmits, key=lambda each: (each.tier != "ls", -each.count))[:_SERIES_MAX]:
        family.add_metric([each.tier, each.workload, each.path], each.count)
    return family


def _rates(view: ProbesView) -> Iterator[Metric]:
    labels = ["tier", "workload", "cgroup"]
    cpi = GaugeMetricFamily(
        "qosd_workload_cycles_per_instruction_ratio",
        "CPU cycles an instruction in the last tick.",
        labels=labels,
    )
    misses = GaugeMetricFamily(
        "qosd_workload_llc_misses_per_instruction_ratio", "Cache misses an instruction.", labels=labels
    )
    for each in view.rates:
        values = [each.tier, each.workload, each.path]
        cpi.add_metric(values, each.cycles_per_instruction)
        misses.add_metric(values, each.llc_misses_per_instruction)
    yield from (cpi, misses)
