"""Whether the host is in trouble for memory: little is available, and LS waits for it. Pure.

Two conditions, told apart, for whoever must decide on stronger steps. Of pressure only LS's own counts: a
memory.high that qosd set raises the pressure of BE and of the host, and must never be a reason for more.
"""

from __future__ import annotations

import msgspec

from qosd.config import Config
from qosd.memory import stall
from qosd.model import Snapshot, Tier


class Trouble(msgspec.Struct, frozen=True, gc=False):
    """None: not known. Unknown is no trouble, and no reason to act."""

    short: bool | None
    """MemAvailable is below its threshold."""
    ls_stalled: bool | None
    """All tasks of some LS workload waited for memory for too large a part of the last tick."""
    available_pct: float | None
    ls_full_pct: float | None

    @property
    def both(self) -> bool:
        return self.short is True and self.ls_stalled is True


def trouble(config: Config, prev: Snapshot | None, now: Snapshot) -> Trouble:
    limits, host = config.memory.trouble, now.host
    available = None
    if host.mem_available is not None and host.mem_total:
        available = 100 * host.mem_available / host.mem_total
    waited = stall.worst(prev, now, Tier.LS, "memory", full=True)
    full = None if waited is None else 100 * waited
    return Trouble(
        None if available is None else available < limits.available_pct,
        None if full is None else full >= limits.ls_full_pct,
        available,
        full,
    )
