"""Who would be frozen or killed first, and who never, before anything happens. Pure.

What is killed is a unit: the topmost cgroup below a workload that is no slice, or the workload itself where
nothing lies below it. Its processes come and go together, and systemd knows what to do about it.
"""

from __future__ import annotations

import msgspec

from qosd.config import Config
from qosd.model import CgroupId, CgroupSample, Snapshot, Tier, Workload, printable


class Candidate(msgspec.Struct, frozen=True, gc=False):
    id: CgroupId
    path: str
    """As bytes have it; `shown` is for people."""
    workload: str
    root_id: CgroupId
    root: str
    """The workload's own cgroup, which nothing is done above."""
    tier: Tier
    priority: int
    memory_bytes: int | None
    freeze_rank: int | None = None
    """1 goes first; None: never."""
    kill_rank: int | None = None
    why: str = ""

    @property
    def shown(self) -> str:
        return printable(self.path)


class Cooling(msgspec.Struct, frozen=True, gc=False):
    """A cgroup that was killed of late, by path as shown: what systemd starts again there is the same job."""

    path: str
    until_usec: int


def rank(config: Config, now: Snapshot, cooling: tuple[Cooling, ...] = ()) -> tuple[Candidate, ...]:
    """Everybody, the first to go first; LS last, never."""
    allowed = {rule.name for rule in config.workload if rule.kill and rule.tier is Tier.BE}
    cold = {each.path for each in cooling if now.monotonic_usec < each.until_usec}
    least = (now.host.mem_total or 0) * config.interference.kill.victim_min_pct / 100
    candidates = [each for workload in now.workloads for each in _units(now, workload)]
    ordered = sorted(candidates, key=_order)
    levels = sorted({each.priority for each in candidates if each.tier is Tier.BE}, reverse=True)
    ranked: list[Candidate] = []
    kills = 0
    for each in ordered:
        why = _never(each, allowed, cold, least)
        kills += why is None
        ranked.append(
            msgspec.structs.replace(
                each,
                freeze_rank=levels.index(each.priority) + 1 if each.tier is Tier.BE else None,
                kill_rank=kills if why is None else None,
                why=why or f"priority {each.priority}, then the largest memory.current",
            )
        )
    return tuple(ranked)


def _order(each: Candidate) -> tuple[bool, int, int, str]:
    return each.tier is Tier.LS, -each.priority, -(each.memory_bytes or 0), each.path


def _never(each: Candidate, allowed: set[str], cold: set[str], least: float) -> str | None:
    """Why it is not killed, None for one that may be."""
    if each.tier is Tier.LS:
        return "never: it is latency-sensitive"
    if each.workload not in allowed:
        return f"not killed: workload {each.workload} does not have kill = true"
    if each.shown in cold:
        return "not killed: it was killed a short while ago"
    if not each.memory_bytes:
        return "not killed: it holds no memory that is known of"
    if each.memory_bytes < least:
        return "not killed: it holds too little memory for its end to help anybody"
    return None


def _units(now: Snapshot, workload: Workload) -> list[Candidate]:
    below = [each for each in now.descendants if each.path.startswith(workload.path + "/")]
    tops = [each for each in below if _is_top(each.path, workload.path)]
    return [_candidate(workload, each) for each in tops or [workload.sample]]


def _is_top(path: str, root: str) -> bool:
    *above, last = path[len(root) + 1 :].split("/")
    return not last.endswith(".slice") and all(name.endswith(".slice") for name in above)


def _candidate(workload: Workload, sample: CgroupSample) -> Candidate:
    return Candidate(
        sample.id,
        sample.path,
        workload.name,
        workload.id,
        workload.path,
        workload.tier,
        workload.priority,
        sample.memory_current,
    )
