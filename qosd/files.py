"""The interface files qosd writes: how one is named across the program, and the order they are undone in.

Pure and standard library only: decisions and the crash restore both stand on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Key(NamedTuple):
    """One interface file of one cgroup, by inode: the unit of journal, diff and ownership.

    Of a file that holds a line for each device it is one line, as `io.max 8:16`: others have lines of
    their own in it, so each is compared, written and restored alone.
    """

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
    "memory.oom.group",
    "io.max",
    "io.latency",
    "io.weight",
    "io.bfq.weight",
)
"""Thaw first; burst and limit before the share; a group's weight cannot be written while it is idle.

Limits of memory go before protection: a group that is let grow needs nobody else's memory taken first.
"""


def restore_rank(key: Key) -> int:
    file = interface_file(key.file)
    return RESTORE_ORDER.index(file) if file in RESTORE_ORDER else len(RESTORE_ORDER)


NO_LINE = {
    "io.max": "rbps=max wbps=max riops=max wiops=max",
    "io.latency": "target=0",
    "io.weight": "default",
    "io.bfq.weight": "default",
}
"""What writing a line's own absence says: the kernel shows a device only while it differs from this."""


def interface_file(file: str) -> str:
    """`io.max` of the line `io.max 8:16`; a file that is one value is itself."""
    return file.partition(" ")[0]


def line_of(file: str, whole: str) -> str:
    """What an interface file's text says for one line of it; a file that is one value is all of it."""
    name, _, line = file.partition(" ")
    if not line:
        return whole
    for each in whole.split("\n"):
        head, _, value = each.strip().partition(" ")
        if head == line:
            return value.strip()
    return NO_LINE.get(name, "")


def line_to_write(file: str, value: str) -> str:
    """What the kernel must be given to make it so: one line at a time (blkg_conf_prep())."""
    line = file.partition(" ")[2]
    return f"{line} {value}" if line else value


def value_of(files: Mapping[Key, str], key: Key) -> str | None:
    """What is known of a file or of its line; None where the cgroup has no such file."""
    if key in files:
        return files[key]
    whole = files.get(Key(key.cgroup_id, interface_file(key.file)))
    return None if whole is None else line_of(key.file, whole)
