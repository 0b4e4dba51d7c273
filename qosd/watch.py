"""Interface files kept open between ticks: one pread a file a tick, parsed only when its text changed."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from qosd import cgroupfs, psi
from qosd.errors import CgroupGone, Malformed
from qosd.model import CgroupId, CgroupSample, CpuStat, Pressure
from qosd.sys import READ, Sys, open_interface

T = TypeVar("T")

_PAGE = 4096
_GONE = frozenset({errno.ENODEV, errno.ENOENT})


class KeptFile(Generic[T]):
    """An open interface file and the last thing it said."""

    __slots__ = ("_parse", "_raw", "_size", "_sys", "_value", "fd")

    def __init__(self, sys: Sys, fd: int, parse: Callable[[bytes], T], size: int = _PAGE) -> None:
        self._sys = sys
        self.fd = fd
        self._parse = parse
        self._size = size
        self._raw = b""
        self._value: T | None = None

    def read(self) -> T:
        """The parsed content. Raises OSError as the kernel gives it, and `Malformed`."""
        raw = self._sys.pread(self.fd, self._size, 0)
        if self._value is None or raw != self._raw:
            self._value = self._parse(raw)
            self._raw = raw
        return self._value


def text(raw: bytes) -> str:
    return raw.decode("latin-1").strip()


def keep(
    sys: Sys, dir_fd: int, file: str, parse: Callable[[bytes], T], size: int = _PAGE
) -> KeptFile[T] | None:
    """Open an interface file for keeping; None where the cgroup or the kernel has none that can be opened.

    Out of fds, or not allowed, is unknown as well and must not end the tick: the caller looks again later.
    """
    try:
        return KeptFile(sys, open_interface(sys, dir_fd, file), parse, size)
    except OSError:
        return None


def read_kept(kept: KeptFile[T] | None, label: str, unknown: dict[str, str]) -> T | None:
    """The value, or None with the reason noted when the file cannot say.

    Raises `CgroupGone` when the cgroup was removed. EOPNOTSUPP is how a pressure file says that PSI is
    off (psi=0, cgroup.pressure=0): absence, and no news.
    """
    if kept is None:
        return None
    try:
        return kept.read()
    except Malformed as error:
        unknown[label] = str(error)
    except OSError as error:
        if error.errno in _GONE:
            raise CgroupGone(label) from error
        if error.errno != errno.EOPNOTSUPP:
            unknown[label] = str(error)
    return None


class CgroupFiles(NamedTuple):
    """The five files that say how a cgroup is doing."""

    cpu_stat: KeptFile[CpuStat] | None
    memory_current: KeptFile[int] | None
    cpu_pressure: KeptFile[Pressure] | None
    memory_pressure: KeptFile[Pressure] | None
    io_pressure: KeptFile[Pressure] | None


def keep_cgroup(sys: Sys, dir_fd: int) -> CgroupFiles:
    return CgroupFiles(
        keep(sys, dir_fd, "cpu.stat", cgroupfs.parse_cpu_stat),
        keep(sys, dir_fd, "memory.current", cgroupfs.parse_memory_current),
        keep(sys, dir_fd, "cpu.pressure", psi.parse_pressure),
        keep(sys, dir_fd, "memory.pressure", psi.parse_pressure),
        keep(sys, dir_fd, "io.pressure", psi.parse_pressure),
    )


class BelowFiles(NamedTuple):
    """What is read of a cgroup below a workload: who uses what. Its waits are in the workload's pressure."""

    cpu_stat: KeptFile[CpuStat] | None
    memory_current: KeptFile[int] | None


def keep_below(sys: Sys, dir_fd: int) -> BelowFiles:
    return BelowFiles(
        keep(sys, dir_fd, "cpu.stat", cgroupfs.parse_cpu_stat),
        keep(sys, dir_fd, "memory.current", cgroupfs.parse_memory_current),
    )


def close_cgroup(sys: Sys, files: CgroupFiles | BelowFiles) -> None:
    for kept in files:
        if kept is not None:
            sys.close(kept.fd)


def sample_cgroup(
    cgroup_id: CgroupId, path: str, files: CgroupFiles, unknown: dict[str, str], last: CgroupSample | None
) -> CgroupSample:
    """The sample of this tick, the very object of the last tick when nothing moved. Raises `CgroupGone`."""
    cpu = read_kept(files.cpu_stat, path, unknown)
    memory_current = read_kept(files.memory_current, path, unknown)
    cpu_pressure = read_kept(files.cpu_pressure, path, unknown)
    memory_pressure = read_kept(files.memory_pressure, path, unknown)
    io_pressure = read_kept(files.io_pressure, path, unknown)
    if (
        last is not None
        and cpu is last.cpu
        and memory_current is last.memory_current
        and cpu_pressure is last.cpu_pressure
        and memory_pressure is last.memory_pressure
        and io_pressure is last.io_pressure
    ):
        return last
    return CgroupSample(cgroup_id, path, cpu, memory_current, cpu_pressure, memory_pressure, io_pressure)


def read_once(sys: Sys, dir_fd: int, file: str, parse: Callable[[bytes], T]) -> T | None:
    """A file of a cold cgroup: open, read, close. None where it cannot say."""
    try:
        fd = sys.open(file, READ, dir_fd=dir_fd)
    except OSError:
        return None
    try:
        return parse(sys.pread(fd, _PAGE, 0))
    except (OSError, Malformed):
        return None
    finally:
        sys.close(fd)
