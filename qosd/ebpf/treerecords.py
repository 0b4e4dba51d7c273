"""The records of the `tree` walk, bytes to values. Pure; the layout is `struct record` of tree.bpf.c."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import cast

from qosd.model import CgroupId, CpuStat

_RECORD = struct.Struct("=6Q4I")
_WORD = struct.Struct("=Q")
SIZE = _RECORD.size
_WORDS = SIZE // 8
_WHOLE = struct.Struct(f"={SIZE}s")

_HAS_BANDWIDTH, _HAS_BURST, _HAS_MEMORY = 1, 2, 4


def split(raw: bytes) -> Iterator[tuple[CgroupId, tuple[bytes]]]:
    """Each cgroup's id and its record, undecoded: most are those of the last walk, to the byte."""
    # Not by CgroupId(), which is a call for each.
    ids = cast("list[CgroupId]", memoryview(raw).cast("Q")[::_WORDS].tolist())
    return zip(ids, _WHOLE.iter_unpack(raw), strict=True)


def id_of(record: bytes) -> CgroupId:
    return CgroupId(_WORD.unpack_from(record)[0])


def parent_of(record: bytes) -> CgroupId:
    return CgroupId(_WORD.unpack_from(record, _WORD.size)[0])


def decode(record: bytes, page_bytes: int) -> tuple[CpuStat, int | None]:
    """What cpu.stat says, but for user and system time, and memory.current.

    Microseconds are cut off as by cgroup_base_stat_cputime_show() and cpu_extra_stat_show().
    """
    _id, _parent, usage, throttled, burst, pages, periods, times_throttled, bursts, has = _RECORD.unpack(
        record
    )
    memory = pages * page_bytes if has & _HAS_MEMORY else None
    if not has & _HAS_BANDWIDTH:
        return CpuStat(usage // 1000), memory
    if not has & _HAS_BURST:
        return CpuStat(usage // 1000, None, None, periods, times_throttled, throttled // 1000), memory
    return (
        CpuStat(
            usage // 1000, None, None, periods, times_throttled, throttled // 1000, bursts, burst // 1000
        ),
        memory,
    )
