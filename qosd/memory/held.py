"""What of a workload's memory can be taken from it, and how. Pure."""

from __future__ import annotations

from qosd.model import Snapshot, Workload


def unreclaimable(workload: Workload) -> int | None:
    """Bytes that only swap, or the job itself, can give back: anon, shmem, and kernel memory in use."""
    memory, current = workload.sample.memory, workload.sample.memory_current
    if memory is None or memory.stat is None or current is None:
        return None
    return max(current - memory.stat.page_cache - memory.stat.slab_reclaimable, 0)


def swap_room(now: Snapshot, workload: Workload) -> int:
    """How much of the workload swap could still take: the host's free swap, within its memory.swap.max.

    While swapoff runs, SwapFree counts what is still to come back from there (si_swapinfo() in
    mm/swapfile.c); then the workload alone has more in swap than all of it is in use.
    """
    memory, host = workload.sample.memory, now.host
    if host.swap_free is None or host.swap_total is None:
        return 0
    swapped = memory.swap_current if memory is not None else None
    leaving = max((swapped or 0) - (host.swap_total - host.swap_free), 0)
    room = max(host.swap_free - leaving, 0)
    if memory is not None and isinstance(memory.swap_max, int):
        room = min(room, max(memory.swap_max - (swapped or 0), 0))
    return room
