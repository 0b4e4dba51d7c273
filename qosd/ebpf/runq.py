"""The run-queue probe: how long workloads wait for a CPU, who has it meanwhile, and a wake-up on a breach."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

import msgspec

from qosd.ebpf.loaded import Loaded
from qosd.ebpf.loader import Object
from qosd.ebpf.samples import (
    RUNQ_CPU_SIZE,
    RUNQ_WAITS_SIZE,
    RunqBreach,
    RunqSample,
    RunqWaits,
    decode_runq_blame,
    decode_runq_breach,
    decode_runq_cpus,
    decode_runq_waits,
)
from qosd.model import CgroupId

PROGRAMS = ("runq_switch", "runq_migrate")
MAPS = ("runq_tasks", "runq_workloads", "runq_waits", "runq_blames", "runq_cpus", "runq_events")

_SETTINGS = struct.Struct("=2Q2I")
_WORKLOAD = struct.Struct("=2Q")
_FIRST = (0).to_bytes(4, "little")
_LRU_PER_CPU = 256
"""An LRU hash hands its elements out to CPUs by 128; with fewer it throws out too early."""


class Root(msgspec.Struct, frozen=True, gc=False):
    """A workload's root. Not watched: only named as the culprit's root."""

    watched: bool
    threshold_ns: int | None = None
    """A longer wait sends an event; None never does."""


class RunqOptions(msgspec.Struct, frozen=True, gc=False):
    max_workloads: int = 256
    """That have a histogram: 256 bytes of kernel memory a CPU."""
    max_pairs: int = 2048
    blame_floor_ns: int = 50_000
    event_gap_ns: int = 100_000_000


def prepare(opened: Object, options: RunqOptions, cpus: int) -> None:
    slots = options.max_workloads + 1  # slot 0 is nobody's
    opened.resize("runq_cpus", cpus)
    opened.resize("runq_workloads", slots)
    opened.resize("runq_waits", slots * cpus)
    opened.resize("runq_blames", pairs(options, cpus))


def pairs(options: RunqOptions, cpus: int) -> int:
    return max(options.max_pairs, lru_room(cpus))


def lru_room(cpus: int) -> int:
    """The least that a shared LRU hash may be made for."""
    return _LRU_PER_CPU * cpus


class Runq:
    """The loaded probe; `fd` becomes readable when `events` has something."""

    def __init__(self, loaded: Loaded, options: RunqOptions, cpus: int) -> None:
        self._options = options
        self._cpus = cpus
        self._generation = 0
        self._settings = loaded.map(".data.runq")
        self._workloads = loaded.map("runq_workloads")
        self._waits = loaded.map("runq_waits")
        self._blames = loaded.map("runq_blames")
        self._mapped_waits = self._waits.mapped()
        self._mapped_cpus = loaded.map("runq_cpus").mapped()
        self._ring = loaded.ring_buffer("runq_events")
        self._slots: dict[CgroupId, int] = {}
        self._watched: set[CgroupId] = set()
        self._free = list(range(options.max_workloads, 0, -1))
        self.fd = self._ring.fd
        self.roots_changed()  # the settings, the number of CPUs among them, before the first program runs

    def slot_of(self, cgroup: CgroupId, root: Root) -> int:
        """Its place in the arrays, made for it; 0 where there is none left: then it is not watched."""
        slot = self._slots.get(cgroup, 0)
        if not slot and self._free:
            slot = self._slots[cgroup] = self._free.pop()
            for cpu in range(self._cpus):
                self._waits.update(self._index(slot, cpu), bytes(RUNQ_WAITS_SIZE))
        self._watched.discard(cgroup)
        if slot and root.watched:
            self._watched.add(cgroup)
        if slot:
            self._workloads.update(slot.to_bytes(4, "little"), _WORKLOAD.pack(cgroup, root.threshold_ns or 0))
        return slot

    def can_place(self, roots: Iterable[CgroupId]) -> frozenset[CgroupId]:
        """Those that had no room so far, and have now."""
        waiting = [cgroup for cgroup in roots if cgroup not in self._slots]
        return frozenset(waiting[: len(self._free)])

    def forget(self, cgroup: CgroupId) -> None:
        """Its counters are dropped, and its place is another's."""
        self._watched.discard(cgroup)
        slot = self._slots.pop(cgroup, 0)
        if slot:
            self._free.append(slot)

    def roots_changed(self) -> None:
        """Have every task look its root up again."""
        self._generation = self._generation + 1 & 0xFFFFFFFF
        options = self._options
        self._settings.update(
            _FIRST,
            _SETTINGS.pack(options.blame_floor_ns, options.event_gap_ns, self._generation, self._cpus),
        )

    def read(self) -> RunqSample:
        """All counters since the probe was opened."""
        blames = tuple(decode_runq_blame(key, value) for key, value in self._blames.items())
        cpus = decode_runq_cpus(self._mapped_cpus[: RUNQ_CPU_SIZE * self._cpus])
        return RunqSample(
            workloads={cgroup: self._waits_in(self._slots[cgroup]) for cgroup in self._watched},
            blames=blames,
            lost_events=cpus.lost_events,
            evicted=max(0, cpus.new_blames - len(blames)),
            unseen=cpus.unseen,
            cost_ns=cpus.cost_ns,
        )

    def _waits_in(self, slot: int) -> RunqWaits:
        size = RUNQ_WAITS_SIZE * self._cpus
        return decode_runq_waits(self._mapped_waits[slot * size : (slot + 1) * size])

    def _index(self, slot: int, cpu: int) -> bytes:
        return (slot * self._cpus + cpu).to_bytes(4, "little")

    def events(self) -> Iterator[RunqBreach]:
        """Breaches since the last call; never blocks."""
        return map(decode_runq_breach, self._ring.consume())

    def close(self) -> None:
        """Nobody reads any more; a ring with records in it would wake the loop for ever."""
        self._ring.close()
        self._mapped_waits.close()
        self._mapped_cpus.close()
