"""The static modes beside qosd, on the model of a host: what its decisions are worth there."""

from __future__ import annotations

from qosd.config import Config
from qosd.model import Tier
from qosd.simulate import Result, Scenario, Static, run

QOSD = "qosd"
_PERIOD_USEC = 10_000


def static_modes(nr_cpus: int) -> dict[str, Static]:
    """What an administrator can set once and leave alone, as `bench.sched` has them too."""
    ls = {"cpu.weight": "1000"}
    idle = {"cpu.idle": "1"}
    quotas = {
        f"cpu.idle, {pct} % quota": {
            Tier.LS: ls,
            Tier.BE: {**idle, "cpu.max": f"{round(nr_cpus * _PERIOD_USEC * pct / 100)} {_PERIOD_USEC}"},
        }
        for pct in (30, 50, 70)
    }
    half = {**idle, "cpuset.cpus": f"{nr_cpus // 2}-{nr_cpus - 1}"}
    return {
        "same weight": {},
        "weight 100:1": {Tier.LS: {"cpu.weight": "10000"}},
        "cpu.idle": {Tier.LS: ls, Tier.BE: idle},
        **quotas,
        "cpu.idle, half the CPUs": {Tier.LS: ls, Tier.BE: half},
    }


def beside(scenario: Scenario, config: Config) -> dict[str, Result]:
    """What comes of the same load under qosd and under each static mode."""
    static = {name: run(scenario, config, mode) for name, mode in static_modes(scenario.nr_cpus).items()}
    return {QOSD: run(scenario, config), **static}


def dominates(one: Result, other: Result, margin: float = 0.02) -> bool:
    """Whether LS waits less and BE does more, both by more than the margin."""
    ls = one.ls_delay_p99_ms * (1 + margin) < other.ls_delay_p99_ms
    return ls and one.be_pct > other.be_pct * (1 + margin)
