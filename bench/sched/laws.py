"""The control laws that qosd is compared with, and variants of its own, as pure functions. No peer's code.

Each maps (sample, state) to (state, BE's CPUs).
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sample:
    """CPUs in use over the last interval."""

    at: float
    other: float
    """LS and system."""
    be: float
    nr_cpus: int


@dataclasses.dataclass(frozen=True)
class State:
    cores: float | None = None
    history: tuple[Sample, ...] = ()


def koordlet(sample: Sample, state: State) -> tuple[State, float]:
    """cpu_suppress.go: capacity x 65 % - LS - system; changes under 1 % are ignored, rises are <= 10 %."""
    wanted = max(sample.nr_cpus * 0.65 - sample.other, 0.02)
    if state.cores is not None:
        if abs(wanted - state.cores) < 0.01 * sample.nr_cpus:
            wanted = state.cores
        wanted = min(wanted, state.cores + 0.1 * sample.nr_cpus)
    return State(wanted), wanted


def sideloader(sample: Sample, state: State) -> tuple[State, float]:
    """sideloader.py: idle plus BE's own, less 20 % headroom; the lower of 1 s and 5 s; floor 5 %."""
    history = (*(past for past in state.history if past.at > sample.at - 5), sample)
    recent = [past for past in history if past.at > sample.at - 1]
    used = max(_mean(history), _mean(recent))
    cores = max(sample.nr_cpus * 0.8 - used, sample.nr_cpus * 0.05)
    return State(cores, history), cores


@dataclasses.dataclass(frozen=True)
class Track:
    """The knobs of qosd's allowance, free to vary. Shares of the machine in per cent, times in seconds."""

    x: float = 100.0
    window: float = 5.0
    use: str = "mean"
    """Of the window: `mean`, `max` or `last`; always at least the last interval."""
    up: float = 100.0
    deadband: float = 2.0
    floor: float = 5.0

    def __call__(self, sample: Sample, state: State) -> tuple[State, float]:
        history = (*(past for past in state.history if past.at > sample.at - self.window), sample)
        used = {
            "mean": max(_mean(history), sample.other),
            "max": max(past.other for past in history),
            "last": sample.other,
        }[self.use]
        one_pct = sample.nr_cpus / 100
        wanted = max(self.x * one_pct - used, self.floor * one_pct)
        if state.cores is not None:
            wanted = min(wanted, state.cores + self.up * one_pct)
            if abs(wanted - state.cores) <= self.deadband * one_pct:
                wanted = state.cores
        return State(wanted, history), wanted


def _mean(history: tuple[Sample, ...] | list[Sample]) -> float:
    return sum(past.other for past in history) / len(history)
