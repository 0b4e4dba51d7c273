"""What stops background reclaim: refaults, io pressure of its own making, LS waiting for memory. Pure."""

from __future__ import annotations

import msgspec

from qosd.memory import stall
from qosd.memory.track import Track, hold
from qosd.model import Snapshot, Tier, Workload
from qosd.schema.memory import Reclaiming, WithoutSwappiness

_MIB = 1 << 20
_NOISE = 1 << 18  # bytes read again that are no verdict yet: 64 pages


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
    why = _refaults(reclaim, track) or _io(reclaim, prev, now, workload, track)
    if why is not None:
        return _held(reclaim, now, track, why)
    if not for_host and (why := _ls_waits(reclaim, prev, now)) is not None:
        # For a moment only: it is no fault of this workload. And a host that lacks memory must go on, for LS.
        return track, Stop(why, passing=True)
    since_hold = now.monotonic_usec - track.held_until
    settled = track.window_freed > 0 and track.holds > 0 and since_hold > reclaim.watch
    return (msgspec.structs.replace(track, holds=0) if settled else track), None


def _held(reclaim: Reclaiming, now: Snapshot, track: Track, why: str) -> tuple[Track, Stop]:
    track = hold(reclaim, now, track, why)
    return track, Stop(f"{why} (for {(track.held_until - now.monotonic_usec) // 1_000_000} s)")


def _swapped(workload: Workload, track: Track) -> tuple[Track, int]:
    """What of the workload went to swap since the last look; the memory of it moves on."""
    memory = workload.sample.memory
    current = memory.swap_current if memory is not None else None
    before, track = track.swap_current, msgspec.structs.replace(track, swap_current=current)
    if before is None or current is None or track.window_freed == 0 or current - before < _MIB:
        return track, 0
    return track, current - before


def _refaults(reclaim: Reclaiming, track: Track) -> str | None:
    if track.window_refaulted < _NOISE:
        return None
    share = 100 * track.window_refaulted / track.window_freed if track.window_freed else 0.0
    if share <= reclaim.refault_pct:
        return None
    return f"{share:.1f} % of what was freed was read again (refault_pct = {reclaim.refault_pct:g} %)"


def _io(
    reclaim: Reclaiming, prev: Snapshot | None, now: Snapshot, workload: Workload, track: Track
) -> str | None:
    """Pressure on io counts while the workload refaults: then it waits for what was taken from it.

    A job that streams through files waits for its disk all the time, whatever is reclaimed.
    """
    recent = track.refaulted_usec > 0 and now.monotonic_usec - track.refaulted_usec <= reclaim.watch
    waited = stall.share(prev, now, workload.id, "io", full=False)
    if not recent or track.window_refaulted == 0 or waited is None:
        return None
    if waited * 100 <= reclaim.io_pressure_pct:
        return None
    return f"it waited {waited * 100:.0f} % of the last tick for io, and reads again what was freed"


def _ls_waits(reclaim: Reclaiming, prev: Snapshot | None, now: Snapshot) -> str | None:
    waited = stall.worst(prev, now, Tier.LS, "memory", full=False)
    if waited is None or waited * 100 <= reclaim.ls_pressure_pct:
        return None
    return f"LS waited {waited * 100:.1f} % of the last tick for memory"


def _mib(size: float) -> str:
    return f"{size / _MIB:.0f} MiB"
