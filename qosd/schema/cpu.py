"""The `[cpu]` section: schema, defaults, ranges. Imports nothing of qosd but other sections. Pure."""

from __future__ import annotations

import enum
from typing import Annotated

from msgspec import Meta

from qosd.schema.burst import CpuBurst
from qosd.schema.burst import check as check_burst
from qosd.schema.pools import CpuPools
from qosd.schema.pools import check_cpu as check_pools
from qosd.schema.units import Duration, Percent, Section, Weight, within


class Enforce(enum.StrEnum):
    MAX = "max"
    CPUSET = "cpuset"
    NONE = "none"


class Estimate(enum.StrEnum):
    LAST = "last"
    MEAN = "mean"
    PREDICTED = "predicted"


class IdlePolicy(enum.StrEnum):
    SLICE = "slice"
    ALWAYS = "always"
    NEVER = "never"


class CpuWeights(Section, frozen=True):
    be_idle: IdlePolicy = IdlePolicy.SLICE
    be_weight: Weight = 1
    ls_weight: Weight = 1000


class CpuBandwidth(Section, frozen=True):
    enforce: Enforce = Enforce.NONE
    period: Duration = Duration(10_000)
    estimate: Estimate = Estimate.LAST
    mean: Duration = Duration(5_000_000)
    up_pct: Annotated[float, Meta(gt=0, le=100)] = 100.0
    deadband_up_pct: Percent = 10.0
    deadband_down_pct: Percent = 5.0
    floor_pct: Annotated[float, Meta(ge=1, le=100)] = 5.0
    release_ticks: Annotated[int, Meta(ge=2)] = 30


class CpusetMode(enum.StrEnum):
    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class Cpuset(Section, frozen=True):
    mode: CpusetMode = CpusetMode.AUTO
    dwell: Duration = Duration(5_000_000)
    move_dwell: Duration = Duration(60_000_000)
    move_gain_pct: Percent = 20.0


class Cpu(Section, frozen=True):
    weight: CpuWeights = CpuWeights()
    bandwidth: CpuBandwidth = CpuBandwidth()
    cpuset: Cpuset = Cpuset()
    burst: CpuBurst = CpuBurst()
    pools: CpuPools = CpuPools()


def check(cpu: Cpu) -> str | None:
    """What no single field can say: the path of the bad key and why, or None."""
    bandwidth = cpu.bandwidth
    # Kernel limits: cpu.max takes periods of 1 ms to 1 s and quotas from 1 ms (kernel/sched/core.c).
    return (
        within("cpu.bandwidth.period", bandwidth.period, 1_000, 1_000_000, "1ms to 1s")
        or within("cpu.bandwidth.mean", bandwidth.mean, 0, 600_000_000, "0s to 10min")
        or _check_cpuset(cpu)
        or check_burst(cpu.burst)
        or check_pools(cpu.pools)
    )


def _check_cpuset(cpu: Cpu) -> str | None:
    if cpu.cpuset.mode is CpusetMode.NEVER and cpu.bandwidth.enforce is Enforce.CPUSET:
        return 'cpu.cpuset.mode: "never" leaves cpu.bandwidth.enforce = "cpuset" nothing to enforce with'
    return within("cpu.cpuset.dwell", cpu.cpuset.dwell, 0, 3_600_000_000, "0s to 1h") or within(
        "cpu.cpuset.move_dwell", cpu.cpuset.move_dwell, 0, 3_600_000_000, "0s to 1h"
    )
