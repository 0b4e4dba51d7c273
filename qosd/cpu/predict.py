"""The CPU use to expect of LS and the system in the next minutes: a high quantile of what they used. Pure.

koordlet's predictor (pkg/koordlet/prediction): p95 of a decaying histogram with 5 % growth, and 10 % on top.
Its half-life of 12 h answers "what may be scheduled today"; here the question is what LS will want back soon.
"""

from __future__ import annotations

import msgspec

from qosd.decay import Histogram
from qosd.schema.prediction import Prediction

SYSTEM = "system"
"""What is in no tier, beside the paths of the LS workloads (systemd calls no cgroup just so)."""
VERSION = 1
"""Of the checkpoint: to be raised when an old one would be misread."""

Learned = dict[str, Histogram]

_FIRST = 0.01  # CPUs: less is no load to speak of
_MAX = 1000  # workloads: one that went away is kept for its return, but not any number of them
_FORGOTTEN = 1.0  # seconds of use that are left in mind


class Expected(msgspec.Struct, frozen=True, gc=False):
    cores: float
    cold: tuple[str, ...]
    """Those of which too little is known: their last tick counts."""
    known_sec: float
    """Of the least known one: how many seconds of it are in mind."""


def learn(
    prediction: Prediction, uses: dict[str, float], seconds: float, at_usec: int, old: Learned
) -> Learned:
    """With one more tick: `uses` are CPUs by name."""
    empty = Histogram(int(prediction.half_life), _FIRST)
    learned = dict(old)
    for name, cores in uses.items():
        held = learned.get(name, empty)
        if held.half_life_usec != empty.half_life_usec:
            held = msgspec.structs.replace(held.as_of(at_usec), half_life_usec=empty.half_life_usec)
        learned[name] = held.add(cores, seconds, at_usec)
    if len(learned) == len(uses):
        return learned
    return _kept(learned, uses, at_usec)


def expect(prediction: Prediction, uses: dict[str, float], at_usec: int, learned: Learned) -> Expected:
    """The sum of the peaks: workloads that peak together must fit together."""
    cores = 0.0
    cold = []
    least = prediction.cold / 1e6
    for name, used in uses.items():
        held = learned[name]
        peak = held.quantile(prediction.percentile / 100)
        if peak is None or held.is_cold(least, at_usec):
            cold.append(name)
            cores += used
        else:
            cores += peak * (1 + prediction.margin_pct / 100)
    known = min((learned[name].total(at_usec) for name in uses), default=0.0)
    return Expected(cores, tuple(cold), known)


def moved(learned: Learned, at_usec: int, away_usec: int) -> Learned:
    """From a checkpoint: on this boot's clock, with the time in between forgotten."""
    return {name: held.moved(at_usec, away_usec) for name, held in learned.items()}


def as_of(learned: Learned, at_usec: int) -> Learned:
    """For a checkpoint."""
    return {name: held.as_of(at_usec) for name, held in learned.items()}


def _kept(learned: Learned, uses: dict[str, float], at_usec: int) -> Learned:
    gone = {name: held.total(at_usec) for name, held in learned.items() if name not in uses}
    room = max(_MAX - len(uses), 0)
    best = sorted((name for name in gone if gone[name] >= _FORGOTTEN), key=lambda name: -gone[name])[:room]
    return {name: learned[name] for name in (*uses, *best)}
