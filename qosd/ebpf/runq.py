"""The run-queue probe: how long workloads wait for a CPU, who has it meanwhile, and a wake-up on a breach."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

import msgspec

from qosd.ebpf.libbpf import MAP_PERCPU_HASH
from qosd.ebpf.loader import Object
from qosd.ebpf.samples import (
    RunqBreach,
    RunqSample,
    decode_id,
    decode_runq_blame,
    decode_runq_breach,
    decode_runq_cpus,
    decode_runq_waits,
)
from qosd.model import CgroupId

PROGRAMS = ("runq_switch", "runq_wakeup", "runq_wakeup_new")
MAPS = ("runq_tasks", "runq_waits", "runq_blames", "runq_cpus", "runq_events")

_SETTINGS = struct.Struct("=3Q2I")
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
    """That have a histogram: 232 bytes of kernel memory a CPU."""
    max_pairs: int = 2048
    watch_all: bool = False
    """Every cgroup that is in no root has a histogram under its own id."""
    blame_floor_ns: int = 50_000
    event_gap_ns: int = 100_000_000


def prepare(opened: Object, options: RunqOptions, cpus: int) -> None:
    opened.resize("runq_cpus", cpus)
    opened.resize("runq_waits", options.max_workloads)
    opened.resize("runq_blames", max(options.max_pairs, _LRU_PER_CPU * cpus))
    if not options.watch_all:
        opened.retype("runq_waits", MAP_PERCPU_HASH)


class Runq:
    """The loaded probe; `fd` becomes readable when `events` has something."""

    def __init__(self, loaded: Object, options: RunqOptions) -> None:
        self._options = options
        self._generation = 1
        self._settings = loaded.map(".data.runq")
        self._waits = loaded.map("runq_waits")
        self._blames = loaded.map("runq_blames")
        self._cpus = loaded.map("runq_cpus")
        self._ring = loaded.ring_buffer("runq_events")
        self._removed = 0
        self.fd = self._ring.fd

    def roots_changed(self, gone: Mapping[CgroupId, Root]) -> None:
        """Have every task look its root up again; counters of those gone are dropped."""
        self._generation += 1
        options = self._options
        value = _SETTINGS.pack(
            self._generation, options.blame_floor_ns, options.event_gap_ns, options.watch_all, 0
        )
        self._settings.update(_FIRST, value)
        for cgroup in gone:
            self._removed += self._waits.delete(cgroup.to_bytes(8, "little"))

    def read(self) -> RunqSample:
        """All counters since the probe was opened."""
        workloads = {decode_id(key): decode_runq_waits(value) for key, value in self._waits.items()}
        blames = tuple(decode_runq_blame(key, value) for key, value in self._blames.items())
        cpus = decode_runq_cpus(value for _, value in self._cpus.items())
        present = len(workloads) + self._removed + len(blames)
        return RunqSample(
            workloads=workloads,
            blames=blames,
            lost_events=cpus.lost_events,
            evicted=max(0, cpus.new_waits + cpus.new_blames - present),
            unseen=cpus.no_memory,
        )

    def events(self) -> Iterator[RunqBreach]:
        """Breaches since the last call; never blocks."""
        return map(decode_runq_breach, self._ring.consume())
