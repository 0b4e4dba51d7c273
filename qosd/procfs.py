"""/proc/stat, meminfo, self/cgroup and mountinfo, text to value (Documentation/filesystems/proc.rst)."""

from __future__ import annotations

import re
from typing import NamedTuple

from qosd.errors import Malformed

_DEVICE, _POINT, _OPTIONS, _SUPER_OPTIONS = 2, 4, 5, 2
_KIB = 1024
_U64_DIGITS = 20
_FIELDS = 8  # user nice system idle iowait irq softirq steal; guest time is already inside user


def _is_count(field: bytes) -> bool:
    """int() would take "-1" and "1_0", and refuses 5000 digits with an error of its own."""
    return field.isdigit() and len(field) <= _U64_DIGITS


class HostCpu(NamedTuple):
    """Microseconds since boot, summed over the online CPUs."""

    busy_usec: int
    steal_usec: int
    nr_cpus: int
    cpus_busy_usec: dict[int, int]
    """The same of each CPU."""


def parse_stat(raw: bytes, ticks_per_second: int) -> HostCpu:
    """The cpu lines of /proc/stat. iowait is idle time; steal was never this host's to use."""
    usec = 1_000_000 // ticks_per_second
    lines = raw.split(b"\n")
    busy, steal = _parse_cpu_line(lines[0], b"cpu", raw)
    cpus: dict[int, int] = {}
    for line in lines[1:-1]:  # the last one has no end: cut, or empty
        if not line.startswith(b"cpu"):
            break
        number = line[3:].partition(b" ")[0]
        if not _is_count(number):
            raise _malformed_stat(raw)
        cpus[int(number)] = _parse_cpu_line(line, b"cpu" + number, raw)[0] * usec
    if not cpus:
        raise _malformed_stat(raw)
    return HostCpu(busy * usec, steal * usec, len(cpus), cpus)


def _parse_cpu_line(line: bytes, name: bytes, raw: bytes) -> tuple[int, int]:
    """Busy and stolen ticks."""
    fields = line.split()
    if len(fields) <= _FIELDS or fields[0] != name or not all(map(_is_count, fields[1:])):
        raise _malformed_stat(raw)
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[1 : _FIELDS + 1])
    return user + nice + system + irq + softirq, steal


def _malformed_stat(raw: bytes) -> Malformed:
    return Malformed("/proc/stat", raw[:80].decode("latin-1"))


class Meminfo(NamedTuple):
    """Bytes; None where this kernel has no such line."""

    mem_total: int | None
    mem_available: int | None
    swap_total: int | None
    swap_free: int | None


def parse_meminfo(raw: bytes) -> Meminfo:
    values: dict[bytes, int] = {}
    for line in raw.split(b"\n"):
        key, _, rest = line.partition(b":")
        if key in (b"MemTotal", b"MemAvailable", b"SwapTotal", b"SwapFree"):
            number = rest.split()[:1]
            if not number or not _is_count(number[0]):
                raise Malformed("/proc/meminfo", line.decode("latin-1"))
            values[key] = int(number[0]) * _KIB
    return Meminfo(
        values.get(b"MemTotal"),
        values.get(b"MemAvailable"),
        values.get(b"SwapTotal"),
        values.get(b"SwapFree"),
    )


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
