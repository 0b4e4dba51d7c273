"""The `[ebpf]` section: which probes run, how, at what cost, and what is a breach. Pure."""

from __future__ import annotations

import enum
from typing import Annotated, Literal

from msgspec import Meta

from qosd.schema.units import Duration, Percent, Section, within

Probe = Literal["runq", "reclaim", "blkio", "tcp", "cpi"]
AUTO: tuple[Probe, ...] = ("runq", "reclaim", "blkio")
"""Not tcp, which is called for every packet, nor cpi, which wants many fds: no verdict hears them."""


class Loader(enum.StrEnum):
    AUTO = "auto"
    LIBBPF = "libbpf"
    BCC = "bcc"


class Baseline(Section, frozen=True):
    """What is normal for a workload, learned while BE is quiet or held back."""

    quantile: Annotated[float, Meta(gt=0, lt=1)] = 0.9
    factor: Annotated[float, Meta(ge=1, le=1000)] = 3.0
    half_life: Duration = Duration(86_400_000_000)
    quiet_pct: Percent = 10.0
    checkpoint: Duration = Duration(600_000_000)
    min_learned: Annotated[int, Meta(ge=1)] = 1000
    min_evidence: Annotated[int, Meta(ge=1)] = 20
    breach_weight: Annotated[float, Meta(ge=0, le=1)] = 0.1
    runq_floor: Duration = Duration(1_000)
    runq_cold: Duration = Duration(5_000)
    reclaim_floor: Duration = Duration(2_000)
    reclaim_cold: Duration = Duration(10_000)
    blkio_floor: Duration = Duration(5_000)
    blkio_cold: Duration = Duration(50_000)
    tcp_rtt_floor: Duration = Duration(2_000)
    tcp_rtt_cold: Duration = Duration(1_000_000)


class Ebpf(Section, frozen=True):
    probes: Literal["auto", "off"] | Annotated[tuple[Probe, ...], Meta(min_length=1)] = "auto"
    loader: Loader = Loader.AUTO
    max_overhead_pct: Annotated[float, Meta(gt=0, le=100)] = 1.0
    overhead_window: Duration = Duration(10_000_000)
    blame_floor: Duration = Duration(50)
    event_gap: Duration = Duration(100_000)
    max_pairs: Annotated[int, Meta(ge=256, le=1_000_000)] = 2048
    baseline: Baseline = Baseline()


_LONGEST = 60_000_000


def check(ebpf: Ebpf) -> str | None:
    """What no single field can say: the path of the bad key and why, or None."""
    baseline = ebpf.baseline
    limits = {name: getattr(baseline, name) for name in _LIMITS}
    wrong = (
        within("ebpf.overhead_window", ebpf.overhead_window, 1_000_000, 600_000_000, "1s to 10min"),
        within("ebpf.blame_floor", ebpf.blame_floor, 0, 1_000_000, "0us to 1s"),
        within("ebpf.event_gap", ebpf.event_gap, 0, _LONGEST, "0us to 1min"),
        within(
            "ebpf.baseline.half_life", baseline.half_life, 60_000_000, 30 * 86_400_000_000, "1min to 720h"
        ),
        within("ebpf.baseline.checkpoint", baseline.checkpoint, 10_000_000, 86_400_000_000, "10s to 24h"),
        *(
            within(f"ebpf.baseline.{name}", value, 1, _LONGEST, "1us to 1min")
            for name, value in limits.items()
        ),
    )
    return next((why for why in wrong if why is not None), None)


_LIMITS = tuple(
    f"{signal}_{limit}" for signal in ("runq", "reclaim", "blkio", "tcp_rtt") for limit in ("floor", "cold")
)
