"""The whole disks under the mounted filesystems: what io.max and io.latency can be set for.

The kernel takes neither a partition nor, to any use, a device that only maps requests to others, so a
partition stands for its disk and dm and md for what they lie on. Looked at from PID 1's mounts: our own
unit hides some.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from qosd.iofs import is_device
from qosd.procfs import Mount, parse_mounts
from qosd.sys import DIRECTORY, READ, Sys, read_all

_RESCAN_TICKS = 30
_DEPTH = 8  # LUKS on LVM on RAID on partitions is four
_LOOP_MAJOR, _NO_MAJOR = "7:", "0:"


class Found(NamedTuple):
    disks: tuple[str, ...] = ()
    unsupported: Mapping[str, str] = MappingProxyType({})
    """By mount point: why nothing can be set for what is stored there."""


class Disks:
    """The last finding, looked for again now and then: mounts change rarely, and a limit can wait."""

    def __init__(self, sys: Sys, proc: str, sysfs: str) -> None:
        self._sys = sys
        self._proc = proc
        self._sysfs = sysfs
        self._looked: int | None = None
        self.found = Found()

    def sample(self, tick: int) -> tuple[str, ...]:
        if self._looked is None or tick - self._looked >= _RESCAN_TICKS:
            self._looked = tick
            self.found = find(self._sys, self._proc, self._sysfs)
        return self.found.disks


def find(sys: Sys, proc: str, sysfs: str) -> Found:
    disks: set[str] = set()
    unsupported: dict[str, str] = {}
    for mount in _mounts(sys, proc):
        device = _device(sys, sysfs, mount)
        if device is None:
            continue
        below = _whole_disks(sys, sysfs, device, _DEPTH)
        disks |= below
        if not below:
            unsupported[mount.point] = f"{mount.source} ({device}) is no disk that /sys/dev/block knows"
    return Found(tuple(sorted(disks, key=_by_number)), unsupported)


def _by_number(device: str) -> tuple[int, ...]:
    return tuple(map(int, device.split(":")))


def _mounts(sys: Sys, proc: str) -> list[Mount]:
    for who in ("1", "self"):
        try:
            fd = sys.open(f"{proc}/{who}/mountinfo", READ)
        except OSError:
            continue
        try:
            return parse_mounts(read_all(sys, fd))
        except OSError:
            continue
        finally:
            sys.close(fd)
    return []


def _device(sys: Sys, sysfs: str, mount: Mount) -> str | None:
    """The block device of a mount; btrfs shows a number of its own, so there the device's name counts."""
    if mount.device.startswith(_LOOP_MAJOR):
        return None  # its file lies on a filesystem that is listed itself
    if not mount.device.startswith(_NO_MAJOR):
        return mount.device
    if not mount.source.startswith("/dev/"):
        return None
    return _read(sys, f"{sysfs}/class/block/{os.path.basename(mount.source)}/dev") or mount.device


def _whole_disks(sys: Sys, sysfs: str, device: str, depth: int) -> set[str]:
    if depth == 0 or not is_device(device):
        return set()
    place = f"{sysfs}/dev/block/{device}"
    if _read(sys, f"{place}/partition") is not None:
        whole = _read(sys, f"{place}/../dev")
        return set() if whole is None else _whole_disks(sys, sysfs, whole, depth - 1)
    if _read(sys, f"{place}/dev") is None:
        return set()
    below = [_read(sys, f"{place}/slaves/{name}/dev") for name in _names(sys, f"{place}/slaves")]
    if not below:
        return {device}
    return {disk for each in below if each for disk in _whole_disks(sys, sysfs, each, depth - 1)}


def _names(sys: Sys, directory: str) -> list[str]:
    try:
        fd = sys.open(directory, DIRECTORY)
    except OSError:
        return []
    try:
        with sys.scandir(fd) as entries:
            return sorted(entry.name for entry in entries)
    except OSError:
        return []
    finally:
        sys.close(fd)


def _read(sys: Sys, file: str) -> str | None:
    try:
        fd = sys.open(file, READ)
    except OSError:
        return None
    try:
        return sys.pread(fd, 256, 0).decode("latin-1").strip()
    except OSError:
        return None
    finally:
        sys.close(fd)
