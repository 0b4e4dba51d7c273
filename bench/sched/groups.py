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

    def limit(self) -> float | None:
        """In CPUs; None where there is none."""
        cpu = self._dirs["cpu"]
        quota = int(_read(f"{cpu}/cpu.cfs_quota_us"))
        return None if quota < 0 else quota / int(_read(f"{cpu}/cpu.cfs_period_us"))

    def remove(self) -> None:
        for path in self._dirs.values():
            _remove(path)


class V2Group:
    """One tier under cgroup v2. `members` is the child that its processes are in, where it has one."""

    def __init__(self, path: str, members: str = "") -> None:
        self._dir = f"{CGROUP}/{path}"
        self._members = os.path.normpath(f"{self._dir}/{members}")
        os.makedirs(self._members, exist_ok=True)
        self.procs = [f"{self._members}/cgroup.procs"]
        self._held: dict[str, str] = {}

    def set_weight(self, weight: int) -> None:
        self._set("cpu.weight", str(weight))

    def set_idle(self, *, idle: bool) -> None:
        self._set("cpu.idle", str(int(idle)))
        if idle:
            self._held.pop("cpu.weight", None)  # kernels differ in what it reads as then

    def set_max(self, quota_usec: int | None, period_usec: int) -> None:
        self._set("cpu.max", f"{'max' if quota_usec is None else quota_usec} {period_usec}")

    def set_burst(self, usec: int) -> None:
        self._set("cpu.max.burst", str(usec))

    def set_cpus(self, cpulist: str) -> None:
        self._set("cpuset.cpus", cpulist)

    def usage_usec(self) -> int:
        return _stat(f"{self._dir}/cpu.stat")["usage_usec"]

    def throttled(self) -> Throttled:
        stat = _stat(f"{self._dir}/cpu.stat")
        return Throttled(stat["nr_periods"], stat["nr_throttled"], stat["throttled_usec"])

    def limit(self) -> float | None:
        quota, period = _read(f"{self._dir}/cpu.max").split()
        return None if quota == "max" else int(quota) / int(period)

    def foreign(self) -> list[str]:
        """What is not as it was set: systemd writes the files of slices, too."""
        return [
            f"{file} is {now}, not {text}"
            for file, text in self._held.items()
            if (now := _read(f"{self._dir}/{file}")) != text
        ]

    def remove(self) -> None:
        _remove(self._members)

    def _set(self, file: str, text: str) -> None:
        _write(f"{self._dir}/{file}", text)
        self._held[file] = text


Group = V1Group | V2Group


def _own() -> tuple[Group, Group]:
    """Two at the top. The root must hand out cpu and cpuset, which it is asked to."""
    if not os.path.exists(f"{CGROUP}/cgroup.controllers"):
        return V1Group("ls"), V1Group("be")
    tiers = V2Group(f"{PREFIX}-ls"), V2Group(f"{PREFIX}-be")
    _write(f"{CGROUP}/cgroup.subtree_control", "+cpu +cpuset")
    return tiers


class Groups:
    """Both tiers, at the kernel's defaults until told otherwise."""

    def __init__(self, tiers: tuple[Group, Group] | None = None) -> None:
        """Two groups of the benchmark's own, unless told which."""
        self.ls, self.be = tiers or _own()
        self.hierarchy = "cgroup v2" if isinstance(self.ls, V2Group) else "cgroup v1"
        self.reset()

    def foreign(self) -> list[str]:
        """What somebody else has set; a group of cgroup v1 is nobody else's."""
        return [
            what for group in (self.ls, self.be) if isinstance(group, V2Group) for what in group.foreign()
        ]

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
