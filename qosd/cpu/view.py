"""What the CPU governors have to say beside their settings, for `qosctl status` and the metrics. Pure."""

from __future__ import annotations

import msgspec

from qosd.cpu.burst import BurstView
from qosd.cpu.lstarget import TargetView
from qosd.cpu.overrun import OverrunView
from qosd.cpu.pools import PoolView
from qosd.cpu.windows import WindowView


class CpuView(msgspec.Struct, frozen=True, gc=False):
    windows: tuple[WindowView, ...] = ()
    """The open ones."""
    pools: tuple[PoolView, ...] = ()
    bursts: tuple[BurstView, ...] = ()
    """LS workloads with a limit of their own, while `[cpu.burst]` is on."""
    ineffective: tuple[OverrunView, ...] = ()
    target: TargetView | None = None
    """Of an LS workload; None while none that has one is here."""
