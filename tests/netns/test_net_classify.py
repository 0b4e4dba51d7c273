"""Traffic is told apart by cgroup alone, on a real kernel."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from netns import lab as lab_module

from qosd.ebpf.errors import BpfError
from qosd.ebpf.libbpf import Library
from qosd.ebpf.skbprio import SkbPrio
from qosd.model import CgroupId, CgroupSample, Tier, Workload
from qosd.net import undo
from qosd.net.classify import Classifier, wanted_classes
from qosd.net.device import BE_CLASS, LS_CLASS, workload_class
from qosd.net.model import Leaf, Shape
from qosd.net.tc import Tc
from qosd.plan import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from netns.lab import Lab

pytestmark = pytest.mark.native

MBIT = 10**6


@pytest.fixture
def classifier() -> Iterator[Classifier]:
    if lab_module.cgroup2_mount() is None:
        pytest.skip("needs a cgroup2 mount")
    try:
        skbprio = SkbPrio.open(Library())
    except BpfError as error:
        pytest.skip(str(error))
    classifier = Classifier(skbprio)
    yield classifier
    classifier.close()


@pytest.fixture
def tc() -> Iterator[Tc]:
    connection = Tc()
    yield connection
    connection.close()


def workload(path: Path, tier: Tier) -> Workload:
    sample = CgroupSample(CgroupId(path.stat().st_ino), path.name)
    return Workload(path.name, tier, 0, sample, {})


def classify(
    classifier: Classifier, paths: dict[Path, Tier], limits: tuple[tuple[str, int], ...] = ()
) -> None:
    by_id = {path.stat().st_ino: path for path in paths}
    wanted = wanted_classes(tuple(workload(path, tier) for path, tier in paths.items()), limits)
    classifier.sync(wanted, lambda cgroup: os.open(by_id[cgroup], os.O_RDONLY | os.O_DIRECTORY))


def build(lab: Lab, tc: Tc, leaves: tuple[Leaf, ...] = ()) -> int:
    ifindex = lab.link("u0").ifindex
    tc.build(Shape(ifindex, "u0", 10**9, 10 * MBIT, 50 * MBIT, Reason("test", "test"), leaves))
    return ifindex


@pytest.mark.parametrize("to", ["10.9.0.2", "fd09:0::2"])
@pytest.mark.parametrize("proto", ["tcp", "udp", "udp-gso"])
def test_a_be_cgroup_is_held_at_the_ceiling_and_an_ls_cgroup_beside_it_is_not(
    lab: Lab, classifier: Classifier, tc: Tc, proto: str, to: str
) -> None:
    be, ls = lab.cgroup("be"), lab.cgroup("ls")
    classify(classifier, {be: Tier.BE, ls: Tier.LS})
    ifindex = build(lab, tc)
    lab.send(5000, "--proto", proto, cgroup=be, to=to)
    lab.send(5001, "--proto", proto, "--mbit", "150", cgroup=ls, to=to)
    rates = lab.sink().settled_rate_bps((5000, 5001), 1.5)
    counted = {sample.classid: sample for sample in tc.classes(ifindex)}
    assert 0 < rates[5000] < 51 * MBIT
    assert rates[5001] > (140 if proto == "tcp" else 80) * MBIT
    assert counted[BE_CLASS].bytes > 1.5 * 50 * MBIT / 8
    assert counted[LS_CLASS].bytes > counted[BE_CLASS].bytes


def test_cgroups_below_a_be_root_are_be_too_and_a_limit_of_its_own_holds(
    lab: Lab, classifier: Classifier, tc: Tc
) -> None:
    be, backup = lab.cgroup("be"), lab.cgroup("backup")
    child = lab.cgroup("be/job")
    limits = (("backup", 10 * MBIT),)
    classify(classifier, {be: Tier.BE, backup: Tier.BE}, limits)
    build(lab, tc, (Leaf("backup", workload_class(0), 10 * MBIT),))
    lab.send(5000, cgroup=child)
    lab.send(5001, cgroup=backup)
    rates = lab.sink().settled_rate_bps((5000, 5001), 2.0)
    assert rates[5001] == pytest.approx(10 * MBIT, rel=0.10)
    assert rates[5000] + rates[5001] == pytest.approx(50 * MBIT, rel=0.10)


def test_the_workloads_bytes_are_counted_without_netlink(lab: Lab, classifier: Classifier, tc: Tc) -> None:
    be, ls = lab.cgroup("be"), lab.cgroup("ls")
    classify(classifier, {be: Tier.BE, ls: Tier.LS})
    ifindex, other = build(lab, tc), lab.link("lo").ifindex
    assert set(classifier.be_sent_to(frozenset({ifindex, other})).values()) == {0}
    lab.send(5000, cgroup=be)
    lab.send(5001, "--mbit", "50", cgroup=ls)
    lab.sink().settled_rate_bps((5000, 5001), 0.5)
    _, received = lab.sink().bytes()
    traffic = classifier.traffic()
    be_sent = classifier.be_sent_to(frozenset({ifindex, other}))
    assert traffic[CgroupId(be.stat().st_ino)].bytes >= received[5000]
    assert traffic[CgroupId(ls.stat().st_ino)].bytes >= received[5001]
    assert be_sent[other] == 0
    assert be_sent[ifindex] >= received[5000]


def test_a_workload_that_leaves_be_is_unclassified_at_once(lab: Lab, classifier: Classifier, tc: Tc) -> None:
    be = lab.cgroup("be")
    classify(classifier, {be: Tier.BE})
    build(lab, tc)
    lab.send(5000, cgroup=be)
    assert lab.sink().settled_rate_bps((5000,), 0.7)[5000] < 51 * MBIT
    classify(classifier, {})
    lab.sink().rate_bps(0.5)
    assert lab.sink().rate_bps(1.0)[5000] > 100 * MBIT


def test_a_socket_made_before_the_move_keeps_its_class(lab: Lab, classifier: Classifier, tc: Tc) -> None:
    """Documented: the kernel remembers the cgroup of a socket, not of who writes to it."""
    be = lab.cgroup("be")
    classify(classifier, {be: Tier.BE})
    build(lab, tc)
    process = lab.send(5000)
    lab.sink().settled_rate_bps((5000,), 0.2)
    (be / "cgroup.procs").write_text(str(process.pid), encoding="ascii")
    assert lab.sink().rate_bps(1.0)[5000] > 100 * MBIT


def test_a_crash_leaves_packets_unclassified_and_the_qdisc_for_undo(lab: Lab, tc: Tc) -> None:
    before = lab.dump()
    build(lab, tc)
    done = undo.remove_all()
    assert len(done.removed) == 1
    assert lab.dump() == before
