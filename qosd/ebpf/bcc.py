"""The second loader, for kernels without BTF: bcc compiles the run-queue probe on the host, with its headers.

bcc itself runs in a process of its own (`qosd.ebpf.compiler`), of which programs and maps are taken over by
their descriptors. Attaching, reading and the ring buffer go by libbpf as ever.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time

from qosd.ebpf import compiler
from qosd.ebpf.errors import BccMissingError, BpfError, NotByBccError, RefusedError
from qosd.ebpf.libbpf import Library, checked
from qosd.ebpf.maps import Map, RingBuffer, RunTime, read_run_time
from qosd.ebpf.runq import MAPS, RunqOptions, pairs
from qosd.ebpf.tracing import ALL, Probe, Tracing, TracingOptions, possible_cpus

NAME = "runq.bcc"
HOOKS = {"runq_switch": "sched_switch", "runq_wakeup": "sched_wakeup", "runq_wakeup_new": "sched_wakeup_new"}
PROGRAMS = tuple(HOOKS)
NAMES = {".data.runq": "runq_settings"}
_MAPS = ("roots", "runq_settings", *MAPS)
_PATIENCE_SEC = 600
_MOST_FDS = 64


class BccObject:
    """As `loader.Object`, of programs that bcc has compiled and loaded."""

    def __init__(self, library: Library, fds: dict[str, int]) -> None:
        self.name = NAME
        self._library = library
        self._fds = fds
        self._links: list[int] = []
        self._rings: list[RingBuffer] = []
        self._opened: dict[str, Map] = {}

    def map(self, name: str) -> Map:
        if name not in self._opened:
            self._opened[name] = Map.of_fd(self._library, self._fds[NAMES.get(name, name)], name)
        return self._opened[name]

    def ring_buffer(self, name: str) -> RingBuffer:
        ring = RingBuffer(self._library, self._fds[name])
        self._rings.append(ring)
        return ring

    def attach(self, program: str) -> int:
        result = self._library.call.bpf_raw_tracepoint_open(HOOKS[program].encode(), self._fds[program])
        self._links.append(checked(f"{NAME}: attach {program}", result))
        return self._links[-1]

    def detach(self, link: int) -> None:
        self._links.remove(link)
        os.close(link)

    def run_time(self) -> dict[str, RunTime]:
        return {name: read_run_time(self._library, self._fds[name]) for name in PROGRAMS}

    def close(self) -> None:
        """Programs off their hooks first, then everything else."""
        for ring in self._rings:
            ring.close()
        for fd in (*self._links, *self._fds.values()):
            os.close(fd)
        self._links, self._rings, self._fds = [], [], {}


class Compiling:
    """bcc at work. `result` says None until it is done; `close` ends it."""

    def __init__(self, library: Library, options: TracingOptions) -> None:
        if "runq" not in options.probes:
            raise NotByBccError(options.probes[0])
        self._library = library
        self._options = options
        self._cpus = possible_cpus(library)
        self._deadline = time.monotonic() + _PATIENCE_SEC
        flags = definitions(options.runq, self._cpus)
        request = json.dumps({"programs": PROGRAMS, "maps": _MAPS, "flags": flags})
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", compiler.__file__, str(theirs.fileno()), request],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def result(self, wait_sec: float = 0.0) -> Tracing | None:
        """The attached probe. Raises a BpfError if it cannot be had."""
        if not select.select([self._channel], [], [], wait_sec)[0]:
            if time.monotonic() < self._deadline:
                return None
            raise RefusedError(NAME, None, f"bcc was not done after {_PATIENCE_SEC} s", "")
        said, fds, _flags, _address = socket.recv_fds(self._channel, 1 << 16, _MOST_FDS)
        if not fds:
            raise self._failure(said)
        return self._opened(dict(zip((*PROGRAMS, *_MAPS), fds, strict=True)))

    def _failure(self, said: bytes) -> BpfError:
        if not said:
            why = f"bcc's process ended with status {self._process.wait()}"
            return RefusedError(NAME, None, why, why)
        answer = json.loads(said)
        if answer["kind"] == compiler.MISSING:
            return BccMissingError(answer["why"])
        return RefusedError(NAME, None, answer["why"], answer["why"])

    def _opened(self, fds: dict[str, int]) -> Tracing:
        options = self._options
        loaded = BccObject(self._library, fds)
        absent: dict[Probe, BpfError] = {probe: NotByBccError(probe) for probe in ALL if probe != "runq"}
        wanted = {probe: error for probe, error in absent.items() if probe in options.probes}
        try:
            tracing = Tracing(loaded, options, wanted, self._cpus)
            tracing.attach("runq", PROGRAMS)
        except BpfError:
            loaded.close()
            raise
        return tracing

    def close(self) -> None:
        self._channel.close()
        self._process.kill()
        self._process.wait()


def open_tracing(library: Library, options: TracingOptions) -> Tracing:
    """The run-queue probe alone, waited for. Raises a BpfError if it cannot be had."""
    compiling = Compiling(library, options)
    try:
        tracing = compiling.result(_PATIENCE_SEC)
    finally:
        compiling.close()
    if tracing is None:
        raise RefusedError(NAME, None, f"bcc was not done after {_PATIENCE_SEC} s", "")
    return tracing


def definitions(options: RunqOptions, cpus: int) -> list[str]:
    """What the program takes from its compiler's command line."""
    values = {
        "CPUS": cpus,
        "SLOTS": options.max_workloads + 1,
        "PAIRS": pairs(options, cpus),
        "BLAME_FLOOR_NS": f"{options.blame_floor_ns}ull",
        "EVENT_GAP_NS": f"{options.event_gap_ns}ull",
    }
    return [f"-D{name}={value}" for name, value in values.items()]
