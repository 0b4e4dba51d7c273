"""The probes without a kernel: `Tracing` with counters that a test sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qosd.ebpf.errors import BpfError, HookMissingError
from qosd.ebpf.histogram import SLOTS, Histogram
from qosd.ebpf.samples import BlkioSample, RunqBreach, RunqSample, RunqWaits, TracingSample
from qosd.model import CgroupId


class FakeTracing:
    """As `Tracing`, with counters that a test sets."""

    def __init__(self, ls: int = 1) -> None:
        self.ls = CgroupId(ls)
        self.fd: int | None = 7
        self.attached: tuple[Any, ...] = ("runq", "blkio")
        self.absent: dict[Any, BpfError] = {
            "reclaim": HookMissingError("reclaim", ("mm_vmscan_direct_reclaim_begin",))
        }
        self.roots: dict[CgroupId, Any] = {}
        self.cost_ns = 0
        self.waits = 0
        self.slot = 1
        self.breaches: list[RunqBreach] = []
        self.error: BpfError | None = None
        self.closed = False

    def set_roots(self, roots: Mapping[CgroupId, Any]) -> None:
        self.roots = dict(roots)

    def read(self) -> TracingSample:
        if self.error is not None:
            raise self.error
        slots = tuple(self.waits if slot == self.slot else 0 for slot in range(SLOTS))
        histogram = Histogram(slots=slots, total_ns=self.waits)
        waits = RunqWaits(waits=histogram, idle_ns=0, unknown_ns=0, breaches=0)
        runq = RunqSample({self.ls: waits}, (), 3, 2, 1, self.cost_ns) if "runq" in self.attached else None
        return TracingSample(runq, None, BlkioSample({}, 0, 0))

    def events(self) -> list[RunqBreach]:
        if self.error is not None:
            raise self.error
        events, self.breaches = self.breaches, []
        return events

    def detach(self, probe: str, reason: BpfError) -> None:
        self.attached = tuple(each for each in self.attached if each != probe)
        self.absent[probe] = reason

    def close(self) -> None:
        self.closed = True
