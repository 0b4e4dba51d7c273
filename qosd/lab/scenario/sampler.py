"""What the kernel's files held, four times a second.

The same reads in every mode, so that none is disturbed more than another.
"""

from __future__ import annotations

import os
import threading
import time

from . import units

INTERVAL = 0.25
SETTINGS = ("cpu.max", "cpuset.cpus", "cpu.idle", "cpu.weight", "cgroup.freeze")


class Sampler(threading.Thread):
    """Appends to `samples` until stopped. Cumulative counters: rates are made outside."""

    def __init__(self, be_slice: str, ls_cgroups: list[str]) -> None:
        super().__init__(name="sampler", daemon=True)
        self.samples: list[dict[str, object]] = []
        self.be_cgroups: list[str] = []
        """Of the BE jobs themselves: the same count whether they are in be.slice or in system.slice."""
        self._be_slice = os.path.join(units.CGROUPS, be_slice)
        self._ls_cgroups = ls_cgroups
        self._last: dict[str, int] = {}
        self._done = threading.Event()

    def run(self) -> None:
        deadline = time.monotonic()
        while not self._done.wait(max(0.0, deadline - time.monotonic())):
            self.samples.append(self.sample())
            deadline += INTERVAL

    def stop(self) -> None:
        self._done.set()
        self.join()

    def sample(self) -> dict[str, object]:
        return {
            "at": time.monotonic(),
            "be_usec": self._sum(self.be_cgroups),
            "ls_usec": self._sum(self._ls_cgroups),
            "be": {file: units.read(self._be_slice, file) for file in SETTINGS},
            "host": host_ticks(),
        }

    def _sum(self, cgroups: list[str]) -> int:
        """A job that ended takes its cgroup with it; what it had used at the last look stays counted."""
        for cgroup in cgroups:
            usage = units.usage_usec(cgroup)
            if usage is not None:
                self._last[cgroup] = usage
        return sum(self._last.get(cgroup, 0) for cgroup in cgroups)


def host_ticks() -> list[int]:
    """/proc/stat's first line, in USER_HZ: user nice system idle iowait irq softirq steal."""
    with open("/proc/stat", encoding="ascii") as file:
        return [int(word) for word in file.readline().split()[1:9]]
