"""Who else used the machine under the guest. An emulated guest is not told of time that it did not get."""

from __future__ import annotations

import time
from typing import NamedTuple

import psutil


class Look(NamedTuple):
    at: float
    busy: float
    """CPU-seconds that the whole machine has worked."""
    ours: float
    """CPU-seconds of our own processes: this one, QEMU, virtiofsd."""


def look() -> Look:
    times = psutil.cpu_times()
    busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice  # guest is in user, too
    process = psutil.Process()
    ours = sum(_used(one) for one in (process, *process.children(recursive=True)))
    return Look(time.monotonic(), busy, ours)


def _used(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def others(before: Look, after: Look, cpus: int) -> float:
    """The share of the machine's CPU time between two looks that was neither idle nor ours, 0 to 1."""
    elapsed = (after.at - before.at) * cpus
    used = (after.busy - before.busy) - (after.ours - before.ours)
    return min(max(used / elapsed, 0.0), 1.0) if elapsed > 0 else 0.0
