"""What stops background reclaim: refaults, io pressure of its own making, LS waiting for memory. Pure."""

from __future__ import annotations

import msgspec

from qosd.memory import parts, stall
from qosd.memory.parts import Known
from qosd.memory.track import Track, hold
from qosd.model import Snapshot, Tier, Workload
from qosd.schema.memory import Reclaiming, WithoutSwappiness

_MIB = 1 << 20


class Stop(msgspec.Struct, frozen=True, gc=False):
    """Why nothing may be asked now; a passing one is over as soon as its reason is, and is no news."""

    why: str
    passing: bool = False


def has_swap(now: Snapshot) -> bool:
    """Unknown counts as swap: then nothing is asked that might use it."""
    return now.host.swap_total is None or now.host.swap_total > 0


def check(
    reclaim: Reclaiming,
    prev: Snapshot | None,
    now: Snapshot,
    workload: Workload,
    given: tuple[Track, bool, bool | None],
) -> tuple[Track, Stop | None]:
    """Why nothing may be asked of the workload now, None if it may; the track with the hold that began."""
    track, for_host, swappiness_key = given
    if now.monotonic_usec < track.held_until:
        left = (track.held_until - now.monotonic_usec) // 1_000_000
        return track, Stop(f"{track.why_held} (for {left} s more)")
    if swappiness_key is False and has_swap(now) and reclaim.without_swappiness is WithoutSwappiness.SKIP:
        return track, Stop(
            "this kernel's memory.reclaim has no swappiness=, so it might swap;"
            ' memory.reclaim.without_swappiness = "cautious" lets it try'
        )
    track, swapped = _swapped(workload, track)
    if swapped and swappiness_key is False:
        return _held(reclaim, now, track, f"{_mib(swapped)} went to swap instead")
    if not for_host and (why := _ls_waits(reclaim, prev, now)) is not None:
        # For a moment only: it is no fault of this workload. And a host that lacks memory must go on, for LS.
        return track, Stop(why, passing=True)
    return _parts(now, _io(reclaim, prev, now, workload, track))


def _parts(now: Snapshot, track: Track) -> tuple[Track, Stop | None]:
    """Held where everything that has something to give is."""
    if (first := parts.held(track.parts, now)) is None:
        return track, None
    left = (first.held_until - now.monotonic_usec) // 1_000_000
    return track, Stop(f"{first.why_held} (for {left} s more)")


def _held(reclaim: Reclaiming, now: Snapshot, track: Track, why: str) -> tuple[Track, Stop]:
    track = hold(reclaim, now, track, why)
    return track, Stop(f"{why} (for {(track.held_until - now.monotonic_usec) // 1_000_000} s)")


def _swapped(workload: Workload, track: Track) -> tuple[Track, int]:
    """What of the workload went to swap since the last look; the memory of it moves on."""
    memory = workload.sample.memory
    current = memory.swap_current if memory is not None else None
    before, track = track.swap_current, msgspec.structs.replace(track, swap_current=current)
    if before is None or current is None or track.freed == 0 or current - before < _MIB:
        return track, 0
    return track, current - before


def _io(reclaim: Reclaiming, prev: Snapshot | None, now: Snapshot, workload: Workload, track: Track) -> Track:
    """Pressure on io counts for those that read again: then they wait for what was taken from them.

    A job that streams through files waits for its disk all the time, whatever is reclaimed.
    """
    waited = stall.share(prev, now, workload.id, "io", full=False)
    if waited is None or waited * 100 <= reclaim.io_pressure_pct:
        return track
    why = f"it waited {waited * 100:.0f} % of the last tick for io, and reads again what was freed"
    held = {
        cgroup_id: parts.hold(reclaim, now, each, why) if _reads_again(reclaim, now, each) else each
        for cgroup_id, each in track.parts.items()
    }
    return msgspec.structs.replace(track, parts=held)


def _reads_again(reclaim: Reclaiming, now: Snapshot, each: Known) -> bool:
    free = now.monotonic_usec >= each.held_until
    return free and each.window_refaulted > 0 and now.monotonic_usec - each.looked_usec <= reclaim.watch


def _ls_waits(reclaim: Reclaiming, prev: Snapshot | None, now: Snapshot) -> str | None:
    waited = stall.worst(prev, now, Tier.LS, "memory", full=False)
    if waited is None or waited * 100 <= reclaim.ls_pressure_pct:
        return None
    return f"LS waited {waited * 100:.1f} % of the last tick for memory"


def _mib(size: float) -> str:
    return f"{size / _MIB:.0f} MiB"
