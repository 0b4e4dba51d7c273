"""What background reclaim knows of each cgroup of a workload, and what it takes from which. Pure.

Page cache is touched by those who run. A cgroup that uses no CPU gives in chunks that double while they are
freed. One that works may hold a hot set, and the kernel's lists do not tell before it was tried (under the
multi-generational LRU file pages that are read are told from cold ones only by what came back, get_tier_idx()
in mm/vmscan.c): it gives a probe first, and twice as much after each `settle` in which nothing came back.
What comes back is a reason to keep off, twice as long each time; the next try is a probe again.
"""

from __future__ import annotations

import msgspec

from qosd.memsample import MemoryStat, Part
from qosd.model import CgroupId, Snapshot, printable
from qosd.schema.memory import Reclaiming

_POOR = 0.5  # of what was asked: below it the lists hold little that is cold (katalyst's efficiency is 0.6)
_NOISE = 1 << 18  # bytes read again that are no verdict yet: 64 pages
_IDLE = 0.01  # of a CPU
WORTH = 1 << 20  # bytes: less is not worth a system call that walks the LRU lists


class Target(msgspec.Struct, frozen=True, gc=False):
    """Bytes to take from one cgroup."""

    id: CgroupId
    path: str
    bytes: int


class Known(msgspec.Struct, frozen=True, gc=False):
    """What is known of one cgroup."""

    path: str
    stat: MemoryStat
    looked_usec: int
    pace: int
    """Bytes to ask for at once."""
    usage_usec: int | None = None
    idle: bool | None = None
    """None: seen once only."""
    asked_usec: int | None = None
    window_freed: int = 0
    window_refaulted: int = 0
    """Since the last hold, or since nothing was freed for `watch`."""
    last_freed_usec: int | None = None
    held_until: int = 0
    holds: int = 0
    why_held: str = ""

    @property
    def clean(self) -> int:
        """Cache that can go without a write to the disk and without taking a mapped page from somebody."""
        return clean(self.stat)


def clean(stat: MemoryStat) -> int:
    mapped = max(stat.file_mapped - stat.shmem, 0)
    return max(stat.page_cache - stat.file_dirty - stat.file_writeback - mapped, 0)


def follow(
    reclaim: Reclaiming, now: Snapshot, known: dict[CgroupId, Known], seen: tuple[Part, ...], at_usec: int
) -> tuple[dict[CgroupId, Known], int]:
    """What is known after a look, and how many bytes were read again since the last one."""
    following: dict[CgroupId, Known] = {}
    refaulted = of_wholes = 0
    for part in seen:
        before = known.get(part.id) or Known(
            part.path, part.stat, at_usec, int(reclaim.probe), part.usage_usec
        )
        again = _again(reclaim, now, before, part)
        if part.below:
            of_wholes = max(of_wholes, again)
        else:
            refaulted += again
        following[part.id] = _judged(reclaim, now, _seen(reclaim, before, part, at_usec, again), part)
    # The events of a cgroup with others below are those of all of them.
    return following, max(refaulted, of_wholes)


class Demand(msgspec.Struct, frozen=True, gc=False):
    bytes: int
    most: int | None = None
    """From each."""
    hurry: bool = False
    """The host lacks memory: no time for probes."""


def choose(
    reclaim: Reclaiming, known: dict[CgroupId, Known], now: Snapshot, demand: Demand
) -> tuple[Target, ...]:
    """Who gives what: those that use no CPU first, then the largest."""
    targets: list[Target] = []
    left = demand.bytes
    for cgroup_id, each in sorted(known.items(), key=lambda item: (not item[1].idle, -item[1].clean)):
        pace = int(reclaim.rate) if demand.hurry else each.pace
        wanted = min(left, each.clean, pace, pace if demand.most is None else demand.most)
        if wanted >= WORTH and _may(reclaim, now, each, hurry=demand.hurry):
            targets.append(Target(cgroup_id, each.path, wanted))
            left -= wanted
    return tuple(targets)


def _may(reclaim: Reclaiming, now: Snapshot, each: Known, *, hurry: bool) -> bool:
    """Not held, and what was taken from one that works had time to be missed."""
    if now.monotonic_usec < each.held_until:
        return False
    since = None if each.asked_usec is None else now.monotonic_usec - each.asked_usec
    return hurry or bool(each.idle) or since is None or since >= reclaim.settle


def held(known: dict[CgroupId, Known], now: Snapshot) -> Known | None:
    """The one whose hold ends first, where all that have something to give are held."""
    able = [each for each in known.values() if each.clean >= WORTH]
    if not able or any(now.monotonic_usec >= each.held_until for each in able):
        return None
    return min(able, key=lambda each: each.held_until)


def hold(reclaim: Reclaiming, now: Snapshot, each: Known, why: str) -> Known:
    wait = min(int(reclaim.hold) << min(each.holds, 10), int(reclaim.hold_max))
    return msgspec.structs.replace(
        each,
        pace=int(reclaim.probe),
        window_freed=0,
        window_refaulted=0,
        held_until=now.monotonic_usec + wait,
        holds=each.holds + 1,
        why_held=f"{printable(each.path)}: {why}",
    )


def _again(reclaim: Reclaiming, now: Snapshot, before: Known, part: Part) -> int:
    """Bytes read again since the last look, while what was freed is watched."""
    first, last = before.stat.workingset_refault_file, part.stat.workingset_refault_file
    if before.last_freed_usec is None or first is None or last is None:
        return 0
    watched = before.looked_usec - before.last_freed_usec <= reclaim.watch
    return max(last - first, 0) * now.host.page_bytes if watched else 0


def _seen(reclaim: Reclaiming, before: Known, part: Part, at_usec: int, again: int) -> Known:
    idle = _idle(before, part, at_usec)
    each = msgspec.structs.replace(
        before,
        path=part.path,
        stat=part.stat,
        looked_usec=at_usec,
        usage_usec=part.usage_usec,
        idle=idle,
        window_refaulted=before.window_refaulted + (again if before.window_freed else 0),
    )
    over = each.last_freed_usec is None or at_usec - each.last_freed_usec > reclaim.watch
    if over and each.window_freed:
        each = msgspec.structs.replace(each, window_freed=0, window_refaulted=0)
    if idle and not before.idle:
        return msgspec.structs.replace(each, pace=max(each.pace, int(reclaim.chunk)))
    if before.idle and not idle:
        return msgspec.structs.replace(each, pace=int(reclaim.probe))
    return each


def _idle(before: Known, part: Part, at_usec: int) -> bool | None:
    """Those that ended use no CPU; of one that was seen once nothing is known yet."""
    if part.below:
        return True
    elapsed = at_usec - before.looked_usec
    if part.usage_usec is None or before.usage_usec is None or elapsed <= 0:
        return before.idle
    return part.usage_usec - before.usage_usec < elapsed * _IDLE


def _judged(reclaim: Reclaiming, now: Snapshot, each: Known, part: Part) -> Known:
    """What came of a request, and of those before."""
    if part.result in ("done", "short"):
        each = msgspec.structs.replace(
            each,
            asked_usec=now.monotonic_usec,
            window_freed=each.window_freed + part.freed,
            last_freed_usec=now.monotonic_usec if part.freed else each.last_freed_usec,
        )
    why = _refaults(reclaim, each) or _failure(part)
    if why is not None:
        return hold(reclaim, now, each, why)
    if part.result not in ("done", "short"):
        return each
    since_hold = now.monotonic_usec - each.held_until
    holds = 0 if since_hold > reclaim.watch else each.holds
    return msgspec.structs.replace(_paced(reclaim, each, part), holds=holds)


def _paced(reclaim: Reclaiming, each: Known, part: Part) -> Known:
    least = int(reclaim.chunk if each.idle else reclaim.probe)
    if part.freed < part.asked * _POOR:
        return msgspec.structs.replace(each, pace=max(each.pace // 2, least))
    if part.asked > each.pace:
        return each  # in a hurry: that says nothing of the next probe
    return msgspec.structs.replace(each, pace=max(each.pace, min(part.asked * 2, int(reclaim.rate)), least))


def _refaults(reclaim: Reclaiming, each: Known) -> str | None:
    if each.window_refaulted < _NOISE:
        return None
    share = 100 * each.window_refaulted / each.window_freed if each.window_freed else 0.0
    if share <= reclaim.refault_pct:
        return None
    return f"{share:.1f} % of what was freed was read again (refault_pct = {reclaim.refault_pct:g} %)"


def _failure(part: Part) -> str | None:
    if part.result is None or part.result in ("no-swappiness", "not-run"):
        return None
    if part.result not in ("done", "short"):
        return f"memory.reclaim: {part.error or part.result}"
    return "nothing was freed: what is left is in use" if part.freed == 0 else None
