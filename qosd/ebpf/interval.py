"""What the probes counted between two reads, workload by workload. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from qosd.ebpf.histogram import EMPTY, Histogram, delta
from qosd.ebpf.samples import (
    BlkioSample,
    Counts,
    IoKey,
    ReclaimKey,
    ReclaimKind,
    ReclaimSample,
    RunqBlame,
    RunqSample,
    RunqWaits,
    Tcp,
    TcpSample,
    TracingSample,
    blames_delta,
)
from qosd.model import CgroupId, Preemptor, Probed

_NAMED = 16
"""Preemptors of one workload in one interval; the rest is a small share."""
_TIMED = ("read", "write")
"""A flush waits for the device's cache, and a discard for its garbage collection."""


def between(
    earlier: TracingSample | None, now: TracingSample, workloads: Iterable[CgroupId]
) -> tuple[Probed, ...]:
    """Since the earlier read, or since the probes were opened. What went back is left out: unknown."""
    runq = _runq(earlier.runq if earlier else None, now.runq)
    blames = _blames(earlier.runq if earlier else None, now.runq)
    stalls = _stalls(earlier.reclaim if earlier else None, now.reclaim)
    io = _io(earlier.blkio if earlier else None, now.blkio)
    tcp = _tcp(earlier.tcp if earlier else None, now.tcp)
    return tuple(
        _with_tcp(
            _probed(
                cgroup,
                runq.get(cgroup),
                blames.get(cgroup, ()),
                _stalls_of(cgroup, stalls),
                _io_of(cgroup, io),
            ),
            tcp,
        )
        for cgroup in workloads
    )


def _probed(
    cgroup: CgroupId,
    runq: RunqWaits | None,
    blames: tuple[RunqBlame, ...],
    stalls: tuple[Histogram | None, Histogram | None],
    blkio: Histogram | None,
) -> Probed:
    return Probed(
        cgroup,
        runq.waits if runq else None,
        tuple(Preemptor(each.culprit, each.culprit_root, each.ns, each.count) for each in blames),
        runq.idle_ns if runq else 0,
        runq.unknown_ns if runq else 0,
        runq.breaches if runq else 0,
        *stalls,
        blkio,
    )


def _runq(earlier: RunqSample | None, now: RunqSample | None) -> dict[CgroupId, RunqWaits]:
    return delta(earlier.workloads if earlier else {}, now.workloads) if now else {}


def _blames(earlier: RunqSample | None, now: RunqSample | None) -> dict[CgroupId, tuple[RunqBlame, ...]]:
    if now is None:
        return {}
    victims: dict[CgroupId, list[RunqBlame]] = {}
    for blame in blames_delta(earlier.blames if earlier else (), now.blames):
        victims.setdefault(blame.victim, []).append(blame)
    return {
        victim: tuple(sorted(blames, key=lambda each: -each.ns)[:_NAMED])
        for victim, blames in victims.items()
    }


def _stalls(earlier: ReclaimSample | None, now: ReclaimSample | None) -> dict[ReclaimKey, Histogram] | None:
    return None if now is None else delta(earlier.stalls if earlier else {}, now.stalls)


def _stalls_of(
    cgroup: CgroupId, stalls: dict[ReclaimKey, Histogram] | None
) -> tuple[Histogram | None, Histogram | None]:
    """Nobody has an element before their first stall, so none means that there was none."""
    if stalls is None:
        return None, None
    kinds: tuple[ReclaimKind, ReclaimKind] = ("direct", "memcg")
    direct, memcg = (stalls.get(ReclaimKey(cgroup, kind), EMPTY) for kind in kinds)
    return direct, memcg


def _io(earlier: BlkioSample | None, now: BlkioSample | None) -> dict[IoKey, Histogram] | None:
    if now is None:
        return None
    return {key: io.latency for key, io in delta(earlier.io if earlier else {}, now.io).items()}


def _io_of(cgroup: CgroupId, io: dict[IoKey, Histogram] | None) -> Histogram | None:
    if io is None:
        return None
    total = EMPTY
    for key, latency in io.items():
        if key.workload == cgroup and key.op in _TIMED:
            total = total.plus(latency)
    return total


def _tcp(earlier: TcpSample | None, now: TcpSample | None) -> dict[CgroupId, Tcp] | None:
    return None if now is None else delta(earlier.workloads if earlier else {}, now.workloads)


def _with_tcp(probed: Probed, tcp: dict[CgroupId, Tcp] | None) -> Probed:
    """Nobody has an element before the first packet, as with stalls."""
    if tcp is None:
        return probed
    of = tcp.get(probed.id, Tcp(EMPTY, 0))
    return msgspec.structs.replace(probed, tcp_rtt=of.rtt, tcp_retransmits=of.retransmits)


def with_counts(probed: tuple[Probed, ...], counts: dict[CgroupId, Counts]) -> tuple[Probed, ...]:
    """With what a PMU counted, which may be all that there is."""
    if not counts:
        return probed
    known = {each.id: each for each in probed}
    return tuple(
        msgspec.structs.replace(
            known.get(cgroup, Probed(cgroup)),
            cycles=count.cycles,
            instructions=count.instructions,
            llc_misses=count.llc_misses,
        )
        if (count := counts.get(cgroup)) is not None
        else known[cgroup]
        for cgroup in {**known, **counts}
    )
