"""Which cgroups of a workload hold its page cache: read on the reclaim worker, before and after it asks.

Asked as a whole, a cgroup gives from all that is below it in proportion to size, from those that are all hot
as from those that are all cold (shrink_node_memcgs() in mm/vmscan.c). So each is asked for itself. What is
left of ended ones is charged to cgroups that no path leads to any more: only their parent can be asked.
"""

from __future__ import annotations

import msgspec

from qosd.cgroupfs import parse_cpu_stat, parse_memory_stat
from qosd.errors import Malformed
from qosd.memsample import MemoryStat, Part
from qosd.model import CgroupId
from qosd.sys import DIRECTORY, Sys, read_interface

_WORTH = 1 << 20  # bytes of page cache: less is not looked at for itself
_WIDE = 256  # children; of more than that the kernel may choose
_DEPTH = 6
PARTS = 64  # the largest
_SIZES = (
    *("anon", "file", "shmem", "file_mapped", "file_dirty", "file_writeback"),
    *("inactive_file", "active_file", "slab_reclaimable"),
)


def look(sys: Sys, dir_fd: int, path: str, cgroup_id: CgroupId) -> tuple[Part, ...]:
    """The parts of the cgroup, the largest first; none where memory.stat cannot be read."""
    stat = read_stat(sys, dir_fd)
    if stat is None:
        return ()
    parts = sorted(_parts(sys, dir_fd, (path, cgroup_id, stat), _DEPTH), key=_size, reverse=True)
    return tuple(parts[:PARTS])


def read_stat(sys: Sys, dir_fd: int) -> MemoryStat | None:
    try:
        return parse_memory_stat(read_interface(sys, dir_fd, "memory.stat"))
    except (OSError, Malformed):
        return None


def _size(part: Part) -> int:
    return part.stat.page_cache


def _parts(sys: Sys, dir_fd: int, group: tuple[str, CgroupId, MemoryStat], depth: int) -> list[Part]:
    path, cgroup_id, stat = group
    parts: list[Part] = []
    seen: list[tuple[CgroupId, MemoryStat]] = []
    for name in _children(sys, dir_fd) if depth and stat.page_cache >= _WORTH else ():
        try:
            fd = sys.open(name, DIRECTORY, dir_fd=dir_fd)
        except OSError:
            continue
        try:
            child = CgroupId(sys.fstat(fd).st_ino)
            of_child = read_stat(sys, fd)
            if of_child is not None:
                seen.append((child, of_child))
                parts += _parts(sys, fd, (f"{path}/{name}", child, of_child), depth - 1)
        finally:
            sys.close(fd)
    if not seen:
        return [Part(cgroup_id, path, stat, _usage(sys, dir_fd))] if stat.page_cache >= _WORTH else []
    left = _less(stat, [each for _, each in seen])
    if left.page_cache >= _WORTH:
        parts.append(Part(cgroup_id, path, left, below=tuple(sorted(child for child, _ in seen))))
    return parts


def _children(sys: Sys, dir_fd: int) -> list[str]:
    try:
        with sys.scandir(dir_fd) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return names if len(names) <= _WIDE else []


def _less(stat: MemoryStat, others: list[MemoryStat]) -> MemoryStat:
    """The sizes less those of the others; never negative, as they were not read at the same moment.

    Events stay those of the whole: to ask it takes from all below, and what a new job reads again of an ended
    one's is counted for the new one (workingset_refault() in mm/workingset.c).
    """
    left = {field: getattr(stat, field) - sum(getattr(each, field) for each in others) for field in _SIZES}
    return msgspec.structs.replace(stat, **{field: max(size, 0) for field, size in left.items()})


def _usage(sys: Sys, dir_fd: int) -> int | None:
    try:
        return parse_cpu_stat(read_interface(sys, dir_fd, "cpu.stat")).usage_usec
    except (OSError, Malformed):
        return None
