"""What the rungs between `squeeze` and `freeze` ask of other governors, with the verdict as the reason. Pure.

What was asked stays asked for while its ladder stands: the culprits of one tick may be missing in the next,
as BE that is held back does less, and a CPU that is given back and taken again migrates tasks for nothing.
"""

from __future__ import annotations

import math

import msgspec

from qosd.ask import Apart, Tighten
from qosd.config import Config
from qosd.errors import Malformed
from qosd.interference.verdict import Evidence, Verdict
from qosd.model import CpusetCpus, Snapshot, Tier, Workload
from qosd.plan import Reason
from qosd.schema.cpu import CpusetMode
from qosd.topology import format_cpulist, parse_cpulist

RULE = "interference.ladder"


def because(rule: str, verdict: Verdict) -> Reason:
    return Reason(
        rule,
        f"{verdict.path} waits through BE: {verdict.signal} {verdict.value:.1f}"
        f" against {verdict.threshold:.1f} (verdict {verdict.id}); {verdict.text}",
        verdict.evidence,
        threshold=f"{verdict.threshold:.1f}",
        margin=f"{verdict.value - verdict.threshold:+.1f}",
    )


def worst(verdicts: list[Verdict]) -> Verdict | None:
    return max(verdicts, key=lambda verdict: verdict.value / verdict.threshold, default=None)


def tighten(
    verdicts: list[Verdict], ground: Evidence, now: Snapshot, before: Tighten | None
) -> Tighten | None:
    """What a standing ladder asks; `verdicts` are the open ones of its kind that BE is the cause of."""
    most = worst(verdicts)
    hot, quiet = ground is Evidence.HOT, ground is Evidence.QUIET
    if most is None:
        return None if before is None else msgspec.structs.replace(before, hot=False, quiet=quiet)
    named = {each.id for verdict in verdicts for each in verdict.culprits if each.tier is Tier.BE}
    known = before.ids if before is not None else frozenset()
    present = {workload.id for workload in now.tier(Tier.BE)}
    ids = frozenset(each for each in (*named, *known) if each in present)
    victims = frozenset(verdict.victim for verdict in verdicts)
    return Tighten(ids, victims, hot, quiet, because(f"{RULE}/{most.kind}", most))


def apart(
    config: Config, prev: Snapshot | None, now: Snapshot, verdicts: list[Verdict], before: Apart | None
) -> Apart | None:
    """The CPUs that BE could leave to the victims; None where it cannot leave any: BE must run somewhere.

    A victim with a mask of its own has those; for one that may run anywhere as many CPUs as it uses are set
    free, and `cpu.cpuset` picks which: the kernel does not say where a cgroup runs, only how busy a CPU is.
    """
    most, online = worst(verdicts), set(now.host.cpus_online or ())
    if most is None or not online or not _has_masks(config, now):
        return before
    bound: set[int] = set(before.cpus) & online if before is not None else set()
    used = 0.0
    for verdict in verdicts:
        victim = now.workload(verdict.victim)
        mask = set(_mask(victim)) & online
        if mask and mask != online:
            bound |= mask
        else:
            used += _cores(prev, now, victim) or 0.0
    bound = bound if online - bound else set()
    spare = max(math.ceil(used - 1e-9), before.spare if before is not None else 0)
    spare = min(spare, len(online - bound) - 1)
    if not bound and spare <= 0:
        return before
    cpus = tuple(sorted(bound))
    said = because(f"{RULE}/{most.kind}", most)
    what = " and ".join(
        [f"CPUs {format_cpulist(cpus)}, which they are bound to"] * bool(cpus)
        + [f"as many CPUs as they use ({spare})"] * (spare > 0)
    )
    text = f"BE leaves those that it keeps waiting {what}; {said.text}"
    return Apart(cpus, max(spare, 0), msgspec.structs.replace(said, text=text))


def _has_masks(config: Config, now: Snapshot) -> bool:
    """Whether any mask of BE may and can be written."""
    if config.cpu.cpuset.mode is CpusetMode.NEVER:
        return False
    return any(workload.setting(CpusetCpus.file) is not None for workload in now.tier(Tier.BE))


def _mask(workload: Workload | None) -> tuple[int, ...]:
    text = workload.setting(CpusetCpus.file) if workload is not None else None
    try:
        return parse_cpulist(text, CpusetCpus.file) if text else ()
    except Malformed:
        return ()


def _cores(prev: Snapshot | None, now: Snapshot, workload: Workload | None) -> float | None:
    """CPUs that the workload used in the last interval."""
    before = prev.workload(workload.id) if prev is not None and workload is not None else None
    if prev is None or before is None or workload is None or now.monotonic_usec <= prev.monotonic_usec:
        return None
    if before.sample.cpu is None or workload.sample.cpu is None:
        return None
    used = workload.sample.cpu.usage_usec - before.sample.cpu.usage_usec
    return max(used, 0) / (now.monotonic_usec - prev.monotonic_usec)
