"""Shaping as the engine drives it: opened, enforced, paused, reloaded and closed, in Status and records."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from netns import lab as lab_module
from netns.lab import Lab
from netns.traffic import Sink, finish, sender

from qosd.__main__ import main
from qosd.config import Config, WorkloadRule
from qosd.ctl.main import cli
from qosd.ebpf.errors import BpfError
from qosd.ebpf.libbpf import Library
from qosd.ebpf.skbprio import SkbPrio
from qosd.egress import Change, Egress
from qosd.model import CgroupId, CgroupSample, HostSample, Snapshot, Tier, Workload
from qosd.net.config import Bitrate, Net
from qosd.net.status import NetView
from qosd.sys import DIRECTORY, Sys

pytestmark = pytest.mark.native

MBIT = 10**6
NET = Net(uplinks=("u0",), link_speed={"u0": Bitrate(100 * MBIT)}, hold_sec=0.5)
BE = WorkloadRule(name="be", tier=Tier.BE, match=("be",))


class Rig:
    """An Egress over a BE and an LS cgroup of this host's cgroup2, and the lab's uplink."""

    def __init__(self, lab: Lab, config: Config) -> None:
        mount = lab_module.cgroup2_mount()
        if mount is None:
            pytest.skip("needs a cgroup2 mount")
        try:
            SkbPrio.open(Library()).close()
        except BpfError as error:
            pytest.skip(str(error))
        self.tick_number = 0
        self.cgroups = {Tier.BE: lab.cgroup("be"), Tier.LS: lab.cgroup("ls")}
        self.mount = mount
        self.root_fd = os.open(mount, DIRECTORY)
        self.egress = Egress(Sys(), self.root_fd, config, lab.host)

    def tick(self, *, enforce: bool = True) -> tuple[list[str], NetView | None]:
        self.tick_number += 1
        workloads = tuple(
            Workload(
                path.name,
                tier,
                0,
                CgroupSample(CgroupId(path.stat().st_ino), str(path.relative_to(self.mount))),
                {},
            )
            for tier, path in self.cgroups.items()
        )
        usec = time.monotonic_ns() // 1000
        host = HostSample(nr_cpus=1)
        now = Snapshot(self.tick_number, usec, usec, host, None, {}, workloads, ())
        changes, view = self.egress.tick(now, enforce=enforce)
        # What the daemon does with it: into the Status, through the socket and back.
        assert msgspec.json.decode(msgspec.json.encode(view), type=NetView | None) == view
        assert msgspec.json.encode([change._asdict() for change in changes])
        return texts(changes), view

    def close(self) -> list[str]:
        try:
            return texts(self.egress.close())
        finally:
            os.close(self.root_fd)


def texts(changes: tuple[Change, ...]) -> list[str]:
    return [f"{change.uplink}: {change.reason.text}" for change in changes]


@pytest.fixture
def rig(lab: Lab) -> Iterator[Rig]:
    rig = Rig(lab, Config(net=NET, workload=(BE,)))
    yield rig
    rig.egress.close()


def test_the_view_says_what_is_shaped_how_far_and_what_each_workload_sent(lab: Lab, rig: Rig) -> None:
    before = lab.dump()
    said, view = rig.tick()
    assert said == ["u0: shaped: link 100 Mbit/s, LS egress is unknown for 1 ticks; BE may send 90.0 Mbit/s"]
    lab.send(5000, cgroup=rig.cgroups[Tier.BE])
    lab.sink().settled_rate_bps((5000,), 1.0)
    rig.tick()
    time.sleep(0.5)
    _, view = rig.tick()
    assert view is not None
    (uplink,) = view.uplinks
    assert (uplink.name, uplink.link_bps, uplink.shaped) == ("u0", 100 * MBIT, True)
    assert uplink.be_ceiling_bps == 90 * MBIT
    assert uplink.be_bps is not None
    assert 60 * MBIT < uplink.be_bps < 95 * MBIT
    sent = {each.workload: each for each in view.egress}
    assert sent["be"].class_id == "a001:20"
    assert sent["ls"].class_id is None
    assert sent["be"].bps is not None
    assert sent["be"].bps > 50 * MBIT
    assert {each.name for each in uplink.classes} == {"link", "ls", "be-tier", "be"}
    assert rig.egress.close()[0].reason.text == "released; the kernel's default qdisc is back"
    assert lab.dump() == before


def test_a_moved_ceiling_is_a_record_with_the_old_value_and_the_new(lab: Lab, rig: Rig) -> None:
    rig.tick()
    lab.send(5001, "--mbit", "60", cgroup=rig.cgroups[Tier.LS])
    lab.sink().settled_rate_bps((5001,), 0.2)
    rig.tick()
    lab.sink().rate_bps(0.5)
    said, view = rig.tick()
    assert view is not None
    ceiling = view.uplinks[0].be_ceiling_bps
    assert ceiling is not None
    assert ceiling < 40 * MBIT
    assert said
    assert "LS and system use" in said[0]


def test_leaving_enforce_gives_everything_back_and_the_ceiling_is_still_shown(lab: Lab, rig: Rig) -> None:
    before = lab.dump()
    rig.tick()
    said, view = rig.tick(enforce=False)
    assert said == ["u0: released; the kernel's default qdisc is back"]
    assert lab.dump() == before
    assert view is not None
    assert [(each.shaped, each.be_ceiling_bps) for each in view.uplinks] == [(False, 90 * MBIT)]
    rig.tick()
    assert lab.root("u0").is_ours


def test_an_egress_max_of_a_reload_gets_its_class_and_shows_in_the_view(lab: Lab, rig: Rig) -> None:
    rig.tick()
    limited = msgspec.structs.replace(BE, egress_max=Bitrate(5 * MBIT))
    rig.egress.reconfigure(Config(net=NET, workload=(limited,)))
    _, view = rig.tick()
    assert view is not None
    be = next(each for each in view.egress if each.workload == "be")
    assert (be.class_id, be.egress_max_bps) == ("a001:30", 5 * MBIT)
    lab.send(5000, cgroup=rig.cgroups[Tier.BE])
    assert 3 * MBIT < lab.sink().settled_rate_bps((5000,), 1.5)[5000] < 5.7 * MBIT


def test_uplinks_that_go_and_come_with_a_reload_are_released_and_shaped_again(lab: Lab, rig: Rig) -> None:
    before = lab.dump()
    rig.tick()
    fd = rig.egress.fileno()
    said = texts(rig.egress.reconfigure(Config(workload=(BE,))))
    assert said == ["u0: released; the kernel's default qdisc is back"]
    assert (rig.egress.fileno(), lab.dump()) == (None, before)
    assert rig.tick() == ([], None)
    rig.egress.reconfigure(Config(net=NET, workload=(BE,)))
    rig.tick()
    assert fd is not None
    assert rig.egress.fileno() is not None
    assert lab.root("u0").is_ours


def test_a_limit_on_what_be_receives_needs_no_uplink_and_goes_with_its_key(lab: Lab) -> None:
    before = lab.dump()
    limited = Config(net=Net(be_ingress_max=Bitrate(20 * MBIT)), workload=(BE,))
    rig = Rig(lab, limited)
    assert rig.tick(enforce=False)[1] is not None
    sink = Sink([], rig.cgroups[Tier.BE])
    lab.at_close(sink.close)
    flood = sender(
        None, "--to", "10.9.0.1", "--port", "5000", "--proto", "udp", "--mbit", "80", enter=lab.enter
    )
    lab.at_close(lambda: finish(flood))
    assert sink.settled_rate_bps((5000,), 0.5)[5000] > 50 * MBIT
    rig.tick()
    time.sleep(0.3)
    rig.tick()
    assert sink.rate_bps(1.0)[5000] < 25 * MBIT
    _, view = rig.tick()
    assert view is not None
    assert view.be_ingress is not None
    assert (view.uplinks, view.degraded, view.be_ingress.max_bps) == ((), (), 20 * MBIT)
    assert view.be_ingress.bps == pytest.approx(20 * MBIT, rel=0.2)
    assert view.be_ingress.dropped_bps is not None
    assert view.be_ingress.dropped_bps > 20 * MBIT
    assert lab.dump() == before
    _, view = rig.tick(enforce=False)
    assert view is not None
    assert view.be_ingress is None
    rig.tick()
    rig.egress.reconfigure(Config(workload=(BE,)))
    assert rig.tick() == ([], None)
    assert sink.rate_bps(1.0)[5000] > 50 * MBIT
    rig.close()


def test_a_device_that_went_is_said_between_ticks(lab: Lab, rig: Rig) -> None:
    rig.tick()
    lab.run("ip link del u0")
    lab.until(lambda: bool(rig.egress.on_readable(time.monotonic_ns() // 1000)) or rig.tick()[1] is None)
    _, view = rig.tick()
    assert view is not None
    assert view.refused == {"u0": "no such device"}


def test_netlink_that_cannot_be_opened_is_said_once_and_tried_again(
    lab: Lab, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(97, "Address family not supported by protocol")

    with monkeypatch.context() as patched:
        patched.setattr("qosd.net.session.Network", refused)
        said, view = rig.tick()
        assert said == ["network: netlink cannot be used: Address family not supported by protocol"]
        assert view is not None
        assert view.degraded == ("netlink cannot be used: Address family not supported by protocol",)
        assert rig.tick()[0] == []
    rig.tick()
    assert lab.root("u0").is_ours


def _shape_and_die(lab: Lab) -> None:
    rig = Rig(lab, Config(net=NET, workload=(BE,)))  # here, as its cgroups are to go with the lab
    pid = os.fork()
    if pid == 0:
        rig.tick()
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    os.close(rig.root_fd)


def test_restore_takes_off_what_a_killed_daemon_left(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = lab.dump()
    _shape_and_die(lab)
    assert lab.root("u0").is_ours
    assert main(["restore", "--runtime", str(tmp_path), "--cgroup-root", str(tmp_path)]) == 0
    assert "u0: our root qdisc is off; the kernel's default is back" in capsys.readouterr().err
    assert lab.dump() == before


def test_qosctl_restore_does_so_too_when_the_daemon_is_dead(lab: Lab, tmp_path: Path) -> None:
    before = lab.dump()
    _shape_and_die(lab)
    words = ["--socket", str(tmp_path / "none.sock"), "restore", "--cgroup-root", str(tmp_path)]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0
    assert "u0 egress: done (our root qdisc is off; the kernel's default is back)" in result.stdout
    assert lab.dump() == before


def test_without_uplinks_neither_pyroute2_nor_ctypes_bindings_are_imported() -> None:
    code = (
        "import sys, qosd.daemon, qosd.metrics;"
        "heavy = ('pyroute2', 'qosd.net.session', 'qosd.ebpf.libbpf');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_restore_imports_the_standard_library_only(tmp_path: Path) -> None:
    code = (
        f"import sys; from qosd.__main__ import main;"
        f"main(['restore', '--runtime', {str(tmp_path)!r}, '--cgroup-root', {str(tmp_path)!r}]);"
        "print([name for name in ('msgspec', 'pyroute2', 'tomli', 'click') if name in sys.modules])"
    )
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_reload_that_changes_nothing_of_the_network_keeps_the_shape(lab: Lab, rig: Rig) -> None:
    rig.tick()
    rig.egress.reconfigure(Config(net=NET, workload=(BE,)))
    said, _ = rig.tick()
    assert not [line for line in said if "released" in line or "shaped" in line]
    assert lab.root("u0").is_ours
