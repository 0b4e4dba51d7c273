"""The run-queue probe: how long workloads wait for a CPU, who has it meanwhile, and a wake-up on a breach."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping

import msgspec

from qosd.ebpf.libbpf import MAP_PERCPU_HASH, Library, checked
from qosd.ebpf.loader import Object, load, read_object
from qosd.ebpf.maps import RunTime
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

NAME = "runq"

_SETTINGS = struct.Struct("=3Q2I")
_ROOT = struct.Struct("=Q2I")
_WATCHED = 1
_FIRST = (0).to_bytes(4, "little")

_LRU_PER_CPU = 256
"""An LRU hash hands its elements out to CPUs by 128: with fewer it throws out too early."""


class RunqRoot(msgspec.Struct, frozen=True, gc=False):
    """A workload's root. Not watched: only named as the culprit's root."""

    watched: bool
    threshold_ns: int | None = None
    """A longer wait sends an event; None never does."""


class RunqOptions(msgspec.Struct, frozen=True, gc=False):
    max_roots: int = 256
    """Workloads (all cgroups, with watch_all) that have a histogram: 232 bytes of kernel memory a CPU."""
    max_pairs: int = 2048
    watch_all: bool = False
    """Every cgroup that is in no root has a histogram under its own id."""
    blame_floor_ns: int = 50_000
    event_gap_ns: int = 100_000_000


class Runq:
    """Open with `Runq.open`; `fd` becomes readable when `events` has something."""

    def __init__(self, loaded: Object, options: RunqOptions) -> None:
        self._object = loaded
        self._options = options
        self._generation = 1
        self._root_map = loaded.map("roots")
        self._settings = loaded.map(".data.settings")
        self._waits = loaded.map("runq_waits")
        self._blames = loaded.map("runq_blames")
        self._cpus = loaded.map("cpus")
        self._ring = loaded.ring_buffer("events")
        self._roots: dict[CgroupId, RunqRoot] = {}
        self._removed = 0
        self.fd = self._ring.fd

    @classmethod
    def open(
        cls, library: Library, roots: Mapping[CgroupId, RunqRoot], options: RunqOptions | None = None
    ) -> Runq:
        """Load, configure, attach. Raises a BpfError, and then nothing of it is left in the kernel."""
        chosen = options or RunqOptions()
        cpus = checked("libbpf_num_possible_cpus", library.call.libbpf_num_possible_cpus())

        def prepare(opened: Object) -> None:
            opened.resize("cpus", cpus)
            opened.resize("roots", chosen.max_roots)
            opened.resize("runq_waits", chosen.max_roots)
            opened.resize("runq_blames", max(chosen.max_pairs, _LRU_PER_CPU * cpus))
            if not chosen.watch_all:
                opened.retype("runq_waits", MAP_PERCPU_HASH)

        loaded, _ = load(library, NAME, read_object(NAME), prepare)
        with contextlib.ExitStack() as undo:
            undo.callback(loaded.close)
            probe = cls(loaded, chosen)
            probe.set_roots(roots)
            for program in ("runq_switch", "runq_wakeup", "runq_wakeup_new"):
                loaded.attach(program)
            undo.pop_all()
        return probe

    def set_roots(self, roots: Mapping[CgroupId, RunqRoot]) -> None:
        """The workloads from now on; counters of those that stay are kept, of those that go are dropped."""
        gone = self._roots.keys() - roots.keys()
        for cgroup in gone:
            key = cgroup.to_bytes(8, "little")
            self._root_map.delete(key)
        for cgroup, root in roots.items():
            if self._roots.get(cgroup) != root:
                value = _ROOT.pack(root.threshold_ns or 0, _WATCHED if root.watched else 0, 0)
                self._root_map.update(cgroup.to_bytes(8, "little"), value)
        if {c: r.watched for c, r in self._roots.items()} != {c: r.watched for c, r in roots.items()}:
            self._generation += 1
        self._roots = dict(roots)
        self._write_settings()
        for cgroup in gone:
            self._removed += self._waits.delete(cgroup.to_bytes(8, "little"))

    def _write_settings(self) -> None:
        options = self._options
        value = _SETTINGS.pack(
            self._generation, options.blame_floor_ns, options.event_gap_ns, options.watch_all, 0
        )
        self._settings.update(_FIRST, value)

    def read(self) -> RunqSample:
        """All counters since `open`."""
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

    def run_time(self) -> dict[str, RunTime]:
        return self._object.run_time()

    def close(self) -> None:
        self._object.close()
