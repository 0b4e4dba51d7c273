"""What LS and BE did in the moments before a breach: read on the spot, against what the last ticks read.

A tick may be a second ago or a millisecond; the signal of the breach looks back over a window of its own. So
a few snapshots are kept, and the evidence is taken since the latest of them that is older than the window.
"""

from __future__ import annotations

from collections import deque

import msgspec

from qosd import cgroupfs
from qosd.errors import CgroupGone, Malformed
from qosd.held import Held
from qosd.look import Look
from qosd.model import Breach, CgroupSample, CpuStat, Snapshot, Tier, Workload

CPU_PRESSURE = "cpu.pressure some"
_TICKS = 16


class Witness:
    def __init__(self, look: Look) -> None:
        self._kept = look
        self._seen: deque[Snapshot] = deque(maxlen=_TICKS)
        self._held = Held(look)

    def note(self, now: Snapshot) -> None:
        self._seen.append(now)
        self._held.note(now)

    def forget(self) -> None:
        """After a gap that no monotonic clock counted."""
        self._seen.clear()
        self._held.forget()

    def testify(self, event: Breach, *, cut_idle: bool) -> Breach:
        """The event with its evidence; None where the files cannot say."""
        since = self._since(event.at_usec - event.window_usec)
        if since is None:
            return event
        return msgspec.structs.replace(
            event,
            throttled_usec=self._held.usec(event, since),
            be_cores=self._be_cores(
                event.at_usec - since.monotonic_usec, _suspects(event, since, cut_idle=cut_idle)
            ),
        )

    def _since(self, usec: int) -> Snapshot | None:
        older = [snapshot for snapshot in self._seen if snapshot.monotonic_usec <= usec]
        return older[-1] if older else next(iter(self._seen), None)

    def _be_cores(self, elapsed_usec: int, suspects: tuple[Workload, ...]) -> float | None:
        """What they used at least: one that cannot be read adds nothing. None if none of them can."""
        if not suspects:
            return 0.0
        used = [
            max(now.usage_usec - workload.sample.cpu.usage_usec, 0)
            for workload in suspects
            if workload.sample.cpu is not None and (now := self._read(workload.sample)) is not None
        ]
        return sum(used) / elapsed_usec if used and elapsed_usec > 0 else None

    def _read(self, sample: CgroupSample) -> CpuStat | None:
        try:
            return cgroupfs.parse_cpu_stat(self._kept.file(sample, "cpu.stat"))
        except (OSError, CgroupGone, Malformed):
            return None


def _suspects(event: Breach, since: Snapshot, *, cut_idle: bool) -> tuple[Workload, ...]:
    """The BE workloads that can be to blame.

    A group that is cpu.idle is preempted whenever a task of LS wakes up: it makes none wait for a CPU.
    """
    waits_for_cpu = event.signal == CPU_PRESSURE and not cut_idle
    be = since.tier(Tier.BE)
    return tuple(each for each in be if not waits_for_cpu or each.setting("cpu.idle") != "1")
