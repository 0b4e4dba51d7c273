"""memory.high of BE: what MemAvailable and the host's target leave it, split over its workloads.

MemAvailable, not MemFree: free memory is small on any healthy host, because page cache fills it, and a
limit that follows it ratchets everybody down to the floor. A memory.high below what only swap could take
stalls the job for seconds per MiB and nothing ends it (mem_cgroup_handle_over_high() in mm/memcontrol.c):
such a limit is not set, and one that stalls all the same is lifted on a deadline. memory.max is never
touched. Pure.
"""

from __future__ import annotations

import msgspec

from qosd.ask import Tighten
from qosd.config import Config
from qosd.memory import baseline, lastline, stall, tighten
from qosd.memory.held import swap_room, unreclaimable
from qosd.model import CgroupId, MemoryHigh, Snapshot, Tier, Workload
from qosd.plan import Desired, Input, Reason
from qosd.schema.memory import Limit
from qosd.split import Claim, split

RULE = "memory.limits"
FILE = "memory.high"
_ROUND = 1 << 20
_MIB = 1 << 20
_NEARLY_ALL = tighten.NEARLY_ALL


class Track(msgspec.Struct, frozen=True, gc=False):
    """What is remembered of one BE workload."""

    wanted: int | None = None
    stalled_since: int | None = None
    lifted_until: int = 0
    why_lifted: str = ""
    last: int | None = None
    """Where it is held although it is not limited, see `lastline`."""


class State(msgspec.Struct, frozen=True, gc=False):
    allowed: float | None = None
    """Bytes for BE together, None while it is not limited."""
    tracks: dict[CgroupId, Track] = {}
    unknown_ticks: int = 0
    ceilings: tighten.Ceilings = {}
    """What the ladder of answers has taken from single workloads, beside the law."""


class Limited(msgspec.Struct, frozen=True, gc=False):
    """How one BE workload stands."""

    cgroup_id: CgroupId
    text: str


class Result(msgspec.Struct, frozen=True, gc=False):
    desired: tuple[Desired, ...] = ()
    allowed: int | None = None
    text: str | None = None
    standings: tuple[Limited, ...] = ()


def decide(
    config: Config, prev: Snapshot | None, now: Snapshot, state: State, asked: Tighten | None = None
) -> tuple[State, Result]:
    by_law = config.memory.limits.enforce is not Limit.OFF
    ceilings = tighten.ceilings(config, now, asked, state.ceilings)
    there = [each for each in now.tier(Tier.BE) if each.setting(FILE) is not None]
    workloads = [each for each in there if by_law or each.id in ceilings]
    if not workloads:
        return State(ceilings=ceilings), Result()
    tracks = {each.id: state.tracks.get(each.id, Track()) for each in workloads}
    state = msgspec.structs.replace(state, tracks=tracks, ceilings=ceilings)
    if not by_law:
        none = dict.fromkeys(tracks, float("inf"))
        tracks, desired, standings = _settled(config, (prev, now), (state, none, {}), asked, "")
        return State(None, tracks, ceilings=ceilings), Result(desired, standings=standings)
    wanted = allowance(config, now, workloads, 100 - config.host.memory_target_pct)
    if wanted is None:
        return _hold(config, now, workloads, state)
    total = float(now.host.mem_total or 0)
    allowed = _ramp(config, wanted, state.allowed, total, workloads)
    text = (
        f"BE may hold {_mib(allowed)}: what only it can give back, and what is available"
        f" beyond {100 - config.host.memory_target_pct:g} % of RAM"
    )
    claims = [_claim(each, tracks[each.id]) for each in workloads]
    shares, last = split(allowed, claims), _last(config, now, workloads, claims)
    tracks, desired, standings = _settled(config, (prev, now), (state, shares, last), asked, text)
    return State(allowed, tracks, ceilings=ceilings), Result(desired, round(allowed), text, standings)


def _last(
    config: Config, now: Snapshot, workloads: list[Workload], claims: list[Claim]
) -> dict[CgroupId, float]:
    """What each may hold if it is not limited otherwise."""
    kept = config.memory.limits.last_pct
    most = allowance(config, now, workloads, kept) if kept else None
    return {} if most is None else split(most, claims)


def _settled(
    config: Config,
    snapshots: tuple[Snapshot | None, Snapshot],
    given: tuple[State, dict[CgroupId, float], dict[CgroupId, float]],
    asked: Tighten | None,
    text: str,
) -> tuple[dict[CgroupId, Track], tuple[Desired, ...], tuple[Limited, ...]]:
    """Each workload's own limit: its share, or what the ladder has left it if that is less."""
    prev, now = snapshots
    state, shares, last = given
    tracks = dict(state.tracks)
    desired: list[Desired] = []
    standings: list[Limited] = []
    for workload in now.tier(Tier.BE):
        if workload.id not in tracks:
            continue
        ceiling = state.ceilings.get(workload.id)
        share = shares[workload.id] if ceiling is None else min(shares[workload.id], ceiling)
        before = tracks[workload.id]
        track, size, said = _settle(config, prev, now, workload, (before, share))
        may = last.get(workload.id) if size is None else None
        at_last = lastline.line(config, now, workload, may, before.last)
        tracks[workload.id] = msgspec.structs.replace(track, last=at_last)
        said = said if at_last is None else lastline.say(at_last, said)
        standings.append(Limited(workload.id, said))
        if at_last is not None:
            desired.append(_desired(config, now, workload, at_last, said))
        elif size is not None and ceiling is not None and asked is not None and share == ceiling:
            desired.append(tighten.desired(config, now, workload, size, asked))
        elif size is not None:
            desired.append(_desired(config, now, workload, size, f"{said}; {text}"))
    return tracks, tuple(desired), tuple(standings)


def allowance(config: Config, now: Snapshot, workloads: list[Workload], reserve_pct: float) -> float | None:
    """Bytes BE may hold: what reclaim cannot take from it, and what is available beyond the reserve.

    MemAvailable counts BE's own page cache, so that cache fits into what is allowed and costs nobody. It
    counts LS's too, which is not BE's to take: with it in, all are scanned before BE meets its limit.
    """
    host = now.host
    if host.mem_total is None or host.mem_available is None:
        return None
    kept = [unreclaimable(workload) for workload in workloads]
    if any(each is None for each in kept):
        return None
    reserve = host.mem_total * reserve_pct / 100
    floor = host.mem_total * config.memory.limits.floor_pct / 100
    return max(sum(each or 0 for each in kept) + host.mem_available - _cache_of_ls(now) - reserve, floor)


def _cache_of_ls(now: Snapshot) -> int:
    """What is not known counts as nothing: that tightens nobody."""
    memories = [workload.sample.memory for workload in now.tier(Tier.LS)]
    return sum(each.stat.page_cache for each in memories if each is not None and each.stat is not None)


def _hold(config: Config, now: Snapshot, workloads: list[Workload], state: State) -> tuple[State, Result]:
    """Something is unknown: keep what is in force, and give it up when that lasts. Never tighten."""
    unknown = state.unknown_ticks + 1
    if state.allowed is None or unknown > config.memory.release_ticks:
        text = "use of memory is unknown; BE is not limited"
        forgotten = {each: msgspec.structs.replace(kept, wanted=None) for each, kept in state.tracks.items()}
        return State(tracks=forgotten, unknown_ticks=unknown), Result(text=text)
    text = f"use of memory is unknown for {unknown} ticks; the limits are held"
    desired = tuple(
        _desired(config, now, workload, track.wanted, text)
        for workload in workloads
        if (track := state.tracks[workload.id]).wanted is not None
    )
    held = msgspec.structs.replace(state, unknown_ticks=unknown)
    return held, Result(desired, round(state.allowed), text)


def _ramp(
    config: Config, wanted: float, current: float | None, total: float, workloads: list[Workload]
) -> float:
    """Down and up by a share of RAM a tick; the first limit is no lower than what BE holds already."""
    limits = config.memory.limits
    if current is None:
        return max(wanted, float(sum(each.sample.memory_current or 0 for each in workloads)))
    if abs(wanted - current) <= total * limits.deadband_pct / 100:
        return current
    lowest, highest = current - total * limits.down_pct / 100, current + total * limits.up_pct / 100
    return min(max(wanted, lowest), highest)


def _claim(workload: Workload, track: Track) -> Claim:
    current = workload.sample.memory_current
    limit = track.wanted
    if current is None or limit is None or current >= limit * _NEARLY_ALL:
        return Claim(workload.id, workload.priority, float("inf"), float("inf"))
    return Claim(workload.id, workload.priority, current / _NEARLY_ALL, float("inf"))


def _settle(
    config: Config, prev: Snapshot | None, now: Snapshot, workload: Workload, shared: tuple[Track, float]
) -> tuple[Track, int | None, str]:
    """The workload's next state, its memory.high or None, and the sentence that says why."""
    limits = config.memory.limits
    track, share = shared
    if _is_lifted(track, now):
        left = (track.lifted_until - now.monotonic_usec) // 1_000_000
        return track, None, f"not limited: {track.why_lifted} (looked at again in {left} s)"
    kept = unreclaimable(workload) or 0
    room = swap_room(now, workload)
    if kept > share * _NEARLY_ALL + room:
        why = (
            f"{_mib(kept)} of it only swap could take, which has {_mib(room)} left,"
            f" so that a limit of {_mib(share)} would stall it without end"
        )
        return _lift(now, int(limits.lift_hold), why), None, f"not limited: {why}"
    track = _watch(config, prev, now, workload, track)
    deadline = limits.lift_after if room < _ROUND else limits.lift_after_swap
    if track.stalled_since is not None and now.monotonic_usec - track.stalled_since >= deadline:
        why = f"its limit stalled it for {deadline / 1e6:g} s, and was lifted"
        return _lift(now, int(limits.lift_hold), why), None, f"not limited: {why}"
    size = _size(config, now, workload, track, share)
    others = baseline.of_others(now, workload, FILE)
    if others is not None and size >= others:
        text = "not limited further: what is set without qosd is as low already"
        return msgspec.structs.replace(track, wanted=None), None, text
    return msgspec.structs.replace(track, wanted=size), size, f"{_mib(size)} for {workload.name}"


def _size(config: Config, now: Snapshot, workload: Workload, track: Track, share: float) -> int:
    """Each workload's own limit goes down in steps as well: what is above it is reclaimed at once."""
    limits, total = config.memory.limits, now.host.mem_total or 0
    # What was wanted while nothing could be written, as in observe mode, is no step on the way down.
    last = track.wanted if now.is_ours(workload, FILE) else None
    before = float(last if last is not None else workload.sample.memory_current or 0)
    size = int(max(share, before - total * limits.down_pct / 100)) // _ROUND * _ROUND
    kept, room = unreclaimable(workload) or 0, swap_room(now, workload)
    stands = last is not None and abs(size - last) <= total * limits.deadband_pct / 100
    # A small change is not worth a write, unless the job has grown into what only swap could take.
    return last if last is not None and stands and kept <= last * _NEARLY_ALL + room else size


def _is_lifted(track: Track, now: Snapshot) -> bool:
    return now.monotonic_usec < track.lifted_until


def _lift(now: Snapshot, hold_usec: int, why: str) -> Track:
    return Track(lifted_until=now.monotonic_usec + hold_usec, why_lifted=why)


def _watch(config: Config, prev: Snapshot | None, now: Snapshot, workload: Workload, track: Track) -> Track:
    """Since when all its tasks mostly wait for memory while a limit of ours stands."""
    waited = stall.share(prev, now, workload.id, "memory", full=True)
    if not now.is_ours(workload, FILE) or waited is None or waited * 100 < config.memory.limits.stall_pct:
        return msgspec.structs.replace(track, stalled_since=None)
    if track.stalled_since is None and prev is not None:
        return msgspec.structs.replace(track, stalled_since=prev.monotonic_usec)
    return track


def _desired(config: Config, now: Snapshot, workload: Workload, size: int, text: str) -> Desired:
    host, memory = now.host, workload.sample.memory
    age_ms = 0
    if memory is not None and memory.stat_usec is not None:
        age_ms = (now.monotonic_usec - memory.stat_usec) // 1000
    reason = Reason(
        f"{RULE}/high",
        text,
        (
            Input("MemAvailable", round((host.mem_available or 0) / _MIB, 1), "MiB"),
            Input("memory.current", round((workload.sample.memory_current or 0) / _MIB, 1), "MiB"),
            Input("not reclaimable", round((unreclaimable(workload) or 0) / _MIB, 1), "MiB", age_ms),
            Input("swap left", round(swap_room(now, workload) / _MIB, 1), "MiB"),
        ),
        threshold=f"host.memory_target_pct = {config.host.memory_target_pct:g} %",
    )
    return Desired(workload.id, workload.path, workload.tier, MemoryHigh(size), reason)


def _mib(size: float) -> str:
    return f"{size / _MIB:.0f} MiB"
