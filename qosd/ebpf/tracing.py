"""The probes on the kernel's tracepoints: opened together, each may be absent, gone together.

A probe that the kernel can't run takes nobody with it: it is left out and `absent` says why.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import msgspec

from qosd.ebpf import runq
from qosd.ebpf.errors import BpfError, HookMissingError, RefusedError
from qosd.ebpf.libbpf import Library, checked
from qosd.ebpf.loaded import Loaded
from qosd.ebpf.loader import Object, missing_hooks, read_object
from qosd.ebpf.maps import RunTime
from qosd.ebpf.runq import Root, Runq, RunqOptions, lru_room
from qosd.ebpf.samples import (
    BlkioSample,
    ReclaimSample,
    RunqBreach,
    TcpSample,
    TracingSample,
    blkio_sample,
    decode_histogram,
    decode_id,
    decode_io,
    decode_io_key,
    decode_reclaim_key,
    decode_tcp,
    reclaim_sample,
    tcp_sample,
)
from qosd.model import CgroupId

NAME = "tracing"

Probe = Literal["runq", "reclaim", "blkio", "tcp"]

PROGRAMS: dict[Probe, tuple[str, ...]] = {
    "runq": runq.PROGRAMS,
    "reclaim": ("reclaim_direct_begin", "reclaim_direct_end", "reclaim_memcg_begin", "reclaim_memcg_end"),
    "blkio": ("blkio_complete",),
    "tcp": ("tcp_rtt", "tcp_retransmit"),
}
_MAPS: dict[Probe, tuple[str, ...]] = {
    "runq": runq.MAPS,
    "reclaim": ("reclaim_stalls", "reclaiming"),
    "blkio": ("blkio_latency",),
    "tcp": ("tcp_workloads",),
}
ALL: tuple[Probe, ...] = ("runq", "reclaim", "blkio", "tcp")

_DISPENSABLE = frozenset({"reclaim_memcg_begin", "reclaim_memcg_end"})
"""Without them the probe still answers: kernels without CONFIG_MEMCG have no such tracepoints."""

_ROOT = struct.Struct("=2I")
_WATCHED = 1
_FIRST = (0).to_bytes(4, "little")


class TracingOptions(msgspec.Struct, frozen=True, gc=False):
    probes: tuple[Probe, ...] = ALL
    max_roots: int = 1024
    runq: RunqOptions = RunqOptions()


class Tracing:
    """Open with `Tracing.open`. `fd` is readable when `events` has something; None without the runq probe."""

    def __init__(
        self, loaded: Loaded, options: TracingOptions, absent: Mapping[Probe, BpfError], cpus: int
    ) -> None:
        self.absent = dict(absent)
        self._object = loaded
        self._links: dict[Probe, list[int]] = {}
        self._roots: dict[CgroupId, Root] = {}
        self._root_map = loaded.map("roots")
        wanted = "runq" in options.probes and "runq" not in absent
        self._runq = Runq(loaded, options.runq, cpus) if wanted else None
        self.fd = self._runq.fd if self._runq else None

    @classmethod
    def open(
        cls,
        library: Library,
        roots: Mapping[CgroupId, Root],
        options: TracingOptions | None = None,
        elf: bytes | None = None,
    ) -> Tracing:
        """Load, configure, attach. A BpfError if no probe is left; nothing stays in the kernel then."""
        chosen = options or TracingOptions()
        loaded, absent, left_out = _load(library, chosen, read_object(NAME) if elf is None else elf)
        with contextlib.ExitStack() as undo:
            undo.callback(loaded.close)
            tracing = cls(loaded, chosen, absent, possible_cpus(library))
            tracing.set_roots(roots)
            for probe in chosen.probes:
                if probe not in absent:
                    programs = [name for name in PROGRAMS[probe] if name not in left_out]
                    tracing.attach(probe, programs)
            undo.pop_all()
        return tracing

    def attach(self, probe: Probe, programs: Iterable[str]) -> None:
        """Put a probe on its hooks."""
        self._links[probe] = [self._object.attach(name) for name in programs]

    @property
    def attached(self) -> tuple[Probe, ...]:
        return tuple(self._links)

    def set_roots(self, roots: Mapping[CgroupId, Root]) -> None:
        """The workloads from now on; counters of those that stay are kept, of those that go are dropped."""
        if roots == self._roots:
            return
        gone = [cgroup for cgroup in self._roots if cgroup not in roots]
        for cgroup in gone:
            self._root_map.delete(cgroup.to_bytes(8, "little"))
            if self._runq:
                self._runq.forget(cgroup)
        placed = self._runq.can_place(roots) if self._runq else frozenset()
        for cgroup, root in roots.items():
            if self._roots.get(cgroup) != root or cgroup in placed:
                slot = self._runq.slot_of(cgroup, root) if self._runq else 0
                value = _ROOT.pack(slot, _WATCHED if root.watched else 0)
                self._root_map.update(cgroup.to_bytes(8, "little"), value)
        moved = roots.keys() != self._roots.keys() or any(
            root.watched != self._roots[cgroup].watched for cgroup, root in roots.items()
        )
        self._roots = dict(roots)
        if self._runq and moved:  # a threshold is looked up at each breach anyway
            self._runq.roots_changed()

    def read(self) -> TracingSample:
        return TracingSample(
            runq=self._runq.read() if self._runq else None,
            reclaim=self._read_reclaim() if "reclaim" in self._links else None,
            blkio=self._read_blkio() if "blkio" in self._links else None,
            tcp=self._read_tcp() if "tcp" in self._links else None,
        )

    def _read_reclaim(self) -> ReclaimSample:
        items = self._object.map("reclaim_stalls").items()
        stalls = {decode_reclaim_key(key): decode_histogram(value) for key, value in items}
        return reclaim_sample(stalls, self._counters(".data.reclaim"))

    def _read_blkio(self) -> BlkioSample:
        items = self._object.map("blkio_latency").items()
        io = {decode_io_key(key): decode_io(value) for key, value in items}
        return blkio_sample(io, self._counters(".data.blkio"))

    def _read_tcp(self) -> TcpSample:
        items = self._object.map("tcp_workloads").items()
        workloads = {decode_id(key): decode_tcp(value) for key, value in items}
        return tcp_sample(workloads, self._counters(".data.tcp"))

    def _counters(self, name: str) -> bytes:
        value = self._object.map(name).lookup(_FIRST)
        if value is None:
            raise BpfError(f"{NAME}: {name} has no element 0")
        return value

    def events(self) -> Iterator[RunqBreach]:
        """Breaches since the last call; never blocks."""
        return self._runq.events() if self._runq else iter(())

    def run_time(self) -> dict[Probe, RunTime]:
        """What each probe has cost while `run_time_statistics` was on."""
        programs = self._object.run_time()
        return {
            probe: RunTime(
                run_time_ns=sum(programs[name].run_time_ns for name in PROGRAMS[probe] if name in programs),
                run_cnt=sum(programs[name].run_cnt for name in PROGRAMS[probe] if name in programs),
            )
            for probe in self._links
        }

    def detach(self, probe: Probe, reason: BpfError) -> None:
        """Off its hooks, for good; its counters stand still and are not read any more."""
        for link in self._links.pop(probe, []):
            self._object.detach(link)
        self.absent[probe] = reason
        if probe == "runq" and self._runq:
            self._runq.close()
            self._runq, self.fd = None, None

    def close(self) -> None:
        if self._runq:
            self._runq.close()
            self._runq, self.fd = None, None
        self._object.close()


def possible_cpus(library: Library) -> int:
    return checked("libbpf_num_possible_cpus", library.call.libbpf_num_possible_cpus())


def _load(
    library: Library, options: TracingOptions, elf: bytes
) -> tuple[Object, dict[Probe, BpfError], frozenset[str]]:
    """A loaded object with what this kernel can run of it.

    Hooks are looked up only after a refusal: reading the kernel's BTF for it costs as much as a load.
    """
    absent: dict[Probe, BpfError] = {}
    left_out: frozenset[str] | None = None
    while True:
        try:
            loaded = _try_load(library, options, elf, absent, left_out or frozenset())
        except RefusedError as error:
            looked_up = left_out is not None
            left_out = left_out or _without_hooks(library, elf, absent)
            if looked_up or not left_out:
                absent[_refused_probe(error, absent)] = error
        else:
            return loaded, absent, left_out or frozenset()
        if all(probe in absent for probe in options.probes):
            raise next(iter(absent.values()))


def _refused_probe(error: RefusedError, absent: Mapping[Probe, BpfError]) -> Probe:
    for probe, programs in PROGRAMS.items():
        if error.program in programs and probe not in absent:
            return probe
    raise error


def _without_hooks(library: Library, elf: bytes, absent: dict[Probe, BpfError]) -> frozenset[str]:
    """The programs that this kernel has no tracepoint for; a probe that needs one of them becomes absent."""
    missing = missing_hooks(library, NAME, elf)
    for probe, programs in PROGRAMS.items():
        hooks = sorted({missing[name] for name in programs if name in missing and name not in _DISPENSABLE})
        if hooks:
            absent[probe] = HookMissingError(probe, tuple(hooks))
    return frozenset(missing)


def _try_load(
    library: Library,
    options: TracingOptions,
    elf: bytes,
    absent: Mapping[Probe, BpfError],
    left_out: frozenset[str],
) -> Object:
    opened = Object(library, NAME, elf)
    with contextlib.ExitStack() as undo:
        undo.callback(opened.close)
        for probe in ALL:
            if probe in absent or probe not in options.probes:
                for program in PROGRAMS[probe]:
                    opened.leave_out(program)
                for name in _MAPS[probe]:
                    opened.leave_out_map(name)
        for program in left_out:
            opened.leave_out(program)
        opened.resize("roots", options.max_roots)
        if "tcp" in options.probes:
            opened.resize("tcp_workloads", max(options.max_roots, lru_room(possible_cpus(library))))
        if "runq" in options.probes and "runq" not in absent:
            runq.prepare(opened, options.runq, possible_cpus(library))
        opened.load()
        undo.pop_all()
    return opened
