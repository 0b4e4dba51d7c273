"""What pressure is normal, by path: ids do not outlive a boot, and a workload may come back. Pure."""

from __future__ import annotations

import math

import msgspec

from qosd.interference.signals import Baseline, BaselineKey, Baselines, Kind
from qosd.model import Snapshot, Tier, printable

_KEPT = 512
"""Of workloads that are not there now; the longest known ones."""
_NAMES = tuple(f"{kind}.pressure" for kind in (Kind.CPU, Kind.MEMORY, Kind.IO))
"""Of the signals that a baseline is learned for here; those of the probes have their own."""

Remembered = dict[str, Baseline]
"""By signal and path. Treated as a frozen value."""


def adopt(baselines: Baselines, remembered: Remembered, now: Snapshot) -> Baselines:
    """With what is remembered of workloads of which nothing is learned yet."""
    if not remembered:
        return baselines
    found = {
        BaselineKey(workload.id, name): known
        for workload in now.tier(Tier.LS)
        for name in _NAMES
        if (known := remembered.get(f"{name} {printable(workload.path)}")) is not None
    }
    return {**found, **baselines}


def by_path(baselines: Baselines, remembered: Remembered, now: Snapshot | None) -> Remembered:
    """What to keep: what is learned now, and what is remembered of workloads that are gone."""
    paths = {} if now is None else {each.id: printable(each.path) for each in now.tier(Tier.LS)}
    learned = {
        f"{key.name} {paths[key.victim]}": known
        for key, known in baselines.items()
        if key.victim in paths and key.name in _NAMES
    }
    others = sorted(
        ((key, known) for key, known in remembered.items() if key not in learned),
        key=lambda item: -item[1].ticks,
    )
    return {**dict(others[:_KEPT]), **learned}


def aged(remembered: Remembered, away_usec: int, half_life_usec: int) -> Remembered:
    """After so long: it counts as fewer ticks, and so is cold again one day."""
    left = math.exp2(-min(max(away_usec, 0) / half_life_usec, 1000.0))
    return {
        key: msgspec.structs.replace(known, ticks=ticks)
        for key, known in remembered.items()
        if (ticks := int(known.ticks * left)) > 0 and math.isfinite(known.value)
    }
