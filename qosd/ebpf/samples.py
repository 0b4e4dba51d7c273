"""What the probes' maps and ring records mean: bytes in, frozen values out. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Literal

import msgspec

from qosd.ebpf.histogram import SLOTS, Histogram
from qosd.model import CgroupId

NOBODY = 0
"""In the kernel's records only: no cgroup has the id 0. Here it is None."""

_RUNQ_WAITS = struct.Struct(f"={SLOTS}Q4Q32x")
_RUNQ_BLAME = struct.Struct("=3Q")
_RUNQ_PAIR = struct.Struct("=2Q")
_RUNQ_EVENT = struct.Struct("=7Q2I")
_RUNQ_CPU = struct.Struct("=4Q")
_RUNQ_CPU_COUNTERS = 32 * 24 + 8
"""After `history` and `head` in struct cpu."""
RUNQ_WAITS_SIZE = _RUNQ_WAITS.size
RUNQ_CPU_SIZE = 832

_SAMPLED = 64
"""1 << SAMPLED_SHIFT in cost.h: of so many runs one is timed."""
_RECLAIM_COUNTERS = struct.Struct("=2Q")
_BLKIO_COUNTERS = struct.Struct("=3Q")
_TCP_COUNTERS = struct.Struct("=2Q")

_STALL_KEY = struct.Struct("=Q2I")
_IO_KEY = struct.Struct("=Q2I")
_HISTOGRAM = struct.Struct(f"={SLOTS}QQ")
_IO = struct.Struct(f"={SLOTS}Q2Q")
_TCP = struct.Struct(f"={SLOTS}Q2Q")
_TRAFFIC = struct.Struct("=2Q")

ReclaimKind = Literal["direct", "memcg"]
_RECLAIM_KINDS: tuple[ReclaimKind, ...] = ("direct", "memcg")
_OPS = {0: "read", 1: "write", 2: "flush", 3: "discard"}
"""REQ_OP_*; the others by number."""


class RunqWaits(msgspec.Struct, frozen=True, gc=False):
    """How long one workload's tasks waited for a CPU since the probe was opened."""

    waits: Histogram
    idle_ns: int
    """Of the blamed waits: the CPU was idle, so nobody else's doing."""
    unknown_ns: int
    """Of the blamed waits: more switches ago than the probe remembers."""
    breaches: int
    """Waits above the threshold, whether an event was sent or not."""

    def since(self, earlier: RunqWaits) -> RunqWaits | None:
        waits = self.waits.since(earlier.waits)
        if waits is None:
            return None
        return RunqWaits(
            waits=waits,
            idle_ns=self.idle_ns - earlier.idle_ns,
            unknown_ns=self.unknown_ns - earlier.unknown_ns,
            breaches=self.breaches - earlier.breaches,
        )


class RunqBlame(msgspec.Struct, frozen=True, gc=False):
    """Who ran on the CPU that a victim waited for; waits below the probe's floor are nobody's fault."""

    victim: CgroupId
    culprit: CgroupId
    """The task's own cgroup, not its workload's root."""
    culprit_root: CgroupId | None
    ns: int
    count: int


class RunqSample(msgspec.Struct, frozen=True, gc=False):
    """All counters since the probe was opened."""

    workloads: dict[CgroupId, RunqWaits]
    blames: tuple[RunqBlame, ...]
    lost_events: int
    evicted: int
    """Pairs that the LRU map threw out: above 0, shares are too low and the map too small."""
    unseen: int
    """By bcc only: waits that were not counted, as pids equal modulo 65536 share a state."""
    cost_ns: int
    """What the probe has cost, from the one run in 64 that it times; less the way into the program."""


class RunqBreach(msgspec.Struct, frozen=True, gc=False):
    """One wait above its workload's threshold, as it ended."""

    monotonic_ns: int
    wait_ns: int
    victim: CgroupId
    victim_cgroup: CgroupId
    culprit: CgroupId | None
    culprit_root: CgroupId | None
    culprit_ns: int
    cpu: int
    pid: int


class RunqCpus(msgspec.Struct, frozen=True, gc=False):
    """Counters that the run-queue probe keeps per CPU, summed."""

    lost_events: int
    new_blames: int
    unseen: int
    cost_ns: int


def decode_id(key: bytes) -> CgroupId:
    return CgroupId(int.from_bytes(key, "little"))


def decode_runq_waits(value: bytes | memoryview) -> RunqWaits:
    """A workload's elements of runq_waits, one after the other: the sum over its CPUs."""
    sums = [sum(column) for column in zip(*_RUNQ_WAITS.iter_unpack(value), strict=True)]
    total_ns, idle_ns, unknown_ns, breaches = sums[SLOTS:]
    histogram = Histogram(slots=tuple(sums[:SLOTS]), total_ns=total_ns)
    return RunqWaits(waits=histogram, idle_ns=idle_ns, unknown_ns=unknown_ns, breaches=breaches)


def decode_runq_blame(key: bytes, value: bytes | memoryview) -> RunqBlame:
    victim, culprit = _RUNQ_PAIR.unpack(key)
    ns, count, root = _RUNQ_BLAME.unpack(value)
    return RunqBlame(
        victim=CgroupId(victim),
        culprit=CgroupId(culprit),
        culprit_root=_id_or_none(root),
        ns=ns,
        count=count,
    )


def decode_runq_cpus(values: bytes | memoryview) -> RunqCpus:
    """runq_cpus as mapped: the counters of every possible CPU, summed."""
    starts = range(_RUNQ_CPU_COUNTERS, len(values), RUNQ_CPU_SIZE)
    counters = [_RUNQ_CPU.unpack_from(values, start) for start in starts]
    lost_events, new_blames, unseen, cost_ns = (sum(column) for column in zip(*counters, strict=True))
    return RunqCpus(lost_events, new_blames, unseen, cost_ns * _SAMPLED)


def decode_runq_breach(record: bytes) -> RunqBreach:
    now, wait, victim, cgroup, culprit, root, culprit_ns, cpu, pid = _RUNQ_EVENT.unpack(record)
    return RunqBreach(
        monotonic_ns=now,
        wait_ns=wait,
        victim=CgroupId(victim),
        victim_cgroup=CgroupId(cgroup),
        culprit=_id_or_none(culprit),
        culprit_root=_id_or_none(root),
        culprit_ns=culprit_ns,
        cpu=cpu,
        pid=pid,
    )


def _id_or_none(number: int) -> CgroupId | None:
    return None if number == NOBODY else CgroupId(number)


class ReclaimKey(msgspec.Struct, frozen=True, gc=False):
    workload: CgroupId
    """The workload's root, or the task's own cgroup where it is in none."""
    kind: ReclaimKind
    """`direct`: the host was short of memory. `memcg`: memory.high, memory.max or memory.reclaim."""


class ReclaimSample(msgspec.Struct, frozen=True, gc=False):
    """How long tasks stood still to free memory themselves, since the probe was opened."""

    stalls: dict[ReclaimKey, Histogram]
    evicted: int
    cost_ns: int = 0


class IoKey(msgspec.Struct, frozen=True, gc=False):
    workload: CgroupId | None
    """As in ReclaimKey; None for a request without a bio."""
    device: str
    """As io.stat has it: `254:0`."""
    op: str


class Io(msgspec.Struct, frozen=True, gc=False):
    latency: Histogram
    """From the request's allocation to its completion."""
    bytes: int

    def since(self, earlier: Io) -> Io | None:
        latency = self.latency.since(earlier.latency)
        return None if latency is None else Io(latency=latency, bytes=self.bytes - earlier.bytes)


class BlkioSample(msgspec.Struct, frozen=True, gc=False):
    """Block requests since the probe was opened."""

    io: dict[IoKey, Io]
    evicted: int
    untimed: int
    """Requests of queues whose `iostats` is 0: their latency is unknown."""
    cost_ns: int = 0


def decode_histogram(value: bytes | memoryview) -> Histogram:
    *slots, total_ns = _HISTOGRAM.unpack(value)
    return Histogram(slots=tuple(slots), total_ns=total_ns)


def decode_reclaim_key(key: bytes) -> ReclaimKey:
    workload, kind, _ = _STALL_KEY.unpack(key)
    return ReclaimKey(workload=CgroupId(workload), kind=_RECLAIM_KINDS[kind])


def decode_io_key(key: bytes) -> IoKey:
    workload, device, op = _IO_KEY.unpack(key)
    return IoKey(
        workload=_id_or_none(workload),
        device=f"{device >> 20}:{device & 0xFFFFF}",
        op=_OPS.get(op, f"op{op}"),
    )


def decode_io(value: bytes | memoryview) -> Io:
    """One element of blkio_latency: the sum over its CPUs."""
    sums = [sum(column) for column in zip(*_IO.iter_unpack(value), strict=True)]
    return Io(latency=Histogram(slots=tuple(sums[:SLOTS]), total_ns=sums[SLOTS]), bytes=sums[SLOTS + 1])


def reclaim_sample(stalls: dict[ReclaimKey, Histogram], counters: bytes) -> ReclaimSample:
    created, cost_ns = _RECLAIM_COUNTERS.unpack(counters)
    return ReclaimSample(stalls, max(0, created - len(stalls)), cost_ns * _SAMPLED)


def blkio_sample(io: dict[IoKey, Io], counters: bytes) -> BlkioSample:
    created, untimed, cost_ns = _BLKIO_COUNTERS.unpack(counters)
    return BlkioSample(io, max(0, created - len(io)), untimed, cost_ns * _SAMPLED)


class Tcp(msgspec.Struct, frozen=True, gc=False):
    """Of the TCP sockets of one workload."""

    rtt: Histogram
    """Their smoothed round-trip times, told by one received packet in eight."""
    retransmits: int
    """Segments that were sent again."""

    def since(self, earlier: Tcp) -> Tcp | None:
        rtt = self.rtt.since(earlier.rtt)
        return None if rtt is None else Tcp(rtt, self.retransmits - earlier.retransmits)


class TcpSample(msgspec.Struct, frozen=True, gc=False):
    """TCP since the probe was opened; a workload without an element has had no packet yet."""

    workloads: dict[CgroupId, Tcp]
    evicted: int
    cost_ns: int = 0


def decode_tcp(value: bytes | memoryview) -> Tcp:
    *slots, total_ns, retransmits = _TCP.unpack(value)
    return Tcp(Histogram(slots=tuple(slots), total_ns=total_ns), retransmits)


def tcp_sample(workloads: dict[CgroupId, Tcp], counters: bytes) -> TcpSample:
    created, cost_ns = _TCP_COUNTERS.unpack(counters)
    return TcpSample(workloads, max(0, created - len(workloads)), cost_ns * _SAMPLED)


class Counts(msgspec.Struct, frozen=True, gc=False):
    """What the CPUs did for one workload in an interval, by their own counters."""

    cycles: int
    instructions: int
    llc_misses: int


class TracingSample(msgspec.Struct, frozen=True, gc=False):
    """All counters since the probes were opened; None for a probe that is absent."""

    runq: RunqSample | None
    reclaim: ReclaimSample | None
    blkio: BlkioSample | None
    tcp: TcpSample | None = None


class Traffic(msgspec.Struct, frozen=True, gc=False):
    """What a workload's sockets sent, as IP packets."""

    bytes: int
    packets: int

    def since(self, earlier: Traffic) -> Traffic | None:
        if self.bytes < earlier.bytes or self.packets < earlier.packets:
            return None
        return Traffic(bytes=self.bytes - earlier.bytes, packets=self.packets - earlier.packets)


def decode_traffic(value: bytes | memoryview) -> Traffic:
    """One element of skbprio_traffic: the sum over its CPUs."""
    sent, packets = (sum(column) for column in zip(*_TRAFFIC.iter_unpack(value), strict=True))
    return Traffic(bytes=sent, packets=packets)


def blames_delta(earlier: Iterable[RunqBlame], now: Iterable[RunqBlame]) -> tuple[RunqBlame, ...]:
    """As `delta`; an element that went back was thrown out and came anew, so what it holds is all new."""
    before = {(blame.victim, blame.culprit): blame for blame in earlier}
    deltas = []
    for late in now:
        early = before.get((late.victim, late.culprit))
        if early is None or late.ns < early.ns or late.count < early.count:
            deltas.append(late)
        elif late.count > early.count:
            deltas.append(
                msgspec.structs.replace(late, ns=late.ns - early.ns, count=late.count - early.count)
            )
    return tuple(deltas)
