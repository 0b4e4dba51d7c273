"""The probes as the daemon holds them, on the running kernel: workloads come and go, and cost has a limit."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Any

import msgspec
from bpf.test_runq import run_victim_and_hog

from qosd.config import Config, decode
from qosd.ebpf.session import Session, open_session
from qosd.model import CgroupSample, HostSample, Probed, Snapshot, Tier, Workload
from qosd.probes import Probes
from qosd.schema.units import Duration


def snapshot(**cgroups: Any) -> Snapshot:
    now = time.monotonic_ns() // 1000
    tiers = {"ls": Tier.LS, "ls2": Tier.LS, "be": Tier.BE}
    workloads = tuple(
        Workload(name, tiers[name], 0, CgroupSample(cgroup.id, name), {}) for name, cgroup in cgroups.items()
    )
    return Snapshot(1, now, now, HostSample(nr_cpus=2), workloads=workloads)


def opened(text: str = "") -> Session:
    session = open_session(decode(text).ebpf)
    assert isinstance(session, Session)
    return session


def by_name(session: Session, now: Snapshot) -> dict[str, Probed]:
    names = {workload.id: workload.name for workload in now.workloads}
    return {names[each.id]: each for each in session.sample(now)}


def test_a_tick_has_the_waits_of_both_tiers_and_who_had_the_cpu(cgroup: Callable[[str], Any]) -> None:
    ls, be = cgroup("ls"), cgroup("be")
    session = opened("[ebpf]\nmax_overhead_pct = 100.0")
    try:
        by_name(session, snapshot(ls=ls, be=be))
        run_victim_and_hog(ls, be)
        probed = by_name(session, snapshot(ls=ls, be=be))
        quiet = by_name(session, snapshot(ls=ls, be=be))
    finally:
        session.close()
    assert probed["ls"].runq is not None
    assert probed["ls"].runq.count > 50
    assert be.id in {each.root for each in probed["ls"].preemptors}
    assert probed["be"].runq is not None
    assert probed["be"].runq.count > 0
    assert quiet["ls"].runq is not None
    assert quiet["ls"].runq.count == 0
    assert quiet["ls"].preemptors == ()


def test_a_long_wait_of_ls_for_be_wakes_the_loop_and_is_counted_as_bes(cgroup: Callable[[str], Any]) -> None:
    ls, be = cgroup("ls"), cgroup("be")
    probes = Probes(decode('[ebpf]\nevent_gap = "0us"\n[ebpf.baseline]\nrunq_cold = "1ms"'))
    probes.open()
    poll = select.epoll()
    try:
        probes.sample(snapshot(ls=ls, be=be))
        fd = probes.fileno()
        assert fd is not None
        poll.register(fd, select.EPOLLIN)
        run_victim_and_hog(ls, be)
        assert [each for each, _ in poll.poll(1)] == [fd]
        waits = probes.events()
    finally:
        poll.close()
        probes.close()
    assert probes.breaches["be"] > 0
    assert {wait.victim for wait in waits} == {ls.id}
    assert all(wait.wait_usec > wait.threshold_usec == 1000 for wait in waits)


def test_a_workload_that_comes_later_is_counted_and_one_that_goes_is_not(
    cgroup: Callable[[str], Any],
) -> None:
    ls, later, be = cgroup("ls"), cgroup("ls2"), cgroup("be")
    session = opened('[ebpf]\nprobes = ["runq"]\nmax_overhead_pct = 100.0')
    try:
        by_name(session, snapshot(ls=ls, be=be))
        both = by_name(session, snapshot(ls2=later, be=be))
        run_victim_and_hog(later, be)
        after = by_name(session, snapshot(ls2=later, be=be))
    finally:
        session.close()
    assert set(both) == {"ls2", "be"}
    assert after["ls2"].runq is not None
    assert after["ls2"].runq.count > 50


def test_a_probe_above_its_limit_takes_itself_off_its_hooks(cgroup: Callable[[str], Any]) -> None:
    """The snapshots' clock is the test's. What was sent and not read must not wake the loop for ever."""
    ls, be = cgroup("ls"), cgroup("be")
    easily = msgspec.structs.replace(Config().ebpf.baseline, runq_cold=Duration(1_000))
    config = msgspec.structs.replace(Config().ebpf, probes=("runq",), max_overhead_pct=1e-6, baseline=easily)
    session = open_session(config)
    assert isinstance(session, Session)
    poll = select.epoll()
    try:
        assert session.fd is not None
        poll.register(session.fd, select.EPOLLIN)
        first = snapshot(ls=ls, be=be)
        session.sample(first)
        assert session.detach_too_dear(first) == ()
        run_victim_and_hog(ls, be)
        assert len(poll.poll(1)) == 1
        later = msgspec.structs.replace(first, monotonic_usec=first.monotonic_usec + 10_000_000)
        session.sample(later)
        (error,) = session.detach_too_dear(later)
        assert "max_overhead_pct" in str(error)
        assert session.attached == ()
        assert session.fd is None
        assert poll.poll(0) == []
        assert {each.runq for each in session.sample(later)} == {None}
    finally:
        poll.close()
        session.close()


def test_a_loader_that_is_not_there_is_a_sentence() -> None:
    """bcc is asked for by name on a machine without it."""
    probes = Probes(decode('[ebpf]\nloader = "bcc"'))
    probes.open()
    assert "bcc is compiling" in str(probes.view(snapshot(), ()).why)
    try:
        deadline = time.monotonic() + 60
        while "compiling" in str((state := probes.view(snapshot(), ())).why) and time.monotonic() < deadline:
            probes.sample(snapshot())
            time.sleep(0.05)
    finally:
        probes.close()
    if state.loader is None:
        assert "python3-bpfcc" in str(state.why)
    else:
        assert state.loader == "bcc"
