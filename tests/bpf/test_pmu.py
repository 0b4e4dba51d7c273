"""Counters of a cgroup on the running kernel; where there is no PMU, software events show that they work."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from qosd.ebpf.pmu import HARDWARE, Event, Pmu, perf_event_open
from qosd.ebpf.samples import Counts
from qosd.model import CgroupId, CgroupSample, HostSample, Snapshot, Tier, Workload
from qosd.sys import DIRECTORY, Sys

TASK_CLOCK = Event(1, 1)
"""PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK: nanoseconds that tasks of the cgroup ran"""
CPUS = tuple(sorted(os.sched_getaffinity(0)))
BUSY = "import time\nwhile time.process_time() < 0.3: pass"


def snapshot(*cgroups: Any) -> Snapshot:
    workloads = tuple(
        Workload(each.path.name, Tier.LS, 0, CgroupSample(each.id, each.path.name), {}) for each in cgroups
    )
    return Snapshot(1, 1, 1, HostSample(nr_cpus=len(CPUS), cpus_online=CPUS), workloads=workloads)


def pmu_below(path: Path, *events: Event) -> Pmu:
    pmu = Pmu(Sys(), os.open(path, DIRECTORY), events or HARDWARE)
    pmu.open()
    return pmu


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_a_cgroup_runs_is_counted_on_all_cpus_and_nothing_else(cgroup: Any) -> None:
    busy, idle = cgroup("busy"), cgroup("idle")
    pmu = pmu_below(busy.path.parent, TASK_CLOCK, TASK_CLOCK, TASK_CLOCK)
    before = fds()
    assert pmu.sample(snapshot(busy, idle)) == {}
    assert pmu.why is None
    assert busy.run(BUSY).wait(timeout=60) == 0
    counts = pmu.sample(snapshot(busy, idle))
    gone = pmu.sample(snapshot(idle))
    assert 0.2e9 < counts[busy.id].cycles < 1.5e9
    assert counts[idle.id] == Counts(0, 0, 0)
    assert set(gone) == {idle.id}
    pmu.close()
    assert fds() == before


def test_without_a_pmu_that_is_said_once_and_nothing_is_left_open(cgroup: Any) -> None:
    ls = cgroup("ls")
    fd = os.open(ls.path, DIRECTORY)
    with contextlib.ExitStack() as after, contextlib.suppress(FileNotFoundError):
        after.callback(os.close, fd)
        os.close(perf_event_open(HARDWARE[0], fd, CPUS[0], -1))
        pytest.skip("this machine has a PMU")
    pmu = pmu_below(ls.path.parent)
    before = fds()
    assert pmu.sample(snapshot(ls)) == {}
    assert str(pmu.why).startswith("no PMU: cpi is not available (perf_event_open: ")
    assert fds() == before


def test_counters_that_take_turns_are_scaled_up(cgroup: Any) -> None:
    """A group that was on the PMU for a quarter of the time, as the kernel tells it."""
    ls = cgroup("ls")
    reads = iter([(100, 100, 1, 2, 3), (500, 200, 41, 82, 123)])

    def group(_event: Event, _cgroup: int, _cpu: int, leader: int) -> int:
        read, write = os.pipe()
        if leader < 0:
            for enabled, running, *values in reads:
                os.write(write, b"".join(n.to_bytes(8, "little") for n in (3, enabled, running, *values)))
        os.close(write)
        return read

    root_fd = os.open(ls.path.parent, DIRECTORY)
    pmu = Pmu(Sys(), root_fd, opener=group)
    pmu.open()
    one = Snapshot(
        1,
        1,
        1,
        HostSample(nr_cpus=1, cpus_online=(0,)),
        workloads=(Workload("ls", Tier.LS, 0, CgroupSample(CgroupId(ls.id), "ls"), {}),),
    )
    assert pmu.sample(one) == {}
    assert pmu.sample(one)[ls.id] == Counts(41 * 500 // 200 - 1, 82 * 500 // 200 - 2, 123 * 500 // 200 - 3)
    pmu.close()
    os.close(root_fd)
