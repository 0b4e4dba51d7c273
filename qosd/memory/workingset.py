"""What an LS workload uses of its memory: all it holds, less what has shown itself to be cold. Pure.

New pages count as used at once. What may be cold is what the kernel's own list says (inactive_file that
nobody maps), and it is believed only for pages that stay there: the largest value is kept and fades, so that
a lull does not give the set away. With the multi-generational LRU nothing is believed: pages that are only
read (not mapped) stay in the two oldest generations, which are shown as inactive, however often they are
read (lru_gen_add_folio() in include/linux/mm_inline.h; folio_mark_accessed() only counts). Nor is it while
evicted pages come back: the kernel moves used pages to the inactive list, too, to see.
"""

from __future__ import annotations

import msgspec

from qosd.memsample import MemorySample, MemoryStat
from qosd.model import Snapshot, Workload

_NOISE = 1 << 18  # bytes read again that say nothing yet: 64 pages


class Track(msgspec.Struct, frozen=True, gc=False):
    """What is remembered of one LS workload; sizes in bytes."""

    peak: float = 0.0
    """The largest use of late."""
    grown: float = 0.0
    """The most by which it grew in one tick, of late."""
    current: int | None = None
    cold: int = 0
    """At the last look at memory.stat."""
    cache: int = 0
    """Its page cache then."""
    usec: int | None = None
    stat_usec: int | None = None
    refaults: int | None = None
    wanted: int | None = None
    unknown_ticks: int = 0


def observe(half_life: int, now: Snapshot, workload: Workload, track: Track) -> Track:
    """The track after this tick: memory.current is new in each, memory.stat in some."""
    memory, current = workload.sample.memory, workload.sample.memory_current
    if memory is None or memory.stat is None or memory.stat_usec is None or current is None:
        return msgspec.structs.replace(track, unknown_ticks=track.unknown_ticks + 1)
    refaulted = 0
    if memory.stat_usec != track.stat_usec:
        refaulted = _refaulted(track, memory, now.host.page_bytes)
        track = msgspec.structs.replace(
            track,
            cold=_cold(now, memory.stat, refaulted),
            cache=memory.stat.page_cache,
            stat_usec=memory.stat_usec,
            refaults=memory.stat.workingset_refault_file,
        )
    first = track.usec is None or track.current is None
    need = current + refaulted - (0 if first else min(track.cold, current))
    elapsed = max(now.monotonic_usec - (track.usec or now.monotonic_usec), 0)
    fade = 0.5 ** (elapsed / half_life)
    return msgspec.structs.replace(
        track,
        peak=max(float(need), track.peak * fade),
        grown=max(float(current - (track.current or current)), track.grown * fade),
        current=current,
        usec=now.monotonic_usec,
        unknown_ticks=0,
    )


def _cold(now: Snapshot, stat: MemoryStat, refaulted: int) -> int:
    if now.host.lru_gen is not False or refaulted >= _NOISE:
        return 0
    return max(stat.inactive_file - stat.file_mapped, 0)


def _refaulted(track: Track, memory: MemorySample, page_bytes: int) -> int:
    after = memory.stat.workingset_refault_file if memory.stat is not None else None
    if track.refaults is None or after is None:
        return 0
    return max(after - track.refaults, 0) * page_bytes
