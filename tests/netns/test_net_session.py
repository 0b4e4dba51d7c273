"""The whole of it as the daemon drives it: workloads in, shaped uplinks out, nothing left."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec
import pytest
from netns import lab as lab_module

from qosd.config import Ownership
from qosd.ebpf.errors import BpfError
from qosd.ebpf.libbpf import Library
from qosd.ebpf.skbprio import SkbPrio
from qosd.errors import CgroupGone
from qosd.model import CgroupId, CgroupSample, Tier, Workload
from qosd.net import undo
from qosd.net.config import Bitrate, Net
from qosd.net.marking import NO_TCX
from qosd.net.programs import Programs
from qosd.net.session import Network

if TYPE_CHECKING:
    from collections.abc import Callable

    from netns.lab import Lab

pytestmark = pytest.mark.native

MBIT = 10**6
CONFIG = Net(uplinks=("u0",), link_speed={"u0": Bitrate(100 * MBIT)}, hold_sec=0.5, dscp_be="CS1")


class Rig:
    """A BE and an LS workload, and the session over them."""

    def __init__(self, lab: Lab, config: Net = CONFIG) -> None:
        self.lab = lab
        self.be, self.ls = lab.cgroup("be"), lab.cgroup("ls")
        self.gone: set[CgroupId] = set()
        self.paths = {CgroupId(path.stat().st_ino): path for path in (self.be, self.ls)}
        try:
            library = Library()
            SkbPrio.open(library).close()
        except BpfError as error:
            pytest.skip(str(error))
        self.network = Network(config, Ownership(), Programs(library), lab.host)

    def workloads(self) -> tuple[Workload, ...]:
        return tuple(
            Workload(
                path.name, Tier.LS if path == self.ls else Tier.BE, 0, CgroupSample(cgroup, path.name), {}
            )
            for cgroup, path in self.paths.items()
        )

    def open_dir(self, cgroup: CgroupId) -> int:
        try:
            return os.open(self.paths[cgroup], os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            assert cgroup in self.gone
            raise CgroupGone(self.paths[cgroup].name) from None

    def tick(self, limits: tuple[tuple[str, int], ...] = (), *, enforce: bool = True) -> list[str]:
        open_dir: Callable[[CgroupId], int] | None = self.open_dir if enforce else None
        usec = time.monotonic_ns() // 1000
        return [event.text for event in self.network.tick(usec, self.workloads(), limits, open_dir)]

    @property
    def ceil_bps(self) -> int:
        return self.network.status().wanted[0].ceil_bps

    def inputs(self) -> dict[str, float]:
        return {each.name: each.value for each in self.network.status().wanted[0].reason.inputs}


@pytest.fixture(autouse=True)
def needs_cgroup2() -> None:
    if lab_module.cgroup2_mount() is None:
        pytest.skip("needs a cgroup2 mount")


def test_be_gives_way_to_ls_gets_it_back_and_nothing_is_left(lab: Lab) -> None:
    before = lab.dump()
    rig = Rig(lab)
    rig.tick()
    lab.send(5000, cgroup=rig.be)
    lab.sink().settled_rate_bps((5000,), 0.2)
    rig.tick()
    assert rig.ceil_bps == 90 * MBIT
    ls = lab.send(5001, "--mbit", "60", cgroup=rig.ls)
    lab.sink().settled_rate_bps((5001,), 0.2)
    rig.tick()
    lab.sink().rate_bps(1.0)
    begin = time.monotonic()
    rig.tick()
    # 60 Mbit/s of payload are 63 on the wire.
    assert rig.ceil_bps == pytest.approx(27 * MBIT, abs=5 * MBIT)
    rates = lab.sink().rate_bps(1.0)
    assert rates[5000] < 32 * MBIT
    assert rates[5001] == pytest.approx(60 * MBIT, rel=0.1)
    ls.terminate()
    low = rig.ceil_bps
    for _ in range(4):
        time.sleep(0.5)
        rig.tick()
    # up_pct = 10 of the link a second, however long a busy machine took.
    assert low + 5 * MBIT < rig.ceil_bps <= low + 10 * MBIT * (time.monotonic() - begin)
    assert [event.text for event in rig.network.close()] == ["released; the kernel's default qdisc is back"]
    assert lab.dump() == before


def test_steady_traffic_needs_next_to_no_netlink(lab: Lab) -> None:
    """What the tiers send is known all the same, from counters that are read for nothing."""
    rig = Rig(lab, msgspec.structs.replace(CONFIG, hold_sec=15.0, deadband_pct=10.0))
    rig.tick()
    lab.send(5000, cgroup=rig.be)
    lab.send(5001, "--mbit", "20", cgroup=rig.ls)
    lab.sink().settled_rate_bps((5000, 5001), 0.1)
    for _ in range(8):
        time.sleep(0.25)
        rig.tick()
    before = rig.network.status().netlink_requests
    for _ in range(20):
        time.sleep(0.25)
        rig.tick()
    status, inputs, ceil = rig.network.status(), rig.inputs(), rig.ceil_bps
    rig.network.close()
    # A busy machine makes real changes of a paced sender: the bound is far below a request a tick, no less.
    assert status.netlink_requests - before <= 10
    assert 5 * MBIT < inputs["ls_egress"] < 50 * MBIT
    assert 30 * MBIT < ceil < 80 * MBIT


def test_what_be_sends_through_a_bridge_on_the_uplink_is_known_to_be_be(lab: Lab) -> None:
    """IP sends by the bridge, HTB sits on its port: two ifindexes, one way out."""
    lab.run("ip link add br0 type bridge")
    lab.run("ip addr flush dev u0")
    lab.run("ip link set u0 master br0")
    lab.run("ip addr add 10.9.0.1/24 dev br0")
    lab.run("ip link set br0 up")
    rig = Rig(lab)
    rig.tick()
    lab.send(5000, cgroup=rig.be)
    lab.sink().settled_rate_bps((5000,), 0.2)
    for _ in range(5):
        rig.tick()
        time.sleep(0.4)
    carriers, inputs = rig.network.uplinks.carriers(), rig.inputs()
    rig.network.close()
    uplink, bridge = lab.link("u0").ifindex, lab.link("br0").ifindex
    assert carriers == {uplink: {uplink, bridge}}
    assert inputs["total_egress"] > 50 * MBIT
    assert inputs["ls_egress"] < 0.3 * inputs["total_egress"]


def test_observing_changes_nothing_and_says_what_would_be(lab: Lab) -> None:
    before = lab.dump()
    rig = Rig(lab)
    for _ in range(3):
        rig.tick(enforce=False)
    status = rig.network.status()
    assert lab.dump() == before
    assert [shape.ceil_bps for shape in status.wanted] == [90 * MBIT]
    assert status.uplinks[0].shape is None
    assert status.netlink_requests == 0
    rig.network.close()
    assert lab.dump() == before


def test_a_pause_gives_everything_back_and_the_next_tick_shapes_again(lab: Lab) -> None:
    before = lab.dump()
    rig = Rig(lab)
    rig.tick()
    rig.network.release()
    assert lab.dump() == before
    assert rig.network.status().traffic == {}
    rig.tick()
    assert lab.root("u0").is_ours
    assert len(rig.network.status().traffic) == 2
    rig.network.close()
    assert lab.dump() == before


def test_a_reload_without_the_uplink_releases_it(lab: Lab) -> None:
    before = lab.dump()
    rig = Rig(lab)
    rig.tick()
    rig.network.reload(msgspec.structs.replace(CONFIG, uplinks=(), link_speed={}))
    assert rig.tick() == ["released; the kernel's default qdisc is back"]
    assert lab.dump() == before
    rig.network.close()


def test_a_reload_with_another_limit_builds_its_class(lab: Lab) -> None:
    rig = Rig(lab)
    rig.tick()
    rig.tick((("be", 5 * MBIT),))
    lab.send(5000, cgroup=rig.be)
    assert lab.sink().settled_rate_bps((5000,), 1.5)[5000] == pytest.approx(5 * MBIT, rel=0.12)
    rig.network.close()


def test_a_host_without_bpf_is_shaped_but_says_that_nothing_is_told_apart(lab: Lab) -> None:
    rig = Rig(lab)
    rig.network.close()
    rig.network = Network(CONFIG, Ownership(), Programs("libbpf.so.1 is not installed"), lab.host)
    rig.tick()
    assert lab.root("u0").is_ours
    assert rig.network.status().degraded == (
        "BE's packets cannot be told apart: libbpf.so.1 is not installed",
        "no DSCP and no marks: libbpf.so.1 is not installed",
    )
    rig.network.close()


def test_a_reload_that_asks_for_marks_gets_them(lab: Lab) -> None:
    rig = Rig(lab, msgspec.structs.replace(CONFIG, dscp_be=None))
    rig.tick()
    rig.network.reload(CONFIG)
    rig.tick()
    errors = rig.network.status().degraded
    assert errors in ((), (NO_TCX,))
    rig.network.close()


def test_netlink_that_fails_is_an_event_and_not_the_end_of_the_tick(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(lab)

    def refused(_groups: int = 0) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("qosd.net.rtnl.RtnlSocket", refused)
        assert rig.tick() == ["cannot look at the devices: Too many open files"]
    rig.tick()
    assert lab.root("u0").is_ours
    rig.network.close()


def test_a_workload_that_is_removed_is_let_go(lab: Lab) -> None:
    """Seen by the sensor but gone when it is opened; then gone from the snapshot too."""
    rig = Rig(lab)
    short = lab.cgroup("short")
    gone = CgroupId(short.stat().st_ino)
    rig.tick()
    rig.paths[gone] = short
    short.rmdir()
    rig.gone.add(gone)
    rig.tick()
    assert gone not in rig.network.status().traffic
    del rig.paths[gone]
    rig.tick()
    assert len(rig.network.status().traffic) == 2
    rig.network.close()


def test_a_killed_daemon_leaves_one_qdisc_that_the_next_start_removes(lab: Lab) -> None:
    before = lab.dump()
    rig = Rig(lab)
    pid = os.fork()
    if pid == 0:
        rig.tick()
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    assert lab.root("u0").is_ours
    assert undo.remove_all().removed == (lab.link("u0").ifindex,)
    assert lab.dump() == before
    rig.network.close()
