"""`[[pool]]` and `[cpu.pools]`: load bands of sets of workloads, after Meituan's LAR. Pure."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from qosd.schema.units import Duration, Section, Weight, within

BANDS = ((30.0, 50.0), (45.0, 60.0), (50.0, 80.0))
"""LAR's load bands in per cent by priority: of pool 0, of pool 1, and of every pool below."""

_Load = Annotated[float, Meta(gt=0, le=100)]


class Pool(Section, frozen=True):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    priority: Annotated[int, Meta(ge=0, le=100)] = 2
    load_low_pct: _Load | None = None
    load_high_pct: _Load | None = None
    cpu_target_pct: Annotated[float, Meta(gt=0, le=100)] | None = None
    weight: Weight | None = None

    @property
    def band(self) -> tuple[float, float]:
        """Low and high load in per cent of the pool's size."""
        low, high = BANDS[min(self.priority, len(BANDS) - 1)]
        return (
            low if self.load_low_pct is None else self.load_low_pct,
            high if self.load_high_pct is None else self.load_high_pct,
        )


class CpuPools(Section, frozen=True):
    hold: Duration = Duration(10_000_000)
    check: Duration = Duration(10_000_000)


def check(pools: tuple[Pool, ...]) -> str | None:
    names: set[str] = set()
    for index, pool in enumerate(pools):
        if pool.name in names:
            return f"pool[{index}].name: {pool.name!r} is used twice; give each pool its own name"
        names.add(pool.name)
        low, high = pool.band
        if low >= high:
            return f"pool[{index}].load_low_pct: must be below load_high_pct ({low:g} and {high:g} here)"
    return None


def check_cpu(pools: CpuPools) -> str | None:
    return within("cpu.pools.hold", pools.hold, 0, 3_600_000_000, "0s to 1h") or within(
        "cpu.pools.check", pools.check, 1_000_000, 3_600_000_000, "1s to 1h"
    )
