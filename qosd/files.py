"""The interface files qosd writes: how one is named across the program, and the order they are undone in.

Pure and standard library only: decisions and the crash restore both stand on it.
"""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """One interface file of one cgroup, by inode: the unit of journal, diff and ownership."""

    cgroup_id: int
    file: str


RESTORE_ORDER = (
    "cgroup.freeze",
    "cpu.max.burst",
    "cpu.max",
    "cpu.idle",
    "cpu.weight",
    "cpuset.cpus",
    "memory.high",
    "memory.low",
    "memory.min",
)
"""Thaw first; burst and limit before the share; a group's weight cannot be written while it is idle.

Limits of memory go before protection: a group that is let grow needs nobody else's memory taken first.
"""


def restore_rank(key: Key) -> int:
    return RESTORE_ORDER.index(key.file) if key.file in RESTORE_ORDER else len(RESTORE_ORDER)
