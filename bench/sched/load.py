"""The two C programs: built once, calibrated once a machine, started for every segment in their cgroups."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import subprocess
from typing import NamedTuple

from bench.sched.groups import Groups

_HERE = os.path.dirname(os.path.abspath(__file__))
_LINE = 64
_UNIT_USEC = 50


class Programs(NamedTuple):
    directory: str
    rounds_per_ms: int
    """Of spin(): how fast an undisturbed CPU of this machine works."""


class Load(NamedTuple):
    """The LS side of a segment."""

    shape: str
    duration_ms: int
    workers: int
    seed: int
    nr_cpus: int
    work_usec: int


class Request(NamedTuple):
    """One record of ls.c, in nanoseconds."""

    intended: int
    latency: int
    wake: int
    service: int
    cpu: int


def build(directory: str, *, static: bool = False) -> None:
    """`static` for a machine that has no compiler and other libraries."""
    for name in ("ls", "hog"):
        command = ["cc", "-O2", "-o", f"{directory}/{name}", f"{_HERE}/{name}.c", "-lm", "-lpthread"]
        subprocess.run([*command, *["-static"] * static], check=True)


def calibrated(directory: str) -> Programs:
    """The programs of a directory on this machine, as fast as it is when nobody disturbs it."""
    runs = [
        int(subprocess.run([f"{directory}/ls", "calibrate"], check=True, capture_output=True).stdout)
        for _ in range(3)
    ]
    return Programs(directory, max(runs))


class Hogs:
    """BE: threads that spin, and the units of work that they finished."""

    def __init__(self, programs: Programs, groups: Groups, threads: int) -> None:
        path = f"{programs.directory}/counters"
        self._threads = threads
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, threads * _LINE)
        self._map = mmap.mmap(self._fd, threads * _LINE, prot=mmap.PROT_READ)
        rounds = programs.rounds_per_ms * _UNIT_USEC // 1000
        command = [f"{programs.directory}/hog", path, str(threads), str(rounds), *groups.be.procs]
        self._process = subprocess.Popen(command)

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def work_usec(self) -> int:
        """CPU time that this much work takes on an undisturbed CPU."""
        units: int = sum(struct.unpack_from("<Q", self._map, i * _LINE)[0] for i in range(self._threads))
        return units * _UNIT_USEC

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._map.close()
        os.close(self._fd)


class Service:
    """LS: the open-loop load, started ahead of its first arrival."""

    def __init__(self, programs: Programs, groups: Groups, load: Load, start_ns: int) -> None:
        self._out = f"{programs.directory}/latencies"
        rounds = programs.rounds_per_ms * load.work_usec // 1000
        command = [
            f"{programs.directory}/ls",
            "run",
            self._out,
            *map(str, (start_ns, load.duration_ms, load.workers, load.seed, rounds)),
            *map(str, (load.nr_cpus, load.work_usec)),
            load.shape,
            *groups.ls.procs,
        ]
        self._process = subprocess.Popen(command)

    def requests(self) -> list[Request]:
        """All of them, once the program is done."""
        if self._process.wait(timeout=30) != 0:
            raise RuntimeError("the LS load failed")
        with open(self._out, "rb") as file:
            return [Request(*pair) for pair in struct.iter_unpack("<5Q", file.read())]

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
