"""memory.low of LS from its observed working set: the page cache it uses outlives what BE streams through.

The working set is what the cgroup holds less what nobody has touched twice (unmapped inactive_file). Where
evicted pages come back (refaults) none of it is taken for cold, and what came back is added: a set that
does not fit asks for more. Its largest value
is kept and decays, so that a pause of LS does not give the set away. A cgroup is protected only as far as
every ancestor is (effective_protection() in mm/page_counter.c). Pure.
"""

from __future__ import annotations

import msgspec

from qosd.config import Config
from qosd.memory import baseline
from qosd.memsample import MemorySample
from qosd.model import CgroupId, MemoryLow, MemoryMin, Snapshot, Tier, Workload
from qosd.plan import Desired, Input, Reason, amount
from qosd.schema.memory import Protect
from qosd.schema.memory import Protection as Section
from qosd.split import Claim, split

ROUND = 1 << 20
_MIB = 1 << 20
_NOISE = 1 << 18  # bytes read again that say nothing yet: 64 pages


class Track(msgspec.Struct, frozen=True, gc=False):
    """What is remembered of one LS workload."""

    peak: float = 0.0
    stat_usec: int | None = None
    refaults: int | None = None
    wanted: int | None = None
    unknown_ticks: int = 0


class State(msgspec.Struct, frozen=True, gc=False):
    tracks: dict[CgroupId, Track] = {}


class Protected(msgspec.Struct, frozen=True, gc=False):
    """How one LS workload stands."""

    cgroup_id: CgroupId
    working_set: int | None
    text: str


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The bytes to ask for, None for what stands without us, and the sentence that says why."""

    bytes: int | None
    text: str
    clamp: str | None = None


def file_of(section: Section) -> str | None:
    return None if section.enforce is Protect.OFF else f"memory.{section.enforce.value}"


def decide(
    config: Config, now: Snapshot, state: State
) -> tuple[State, tuple[Desired, ...], tuple[Protected, ...]]:
    file = file_of(config.memory.protection)
    if file is None:
        return State(), (), ()
    tracks: dict[CgroupId, Track] = {}
    for workload in now.tier(Tier.LS):
        if workload.setting(file) is not None:
            known = state.tracks.get(workload.id, Track())
            tracks[workload.id] = _observe(config, now, workload, known)
    sizes = _sizes(config, now, tracks)
    desired: list[Desired] = []
    standings: list[Protected] = []
    for workload in now.tier(Tier.LS):
        if workload.id not in tracks:
            continue
        track = tracks[workload.id]
        size, clamp = sizes.get(workload.id, (None, None))
        verdict = _settle(config, workload, track, (size, clamp), baseline.of_others(now, workload, file))
        peak = round(track.peak) if track.stat_usec is not None else None
        standings.append(Protected(workload.id, peak, verdict.text))
        tracks[workload.id] = msgspec.structs.replace(track, wanted=verdict.bytes)
        if verdict.bytes is not None:
            desired.append(_desired(config, now, workload, track, verdict))
    return State(tracks), tuple(desired), tuple(standings)


def working_set(workload: Workload, refaulted: int) -> int | None:
    """Bytes the workload is using: all it holds but cold page cache, and what it had to read again."""
    memory, current = workload.sample.memory, workload.sample.memory_current
    if memory is None or memory.stat is None or current is None:
        return None
    if refaulted >= _NOISE:
        # The kernel moves used pages to the inactive list, too, to see whether they are used again.
        return current + refaulted
    cold = max(memory.stat.inactive_file - memory.stat.file_mapped, 0)
    return max(current - cold, 0)


def _observe(config: Config, now: Snapshot, workload: Workload, track: Track) -> Track:
    memory = workload.sample.memory
    if memory is None or memory.stat is None or memory.stat_usec is None:
        return msgspec.structs.replace(track, unknown_ticks=track.unknown_ticks + 1)
    if memory.stat_usec == track.stat_usec:
        return msgspec.structs.replace(track, unknown_ticks=0)
    refaulted = _refaulted(track, memory, now.host.page_bytes)
    need = working_set(workload, refaulted)
    if need is None:
        return msgspec.structs.replace(track, unknown_ticks=track.unknown_ticks + 1)
    elapsed = memory.stat_usec - track.stat_usec if track.stat_usec is not None else 0
    faded = track.peak * 0.5 ** (max(elapsed, 0) / config.memory.protection.half_life)
    return msgspec.structs.replace(
        track,
        peak=max(float(need), faded),
        stat_usec=memory.stat_usec,
        refaults=memory.stat.workingset_refault_file,
        unknown_ticks=0,
    )


def _refaulted(track: Track, memory: MemorySample, page_bytes: int) -> int:
    after = memory.stat.workingset_refault_file if memory.stat is not None else None
    if track.refaults is None or after is None:
        return 0
    return max(after - track.refaults, 0) * page_bytes


def _sizes(
    config: Config, now: Snapshot, tracks: dict[CgroupId, Track]
) -> dict[CgroupId, tuple[float, str | None]]:
    """What each may have: all it asks for, unless the sum is more than LS may keep from the others."""
    section = config.memory.protection
    asked = {
        cgroup_id: track.peak * (1 + section.margin_pct / 100)
        for cgroup_id, track in tracks.items()
        if track.stat_usec is not None and track.unknown_ticks <= config.memory.release_ticks
    }
    if now.host.mem_total is None:
        return {}
    most = now.host.mem_total * section.max_pct / 100
    if sum(asked.values()) <= most:
        return {cgroup_id: (size, None) for cgroup_id, size in asked.items()}
    claims = [
        Claim(workload.id, workload.priority, asked[workload.id], asked[workload.id])
        for workload in now.tier(Tier.LS)
        if workload.id in asked
    ]
    clamp = f"all of LS is kept within max_pct = {section.max_pct:g} % of RAM"
    return {cgroup_id: (size, clamp) for cgroup_id, size in split(most, claims).items()}


def _settle(
    config: Config,
    workload: Workload,
    track: Track,
    share: tuple[float | None, str | None],
    others: float | None,
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
    if wanted <= (others or 0):
        return Verdict(None, f"{_mib(track.peak)} in use: what is set without qosd protects as much already")
    text = f"keeps {_mib(wanted)} from reclaim: {_mib(track.peak)} in use and a margin"
    return Verdict(wanted, text + (f", {clamp}" if clamp else ""), clamp)


def _desired(config: Config, now: Snapshot, workload: Workload, track: Track, verdict: Verdict) -> Desired:
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
        f"memory.protection/{section.enforce.value}",
        verdict.text,
        tuple(inputs),
        threshold=f"memory.protection.margin_pct = {section.margin_pct:g} %",
        clamp=verdict.clamp,
    )
    setting = MemoryMin(size) if section.enforce is Protect.MIN else MemoryLow(size)
    return Desired(workload.id, workload.path, workload.tier, setting, reason)


def _mib(size: float) -> str:
    return f"{size / _MIB:.0f} MiB"
