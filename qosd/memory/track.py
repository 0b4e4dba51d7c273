"""What is known of one workload's background reclaim: what was asked, freed and read again. Pure."""

from __future__ import annotations

import msgspec

from qosd.memory import parts
from qosd.memory.parts import Known
from qosd.memsample import MemoryStat, Reclaimed
from qosd.model import CgroupId, Snapshot, Workload
from qosd.schema.memory import Reclaiming


class Track(msgspec.Struct, frozen=True, gc=False):
    active: bool = False
    """Above its high watermark, and not down to the low one yet."""
    in_flight: bool = False
    stat: MemoryStat | None = None
    """The newest memory.stat of all of it."""
    stat_usec: int = 0
    parts: dict[CgroupId, Known] = {}
    """Its cgroups, as the worker saw them last."""
    looked_usec: int | None = None
    asked: int = 0
    freed: int = 0
    refaulted: int = 0
    """Totals in bytes; refaults count while what was freed is watched."""
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
        track = _answered(reclaim, now, track, result)
    memory = workload.sample.memory
    if memory is not None and memory.stat_usec is not None and memory.stat_usec > track.stat_usec:
        return _newer(track, memory.stat, memory.stat_usec)
    return track


def _newer(track: Track, stat: MemoryStat | None, stat_usec: int | None) -> Track:
    if stat is None or stat_usec is None or stat_usec < track.stat_usec:
        return track
    return msgspec.structs.replace(track, stat=stat, stat_usec=stat_usec)


def _answered(reclaim: Reclaiming, now: Snapshot, track: Track, result: Reclaimed) -> Track:
    track = _newer(msgspec.structs.replace(track, in_flight=False), result.stat, result.stat_usec)
    if result.parts and result.stat_usec is not None:
        known, again = parts.follow(reclaim, now, track.parts, result.parts, result.stat_usec)
        track = msgspec.structs.replace(
            track, parts=known, looked_usec=now.monotonic_usec, refaulted=track.refaulted + again
        )
    track = msgspec.structs.replace(
        track,
        asked=track.asked + result.asked,
        freed=track.freed + result.freed,
        errors=_counted(track.errors, result),
    )
    if result.result in ("absent", "gone", "refused", "failed", "busy"):
        return hold(reclaim, now, track, f"memory.reclaim: {result.error or result.result}")
    return msgspec.structs.replace(track, holds=0) if result.freed else track


def _counted(errors: dict[str, int], result: Reclaimed) -> dict[str, int]:
    fine = ("done", "short", "looked", "no-swappiness", "not-run")
    ended = [result.result, *(part.result for part in result.parts if part.result is not None)]
    counted = dict(errors)
    for each in ended:
        if each not in fine:
            counted[each] = counted.get(each, 0) + 1
    return counted


def hold(reclaim: Reclaiming, now: Snapshot, track: Track, why: str) -> Track:
    """Keep off all of it for a while, twice as long each time until something is freed."""
    wait = min(int(reclaim.hold) << min(track.holds, 10), int(reclaim.hold_max))
    return msgspec.structs.replace(
        track, held_until=now.monotonic_usec + wait, holds=track.holds + 1, why_held=why
    )
