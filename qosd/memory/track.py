"""What is known of one workload's background reclaim: what was asked, freed and read again. Pure."""

from __future__ import annotations

import msgspec

from qosd.memsample import MemoryStat, Reclaimed
from qosd.model import Snapshot, Workload
from qosd.schema.memory import Reclaiming

_POOR = (
    0.5  # of what was asked: below it the LRU lists hold little that is cold (katalyst's efficiency is 0.6)
)


class Track(msgspec.Struct, frozen=True, gc=False):
    pace: int = 0
    """Bytes to ask for at once: doubled while it goes well, halved when it does not."""
    active: bool = False
    """Above its high watermark, and not down to the low one yet."""
    in_flight: bool = False
    stat: MemoryStat | None = None
    """The newest memory.stat, of the tick or of the worker."""
    stat_usec: int = 0
    asked: int = 0
    freed: int = 0
    refaulted: int = 0
    """Totals in bytes; refaults count while what was freed is watched."""
    window_freed: int = 0
    window_refaulted: int = 0
    """The same since the last hold, or since nothing was freed for `watch`."""
    last_freed_usec: int = 0
    refaulted_usec: int = 0
    """When the last refault was seen."""
    swap_current: int | None = None
    """memory.swap.current before a request that could swap."""
    held_until: int = 0
    holds: int = 0
    why_held: str = ""
    errors: dict[str, int] = {}


def follow(
    reclaim: Reclaiming, now: Snapshot, workload: Workload, track: Track, result: Reclaimed | None
) -> Track:
    """The track after this tick's news: the worker's answer, and memory.stat wherever it is newer."""
    if result is not None:
        if result.stat_usec is not None and result.stat_usec >= track.stat_usec:
            track = _see(reclaim, now, track, result.stat, result.stat_usec)
        track = _answered(reclaim, now, track, result)
    memory = workload.sample.memory
    if memory is not None and memory.stat_usec is not None and memory.stat_usec > track.stat_usec:
        track = _see(reclaim, now, track, memory.stat, memory.stat_usec)
    if track.window_freed and now.monotonic_usec - track.last_freed_usec > reclaim.watch:
        track = msgspec.structs.replace(track, window_freed=0, window_refaulted=0)
    return track


def _see(reclaim: Reclaiming, now: Snapshot, track: Track, stat: MemoryStat | None, stat_usec: int) -> Track:
    if stat is None:
        return track
    refaulted = 0
    watched = track.freed > 0 and stat_usec - track.last_freed_usec <= reclaim.watch
    before = track.stat.workingset_refault_file if track.stat is not None else None
    after = stat.workingset_refault_file
    if watched and before is not None and after is not None:
        refaulted = max(after - before, 0) * now.host.page_bytes
    return msgspec.structs.replace(
        track,
        stat=stat,
        stat_usec=stat_usec,
        refaulted=track.refaulted + refaulted,
        window_refaulted=track.window_refaulted + refaulted,
        refaulted_usec=now.monotonic_usec if refaulted else track.refaulted_usec,
    )


def _answered(reclaim: Reclaiming, now: Snapshot, track: Track, result: Reclaimed) -> Track:
    track = msgspec.structs.replace(track, in_flight=False)
    if result.result in ("not-run", "no-swappiness"):
        return track
    if result.result not in ("done", "short"):
        errors = {**track.errors, result.result: track.errors.get(result.result, 0) + 1}
        track = msgspec.structs.replace(track, errors=errors)
        return hold(reclaim, now, track, f"memory.reclaim: {result.error or result.result}")
    poor = result.freed < result.asked * _POOR
    pace = max(track.pace // 2, int(reclaim.chunk)) if poor else min(track.pace * 2, int(reclaim.rate))
    track = msgspec.structs.replace(
        track,
        pace=pace,
        asked=track.asked + result.asked,
        freed=track.freed + result.freed,
        window_freed=track.window_freed + result.freed,
        last_freed_usec=now.monotonic_usec if result.freed else track.last_freed_usec,
    )
    if result.freed == 0:
        return hold(reclaim, now, track, "nothing was freed: what is left is in use")
    return track


def hold(reclaim: Reclaiming, now: Snapshot, track: Track, why: str) -> Track:
    """Keep off for a while, twice as long each time until it goes well again."""
    wait = min(int(reclaim.hold) << min(track.holds, 10), int(reclaim.hold_max))
    return msgspec.structs.replace(
        track,
        pace=int(reclaim.chunk),
        window_freed=0,
        window_refaulted=0,
        held_until=now.monotonic_usec + wait,
        holds=track.holds + 1,
        why_held=why,
    )
