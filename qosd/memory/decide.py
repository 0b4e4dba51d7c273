"""The memory governors together, and what is told of them. Pure."""

from __future__ import annotations

import msgspec

from qosd.ask import Tighten
from qosd.config import Config
from qosd.memory import limits, protection, reclaim
from qosd.memory.reclaim import Reclaim
from qosd.memory.track import Track
from qosd.memory.trouble import Trouble, trouble
from qosd.model import Snapshot, Workload, printable
from qosd.plan import Desired

_PARTS = 8


class State(msgspec.Struct, frozen=True, gc=False):
    protection: protection.State = protection.State()
    limits: limits.State = limits.State()
    reclaim: reclaim.State = reclaim.State()


class PartMemory(msgspec.Struct, frozen=True):
    """A cgroup of the workload as background reclaim saw it last."""

    path: str
    page_cache: int
    idle: bool | None
    """It used no CPU; None: seen once only."""
    held: str | None
    """Why nothing is asked of it, for now."""


class WorkloadMemory(msgspec.Struct, frozen=True):
    """What the governors make of one workload's memory; sizes in bytes."""

    path: str
    workload: str
    tier: str
    page_cache: int | None
    """inactive_file + active_file: what reclaim can take; not `file`, which counts shmem too."""
    working_set: int | None
    """Of LS: what it uses, the largest value of late."""
    protection: str | None
    limit: str | None
    phase: str
    """off, below, reclaiming, held, nothing."""
    reclaim: str
    asked: int
    freed: int
    refaulted: int
    errors: dict[str, int]
    parts: tuple[PartMemory, ...] = ()
    """Those with the most page cache of their own."""


class MemoryView(msgspec.Struct, frozen=True):
    be_allowed: int | None
    """Bytes BE may hold, None while it is not limited."""
    be_text: str | None
    swappiness_key: bool | None
    trouble: Trouble
    pgscan_kswapd: int | None
    pgscan_direct: int | None
    workloads: tuple[WorkloadMemory, ...]
    stuck: int = 0
    """Requests to memory.reclaim that have not come back within their deadline."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    desired: tuple[Desired, ...]
    reclaims: tuple[Reclaim, ...]
    view: MemoryView


def decide(
    config: Config, prev: Snapshot | None, now: Snapshot, state: State, asked: Tighten | None = None
) -> tuple[State, Decision]:
    """`asked` comes from the ladder of answers."""
    protection_state, protected, protections = protection.decide(config, now, state.protection)
    limits_state, limited = limits.decide(config, prev, now, state.limits, asked)
    reclaim_state, reclaims, standings = reclaim.decide(config, prev, now, state.reclaim, asked)
    by_protection = {each.cgroup_id: each for each in protections}
    by_limit = {each.cgroup_id: each.text for each in limited.standings}
    by_reclaim = {each.cgroup_id: each for each in standings}
    view = MemoryView(
        limited.allowed,
        limited.text,
        reclaim_state.swappiness_key,
        trouble(config, prev, now),
        now.host.pgscan_kswapd,
        now.host.pgscan_direct,
        tuple(
            _workload(
                now,
                workload,
                by_protection.get(workload.id),
                by_limit.get(workload.id),
                (by_reclaim.get(workload.id), reclaim_state.tracks.get(workload.id, Track())),
            )
            for workload in now.workloads
        ),
    )
    following = State(protection_state, limits_state, reclaim_state)
    return following, Decision((*protected, *limited.desired), reclaims, view)


def _workload(
    now: Snapshot,
    workload: Workload,
    protected: protection.Protected | None,
    limited: str | None,
    reclaimed: tuple[reclaim.Standing | None, Track],
) -> WorkloadMemory:
    standing, track = reclaimed
    memory = workload.sample.memory
    stat = track.stat or (memory.stat if memory is not None else None)
    return WorkloadMemory(
        printable(workload.path),
        workload.name,
        workload.tier.value,
        stat.page_cache if stat is not None else None,
        protected.working_set if protected is not None else None,
        protected.text if protected is not None else None,
        limited,
        standing.phase if standing is not None else "off",
        standing.text if standing is not None else "no watermark is set, of a workload or of the host",
        track.asked,
        track.freed,
        track.refaulted,
        track.errors,
        _parts(now, track),
    )


def _parts(now: Snapshot, track: Track) -> tuple[PartMemory, ...]:
    largest = sorted(track.parts.values(), key=lambda each: -each.stat.page_cache)[:_PARTS]
    return tuple(
        PartMemory(
            printable(each.path),
            each.stat.page_cache,
            each.idle,
            each.why_held if now.monotonic_usec < each.held_until else None,
        )
        for each in largest
    )
