"""The probes while they are attached: following the workloads, reading, and watching what they cost."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from qosd.ebpf.errors import BpfError, BtfMissingError, TooDearError
from qosd.ebpf.interval import between
from qosd.ebpf.libbpf import Library
from qosd.ebpf.runq import Root, RunqOptions
from qosd.ebpf.samples import RunqBreach, TracingSample
from qosd.ebpf.tracing import ALL, Probe, Tracing, TracingOptions
from qosd.model import CgroupId, Probed, Snapshot, Tier
from qosd.schema.ebpf import AUTO, Ebpf, Loader

if TYPE_CHECKING:
    from qosd.ebpf.bcc import Compiling

MAX_ROOTS = 1024
MAX_HISTOGRAMS = 256
"""Workloads whose waits for a CPU are counted, LS first."""


class Wait(msgspec.Struct, frozen=True, gc=False):
    """One wait of an LS task for a CPU above its threshold, as it ended."""

    victim: CgroupId
    wait_usec: float
    threshold_usec: float
    at_usec: int
    culprit: str
    """Whose task had most of it: be, ls, self, system; idle: nobody's."""


class Session:
    """`fd` is readable when `events` has something; None without the runq probe."""

    def __init__(self, tracing: Tracing, loader: str, config: Ebpf, reason: str = "") -> None:
        self.loader = loader
        self.reason = reason
        """Why by this one."""
        self.last: TracingSample | None = None
        self.overhead_pct: dict[Probe, float] = {}
        self.unwatched = 0
        self._tracing = tracing
        self._config = config
        self._costs: dict[Probe, deque[tuple[int, int]]] = {}
        self._thresholds: dict[CgroupId, int] = {}
        self._tiers: dict[CgroupId, Tier] = {}

    @property
    def fd(self) -> int | None:
        return self._tracing.fd

    @property
    def attached(self) -> tuple[Probe, ...]:
        return self._tracing.attached

    @property
    def absent(self) -> Mapping[Probe, BpfError]:
        """Why a probe is not attached."""
        return self._tracing.absent

    def sample(self, now: Snapshot) -> tuple[Probed, ...]:
        """What was counted since the last call. Raises BpfError or OSError."""
        self._follow(now)
        read = self._tracing.read()
        earlier, self.last = self.last, read
        return between(earlier, read, self._tiers)

    def set_thresholds(self, thresholds: Mapping[CgroupId, int], now: Snapshot) -> None:
        """From which wait on word is sent, by LS workload, in nanoseconds. Raises BpfError."""
        self._thresholds = dict(thresholds)
        self._follow(now)

    def events(self) -> tuple[Wait, ...]:
        """The waits above their threshold that were sent since the last call. Never blocks."""
        return tuple(self._wait(event) for event in self._tracing.events())

    def detach_too_dear(self, now: Snapshot) -> tuple[BpfError, ...]:
        """Take every probe off its hooks that has cost more than it may for the whole window."""
        window, limit = int(self._config.overhead_window), self._config.max_overhead_pct
        errors = []
        for probe, cost_ns in self._cost().items():
            share, elapsed = self._share(probe, now.monotonic_usec, cost_ns, window)
            if share is None:
                continue
            self.overhead_pct[probe] = share / now.host.nr_cpus
            if self.overhead_pct[probe] > limit and elapsed >= window:
                error = TooDearError(probe, self.overhead_pct[probe], elapsed / 1e6, limit)
                self._tracing.detach(probe, error)
                errors.append(error)
        return tuple(errors)

    def close(self) -> None:
        self._tracing.close()

    def _cost(self) -> dict[Probe, int]:
        if self.last is None:
            return {}
        last = self.last
        samples = zip(ALL, (last.runq, last.reclaim, last.blkio, last.tcp), strict=True)
        return {probe: sample.cost_ns for probe, sample in samples if sample is not None}

    def _share(self, probe: Probe, now_usec: int, cost_ns: int, window: int) -> tuple[float | None, int]:
        """In per cent of one CPU, and over how long."""
        costs = self._costs.setdefault(probe, deque())
        costs.append((now_usec, cost_ns))
        while len(costs) > 2 and costs[1][0] <= now_usec - window:  # noqa: PLR2004 - both ends of the window
            costs.popleft()
        elapsed = now_usec - costs[0][0]
        if elapsed <= 0:
            return None, 0
        return (cost_ns - costs[0][1]) / 10 / elapsed, elapsed

    def _follow(self, now: Snapshot) -> None:
        """The roots are the workloads there are now: LS first, since the maps are finite."""
        ordered = (*now.tier(Tier.LS), *now.tier(Tier.BE))
        taken = ordered[:MAX_ROOTS]
        self.unwatched = max(0, len(ordered) - MAX_HISTOGRAMS)
        self._tiers = {workload.id: workload.tier for workload in taken}
        self._tracing.set_roots(
            {
                each.id: Root(
                    watched=True, threshold_ns=self._threshold(each.id) if each.tier is Tier.LS else None
                )
                for each in taken
            }
        )

    def _threshold(self, workload: CgroupId) -> int:
        return self._thresholds.get(workload, int(self._config.baseline.runq_cold) * 1000)

    def _wait(self, event: RunqBreach) -> Wait:
        return Wait(
            event.victim,
            event.wait_ns / 1000,
            self._threshold(event.victim) / 1000,
            event.monotonic_ns // 1000,
            self._culprit(event),
        )

    def _culprit(self, event: RunqBreach) -> str:
        if event.culprit is None:
            return "idle"
        if event.culprit_root == event.victim:
            return "self"
        tier = None if event.culprit_root is None else self._tiers.get(event.culprit_root)
        return "system" if tier is None else tier.value


class Pending:
    """A session to be: bcc compiles for seconds, in a process of its own. `session` is None meanwhile."""

    def __init__(self, compiling: Compiling, config: Ebpf, reason: str) -> None:
        self.reason = reason
        self._compiling = compiling
        self._config = config

    def session(self) -> Session | None:
        """Raises BpfError or OSError if there will be none."""
        tracing = self._compiling.result()
        if tracing is None:
            return None
        self._compiling.close()
        return Session(tracing, "bcc", self._config, self.reason)

    def close(self) -> None:
        self._compiling.close()


def open_session(config: Ebpf) -> Session | Pending:
    """By libbpf where the kernel describes its types, else by bcc. Raises BpfError or OSError."""
    options = TracingOptions(
        tuple(each for each in ALL if each in (AUTO if isinstance(config.probes, str) else config.probes)),
        MAX_ROOTS,
        RunqOptions(
            max_workloads=MAX_HISTOGRAMS,
            max_pairs=config.max_pairs,
            blame_floor_ns=int(config.blame_floor) * 1000,
            event_gap_ns=int(config.event_gap) * 1000,
        ),
    )
    library = Library()
    if config.loader is Loader.BCC:
        return _by_bcc(library, options, config, 'ebpf.loader is "bcc"')
    why = 'ebpf.loader is "libbpf"' if config.loader is Loader.LIBBPF else "the kernel describes its types"
    try:
        return Session(Tracing.open(library, {}, options), "libbpf", config, why)
    except BtfMissingError as missing:
        if config.loader is Loader.LIBBPF:
            raise
        return _by_bcc(library, options, config, str(missing))


def _by_bcc(library: Library, options: TracingOptions, config: Ebpf, why: str) -> Pending:
    from qosd.ebpf.bcc import Compiling  # noqa: PLC0415 - only where there is no other way

    return Pending(Compiling(library, options), config, why)
