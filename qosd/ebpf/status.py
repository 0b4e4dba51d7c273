"""What `qosctl status` and the metrics show of the probes. Pure."""

from __future__ import annotations

import msgspec

from qosd.ebpf.histogram import Histogram
from qosd.ebpf.samples import TcpSample
from qosd.interference.baseline import Reading
from qosd.model import Snapshot, Workload, printable

_SIGNALS = ("runq", "reclaim", "reclaim_memcg", "blkio", "tcp_rtt")


class ProbeStatus(msgspec.Struct, frozen=True):
    name: str
    state: str
    """attached; absent: the kernel cannot run it; detached: it cost too much; off: not asked for."""
    why: str | None = None
    overhead_pct: float | None = None
    """Share of a CPU's time, on average over the CPUs and the window; None until something was timed."""


class Latency(msgspec.Struct, frozen=True):
    """One kind of waiting of one workload in the last interval, and what would be a breach."""

    path: str
    workload: str
    tier: str
    signal: str
    """runq, reclaim, reclaim_memcg, blkio, tcp_rtt."""
    count: int
    p50_usec: float | None
    p99_usec: float | None
    threshold_usec: float | None = None
    """None where nothing is judged: BE."""
    baseline_usec: float | None = None
    cold: bool = True
    breach: bool = False


class Retransmits(msgspec.Struct, frozen=True):
    """TCP segments that a workload sent again since the probe was attached."""

    path: str
    workload: str
    tier: str
    count: int


class Rate(msgspec.Struct, frozen=True):
    """How well the CPUs got on with an LS workload in the last interval, by their own counters."""

    path: str
    workload: str
    tier: str
    cycles_per_instruction: float
    llc_misses_per_instruction: float


class ProbesView(msgspec.Struct, frozen=True):
    loader: str | None
    """libbpf, bcc; None: no probe is attached."""
    why: str | None
    """Why there is none."""
    probes: tuple[ProbeStatus, ...]
    latencies: tuple[Latency, ...] = ()
    breaches: dict[str, int] = {}
    """Waits above the threshold that were sent, by whose task had most of it: be, ls, self, system, idle."""
    lost_events: int = 0
    evicted: int = 0
    unseen: int = 0
    unwatched: int = 0
    """Workloads for which the maps have no room."""
    retransmits: tuple[Retransmits, ...] = ()
    loader_why: str | None = None
    """Why this loader."""
    rates: tuple[Rate, ...] = ()
    walk_failures: int = 0
    """How often walks over large workloads were given up for their files."""


def latencies(now: Snapshot, readings: tuple[Reading, ...]) -> tuple[Latency, ...]:
    """The figures of the last interval, workload by workload; only what a probe tells of."""
    judged = {(reading.victim, reading.signal): reading for reading in readings}
    return tuple(
        _latency(workload, signal, interval, judged.get((workload.id, signal)))
        for probed in now.probed
        if (workload := now.workload(probed.id)) is not None
        for signal in _SIGNALS
        if (interval := getattr(probed, signal)) is not None
    )


def retransmits(now: Snapshot, tcp: TcpSample | None) -> tuple[Retransmits, ...]:
    """Workloads that have had TCP at all."""
    if tcp is None:
        return ()
    return tuple(
        Retransmits(printable(each.path), each.name, each.tier.value, tcp.workloads[each.id].retransmits)
        for each in now.workloads
        if each.id in tcp.workloads
    )


def rates(now: Snapshot) -> tuple[Rate, ...]:
    """Of those of which instructions were counted."""
    return tuple(
        Rate(
            printable(workload.path),
            workload.name,
            workload.tier.value,
            (each.cycles or 0) / each.instructions,
            (each.llc_misses or 0) / each.instructions,
        )
        for each in now.probed
        if each.instructions and (workload := now.workload(each.id)) is not None
    )


def _latency(workload: Workload, signal: str, interval: Histogram, reading: Reading | None) -> Latency:
    return Latency(
        printable(workload.path),
        workload.name,
        workload.tier.value,
        signal,
        interval.count,
        _usec(interval.quantile_ns(0.5)),
        _usec(interval.quantile_ns(0.99)),
        reading.threshold if reading is not None else None,
        reading.baseline if reading is not None else None,
        reading is None or reading.cold,
        reading is not None and reading.breach,
    )


def _usec(ns: float | None) -> float | None:
    return None if ns is None else round(ns / 1000, 1)
