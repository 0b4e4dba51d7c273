"""What is normal for an LS workload, learned while BE is quiet, and what is a breach of it. Pure.

Learned by path, not by id: ids do not outlive a boot. The unit is one wait (stall, request), not one tick, so
what a busy hour looks like weighs more than what a dead one does.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from qosd import decay
from qosd.ebpf.histogram import SLOTS, Histogram, slot_bounds_ns
from qosd.interference import own, usual
from qosd.interference.usual import Usual
from qosd.model import CgroupId, Probed, Snapshot, Tier, Workload, printable
from qosd.schema.ebpf import Baseline

_KEPT = 512
"""Workloads' signals that are remembered after their cgroup has gone: it may come back."""
_FIRST_USEC = 1.0
_RARE = 0.99
_PARTS = 4
_VALUES_USEC = tuple(
    tuple((low + (high - low) * (part + 0.5) / _PARTS) / 1000 for part in range(_PARTS))
    for low, high in map(slot_bounds_ns, range(SLOTS))
)
"""A slot is learned as spread evenly over its width, as the quantile of an interval takes it to be."""
SIGNALS = ("runq", "reclaim", "blkio", "tcp_rtt")
"""Stalls at limits of a cgroup's own (reclaim_memcg) are nobody else's doing."""


class State(msgspec.Struct, frozen=True, gc=False):
    learned: dict[str, decay.Histogram] = {}
    """By signal and path. Treated as a frozen value."""
    usual: dict[str, Usual] = {}
    """Behind whom each waits anyway, by path. Treated as a frozen value."""


class Reading(msgspec.Struct, frozen=True, gc=False):
    """How one LS workload did in this interval by one signal; times are microseconds."""

    victim: CgroupId
    path: str
    signal: str
    count: int
    """Waits, stalls or requests that ended in the interval: the evidence."""
    value: float | None
    """Their quantile; None without any."""
    threshold: float
    baseline: float | None
    """The same quantile while BE is quiet; None while it is cold."""
    breach: bool
    alarm: float = 0.0
    """From where on one wait alone is worth a wake-up: one above the threshold need not be rare."""
    culprits: tuple[tuple[CgroupId, float], ...] = ()
    """Of runq: who had the CPUs on top of the usual, with shares of that."""

    @property
    def cold(self) -> bool:
        return self.baseline is None


def decide(
    config: Baseline, prev: Snapshot | None, now: Snapshot, state: State
) -> tuple[State, tuple[Reading, ...]]:
    """One reading for each LS workload and signal that a probe tells of, and what was learned of them."""
    probed = {each.id: each for each in now.probed}
    learned = dict(state.learned)
    readings = []
    quiet = {signal: is_quiet(config, prev, now, signal) for signal in SIGNALS}
    for workload in now.tier(Tier.LS):
        for signal, interval in _intervals(probed.get(workload.id)):
            key = f"{signal} {printable(workload.path)}"
            known = learned.get(key)
            reading = _read(config, workload, signal, interval, known, now.monotonic_usec)
            readings.append(reading)
            weight = _weight(config, prev, now, (workload, reading)) if quiet[signal] else 0.0
            if weight and interval.count:
                learned[key] = _learn(config, known, interval, weight, now.monotonic_usec)
    behind, found = _on_top(prev, now, state.usual, readings, quiet=quiet["runq"])
    if learned == state.learned and behind == state.usual:
        return state, found
    return State(_pruned(learned, now), behind), found


def _on_top(
    prev: Snapshot | None, now: Snapshot, known: dict[str, Usual], readings: list[Reading], *, quiet: bool
) -> tuple[dict[str, Usual], tuple[Reading, ...]]:
    """The readings with whom runq has seen on the CPUs, less whom it always sees; and what that is."""
    elapsed = now.monotonic_usec - prev.monotonic_usec if prev is not None else 0
    if elapsed <= 0:
        return known, tuple(readings)
    probed = {each.id: each for each in now.probed}
    tiers = {workload.id: workload.tier for workload in now.workloads}
    following = dict(known)
    found = []
    for reading in readings:
        if reading.signal != "runq":
            found.append(reading)
            continue
        of, before = probed[reading.victim], known.get(reading.path, usual.NOTHING)
        seen = usual.culprits(of, tiers, usual.NOTHING if reading.cold else before, elapsed)
        found.append(msgspec.structs.replace(reading, culprits=seen))
        if quiet and not reading.breach:
            following[reading.path] = usual.learn(before, of, tiers, elapsed)
    if len(following) > _KEPT:
        present = {printable(workload.path) for workload in now.tier(Tier.LS)}
        following = {path: behind for path, behind in following.items() if path in present}
    return following, tuple(found)


def is_quiet(config: Baseline, prev: Snapshot | None, now: Snapshot, signal: str) -> bool:
    """Whether what LS sees in this interval is its own doing. Not while BE's use is unknown.

    A BE at its floor counts as quiet. Little CPU is no proof of little IO, so for a disk or memory BE must
    have completed no request.
    """
    share = be_share_pct(prev, now)
    if share is None or share > config.quiet_pct:
        return False
    if signal in ("runq", "tcp_rtt"):
        return True
    be = {workload.id for workload in now.tier(Tier.BE)}
    return not any(each.blkio is not None and each.blkio.count for each in now.probed if each.id in be)


def be_share_pct(prev: Snapshot | None, now: Snapshot) -> float | None:
    """BE's CPU use between two snapshots, in per cent of all CPUs."""
    if prev is None or now.monotonic_usec <= prev.monotonic_usec or now.host.nr_cpus == 0:
        return None
    used = 0
    for workload in now.tier(Tier.BE):
        before = prev.workload(workload.id)
        if before is None or before.sample.cpu is None or workload.sample.cpu is None:
            return None
        gained = workload.sample.cpu.usage_usec - before.sample.cpu.usage_usec
        if gained < 0:
            return None
        used += gained
    return 100 * used / (now.monotonic_usec - prev.monotonic_usec) / now.host.nr_cpus


def runq_thresholds(readings: tuple[Reading, ...]) -> dict[CgroupId, int]:
    """From which wait on the kernel sends word, in nanoseconds, by LS workload."""
    return {each.victim: round(each.alarm * 1000) for each in readings if each.signal == "runq"}


def moved(state: State, at_usec: int, away_usec: int) -> State:
    """What was saved by another boot or run, on the clock of this one."""
    learned = {key: known.moved(at_usec, away_usec) for key, known in state.learned.items()}
    return State(learned, state.usual)


def as_of(state: State, at_usec: int) -> State:
    """As it may be saved: nothing in it depends on when it was learned any more."""
    learned = {key: known.moved(at_usec, at_usec - known.since_usec) for key, known in state.learned.items()}
    return State(learned, state.usual)


def _intervals(probed: Probed | None) -> Iterator[tuple[str, Histogram]]:
    if probed is not None:
        intervals = (probed.runq, probed.reclaim, probed.blkio, probed.tcp_rtt)
        for signal, interval in zip(SIGNALS, intervals, strict=True):
            if interval is not None:
                yield signal, interval


def _read(
    config: Baseline,
    workload: Workload,
    signal: str,
    interval: Histogram,
    known: decay.Histogram | None,
    at: int,
) -> Reading:
    floor, unlearned = _limits(config)[signal]
    warm = known if known is not None and not known.is_cold(config.min_learned, at) else None
    baseline = warm.quantile(config.quantile) if warm is not None else None
    rare = warm.quantile(max(config.quantile, _RARE)) if warm is not None else None
    threshold = _threshold(config, floor, unlearned, baseline)
    quantile = interval.quantile_ns(config.quantile)
    value = None if quantile is None else quantile / 1000
    breach = value is not None and interval.count >= config.min_evidence and value > threshold
    return Reading(
        workload.id,
        printable(workload.path),
        signal,
        interval.count,
        value,
        threshold,
        baseline,
        breach,
        _threshold(config, floor, unlearned, rare),
    )


def _threshold(config: Baseline, floor: int, unlearned: int, usual: float | None) -> float:
    return float(unlearned) if usual is None else max(float(floor), config.factor * usual)


def _limits(config: Baseline) -> dict[str, tuple[int, int]]:
    """The absolute floor, and the threshold while nothing is learned."""
    return {
        "runq": (config.runq_floor, config.runq_cold),
        "reclaim": (config.reclaim_floor, config.reclaim_cold),
        "blkio": (config.blkio_floor, config.blkio_cold),
        "tcp_rtt": (config.tcp_rtt_floor, config.tcp_rtt_cold),
    }


def _weight(config: Baseline, prev: Snapshot | None, now: Snapshot, of: tuple[Workload, Reading]) -> float:
    """What is far above the usual becomes usual only if it lasts.

    Not at all where a quota of its own makes it wait for the CPUs.
    """
    workload, reading = of
    if not reading.breach:
        return 1.0
    held = reading.signal == "runq" and prev is not None and own.cpu(prev, now, workload.path) is not None
    return 0.0 if held else config.breach_weight


def _learn(
    config: Baseline, known: decay.Histogram | None, interval: Histogram, weight: float, at: int
) -> decay.Histogram:
    if known is None or known.half_life_usec != config.half_life:
        known = decay.Histogram(half_life_usec=int(config.half_life), first=_FIRST_USEC)
    return known.add_all(
        (
            (value, weight * count / _PARTS)
            for values, count in zip(_VALUES_USEC, interval.slots, strict=True)
            if count
            for value in values
        ),
        at,
    )


def _pruned(learned: dict[str, decay.Histogram], now: Snapshot) -> dict[str, decay.Histogram]:
    if len(learned) <= _KEPT:
        return learned
    paths = {printable(workload.path) for workload in now.tier(Tier.LS)}
    gone = [key for key in learned if key.partition(" ")[2] not in paths]
    gone.sort(key=lambda key: learned[key].total(now.monotonic_usec))
    for key in gone[: len(learned) - _KEPT]:
        del learned[key]
    return learned
