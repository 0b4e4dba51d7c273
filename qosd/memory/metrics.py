"""Metric families of the memory governors, over the last tick's view."""

from __future__ import annotations

from collections.abc import Iterator

from qosd.exposition import CounterMetricFamily, GaugeMetricFamily, Metric
from qosd.memory.decide import MemoryView, WorkloadMemory

_WORKLOADS_MAX = 50
"""Those with the largest page cache."""
_PHASES = ("off", "below", "reclaiming", "held", "nothing")


def collect(view: MemoryView) -> Iterator[Metric]:
    allowed = GaugeMetricFamily(
        "qosd_tier_memory_allowance_bytes",
        "Memory the tier may hold; absent without a limit.",
        labels=["tier"],
    )
    if view.be_allowed is not None:
        allowed.add_metric(["be"], view.be_allowed)
    yield allowed
    trouble = GaugeMetricFamily(
        "qosd_memory_trouble",
        "1 while the condition holds; absent where it is not known.",
        labels=["condition"],
    )
    for name, holds in (("short", view.trouble.short), ("ls_stalled", view.trouble.ls_stalled)):
        if holds is not None:
            trouble.add_metric([name], float(holds))
    yield trouble
    scanned = CounterMetricFamily(
        "qosd_host_reclaim_scanned_pages", "Pages the kernel's own reclaim looked at.", labels=["by"]
    )
    for by, pages in (("kswapd", view.pgscan_kswapd), ("direct", view.pgscan_direct)):
        if pages is not None:
            scanned.add_metric([by], pages)
    yield scanned
    yield _stuck(view)
    yield from _workloads(view)


def _stuck(view: MemoryView) -> Metric:
    family = GaugeMetricFamily(
        "qosd_reclaim_stuck", "Requests to memory.reclaim that overran their deadline and are not back."
    )
    family.add_metric([], view.stuck)
    return family


def _workloads(view: MemoryView) -> Iterator[Metric]:
    labels = ["tier", "workload", "cgroup"]
    cache = GaugeMetricFamily(
        "qosd_workload_page_cache_bytes", "inactive_file + active_file, as last read.", labels=labels
    )
    used = GaugeMetricFamily(
        "qosd_workload_working_set_bytes", "Memory an LS workload uses, the largest of late.", labels=labels
    )
    asked = CounterMetricFamily("qosd_reclaim_asked_bytes", "Asked of memory.reclaim.", labels=labels)
    freed = CounterMetricFamily("qosd_reclaim_freed_bytes", "Freed by memory.reclaim.", labels=labels)
    refaulted = CounterMetricFamily(
        "qosd_reclaim_refaulted_bytes", "Read again while what was freed was watched.", labels=labels
    )
    errors = CounterMetricFamily(
        "qosd_reclaim_errors", "Requests to memory.reclaim that failed.", labels=[*labels, "result"]
    )
    for each in sorted(view.workloads, key=_by_cache)[:_WORKLOADS_MAX]:
        values = [each.tier, each.workload, each.path]
        if each.page_cache is not None:
            cache.add_metric(values, each.page_cache)
        if each.working_set is not None:
            used.add_metric(values, each.working_set)
        asked.add_metric(values, each.asked)
        freed.add_metric(values, each.freed)
        refaulted.add_metric(values, each.refaulted)
        for result, count in each.errors.items():
            errors.add_metric([*values, result], count)
    yield from (cache, used, asked, freed, refaulted, errors)
    phases = GaugeMetricFamily(
        "qosd_reclaim_workloads", "Workloads by what background reclaim does there.", labels=["phase"]
    )
    for phase in _PHASES:
        phases.add_metric([phase], sum(each.phase == phase for each in view.workloads))
    yield phases


def _by_cache(each: WorkloadMemory) -> int:
    return -(each.page_cache or 0)
