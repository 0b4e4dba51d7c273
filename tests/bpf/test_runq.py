"""The run-queue probe on the running kernel: a victim and a hog share one CPU."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path
from typing import Any

import pytest

from qosd.ebpf.libbpf import Library
from qosd.ebpf.maps import run_time_statistics
from qosd.ebpf.runq import Root, RunqOptions
from qosd.ebpf.samples import RunqBreach, RunqSample
from qosd.ebpf.tracing import Tracing, TracingOptions, possible_cpus

HOG = "while True: pass"
VICTIM = """
import time
for _ in range(100):
    end = time.perf_counter() + 0.003
    while time.perf_counter() < end: pass
    time.sleep(0.001)
"""
MS = 1_000_000


def options(**runq: Any) -> TracingOptions:
    return TracingOptions(probes=("runq",), runq=RunqOptions(**runq))


def run_victim_and_hog(victim: Any, hog: Any) -> None:
    burning = hog.run(HOG, cpu=1)
    try:
        assert victim.run(VICTIM, cpu=1).wait(timeout=60) == 0
    finally:
        burning.kill()
        burning.wait()


def sample_of(tracing: Tracing) -> RunqSample:
    sample = tracing.read().runq
    assert sample is not None
    return sample


def test_milliseconds_of_waiting_are_seen_and_the_hog_is_blamed(library: Library, cgroup: Any) -> None:
    victim, hog = cgroup("victim"), cgroup("hog")
    tracing = Tracing.open(library, {victim.id: Root(watched=True)}, options())
    try:
        run_victim_and_hog(victim, hog)
        sample = sample_of(tracing)
    finally:
        tracing.close()
    p99 = sample.workloads[victim.id].waits.quantile_ns(0.99)
    assert p99 is not None
    assert p99 > 1 * MS
    assert set(sample.workloads) == {victim.id}
    (by_hog,) = [b for b in sample.blames if b.culprit == hog.id]
    assert (by_hog.victim, by_hog.culprit_root) == (victim.id, None)
    # Most of it on a quiet host; whatever else is pinned to that CPU takes its share, and the blame for it.
    assert by_hog.ns > 0.05 * sample.workloads[victim.id].waits.total_ns


def test_shares_idle_and_unknown_add_up_to_the_blamed_waits(library: Library, cgroup: Any) -> None:
    """With the floor at 0 every nanosecond of waiting is somebody's."""
    victim, hog = cgroup("victim"), cgroup("hog")
    tracing = Tracing.open(library, {victim.id: Root(watched=True)}, options(blame_floor_ns=0))
    try:
        run_victim_and_hog(victim, hog)
        sample = sample_of(tracing)
    finally:
        tracing.close()
    waits = sample.workloads[victim.id]
    blamed = sum(b.ns for b in sample.blames if b.victim == victim.id)
    assert blamed + waits.idle_ns + waits.unknown_ns == pytest.approx(waits.waits.total_ns, rel=0.01)


SCHEDSTAT = """
import time, os
def waited(): return int(open('/proc/self/schedstat').read().split()[1])
before = waited()
for _ in range(40):
    end = time.thread_time() + 0.003
    while time.thread_time() < end: pass
    time.sleep(0.001)
open({path!r}, 'w').write(str(waited() - before))
"""


def test_what_is_counted_is_what_the_kernel_says_a_task_has_waited(
    library: Library, cgroup: Any, tmp_path: Path
) -> None:
    """/proc/PID/schedstat of a task that is moved between two busy CPUs as the kernel likes."""
    victim, hog = cgroup("victim"), cgroup("hog")
    tracing = Tracing.open(library, {victim.id: Root(watched=True)}, options())
    hogs = [hog.run(HOG) for _ in range(4)]
    try:
        path = tmp_path / "waited"
        assert victim.run(SCHEDSTAT.format(path=str(path))).wait(timeout=60) == 0
        waits = sample_of(tracing).workloads[victim.id].waits
    finally:
        for each in hogs:
            each.kill()
            each.wait()
        tracing.close()
    told = int(path.read_text())
    assert told > 10 * MS
    # The interpreter starts and ends in the cgroup as well.
    assert told <= waits.total_ns < told * 1.5 + 200 * MS


FIFO = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))\n"


def test_a_wait_that_ends_on_another_cpu_is_blamed_on_who_ran_where_it_began(
    library: Library, cgroup: Any
) -> None:
    """A real-time hog lets the victim never run on CPU 1: each wait there ends by being moved away."""
    victim, hog = cgroup("victim"), cgroup("hog")
    tracing = Tracing.open(library, {victim.id: Root(watched=True)}, options(blame_floor_ns=MS))
    burning = hog.run(FIFO + HOG, cpu=1)
    spinner = victim.run(HOG)
    by_hog, deadline = (
        0,
        time.monotonic() + 5,
    )
    try:
        while by_hog < 30 * MS and time.monotonic() < deadline:
            for cpu, seconds in ((1, 0.003), (0, 0.006)) * 10:
                os.sched_setaffinity(spinner.pid, {cpu})
                time.sleep(seconds)
            blames = sample_of(tracing).blames
            by_hog = sum(b.ns for b in blames if (b.victim, b.culprit) == (victim.id, hog.id))
    finally:
        for each in (burning, spinner):
            each.kill()
            each.wait()
        tracing.close()
    assert by_hog >= 30 * MS


def test_tasks_below_a_root_count_as_the_root_and_the_culprits_root_is_named(
    library: Library, cgroup: Any
) -> None:
    ls, child = cgroup("ls"), cgroup("ls/child")
    be, job = cgroup("be"), cgroup("be/job")
    roots = {ls.id: Root(watched=True), be.id: Root(watched=False)}
    tracing = Tracing.open(library, roots, options())
    try:
        run_victim_and_hog(child, job)
        sample = sample_of(tracing)
    finally:
        tracing.close()
    assert set(sample.workloads) == {ls.id}
    by_job = [b for b in sample.blames if b.culprit == job.id]
    assert [(b.victim, b.culprit_root) for b in by_job] == [(ls.id, be.id)]


def test_a_wait_above_the_threshold_wakes_the_reader(library: Library, cgroup: Any) -> None:
    victim, hog = cgroup("victim"), cgroup("hog")
    root = Root(watched=True, threshold_ns=1 * MS)
    tracing = Tracing.open(library, {victim.id: root}, options(event_gap_ns=0))
    try:
        assert tracing.fd is not None
        poll = select.epoll()
        poll.register(tracing.fd, select.EPOLLIN)
        assert poll.poll(0) == []
        run_victim_and_hog(victim, hog)
        assert [fd for fd, _ in poll.poll(1)] == [tracing.fd]
        events = list(tracing.events())
        assert poll.poll(0) == []
        poll.close()
    finally:
        tracing.close()
    assert all(event.wait_ns >= 1 * MS and event.victim == victim.id for event in events)
    assert hog.id in {event.culprit for event in events}
    assert {event.cpu for event in events} == {1}


def breaches_with_gap(library: Library, cgroup: Any, gap_ns: int) -> tuple[list[RunqBreach], int]:
    victim, hog = cgroup("victim"), cgroup("hog")
    root = Root(watched=True, threshold_ns=1 * MS)
    tracing = Tracing.open(library, {victim.id: root}, options(event_gap_ns=gap_ns))
    try:
        run_victim_and_hog(victim, hog)
        return list(tracing.events()), sample_of(tracing).workloads[victim.id].breaches
    finally:
        tracing.close()


def test_events_are_rate_limited_in_the_kernel_and_breaches_counted_all_the_same(
    library: Library, cgroup: Any
) -> None:
    events, breaches = breaches_with_gap(library, cgroup, gap_ns=60_000 * MS)
    assert len(events) == 1
    assert breaches > 5


def test_lost_records_are_counted_when_nobody_reads_the_ring(library: Library, cgroup: Any) -> None:
    """64 KiB hold about 900 records; two that yield to each other thousands of times are more."""
    victim, other = cgroup("victim"), cgroup("other")
    root = Root(watched=True, threshold_ns=1)
    tracing = Tracing.open(library, {victim.id: root}, options(event_gap_ns=0, blame_floor_ns=0))
    yielding = other.run("import os\nwhile True: os.sched_yield()", cpu=1)
    try:
        code = "import os\nfor _ in range(20000): os.sched_yield()"
        assert victim.run(code, cpu=1).wait(timeout=60) == 0
        sample = sample_of(tracing)
        received = len(list(tracing.events()))
    finally:
        yielding.kill()
        yielding.wait()
        tracing.close()
    assert received > 100
    assert sample.lost_events > 0
    assert received + sample.lost_events == sample.workloads[victim.id].breaches


ROVER = """
import time
for path in {paths!r}:
    with open(path, "w") as file: file.write("0")
    end = time.perf_counter() + 0.004
    while time.perf_counter() < end: pass
"""


def test_pairs_that_a_full_map_throws_out_are_counted(library: Library, cgroup: Any) -> None:
    """One hog that goes through more cgroups than the map has room for culprits, on the victim's CPU."""
    victim, hog = cgroup("victim"), cgroup("hog")
    places = [cgroup(f"place{number}") for number in range(256 * possible_cpus(library) + 256)]
    roots = {victim.id: Root(watched=True)}
    tracing = Tracing.open(library, roots, options(max_pairs=256, blame_floor_ns=0))
    try:
        waiter = victim.run("import time\nwhile True: time.sleep(0.0005)", cpu=1)
        paths = [str(place.path / "cgroup.procs") for place in places]
        assert hog.run(ROVER.format(paths=paths), cpu=1).wait(timeout=60) == 0
        waiter.kill()
        waiter.wait()
        sample = sample_of(tracing)
    finally:
        tracing.close()
    assert sample.evicted > 0


def test_a_workload_for_which_there_is_no_room_has_no_histogram(library: Library, cgroup: Any) -> None:
    """The first two of three roots get the places; one that goes gives its own to the third, from 0."""
    first, second, third, hog = cgroup("first"), cgroup("second"), cgroup("third"), cgroup("hog")
    roots = {each.id: Root(watched=True) for each in (first, second, third)}
    tracing = Tracing.open(library, roots, options(max_workloads=2))
    try:
        run_victim_and_hog(first, hog)
        assert set(sample_of(tracing).workloads) == {first.id, second.id}
        assert sample_of(tracing).workloads[first.id].waits.count > 0
        tracing.set_roots({each.id: Root(watched=True) for each in (second, third)})
        before = sample_of(tracing).workloads[third.id].waits.count
        run_victim_and_hog(third, hog)
        after = sample_of(tracing).workloads[third.id].waits.count
    finally:
        tracing.close()
    assert before == 0
    assert after > 0


def test_a_probe_times_itself(library: Library, cgroup: Any) -> None:
    """One run in 64, scaled up: near the kernel's own clock, which sees the way into the program as well."""
    victim, hog = cgroup("victim"), cgroup("hog")
    tracing = Tracing.open(library, {victim.id: Root(watched=True)}, options())
    try:
        with run_time_statistics(library):
            before, own = tracing.run_time()["runq"].run_time_ns, sample_of(tracing).cost_ns
            for _ in range(3):
                run_victim_and_hog(victim, hog)
                assert victim.run("import os\nfor _ in range(20000): os.sched_yield()").wait(timeout=60) == 0
            kernel = tracing.run_time()["runq"].run_time_ns - before
            cost = sample_of(tracing).cost_ns - own
    finally:
        tracing.close()
    assert kernel / 4 < cost < kernel * 4


def test_a_root_added_later_is_seen_and_one_taken_away_is_forgotten(library: Library, cgroup: Any) -> None:
    first, second, hog = cgroup("first"), cgroup("second"), cgroup("hog")
    tracing = Tracing.open(library, {first.id: Root(watched=True)}, options())
    try:
        run_victim_and_hog(first, hog)
        tracing.set_roots({second.id: Root(watched=True)})
        run_victim_and_hog(second, hog)
        sample = sample_of(tracing)
    finally:
        tracing.close()
    assert set(sample.workloads) == {second.id}
