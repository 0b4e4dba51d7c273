"""Two cgroups of the benchmark's own, LS and BE, in whichever hierarchy this host's scheduler is driven by.

On a hybrid or v1 host the `cpu`, `cpuacct` and `cpuset` hierarchies drive the very scheduler that cgroup v2
drives elsewhere; on a cgroup-v2-only host the v2 files do. Made at the top level, where `ls.slice` and
`be.slice` would be, and removed afterwards.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import NamedTuple

CGROUP = "/sys/fs/cgroup"
PREFIX = f"qosd-bench-{os.getpid()}"  # two benchmarks at once spoil each other, but not their groups
_V1_SHARES_PER_WEIGHT = 10.24  # 1024 shares and weight 100 are the same (cgroup-v2.rst, cpu.weight)
_NSEC_PER_USEC = 1000


class Throttled(NamedTuple):
    periods: int
    throttled: int
    usec: int


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text + "\n")


def _stat(path: str) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in _read(path).splitlines())}


class V1Group:
    """One tier in three hierarchies."""

    def __init__(self, name: str) -> None:
        self._dirs = {c: f"{CGROUP}/{c}/{PREFIX}-{name}" for c in ("cpu", "cpuacct", "cpuset")}
        for path in self._dirs.values():
            os.makedirs(path, exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):
            # A v1 cpuset starts without CPUs and refuses tasks until it has some.
            _write(f"{self._dirs['cpuset']}/{file}", _read(f"{CGROUP}/cpuset/{file}"))
        self.procs = [f"{path}/cgroup.procs" for path in self._dirs.values()]

    def set_weight(self, weight: int) -> None:
        _write(f"{self._dirs['cpu']}/cpu.shares", str(round(weight * _V1_SHARES_PER_WEIGHT)))

    def set_idle(self, *, idle: bool) -> None:
        _write(f"{self._dirs['cpu']}/cpu.idle", str(int(idle)))

    def set_max(self, quota_usec: int | None, period_usec: int) -> None:
        """cpu.max in one write is two here; the period alone would change the share for a moment."""
        cpu = self._dirs["cpu"]
        if int(_read(f"{cpu}/cpu.cfs_period_us")) != period_usec:
            _write(f"{cpu}/cpu.cfs_quota_us", "-1")
            _write(f"{cpu}/cpu.cfs_period_us", str(period_usec))
        _write(f"{cpu}/cpu.cfs_quota_us", "-1" if quota_usec is None else str(quota_usec))

    def set_burst(self, usec: int) -> None:
        _write(f"{self._dirs['cpu']}/cpu.cfs_burst_us", str(usec))

    def set_cpus(self, cpulist: str) -> None:
        """An empty list means all, as in cgroup v2."""
        _write(f"{self._dirs['cpuset']}/cpuset.cpus", cpulist or _read(f"{CGROUP}/cpuset/cpuset.cpus"))

    def usage_usec(self) -> int:
        return int(_read(f"{self._dirs['cpuacct']}/cpuacct.usage")) // _NSEC_PER_USEC

    def throttled(self) -> Throttled:
        stat = _stat(f"{self._dirs['cpu']}/cpu.stat")
        return Throttled(stat["nr_periods"], stat["nr_throttled"], stat["throttled_time"] // _NSEC_PER_USEC)

    def remove(self) -> None:
        for path in self._dirs.values():
            _remove(path)


class V2Group:
    """One tier under cgroup v2. The root must hand out cpu and cpuset, which it is asked to."""

    def __init__(self, name: str) -> None:
        self._dir = f"{CGROUP}/{PREFIX}-{name}"
        os.makedirs(self._dir, exist_ok=True)
        _write(f"{CGROUP}/cgroup.subtree_control", "+cpu +cpuset")
        self.procs = [f"{self._dir}/cgroup.procs"]

    def set_weight(self, weight: int) -> None:
        _write(f"{self._dir}/cpu.weight", str(weight))

    def set_idle(self, *, idle: bool) -> None:
        _write(f"{self._dir}/cpu.idle", str(int(idle)))

    def set_max(self, quota_usec: int | None, period_usec: int) -> None:
        _write(f"{self._dir}/cpu.max", f"{'max' if quota_usec is None else quota_usec} {period_usec}")

    def set_burst(self, usec: int) -> None:
        _write(f"{self._dir}/cpu.max.burst", str(usec))

    def set_cpus(self, cpulist: str) -> None:
        _write(f"{self._dir}/cpuset.cpus", cpulist)

    def usage_usec(self) -> int:
        return _stat(f"{self._dir}/cpu.stat")["usage_usec"]

    def throttled(self) -> Throttled:
        stat = _stat(f"{self._dir}/cpu.stat")
        return Throttled(stat["nr_periods"], stat["nr_throttled"], stat["throttled_usec"])

    def remove(self) -> None:
        _remove(self._dir)


Group = V1Group | V2Group


class Groups:
    """Both tiers, at the kernel's defaults until told otherwise."""

    def __init__(self) -> None:
        kind = V2Group if os.path.exists(f"{CGROUP}/cgroup.controllers") else V1Group
        self.hierarchy = "cgroup v2" if kind is V2Group else "cgroup v1"
        self.ls: Group = kind("ls")
        self.be: Group = kind("be")
        self.reset()

    def reset(self) -> None:
        for group in (self.ls, self.be):
            group.set_burst(0)
            group.set_max(None, 100_000)
            group.set_idle(idle=False)
            group.set_weight(100)
            group.set_cpus("")

    def remove(self) -> None:
        self.ls.remove()
        self.be.remove()


def _remove(path: str) -> None:
    """A group whose processes have just been killed is busy for a moment more."""
    deadline = time.monotonic() + 3
    while os.path.isdir(path):
        try:
            os.rmdir(path)
        except OSError:
            if time.monotonic() > deadline:
                raise
            _settle()


def _settle() -> None:
    with contextlib.suppress(InterruptedError):
        time.sleep(0.02)
