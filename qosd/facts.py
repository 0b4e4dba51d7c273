"""What `qosctl doctor` must know of a host. Values only: `qosd.survey` finds them, `qosd.doctor` judges."""

from __future__ import annotations

import msgspec

from qosd.ebpf.status import ProbeStatus
from qosd.host import HostFacts
from qosd.model import Tier

CONTROLLERS = {
    "cpu": ("cpu.max", "CPUWeight=100"),
    "cpuset": ("cpuset.cpus", "AllowedCPUs=0-N"),
    "memory": ("memory.current", "MemoryAccounting=yes"),
    "io": ("io.stat", "IOAccounting=yes"),
}
"""Controller: a file that is there where it is on, and the unit property that makes systemd turn it on."""

KERNEL_FILES = {
    "cpu.idle": ("cpu", "5.15", "BE gets cpu.weight=1 instead, which holds it back less"),
    "cpu.max.burst": ("cpu", "5.14", "limits are hard; nothing else is lost"),
    "memory.reclaim": ("memory", "5.19", "page cache of BE cannot be trimmed"),
    "cgroup.kill": ("", "5.14", "a workload can only be killed one process at a time"),
    "cgroup.pressure": ("", "6.1", "pressure accounting cannot be switched off for single cgroups"),
}
"""File: the controller it needs, the first kernel that has it, and what is lost without."""


class CgroupFacts(msgspec.Struct, frozen=True):
    """A workload's cgroup as it stands."""

    path: str
    tier: Tier
    files: frozenset[str]
    memory_low: str | None = None
    unprotected_ancestor: str | None = None
    """The nearest ancestor below the root whose memory.low is 0."""


class PatternFacts(msgspec.Struct, frozen=True):
    workload: str
    pattern: str
    matches: int


class SliceFacts(msgspec.Struct, frozen=True):
    name: str
    has_unit_file: bool


class DiskFacts(msgspec.Struct, frozen=True):
    name: str
    scheduler: str | None
    io_cost: bool
    io_cost_model: str | None = None
    """`auto`: the kernel's own of such disks; `user`: somebody measured it."""


class IoFacts(msgspec.Struct, frozen=True):
    """What the settings for single disks would meet; None in `Facts` while none is asked for."""

    disks: tuple[str, ...]
    unsupported: dict[str, str] = {}
    """By mount point."""
    latency_asked: bool = False
    latency_there: bool | None = None


class UplinkFacts(msgspec.Struct, frozen=True):
    name: str
    ok: bool
    text: str
    remedy: str | None = None


class TriggerFacts(msgspec.Struct, frozen=True):
    """A PSI trigger on the host's cpu pressure, for a moment."""

    wanted_usec: int
    window_usec: int | None
    """The shortest window that the kernel took, of those qosd would try."""
    refused: str | None = None


class Facts(msgspec.Struct, frozen=True):
    """None: could not be found out."""

    host: HostFacts
    uid: int
    config: str
    config_error: str | None = None
    daemon_running: bool | None = None
    cgroups: tuple[CgroupFacts, ...] = ()
    patterns: tuple[PatternFacts, ...] = ()
    refused: dict[str, str] = {}
    kernel_files: dict[str, bool] = {}
    """Only those that some cgroup with their controller could tell about."""
    swap_bytes: int | None = None
    oom_killers: tuple[str, ...] = ()
    slices: tuple[SliceFacts, ...] = ()
    """Empty where systemd does not run."""
    unit_capabilities: frozenset[str] | None = None
    btf: bool = False
    libbpf: bool = False
    bcc: bool = False
    pmu: bool = False
    htb: bool | None = None
    clock_source: str | None = None
    steal_pct: float | None = None
    disks: tuple[DiskFacts, ...] = ()
    uplinks: tuple[UplinkFacts, ...] = ()
    oomd_slices: tuple[str, ...] = ()
    """Slices of workloads in which systemd-oomd is told to kill."""
    probes: tuple[ProbeStatus, ...] | None = None
    """As the running daemon says; None: no daemon to ask."""
    io: IoFacts | None = None
    trigger: TriggerFacts | None = None
