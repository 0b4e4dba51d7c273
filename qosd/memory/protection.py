"""memory.low of LS from its observed working set: the page cache it uses outlives what BE streams through.

What must hold at every moment is use < memory.low. Above it the classic LRU takes in proportion to the
excess, and the multi-generational one as if there were no protection (mem_cgroup_below_low() in shrink_one(),
mm/vmscan.c). So room is left for what may come before the next tick; protection that is not used withholds
nothing. Below it the multi-generational LRU only lets such a cgroup wait for its second turn, so there "auto"
writes memory.min too while the host has memory to spare: that is never scanned.

A cgroup is protected only as far as every ancestor is (effective_protection() in mm/page_counter.c). Pure.
"""

from __future__ import annotations

import msgspec

from qosd.config import Config
from qosd.memory import baseline
from qosd.memory.workingset import Track, observe
from qosd.model import CgroupId, MemoryLow, MemoryMin, Snapshot, Tier, Workload
from qosd.plan import Desired, Input, Reason, amount
from qosd.schema.memory import Protect
from qosd.schema.memory import Protection as Section
from qosd.split import Claim, split

ROUND = 1 << 20
_MIB = 1 << 20
_READ_ONCE = '; this kernel takes pages that were read only once all the same (enforce = "auto" keeps them)'
_BACK = 1.25  # of min_spare_pct: above it memory.min is used again


class State(msgspec.Struct, frozen=True, gc=False):
    tracks: dict[CgroupId, Track] = {}
    short: bool = False
    """The host fell below min_spare_pct and has not come back above it: no memory.min."""


class Protected(msgspec.Struct, frozen=True, gc=False):
    """How one LS workload stands."""

    cgroup_id: CgroupId
    working_set: int | None
    text: str


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The bytes that should be kept, None where that is not for us to say, and the sentence that says why."""

    bytes: int | None
    text: str
    clamp: str | None = None


def file_of(section: Section) -> str | None:
    """The file whose value follows the working set; "auto" may write memory.min beside it."""
    match section.enforce:
        case Protect.OFF:
            return None
        case Protect.MIN:
            return "memory.min"
        case Protect.LOW | Protect.AUTO:
            return "memory.low"


def decide(
    config: Config, now: Snapshot, state: State
) -> tuple[State, tuple[Desired, ...], tuple[Protected, ...]]:
    section = config.memory.protection
    file = file_of(section)
    if file is None:
        return State(), (), ()
    tracks = {
        workload.id: observe(int(section.half_life), now, workload, state.tracks.get(workload.id, Track()))
        for workload in now.tier(Tier.LS)
        if workload.setting(file) is not None
    }
    short = _short(section, now, tracks, was_short=state.short)
    sizes = _sizes(config, now, tracks)
    desired: list[Desired] = []
    standings: list[Protected] = []
    for workload in now.tier(Tier.LS):
        if workload.id not in tracks:
            continue
        track = tracks[workload.id]
        verdict = _settle(config, workload, track, sizes.get(workload.id, (None, None)))
        tracks[workload.id] = track = msgspec.structs.replace(track, wanted=verdict.bytes)
        files = [file, *(["memory.min"] if _never_scanned(section, now, workload, short=short) else [])]
        files = [each for each in files if _adds(now, workload, each, verdict.bytes)]
        desired += [_desired(config, now, workload, track, (verdict, each)) for each in files]
        peak = round(track.peak) if track.stat_usec is not None else None
        once = _READ_ONCE if now.host.lru_gen is True and section.enforce is Protect.LOW else ""
        standings.append(Protected(workload.id, peak, _said(verdict, files) + once))
    return State(tracks, short), tuple(desired), tuple(standings)


def _adds(now: Snapshot, workload: Workload, file: str, size: int | None) -> bool:
    """Whether it is more than what stands in the file without us."""
    return size is not None and size > (baseline.of_others(now, workload, file) or 0)


def _said(verdict: Verdict, files: list[str]) -> str:
    if verdict.bytes is None:
        return verdict.text
    if not files:
        return f"{verdict.text}: what is set without qosd protects as much already"
    return f"{verdict.text}, with {' and '.join(files)}"


def _never_scanned(section: Section, now: Snapshot, workload: Workload, *, short: bool) -> bool:
    """Whether memory.min is written beside memory.low: where memory.low does not hold, and min does no harm.

    Below an ancestor it would count only as far as that has a memory.min of its own.
    """
    memory = workload.sample.memory
    return (
        section.enforce is Protect.AUTO
        and now.host.lru_gen is True
        and not short
        and workload.setting("memory.min") is not None
        and memory is not None
        and memory.ceiling_path is None
    )


def _short(section: Section, now: Snapshot, tracks: dict[CgroupId, Track], *, was_short: bool) -> bool:
    """Whether the host may soon need what LS keeps: MemAvailable counts LS's page cache as there to take.

    memory.min withholds it even if the OOM killer has to run, so it goes well before that.
    """
    total, available = now.host.mem_total, now.host.mem_available
    if total is None or available is None:
        return True
    spare = available - sum(track.cache for track in tracks.values())
    return spare < total * section.min_spare_pct / 100 * (_BACK if was_short else 1)


def _sizes(
    config: Config, now: Snapshot, tracks: dict[CgroupId, Track]
) -> dict[CgroupId, tuple[float, str | None]]:
    """What each may have: all it asks for, unless the sum is more than LS may keep from the others."""
    section, total = config.memory.protection, now.host.mem_total
    known = {
        cgroup_id: track
        for cgroup_id, track in tracks.items()
        if track.stat_usec is not None and track.unknown_ticks <= config.memory.release_ticks
    }
    if total is None:
        return {}
    most, room = total * section.max_pct / 100, total * section.room_pct / 100
    margin = {cgroup_id: track.peak * section.margin_pct / 100 for cgroup_id, track in known.items()}
    full = {
        cgroup_id: track.peak + track.grown + max(margin[cgroup_id], room)
        for cgroup_id, track in known.items()
    }
    asked = {cgroup_id: track.peak + margin[cgroup_id] for cgroup_id, track in known.items()}
    for wanted in (full, asked):
        if sum(wanted.values()) <= most:
            return {cgroup_id: (size, None) for cgroup_id, size in wanted.items()}
    claims = [
        Claim(workload.id, workload.priority, asked[workload.id], asked[workload.id])
        for workload in now.tier(Tier.LS)
        if workload.id in asked
    ]
    clamp = f"all of LS is kept within max_pct = {section.max_pct:g} % of RAM"
    return {cgroup_id: (size, clamp) for cgroup_id, size in split(most, claims).items()}


def _settle(
    config: Config, workload: Workload, track: Track, share: tuple[float | None, str | None]
) -> Verdict:
    size, clamp = share
    if size is None:
        return Verdict(None, "its use of memory is not known; nothing is changed")
    memory = workload.sample.memory
    ceiling = amount(memory.ceiling) if memory is not None and memory.ceiling is not None else float("inf")
    above = memory.ceiling_path if memory is not None else None
    if ceiling == 0:
        unit = (above or "").rsplit("/", 1)[-1]
        return Verdict(
            None,
            f"protection would have no effect: its ancestor {above} has none"
            f" (systemctl set-property {unit} MemoryLow=... gives it some)",
        )
    if ceiling < size:
        size, clamp = ceiling, f"capped by the protection of its ancestor {above}"
    wanted = int(size) // ROUND * ROUND
    last, deadband = track.wanted, config.memory.protection.deadband_pct / 100
    if last is not None and abs(wanted - last) <= deadband * last and (clamp is None or last < wanted):
        wanted = last
    text = f"keeps {_mib(wanted)} from reclaim: {_mib(track.peak)} in use and a margin"
    return Verdict(wanted, text + (f", {clamp}" if clamp else ""), clamp)


def _desired(
    config: Config, now: Snapshot, workload: Workload, track: Track, wanted: tuple[Verdict, str]
) -> Desired:
    verdict, file = wanted
    size = verdict.bytes or 0
    section = config.memory.protection
    memory = workload.sample.memory
    age_ms = (now.monotonic_usec - (track.stat_usec or now.monotonic_usec)) // 1000
    inputs = [
        Input("working set", round(track.peak / _MIB, 1), "MiB", age_ms),
        Input("memory.current", round((workload.sample.memory_current or 0) / _MIB, 1), "MiB"),
    ]
    if memory is not None and memory.stat is not None:
        inputs.append(Input("inactive_file", round(memory.stat.inactive_file / _MIB, 1), "MiB", age_ms))
    reason = Reason(
        f"memory.protection/{file.removeprefix('memory.')}",
        verdict.text,
        tuple(inputs),
        threshold=f"memory.protection.margin_pct = {section.margin_pct:g} %",
        clamp=verdict.clamp,
    )
    setting = MemoryMin(size) if file == MemoryMin.file else MemoryLow(size)
    return Desired(workload.id, workload.path, workload.tier, setting, reason)


def _mib(size: float) -> str:
    return f"{size / _MIB:.0f} MiB"
