"""Prometheus metrics over the last Status: a thread of its own, which only reads what the loop replaced.

docs/metrics.md says what each of them means; a test holds the two equal.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Protocol

from qosd import cpumetrics, exposition, ladder_metrics, metrics_io
from qosd.ebpf import metrics as probes
from qosd.engine import Engine
from qosd.exposition import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from qosd.files import interface_file
from qosd.memory import metrics as memory
from qosd.model import Pressure
from qosd.net import metrics as network
from qosd.reflex import ReflexStatus
from qosd.status import SensorStatus, Status, WorkloadStatus

_MODES = ("enforce", "observe", "paused", "starting", "failed")
_WORKLOADS_MAX = 50
"""The busiest by name, the rest of a tier as `other`: a rule with globs may match thousands of cgroups."""
_USEC = 1e6


class TickTimes(Protocol):
    buckets: dict[float, int]
    count: int
    sum_ms: float


class Source(Protocol):
    """What the exporter may look at."""

    status: Status | None
    pages_locked: bool

    @property
    def tick_times(self) -> TickTimes: ...

    @property
    def engine(self) -> Engine: ...


def serve(source: Source, listen: str) -> tuple[str, int]:
    """Answer scrapes on `HOST:PORT` from a thread of its own. Raises OSError when it cannot listen."""
    return exposition.serve(listen, partial(_collect_now, source))


def _collect_now(source: Source) -> Iterator[Metric]:
    return collect(source, time.time())


def collect(source: Source, now: float) -> Iterator[Metric]:
    """Every family; `now` is the wall clock. A value that is not known has no sample."""
    yield from _own(source)
    yield from ladder_metrics.totals(source.engine.answering.totals)
    status = source.status
    if status is None:
        return
    yield InfoMetricFamily("qosd_build", "The running version.", {"version": status.version})
    yield _gauge("qosd_last_tick_timestamp_seconds", "When the last tick ended.", status.time)
    refused = float(status.config_error is not None)
    yield _gauge("qosd_config_refused", "1 after a refused reload, until one is taken.", refused)
    yield from _sensors(status, now)
    yield from _host(status)
    yield from _tiers(status)
    yield from _workloads(status)
    yield from _settings(status)
    if status.reflex is not None:
        yield from _reflex(status.reflex)
    if status.interference is not None:
        yield from ladder_metrics.current(status.interference)
    yield from cpumetrics.collect(status.cpu)
    yield from metrics_io.collect(status, now)
    if status.net is not None:
        yield from network.collect(status.net)
    if status.ebpf is not None:
        yield from probes.collect(status.ebpf)
    if status.memory is not None:
        yield from memory.collect(status.memory)


def _gauge(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text)
    if value is not None:
        family.add_metric([], value)
    return family


def _own(source: Source) -> Iterator[Metric]:
    """The daemon's running totals and its own cost. The loop may be adding to them: copy, then walk."""
    counters = source.engine.counters
    yield CounterMetricFamily("qosd_ticks", "Ticks done.", counters.ticks)
    yield CounterMetricFamily(
        "qosd_late_ticks", "Ticks left out because one took too long.", counters.late_ticks
    )
    yield CounterMetricFamily("qosd_failures", "Ticks that ended in a bug of qosd.", counters.failures)
    reloads = CounterMetricFamily("qosd_reloads", "Configurations read again, by result.", labels=["result"])
    for result, count in dict(counters.reloads).items():
        reloads.add_metric([result], count)
    yield reloads
    writes = CounterMetricFamily(
        "qosd_writes", "Writes to interface files, by file and outcome.", labels=["file", "outcome"]
    )
    for (file, outcome), count in dict(counters.writes).items():
        writes.add_metric([file, outcome], count)
    yield writes
    errors = CounterMetricFamily("qosd_write_errors", "Writes that failed, by errno.", labels=["errno"])
    for errno_name, count in dict(counters.errors).items():
        errors.add_metric([errno_name], count)
    yield errors
    mode = source.engine.mode
    yield StateSetMetricFamily("qosd_mode", "What qosd does now.", {each: each == mode for each in _MODES})
    journal = float(source.engine.journal_error is None)
    yield _gauge(
        "qosd_journal_ok", "0 while the journal cannot be written, so nothing else is either.", journal
    )
    yield _tick_durations(source.tick_times)
    yield CounterMetricFamily("process_cpu_seconds", "CPU time of qosd itself.", time.process_time())
    yield _gauge("process_resident_memory_bytes", "Resident memory of qosd itself.", _resident_bytes())
    locked = "1 if qosd's pages stay in memory when it is short."
    yield _gauge("qosd_pages_locked", locked, float(source.pages_locked))


def _tick_durations(times: TickTimes) -> Metric:
    # The loop adds to the count first, so read in this order no bucket holds more than +Inf.
    buckets = [(str(bound / 1000), float(count)) for bound, count in list(times.buckets.items())]
    sum_seconds, count = times.sum_ms / 1000, float(times.count)
    family = HistogramMetricFamily("qosd_tick_duration_seconds", "How long a tick took.")
    family.add_metric([], [*buckets, ("+Inf", count)], sum_seconds)
    return family


def _resident_bytes() -> float | None:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))
    except OSError:
        return None


def _reflex(reflex: ReflexStatus) -> Iterator[Metric]:
    yield _gauge("qosd_be_squeeze_ratio", "The part of its allowance that BE has now.", reflex.squeeze)
    yield _gauge("qosd_psi_triggers", "LS cgroups with a PSI trigger on cpu.pressure.", len(reflex.armed))
    reactions = CounterMetricFamily(
        "qosd_reactions", "Breaches reported between two ticks, by outcome.", labels=["source", "outcome"]
    )
    for source, outcomes in reflex.reactions.items():
        for outcome, count in outcomes.items():
            reactions.add_metric([source, outcome], count)
    yield reactions


def _sensors(status: Status, now: float) -> Iterator[Metric]:
    """Only the sensors themselves: what cannot be read is a path, of which there may be any number."""
    ages = GaugeMetricFamily("qosd_sensor_age_seconds", "Since the sensor's last reading.", labels=["sensor"])
    works = GaugeMetricFamily("qosd_sensor_ok", "Whether it was read in the last tick.", labels=["sensor"])
    since_tick = max(now - status.time, 0.0)
    for sensor in filter(_is_sensor, status.sensors):
        works.add_metric([sensor.name], float(sensor.ok))
        if sensor.age_ms is not None:
            ages.add_metric([sensor.name], sensor.age_ms / 1000 + since_tick)
    yield ages
    yield works
    unreadable = sum(not _is_sensor(sensor) for sensor in status.sensors)
    yield _gauge("qosd_unreadable_files", "Files the last tick could not read or understand.", unreadable)


def _is_sensor(sensor: SensorStatus) -> bool:
    return sensor.detail is None


def _host(status: Status) -> Iterator[Metric]:
    host = status.host
    yield _gauge("qosd_host_cpus", "CPUs online.", host.nr_cpus)
    yield _gauge("qosd_host_cpu_capacity_cores", "CPUs less what the hypervisor took.", host.capacity_cores)
    yield _gauge("qosd_system_cpu_cores", "CPUs used by all that is in no tier.", host.system_cores)
    yield _gauge("qosd_host_memory_bytes", "MemTotal.", host.mem_total_bytes)
    yield _gauge("qosd_host_memory_available_bytes", "MemAvailable.", host.mem_available_bytes)
    stalls = CounterMetricFamily(
        "qosd_host_pressure_seconds",
        "Time in which some or all tasks of the host waited for the resource.",
        labels=["resource", "stalled"],
    )
    pressures = {"cpu": host.cpu_pressure, "memory": host.memory_pressure, "io": host.io_pressure}
    for resource, pressure in pressures.items():
        _add_pressure(stalls, [], resource, pressure)
    yield stalls


def _add_pressure(
    family: CounterMetricFamily, labels: list[str], resource: str, pressure: Pressure | None
) -> None:
    if pressure is None:
        return
    family.add_metric([*labels, resource, "some"], pressure.some.total / _USEC)
    if pressure.full is not None:
        family.add_metric([*labels, resource, "full"], pressure.full.total / _USEC)


def _tiers(status: Status) -> Iterator[Metric]:
    use = GaugeMetricFamily("qosd_tier_cpu_cores", "CPUs the tier used in the last tick.", labels=["tier"])
    allowed = GaugeMetricFamily(
        "qosd_tier_cpu_allowance_cores", "CPUs the tier may use now; absent without a limit.", labels=["tier"]
    )
    number = GaugeMetricFamily("qosd_workloads", "Cgroups that rules match now.", labels=["tier"])
    waits = GaugeMetricFamily(
        "qosd_tier_pressure_ratio",
        "Share of the last tick in which tasks waited: the worst of the tier's workloads.",
        labels=["tier", "resource"],
    )
    counts = Counter(workload.tier.value for workload in status.workloads)
    for name, tier in status.tiers.items():
        number.add_metric([name], counts[name])
        if tier.cpu_cores is not None:
            use.add_metric([name], tier.cpu_cores)
        if tier.cpu_allowance_cores is not None:
            allowed.add_metric([name], tier.cpu_allowance_cores)
        for resource, share in (
            ("cpu", tier.waits.cpu),
            ("memory", tier.waits.memory),
            ("io", tier.waits.io),
        ):
            if share is not None:
                waits.add_metric([name, resource], share)
    yield from (use, allowed, number, waits)


def _workloads(status: Status) -> Iterator[Metric]:
    labels = ["tier", "workload", "cgroup"]
    cpu = GaugeMetricFamily("qosd_workload_cpu_cores", "CPUs used in the last tick.", labels=labels)
    memory = GaugeMetricFamily("qosd_workload_memory_bytes", "memory.current.", labels=labels)
    stalls = CounterMetricFamily(
        "qosd_workload_pressure_seconds",
        "Time in which some or all tasks of the workload waited for the resource.",
        labels=[*labels, "resource", "stalled"],
    )
    ranked = sorted(status.workloads, key=lambda workload: -(workload.cpu_cores or 0.0))
    for workload in ranked[:_WORKLOADS_MAX]:
        values = [workload.tier.value, workload.name, workload.path]
        if workload.cpu_cores is not None:
            cpu.add_metric(values, workload.cpu_cores)
        if workload.memory_bytes is not None:
            memory.add_metric(values, workload.memory_bytes)
        _add_pressure(stalls, values, "cpu", workload.cpu_pressure)
        _add_pressure(stalls, values, "memory", workload.memory_pressure)
        _add_pressure(stalls, values, "io", workload.io_pressure)
    for tier, (cores, size) in _rest(ranked[_WORKLOADS_MAX:]).items():
        cpu.add_metric([tier, "other", ""], cores)
        memory.add_metric([tier, "other", ""], size)
    yield from (cpu, memory, stalls)


def _rest(workloads: list[WorkloadStatus]) -> dict[str, tuple[float, float]]:
    """CPU and memory of the less busy workloads by tier; a sum of their counters would run backwards."""
    sums: dict[str, tuple[float, float]] = {}
    for workload in workloads:
        cores, size = sums.get(workload.tier.value, (0.0, 0.0))
        sums[workload.tier.value] = (
            cores + (workload.cpu_cores or 0.0),
            size + (workload.memory_bytes or 0),
        )
    return sums


def _settings(status: Status) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "qosd_settings", "Settings that qosd wants, by file and how they stand.", labels=["file", "state"]
    )
    for (file, state), count in Counter(
        (interface_file(each.file), each.state) for each in status.settings
    ).items():
        states.add_metric([file, state], count)
    yield states
    contested = sum(setting.state == "contested" for setting in status.settings)
    yield _gauge("qosd_contested_files", "Files left alone because somebody keeps undoing them.", contested)
    yield _gauge(
        "qosd_refused_cgroups", "Cgroups that a rule matches and qosd does not take.", len(status.refused)
    )
