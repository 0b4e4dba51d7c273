"""What a tick reads of a workload's memory, and what a reclaim came to. Frozen values, as in `qosd.model`."""

from __future__ import annotations

import msgspec

from qosd.words import CgroupId, Max


class MemoryStat(msgspec.Struct, frozen=True, gc=False):
    """memory.stat, as far as it is used. Sizes are in bytes, events (from `workingset_...` on) in pages."""

    anon: int
    file: int
    shmem: int
    file_mapped: int
    file_dirty: int
    file_writeback: int
    inactive_file: int
    active_file: int
    slab_reclaimable: int = 0
    workingset_refault_anon: int | None = None
    workingset_refault_file: int | None = None
    pgscan: int | None = None
    pgsteal: int | None = None

    @property
    def page_cache(self) -> int:
        """What reclaim can take of the page cache; `file` counts shmem too, which only swap takes."""
        return self.inactive_file + self.active_file


class MemorySample(msgspec.Struct, frozen=True, gc=False):
    """What is read of a workload's own cgroup beyond memory.current."""

    stat: MemoryStat | None = None
    stat_usec: int | None = None
    """When memory.stat was read: it flushes rstat, so it is read less often than the rest."""
    swap_current: int | None = None
    swap_max: int | Max | None = None
    ceiling: int | Max | None = None
    """The least protection of the ancestors: no cgroup is protected beyond any of them."""
    ceiling_path: str | None = None
    """Which ancestor that is; None where nothing above the workload has the file."""


class Part(msgspec.Struct, frozen=True, gc=False):
    """One cgroup of a workload that has page cache of its own, and what came of a request to it."""

    id: CgroupId
    path: str
    stat: MemoryStat
    """Sizes of what no other part has: for a cgroup with others below, what is left of those that ended."""
    usage_usec: int | None = None
    """cpu.stat; None for what is left of ended ones, which use no CPU, and where it cannot be read."""
    below: tuple[CgroupId, ...] = ()
    """The cgroups below, whose sizes were subtracted."""
    result: str | None = None
    """As of `Reclaimed`; None: it was only looked at."""
    asked: int = 0
    freed: int = 0
    error: str | None = None


class Reclaimed(msgspec.Struct, frozen=True, gc=False):
    """How one request to memory.reclaim ended."""

    cgroup_id: CgroupId
    result: str
    """done; short (EAGAIN: less than asked, which is normal); looked (nothing was to be asked yet);
    no-swappiness (this kernel does not know the key, nothing was asked); absent, gone, refused, failed; busy
    (an earlier one is not back); not-run."""
    asked: int = 0
    freed: int = 0
    usec: int = 0
    stat: MemoryStat | None = None
    stat_usec: int | None = None
    error: str | None = None
    parts: tuple[Part, ...] = ()
    """The workload's cgroups, as they stood afterwards."""
