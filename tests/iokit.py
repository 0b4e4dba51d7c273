"""Snapshots of what LS and BE do at two disks, a second apart."""

from __future__ import annotations

from typing import Any

from qosd.config import Config
from qosd.model import (
    CgroupId,
    CgroupSample,
    DiskIo,
    HostSample,
    IoMax,
    Max,
    Pressure,
    Snapshot,
    Stall,
    Tier,
    Workload,
)
from qosd.plan import Desired
from qosd.schema.io import Io, IoLimits
from qosd.schema.units import ByteSize

MIB = 1 << 20
DISK, OTHER = "8:0", "8:16"
LIMITS = IoLimits(enforce=True, floor=ByteSize(MIB), floor_iops=50)
CONFIG = Config(io=Io(limits=LIMITS))
FILES = {
    "io.max": "",
    "io.weight": "default 100",
    "io.bfq.weight": "default 100",
    "io.latency": "",
    "memory.oom.group": "0",
}


class Disks:
    """Snapshots a second apart: what LS and BE did at each disk in MiB, and how long LS waited."""

    def __init__(self, *, be_files: dict[str, str] | None = None, ls_device: str = DISK) -> None:
        self.be_files = FILES if be_files is None else be_files
        self.ls_device = ls_device
        self.usec = 1_000_000
        self.waited_usec = 0
        self.done = {Tier.LS: 0.0, Tier.BE: 0.0}

    def snapshot(self, *, waits: float | None = 0.0, be: float | None = 0.0, ls: float = 1.0) -> Snapshot:
        self.usec += 1_000_000
        self.waited_usec += round((waits or 0.0) * 10_000)
        self.done[Tier.LS] += ls
        self.done[Tier.BE] += be or 0.0
        pressure = None if waits is None else Pressure(Stall(0.0, 0.0, 0.0, self.waited_usec))
        workloads = (
            self._workload(1, "ls.slice", Tier.LS, FILES, io_pressure=pressure, io=self._io(Tier.LS)),
            self._workload(
                2, "be.slice", Tier.BE, self.be_files, io=None if be is None else self._io(Tier.BE)
            ),
        )
        return Snapshot(
            self.usec // 1_000_000,
            self.usec,
            self.usec,
            HostSample(4),
            workloads=workloads,
            disks=(DISK, OTHER),
        )

    def _io(self, tier: Tier) -> dict[str, DiskIo]:
        device = self.ls_device if tier is Tier.LS else DISK
        count = round(self.done[tier] * MIB)
        return {device: DiskIo(count, 0, count // 4096, 0)}

    def _workload(self, number: int, path: str, tier: Tier, files: dict[str, str], **sample: Any) -> Workload:
        return Workload(
            path.partition(".")[0], tier, 0, CgroupSample(CgroupId(number), path, **sample), files
        )


def rbps(desired: tuple[Desired, ...]) -> int | Max | None:
    if not desired:
        return None
    (one,) = desired
    assert isinstance(one.setting, IoMax)
    return one.setting.rbps
