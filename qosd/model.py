"""The frozen values of a tick: samples, the snapshot they make, and the settings wanted in return.

Names are those of the kernel's interface files with `.` written `_`. Absence is `None`, never 0; a limit
that is not there is `MAX`, never a number.
"""

from __future__ import annotations

import enum
import functools
from typing import ClassVar

import msgspec

from qosd.ebpf.histogram import Histogram
from qosd.memsample import MemorySample, Reclaimed
from qosd.words import MAX as MAX  # noqa: PLC0414 - here is where everybody looks for these three
from qosd.words import CgroupId as CgroupId  # noqa: PLC0414 - same
from qosd.words import Max as Max  # noqa: PLC0414 - same


class Tier(enum.StrEnum):
    LS = "ls"
    BE = "be"


class CpuStat(msgspec.Struct, frozen=True, gc=False):
    """cpu.stat. The bandwidth fields exist only where the cpu controller is on; nr_bursts came in 5.14."""

    usage_usec: int
    user_usec: int | None = None
    """Always in the file; the kernel works these two out as it prints them, so a walk by BPF has neither."""
    system_usec: int | None = None
    nr_periods: int | None = None
    nr_throttled: int | None = None
    throttled_usec: int | None = None
    nr_bursts: int | None = None
    burst_usec: int | None = None


class Stall(msgspec.Struct, frozen=True, gc=False):
    """One line of a pressure file: averages in per cent, `total` in microseconds."""

    avg10: float
    avg60: float
    avg300: float
    total: int


class Pressure(msgspec.Struct, frozen=True, gc=False):
    """cpu.pressure, memory.pressure, io.pressure. `full` is undefined for the host's cpu file before 5.13."""

    some: Stall
    full: Stall | None = None


class DiskIo(msgspec.Struct, frozen=True, gc=False):
    """A device's line of io.stat: bytes and requests since the cgroup began. Discards are not use."""

    rbytes: int
    wbytes: int
    rios: int
    wios: int


class CgroupSample(msgspec.Struct, frozen=True, gc=False):
    """What one cgroup's files held when the tick read them; a field is None where the file could not say."""

    id: CgroupId
    path: str
    """Relative to the cgroup2 mount, bytes decoded with surrogateescape."""
    cpu: CpuStat | None = None
    memory_current: int | None = None
    cpu_pressure: Pressure | None = None
    memory_pressure: Pressure | None = None
    io_pressure: Pressure | None = None
    memory: MemorySample | None = None
    """Of workloads only."""
    io: dict[str, DiskIo] | None = None
    """io.stat by MAJ:MIN; of workloads only, and only where the io controller is on."""


class Workload(msgspec.Struct, frozen=True, gc=False):
    """A cgroup subtree that a `[[workload]]` rule matched, with its own files as they stand."""

    name: str
    tier: Tier
    priority: int
    sample: CgroupSample
    files: dict[str, str]
    """Interface files a governor may want to write, as read (stripped): the ground truth for `diff`."""
    events: dict[str, int] = {}
    """cgroup.events: `populated`, `frozen`. Empty where it could not be read."""
    memory_events: dict[str, int] = {}
    """memory.events, the cgroups below included; empty where it could not be read."""

    @property
    def id(self) -> CgroupId:
        return self.sample.id

    @property
    def path(self) -> str:
        return self.sample.path

    def setting(self, file: str) -> str | None:
        """The text an interface file held, None where the cgroup has no such file."""
        return self.files.get(file)


class Topology(msgspec.Struct, frozen=True, gc=False):
    """The online CPUs as the hardware has them: by core (SMT siblings) and by NUMA node."""

    cores: tuple[tuple[int, ...], ...]
    nodes: tuple[tuple[int, ...], ...]


class HostSample(msgspec.Struct, frozen=True, gc=False):
    """/proc/stat (microseconds since boot, summed over CPUs), /proc/meminfo (bytes) and /proc/pressure."""

    nr_cpus: int
    cpus_online: tuple[int, ...] | None = None
    busy_usec: int | None = None
    """user + nice + system + irq + softirq. Neither iowait (idle) nor steal (never ours) is use."""
    steal_usec: int | None = None
    mem_total: int | None = None
    mem_available: int | None = None
    swap_total: int | None = None
    swap_free: int | None = None
    cpu_pressure: Pressure | None = None
    memory_pressure: Pressure | None = None
    io_pressure: Pressure | None = None
    cpus_busy_usec: dict[int, int] | None = None
    """busy_usec of each online CPU: the cpuN lines of /proc/stat."""
    topology: Topology | None = None
    mem_free: int | None = None
    pgscan_kswapd: int | None = None
    pgscan_direct: int | None = None
    """/proc/vmstat: pages that the kernel's own reclaim looked at, in the background and in an allocation."""
    page_bytes: int = 4096
    cpus_shared: tuple[int, ...] | None = None
    """cpuset.cpus.effective of the root: the online CPUs that no cpuset partition has to itself."""
    lru_gen: bool | None = None
    """Whether the multi-generational LRU runs: there "inactive" says nothing of use. None: not known."""


class Breach(msgspec.Struct, frozen=True, gc=False):
    """Word between two ticks that an LS workload suffers: what `Engine.react` takes, from whatever saw it.

    The five first fields are the messenger's; the rest is evidence that the engine adds.
    """

    victim: CgroupId
    signal: str
    """As `cpu.pressure some`, with the unit of value and threshold where it is not microseconds."""
    value: float
    threshold: float
    at_usec: int
    """CLOCK_MONOTONIC."""
    source: str = "psi"
    window_usec: int = 0
    """How far back from `at_usec` the signal looks."""
    throttled_usec: int | None = None
    """How long the victim was held by limits of its own (cpu.max) meanwhile. None: unknown."""
    be_cores: float | None = None
    """CPUs that BE used meanwhile. None: unknown."""


class Preemptor(msgspec.Struct, frozen=True, gc=False):
    """Who had the CPU that a workload waited for, and how long."""

    cgroup: CgroupId
    """The running task's own cgroup: it names the job."""
    root: CgroupId | None
    """Its workload; None: in none."""
    ns: int
    count: int


class Probed(msgspec.Struct, frozen=True, gc=False):
    """What the eBPF probes counted for a workload since they were last read. None: the probe does not run."""

    id: CgroupId
    runq: Histogram | None = None
    """Waits for a CPU that ended. A task that its own cpu.max holds back waits too."""
    preemptors: tuple[Preemptor, ...] = ()
    """Of the longer waits; the largest share first."""
    idle_ns: int = 0
    unknown_ns: int = 0
    breaches: int = 0
    reclaim: Histogram | None = None
    """Stalls in direct reclaim: the host was short of memory."""
    reclaim_memcg: Histogram | None = None
    """Stalls at memory.high or memory.max, their own or above, or in memory.reclaim."""
    blkio: Histogram | None = None
    """Block reads and writes, from allocation to completion."""
    tcp_rtt: Histogram | None = None
    """Smoothed round-trip times of the sockets that received something."""
    tcp_retransmits: int | None = None
    cycles: int | None = None
    """These three are of LS only, and need a PMU."""
    instructions: int | None = None
    llc_misses: int | None = None


class Feed(msgspec.Struct, frozen=True, gc=False):
    """What one `[[signal]]` last said of a workload; `value` is None while that is unknown or too old."""

    name: str
    workload: str
    unit: str
    value: float | None = None
    age_usec: int | None = None
    """Since it was measured; None if it never was."""
    slo: float | None = None
    error: str | None = None
    """Why the source said nothing this time."""
    news: bool = False
    """It came since the last tick. A value that stands for ten ticks is still one reading."""


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """Everything one tick saw. Rates come only from two of these."""

    tick: int
    monotonic_usec: int
    boottime_usec: int
    host: HostSample
    systemd_stamp: int | None = None
    """Changes whenever systemd reloads its units, and so rewrites the attributes of their cgroups."""
    unknown: dict[str, str] = {}
    """What could not be read or understood this tick, and why: by sensor or by path."""
    workloads: tuple[Workload, ...] = ()
    descendants: tuple[CgroupSample, ...] = ()
    """Cgroups below the workloads: the hot ones, the cold ones in turns. Never needed for a tier's sum."""
    wall_usec: int | None = None
    local_minutes: dict[str, int] = {}
    """By time zone of a `[[window]]`: what a clock on the wall there shows, in minutes since Monday 00:00."""
    events: tuple[Breach, ...] = ()
    """What was reported since the last snapshot, in order."""
    probed: tuple[Probed, ...] = ()
    """Intervals and not counters, unlike all else: what an LRU map threw out has no earlier value."""
    disks: tuple[str, ...] = ()
    """Whole disks (MAJ:MIN) under the mounted filesystems; looked for only while a governor needs them."""
    feeds: tuple[Feed, ...] = ()
    """What operators say of their services; one for each `[[signal]]`."""
    reclaimed: tuple[Reclaimed, ...] = ()
    """What the worker reported since the last tick."""
    originals: dict[CgroupId, dict[str, str]] = {}
    """By cgroup and file: what stood there before qosd, where a value of qosd's stands now."""

    def workload(self, cgroup_id: CgroupId) -> Workload | None:
        for workload in self.workloads:
            if workload.sample.id == cgroup_id:
                return workload
        return None

    def is_ours(self, workload: Workload, file: str) -> bool:
        """Whether a value of qosd's stands in the file."""
        return file in self.originals.get(workload.id, {})

    def of_others(self, workload: Workload, file: str) -> str | None:
        """What the file holds without qosd: its original, or what stands there."""
        return self.originals.get(workload.id, {}).get(file, workload.setting(file))

    def tier(self, tier: Tier) -> tuple[Workload, ...]:
        return tuple(workload for workload in self.workloads if workload.tier is tier)


class CpuMax(msgspec.Struct, frozen=True, gc=False, tag="cpu.max", tag_field="file"):
    file: ClassVar[str] = "cpu.max"
    quota_usec: int | Max
    period_usec: int


class CpuMaxBurst(msgspec.Struct, frozen=True, gc=False, tag="cpu.max.burst", tag_field="file"):
    file: ClassVar[str] = "cpu.max.burst"
    burst_usec: int


class CpuWeight(msgspec.Struct, frozen=True, gc=False, tag="cpu.weight", tag_field="file"):
    file: ClassVar[str] = "cpu.weight"
    weight: int


class CpuIdle(msgspec.Struct, frozen=True, gc=False, tag="cpu.idle", tag_field="file"):
    file: ClassVar[str] = "cpu.idle"
    idle: bool


class CpusetCpus(msgspec.Struct, frozen=True, gc=False, tag="cpuset.cpus", tag_field="file"):
    """An empty tuple is the kernel's "" (inherit), not a mask without CPUs."""

    file: ClassVar[str] = "cpuset.cpus"
    cpus: tuple[int, ...]


class CgroupFreeze(msgspec.Struct, frozen=True, gc=False, tag="cgroup.freeze", tag_field="file"):
    file: ClassVar[str] = "cgroup.freeze"
    frozen: bool


class MemoryHigh(msgspec.Struct, frozen=True, gc=False, tag="memory.high", tag_field="file"):
    file: ClassVar[str] = "memory.high"
    bytes: int | Max


class MemoryLow(msgspec.Struct, frozen=True, gc=False, tag="memory.low", tag_field="file"):
    file: ClassVar[str] = "memory.low"
    bytes: int | Max


class MemoryMin(msgspec.Struct, frozen=True, gc=False, tag="memory.min", tag_field="file"):
    file: ClassVar[str] = "memory.min"
    bytes: int | Max


class MemoryOomGroup(msgspec.Struct, frozen=True, gc=False, tag="memory.oom.group", tag_field="file"):
    file: ClassVar[str] = "memory.oom.group"
    group: bool


class IoWeight(msgspec.Struct, frozen=True, gc=False, tag="io.weight", tag_field="file"):
    """The weight on every device that has none of its own: the `default` line. io.cost's."""

    file: ClassVar[str] = "io.weight default"
    weight: int


class IoBfqWeight(msgspec.Struct, frozen=True, gc=False, tag="io.bfq.weight", tag_field="file"):
    """The same for the bfq scheduler, which knows nothing of io.weight."""

    file: ClassVar[str] = "io.bfq.weight default"
    weight: int


class IoMax(msgspec.Struct, frozen=True, gc=False, tag="io.max", tag_field="file"):
    """One device's line: bytes and requests a second."""

    device: str
    rbps: int | Max
    wbps: int | Max
    riops: int | Max
    wiops: int | Max

    @property
    def file(self) -> str:
        return f"io.max {self.device}"


class IoLatency(msgspec.Struct, frozen=True, gc=False, tag="io.latency", tag_field="file"):
    """One device's line; a target of 0 is none."""

    device: str
    target_usec: int

    @property
    def file(self) -> str:
        return f"io.latency {self.device}"


Setting = (
    CgroupFreeze
    | CpuMax
    | CpuMaxBurst
    | CpuWeight
    | CpuIdle
    | CpusetCpus
    | MemoryHigh
    | MemoryLow
    | MemoryMin
    | MemoryOomGroup
    | IoWeight
    | IoBfqWeight
    | IoMax
    | IoLatency
)
"""Closed on purpose: a new member without a parser and a formatter does not type-check."""


@functools.lru_cache(maxsize=4096)
def printable(text: str) -> str:
    r"""A name as it may be shown: a cgroup's may hold anything but a newline, so escape as `\xNN`."""
    return "".join(
        char if char.isprintable() and char != "\\" else "".join(f"\\x{byte:02x}" for byte in _bytes(char))
        for char in text
    )


def _bytes(char: str) -> bytes:
    return char.encode("utf-8", "surrogateescape")
