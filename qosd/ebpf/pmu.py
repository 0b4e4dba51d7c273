"""Cycles, instructions and cache misses of LS workloads: perf events on their cgroups (perf_event_open(2)).

No BPF: a cgroup's counters run while its tasks do. They need a PMU, which most virtual machines lack; then it
is said once and nothing is guessed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Callable

import msgspec

from qosd.ebpf.samples import Counts
from qosd.errors import CgroupGone
from qosd.model import CgroupId, Snapshot, Tier, Workload
from qosd.sys import Sys, open_same_cgroup

MAX_WORKLOADS = 16
"""An fd for each event, workload and CPU."""

_SYSCALL = {"x86_64": 298, "aarch64": 241}
_ATTR = struct.Struct("=2I5Q2IQ")
"""struct perf_event_attr up to config1: PERF_ATTR_SIZE_VER0."""
_READ = struct.Struct("=3Q")
"""nr, time_enabled, time_running; the values follow."""
_GROUP = 1 | 2 | 8
"""PERF_FORMAT_TOTAL_TIME_ENABLED, _TOTAL_TIME_RUNNING, _GROUP"""
_BY_CGROUP = 4 | 8
"""PERF_FLAG_PID_CGROUP, PERF_FLAG_FD_CLOEXEC"""


class Event(msgspec.Struct, frozen=True, gc=False):
    """`type` and `config` of struct perf_event_attr."""

    type: int
    config: int


HARDWARE = (Event(0, 0), Event(0, 1), Event(0, 3))
"""PERF_COUNT_HW_CPU_CYCLES, _INSTRUCTIONS, _CACHE_MISSES (of the last level)"""


Opener = Callable[[Event, int, int, int], int]
"""Of an event, a cgroup's fd, a CPU and the group's first fd (or -1): a new fd, or OSError."""


def perf_event_open(event: Event, cgroup_fd: int, cpu: int, leader: int) -> int:
    attr = _ATTR.pack(event.type, _ATTR.size, event.config, 0, 0, _GROUP, 0, 0, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    number = _SYSCALL.get(os.uname().machine)
    if number is None:
        raise OSError(38, "perf_event_open is not known for this machine")
    fd: int = libc.syscall(number, attr, cgroup_fd, cpu, leader, ctypes.c_ulong(_BY_CGROUP))
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


class Pmu:
    """Closed until `open`. `why` says what is missing, after the first try."""

    def __init__(
        self,
        sys: Sys,
        root_fd: int,
        events: tuple[Event, ...] = HARDWARE,
        opener: Opener = perf_event_open,
    ) -> None:
        self._sys = sys
        self._root_fd = root_fd
        self._events = events
        self._opener = opener
        self._groups: dict[CgroupId, list[list[int]]] = {}
        self._last: dict[CgroupId, tuple[int, ...]] = {}
        self.why: str | None = "not opened yet"

    def open(self) -> None:
        """Before the first `sample`; nothing is asked of the kernel yet."""
        self.close()
        self.why = None

    def sample(self, now: Snapshot) -> dict[CgroupId, Counts]:
        """What LS workloads did since the last call; those that are new come with the next one."""
        if self.why is not None:
            return {}
        counts: dict[CgroupId, Counts] = {}
        present = now.tier(Tier.LS)[:MAX_WORKLOADS]
        for gone in self._groups.keys() - {each.id for each in present}:
            self._drop(gone)
        try:
            for workload in present:
                self._follow(workload, now.host.cpus_online or ())
        except OSError as error:
            self.close()
            self.why = f"no PMU: cpi is not available (perf_event_open: {error.strerror})"
            return {}
        for cgroup in self._groups:
            total, before = self._total(cgroup), self._last.get(cgroup)
            self._last[cgroup] = total
            if before is not None and all(a >= b for a, b in zip(total, before, strict=True)):
                counts[cgroup] = Counts(*(a - b for a, b in zip(total, before, strict=True)))
        return counts

    def _follow(self, workload: Workload, cpus: tuple[int, ...]) -> None:
        if workload.id in self._groups:
            return
        try:
            fd = open_same_cgroup(self._sys, self._root_fd, workload.path, workload.id)
        except (CgroupGone, OSError):
            return
        groups: list[list[int]] = []
        self._groups[workload.id] = groups
        try:
            for cpu in cpus:
                group: list[int] = []
                groups.append(group)
                for event in self._events:
                    group.append(self._opener(event, fd, cpu, group[0] if group else -1))
        finally:
            self._sys.close(fd)

    def _total(self, cgroup: CgroupId) -> tuple[int, ...]:
        """Over the CPUs. Where events take turns (multiplexing), what they would have counted."""
        sums = [0] * len(self._events)
        for group in self._groups[cgroup]:
            raw = os.read(group[0], _READ.size + 8 * len(self._events))
            _nr, enabled, running = _READ.unpack_from(raw)
            for index in range(len(self._events)):
                (value,) = struct.unpack_from("=Q", raw, _READ.size + 8 * index)
                sums[index] += value * enabled // running if running else 0
        return tuple(sums)

    def _drop(self, cgroup: CgroupId) -> None:
        self._last.pop(cgroup, None)
        for group in self._groups.pop(cgroup, []):
            for fd in reversed(group):
                with contextlib.suppress(OSError):
                    os.close(fd)

    def close(self) -> None:
        for cgroup in tuple(self._groups):
            self._drop(cgroup)
        self.why = "closed"
