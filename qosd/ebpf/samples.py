"""What the probes' maps and ring records mean: bytes in, frozen values out. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

import msgspec

from qosd.model import CgroupId

SLOTS = 24
"""HISTOGRAM_SLOTS in kernel.h"""

NOBODY = 0
"""In the kernel's records only: no cgroup has the id 0. Here it is None."""

_SHIFT = 9

_RUNQ_WAITS = struct.Struct(f"={SLOTS}Q5Q")
_RUNQ_BLAME = struct.Struct("=3Q")
_RUNQ_PAIR = struct.Struct("=2Q")
_RUNQ_EVENT = struct.Struct("=7Q2I")
_RUNQ_CPU = struct.Struct("=4Q")
_RUNQ_CPU_BYTES = 256
_RUNQ_CPU_COUNTERS = 8 * 24 + 8
"""After `history` and `head` in struct cpu."""


class Histogram(msgspec.Struct, frozen=True, gc=False):
    """Counts by powers of two: slot 0 is below 1024 ns, slot i is [2^(i+9), 2^(i+10)) ns, the last open."""

    slots: tuple[int, ...]
    total_ns: int

    @property
    def count(self) -> int:
        return sum(self.slots)

    def since(self, earlier: Histogram) -> Histogram | None:
        """What came between two reads; None if a counter went back (thrown out, come anew)."""
        slots = tuple(now - then for now, then in zip(self.slots, earlier.slots, strict=True))
        if min(slots) < 0 or self.total_ns < earlier.total_ns:
            return None
        return Histogram(slots=slots, total_ns=self.total_ns - earlier.total_ns)

    def plus(self, other: Histogram) -> Histogram:
        slots = tuple(a + b for a, b in zip(self.slots, other.slots, strict=True))
        return Histogram(slots=slots, total_ns=self.total_ns + other.total_ns)

    def quantile_ns(self, q: float) -> float | None:
        """The q-quantile, linear inside a slot, so within a factor of two. None without counts."""
        count = self.count
        if not count:
            return None
        rank = q * count
        seen = 0
        for slot, n in enumerate(self.slots):
            if n and seen + n >= rank:
                low, high = slot_bounds_ns(slot)
                return low + (high - low) * max(0.0, rank - seen) / n
            seen += n
        return float(slot_bounds_ns(SLOTS - 1)[1])  # rounding of q * count


def slot_bounds_ns(slot: int) -> tuple[int, int]:
    """[low, high) of a slot; the last slot is taken to end at twice its start."""
    return (0 if slot == 0 else 1 << slot + _SHIFT), 1 << slot + _SHIFT + 1


class RunqWaits(msgspec.Struct, frozen=True, gc=False):
    """How long one workload's tasks waited for a CPU since the probe was opened."""

    waits: Histogram
    idle_ns: int
    """Of the blamed waits: the CPU was idle, so nobody else's doing."""
    unknown_ns: int
    """Of the blamed waits: more switches ago than the probe remembers."""
    breaches: int
    """Waits above the threshold, whether an event was sent or not."""


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
    """Elements that the LRU maps threw out: above 0, shares are too low and the maps too small."""
    unseen: int
    """Times that the kernel had no memory to note a task's wait."""


class RunqDelta(msgspec.Struct, frozen=True, gc=False):
    """Between two samples. A workload is missing if its counters went back: unknown is not 0."""

    workloads: dict[CgroupId, RunqWaits]
    blames: tuple[RunqBlame, ...]
    lost_events: int
    evicted: int


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
    new_waits: int
    new_blames: int
    no_memory: int


def decode_id(key: bytes) -> CgroupId:
    return CgroupId(int.from_bytes(key, "little"))


def decode_runq_waits(value: bytes | memoryview) -> RunqWaits:
    """One element of runq_waits: the sum over its CPUs."""
    sums = [sum(column) for column in zip(*_RUNQ_WAITS.iter_unpack(value), strict=True)]
    total_ns, idle_ns, unknown_ns, breaches, _last_event = sums[SLOTS:]
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


def decode_runq_cpus(values: Iterable[bytes | memoryview]) -> RunqCpus:
    counters = [_RUNQ_CPU.unpack_from(value, _RUNQ_CPU_COUNTERS) for value in values]
    return RunqCpus(*(sum(column) for column in zip(*counters, strict=True)))


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


def runq_delta(earlier: RunqSample, now: RunqSample) -> RunqDelta:
    """What happened between two samples; what was not there in the earlier one counts from 0."""
    return RunqDelta(
        workloads=_waits_delta(earlier.workloads, now.workloads),
        blames=_blames_delta(earlier.blames, now.blames),
        lost_events=now.lost_events - earlier.lost_events,
        evicted=now.evicted - earlier.evicted,
    )


def _waits_delta(
    earlier: Mapping[CgroupId, RunqWaits], now: Mapping[CgroupId, RunqWaits]
) -> dict[CgroupId, RunqWaits]:
    deltas = {}
    for cgroup, late in now.items():
        early = earlier.get(cgroup)
        if early is None:
            deltas[cgroup] = late
            continue
        waits = late.waits.since(early.waits)
        if waits is not None:
            deltas[cgroup] = RunqWaits(
                waits=waits,
                idle_ns=late.idle_ns - early.idle_ns,
                unknown_ns=late.unknown_ns - early.unknown_ns,
                breaches=late.breaches - early.breaches,
            )
    return deltas


def _blames_delta(earlier: Iterable[RunqBlame], now: Iterable[RunqBlame]) -> tuple[RunqBlame, ...]:
    """An element that went back was thrown out and came anew: what it holds is all new."""
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
