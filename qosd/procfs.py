"""/proc/stat, meminfo, vmstat, self/cgroup, mountinfo, text to value (Documentation/filesystems/proc.rst)."""

from __future__ import annotations

import re
from itertools import chain
from typing import NamedTuple

from qosd.errors import Malformed

_DEVICE, _POINT, _OPTIONS, _SUPER_OPTIONS = 2, 4, 5, 2
_KIB = 1024
_U64_DIGITS = 20
_FIELDS = 8  # user nice system idle iowait irq softirq steal; guest time is already inside user
_CPU_LINES = re.compile(rb"cpu [ \d]+\n(?:cpu\d+ [ \d]+\n)+")  # whole lines: one that a read cut is none


def _is_count(field: bytes) -> bool:
    """int() would take "-1" and "1_0", and refuses 5000 digits with an error of its own."""
    return field.isdigit() and len(field) <= _U64_DIGITS


class HostCpu(NamedTuple):
    """Microseconds since boot, summed over the online CPUs."""

    busy_usec: int
    steal_usec: int
    nr_cpus: int
    cpus_busy_usec: dict[int, int] | None = None
    """The same of each CPU, where it was asked for: it costs a microsecond and a half a CPU."""


def parse_stat(raw: bytes, ticks_per_second: int, *, each: bool = False) -> HostCpu:
    """The cpu lines of /proc/stat. iowait is idle time; steal was never this host's to use."""
    usec = 1_000_000 // ticks_per_second
    block = _CPU_LINES.match(raw)
    if block is None:
        raise Malformed("/proc/stat", raw[:80].decode("latin-1"))
    lines = block[0].splitlines()
    fields = [line.split() for line in (lines if each else lines[:1])]
    if min(map(len, fields)) <= _FIELDS or max(map(len, chain(*fields))) > _U64_DIGITS:
        raise Malformed("/proc/stat", raw[:80].decode("latin-1"))
    cpus = {int(line[0][3:]): _busy(line) * usec for line in fields[1:]} if each else None
    return HostCpu(_busy(fields[0]) * usec, int(fields[0][_FIELDS]) * usec, len(lines) - 1, cpus)


def _busy(line: list[bytes]) -> int:
    """In clock ticks: user + nice + system + irq + softirq."""
    return int(line[1]) + int(line[2]) + int(line[3]) + int(line[6]) + int(line[7])


class Meminfo(NamedTuple):
    """Bytes; None where this kernel has no such line."""

    mem_total: int | None
    mem_available: int | None
    swap_total: int | None
    swap_free: int | None
    mem_free: int | None = None


def parse_meminfo(raw: bytes) -> Meminfo:
    def size(name: bytes) -> int | None:
        kib = _after(raw, name + b":", "/proc/meminfo")
        return kib * _KIB if kib is not None else None

    return Meminfo(
        size(b"MemTotal"), size(b"MemAvailable"), size(b"SwapTotal"), size(b"SwapFree"), size(b"MemFree")
    )


def _after(raw: bytes, key: bytes, file: str) -> int | None:
    """The number that follows a key at the beginning of a line: the tick wants two lines of 180."""
    _, found, rest = (b"\n" + raw).partition(b"\n" + key)
    if not found:
        return None
    line = rest.partition(b"\n")[0]
    number = line.split()[:1]
    if not number or not _is_count(number[0]):
        raise Malformed(file, (key + line).decode("latin-1"))
    return int(number[0])


class Vmstat(NamedTuple):
    """Pages that the kernel's own reclaim looked at, in the background and in an allocation."""

    pgscan_kswapd: int | None
    pgscan_direct: int | None


def parse_vmstat(raw: bytes) -> Vmstat:
    return Vmstat(*(_after(raw, key, "/proc/vmstat") for key in (b"pgscan_kswapd ", b"pgscan_direct ")))


def parse_self_cgroup(raw: bytes) -> str | None:
    """The path of the process's cgroup v2 (the `0::` line), relative to the mount; None without one."""
    for line in raw.split(b"\n"):
        if line.startswith(b"0::/"):
            return line[4:].decode("utf-8", "surrogateescape")
    return None


class Mount(NamedTuple):
    point: str
    fstype: str
    options: frozenset[str]
    super_options: frozenset[str]
    device: str = ""
    """MAJ:MIN; of btrfs, network and memory filesystems a number that is no device's."""
    source: str = ""


def parse_mounts(mountinfo: bytes) -> list[Mount]:
    """/proc/self/mountinfo, octal escapes of the mount points undone."""
    mounts = []
    for line in mountinfo.decode("utf-8", "surrogateescape").split("\n"):
        before, _, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if len(fields) > _OPTIONS and len(tail) > _SUPER_OPTIONS:
            options = frozenset(fields[_OPTIONS].split(","))
            super_options = frozenset(tail[_SUPER_OPTIONS].split(","))
            point, source = _unescape(fields[_POINT]), _unescape(tail[1])
            mounts.append(Mount(point, tail[0], options, super_options, fields[_DEVICE], source))
    return mounts


def _unescape(point: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)


def cgroup2_mount(proc: str = "/proc") -> str | None:
    """Where cgroup2 is mounted, None where it is not."""
    with open(f"{proc}/self/mountinfo", "rb") as file:
        mounts = parse_mounts(file.read())
    return next((mount.point for mount in mounts if mount.fstype == "cgroup2"), None)
