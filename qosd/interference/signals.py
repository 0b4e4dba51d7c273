"""What says that an LS workload suffers: `Signal`, and the signals that pressure files give. Pure.

A signal is a reading and a threshold, not yet a verdict: who causes it, and whether BE does, is in `blame`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from qosd.model import CgroupId, CgroupSample, Pressure, Snapshot, Tier, Workload
from qosd.plan import Input
from qosd.schema.interference import Interference
from qosd.stalls import waited

_MEMORY_MAX = 512  # ticks that a baseline remembers with equal weight; older ones fade
_HIGHEST_PCT = 95.0  # a stall share cannot rise far above this, so no threshold may ask for it


class Kind(enum.StrEnum):
    """What the victim waits for, and so which ladder answers."""

    CPU = "cpu"
    MEMORY = "memory"
    IO = "io"
    LATENCY = "latency"


class Signal(msgspec.Struct, frozen=True, gc=False):
    """One reading of how much one LS workload suffers. Probes and fed latencies make these as well."""

    victim: CgroupId
    name: str
    kind: Kind
    value: float
    threshold: float
    baseline: float | None
    """What it is while BE is quiet; None: not known, or not needed."""
    cold: bool
    """The baseline is not learned yet: such a signal is answered by throttling at most."""
    evidence: tuple[Input, ...] = ()
    culprits: tuple[tuple[CgroupId, float], ...] = ()
    """Who was seen to cause it, with shares of the whole; empty: find out who was active."""
    at_usec: int = 0


class BaselineKey(NamedTuple):
    victim: CgroupId
    name: str


class Baseline(msgspec.Struct, frozen=True, gc=False):
    """The mean of a signal while BE is quiet, and from how many ticks."""

    value: float = 0.0
    ticks: int = 0


Baselines = dict[BaselineKey, Baseline]
"""Treated as a frozen value."""


def from_pressure(
    config: Interference, prev: Snapshot, now: Snapshot, baselines: Baselines
) -> tuple[Signal, ...]:
    """The signals of two snapshots: the `total` of each pressure file of each LS workload."""
    return tuple(
        signal
        for workload in now.tier(Tier.LS)
        if (before := prev.workload(workload.id)) is not None
        for signal in _of_workload(config, prev, now, (before, workload), baselines)
    )


def _of_workload(
    config: Interference,
    prev: Snapshot,
    now: Snapshot,
    pair: tuple[Workload, Workload],
    baselines: Baselines,
) -> Iterator[Signal]:
    before, after = pair
    elapsed = now.monotonic_usec - prev.monotonic_usec
    for kind, points in thresholds(config).items():
        share = waited(_pressure(before.sample, kind), _pressure(after.sample, kind), elapsed)
        if share is None:
            continue
        value = share * 100
        name = f"{kind}.pressure"
        known = baselines.get(BaselineKey(after.id, name), Baseline())
        learned = known.ticks >= config.baseline_ticks
        baseline = known.value if learned else None
        yield Signal(
            after.id,
            name,
            kind,
            value,
            min((baseline or 0.0) + points, max(points, _HIGHEST_PCT)),
            baseline,
            # Nobody waits for memory for long unless it is short, but a CPU or a disk is waited for anyway.
            cold=not learned and kind is not Kind.MEMORY,
            evidence=(
                Input("some stall", round(value, 2), "% of the time"),
                Input("interval", round(elapsed / 1e6, 3), "s"),
            ),
            at_usec=now.monotonic_usec,
        )


def thresholds(config: Interference) -> dict[Kind, float]:
    """Percentage points above the baseline."""
    return {
        Kind.CPU: config.cpu_some_pct,
        Kind.MEMORY: config.memory_some_pct,
        Kind.IO: config.io_some_pct,
    }


def _pressure(sample: CgroupSample, kind: Kind) -> Pressure | None:
    match kind:
        case Kind.CPU:
            return sample.cpu_pressure
        case Kind.MEMORY:
            return sample.memory_pressure
        case Kind.IO:
            return sample.io_pressure
        case Kind.LATENCY:
            return None


def learn(
    baselines: Baselines,
    signals: tuple[Signal, ...],
    now: Snapshot,
    *,
    quiet: bool,
    breach_weight: float,
) -> Baselines:
    """The baselines with this tick's readings, if BE was quiet, and without workloads that are gone."""
    present = {workload.id for workload in now.tier(Tier.LS)}
    following = {key: known for key, known in baselines.items() if key.victim in present}
    if quiet:
        for signal in signals:
            key = BaselineKey(signal.victim, signal.name)
            following[key] = _with(following.get(key, Baseline()), signal, breach_weight)
    return following


def _with(known: Baseline, signal: Signal, breach_weight: float) -> Baseline:
    """What is at its threshold becomes usual only if it lasts, once anything is known to be usual."""
    ticks = known.ticks + 1
    weight = breach_weight if signal.baseline is not None and signal.value >= signal.threshold else 1.0
    step = (signal.value - known.value) * weight / min(ticks, _MEMORY_MAX)
    return Baseline(known.value + step, ticks)
