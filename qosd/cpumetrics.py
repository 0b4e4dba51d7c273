"""Metric families of windows, pools and bursts. Nothing is there while none is configured."""

from __future__ import annotations

from collections.abc import Iterator

from qosd.cpu.view import CpuView
from qosd.exposition import GaugeMetricFamily, Metric

_WORKLOADS_MAX = 50


def collect(cpu: CpuView) -> Iterator[Metric]:
    opened = GaugeMetricFamily("qosd_window_open", "1 while the time window is open.", labels=["window"])
    for window in cpu.windows:
        opened.add_metric([window.name], 1.0)
    yield opened
    yield from _pools(cpu)
    factor = GaugeMetricFamily(
        "qosd_burst_factor",
        "cpu.max of an LS workload relative to its original.",
        labels=["workload", "cgroup"],
    )
    budget = GaugeMetricFamily(
        "qosd_burst_budget_ratio", "What is left of its burst budget.", labels=["workload", "cgroup"]
    )
    for burst in cpu.bursts[:_WORKLOADS_MAX]:
        factor.add_metric([burst.workload, burst.path], burst.factor)
        budget.add_metric([burst.workload, burst.path], burst.budget_pct / 100)
    yield from (factor, budget)
    ineffective = GaugeMetricFamily("qosd_ineffective_limits", "BE workloads that run on past their cpu.max.")
    ineffective.add_metric([], float(len(cpu.ineffective)))
    yield ineffective


def _pools(cpu: CpuView) -> Iterator[Metric]:
    size = GaugeMetricFamily("qosd_pool_size_cores", "CPUs that the pool holds.", labels=["pool"])
    use = GaugeMetricFamily("qosd_pool_cpu_cores", "CPUs that its workloads used.", labels=["pool"])
    held = GaugeMetricFamily(
        "qosd_pool_degraded_workloads",
        "Workloads held down because the pool is above its band.",
        labels=["pool"],
    )
    for pool in cpu.pools:
        if pool.size_cores is not None:
            size.add_metric([pool.name], pool.size_cores)
        if pool.use_cores is not None:
            use.add_metric([pool.name], pool.use_cores)
        held.add_metric([pool.name], float(len(pool.degraded)))
    yield from (size, use, held)
