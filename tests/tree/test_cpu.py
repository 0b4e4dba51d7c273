"""Windows, pools, bursts and CPUs of one's own, from sense to act on a fake host, and all of it undone."""

from __future__ import annotations

import datetime as dt
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from treekit import BOOT, GROUP_FILES, NR_CPUS, Box, Call, make_tree, rewrite, text_of

from qosd.config import decode
from qosd.journal import restore_from
from qosd.model import Topology
from qosd.sense import HostFiles
from qosd.status import Status
from qosd.sys import Sys

BUSY = {"ls": 1.0, "be": 2.0, "system": 0.2}
TIERS = """
[[workload]]
name = "ls"
tier = "ls"
match = ["ls.slice"]
{ls}
[[workload]]
name = "be"
tier = "be"
match = ["be.slice"]
{be}
"""


@pytest.fixture
def boxes() -> Iterator[list[Box]]:
    made: list[Box] = []
    yield made
    for box in made:
        box.close()


def box_of(boxes: list[Box], tmp_path: Path, text: str, *, ls: str = "", be: str = "") -> Box:
    box = Box(tmp_path, decode(text + TIERS.format(ls=ls, be=be)))
    for path in ("ls.slice", "be.slice"):
        rewrite(box.root / path / "cgroup.events", "populated 0\nfrozen 0\n")  # so that a mask may be emptied
    boxes.append(box)
    return box


def quota_cores(box: Box, path: str = "be.slice") -> float:
    quota, period = text_of(box.root / path / "cpu.max").split()
    return int(quota) / int(period)


def wall(box: Box, *when: int) -> None:
    box.sys.wall_seconds = dt.datetime(*when, tzinfo=dt.UTC).timestamp()


QUOTA = '[cpu.bandwidth]\nenforce = "max"\n'
NIGHT = """
[cpu.bandwidth]
enforce = "max"
[host]
cpu_target_pct = 50
[[window]]
name = "night"
hours = "22:00-06:00"
zone = "Europe/Berlin"
cpu_target_pct = 100
[[window]]
name = "lunch"
hours = "12:00-13:00"
zone = "Europe/Berlin"
pause_be = true
"""


def test_a_window_opens_and_closes_with_the_clock_on_the_wall_there(boxes: list[Box], tmp_path: Path) -> None:
    box = box_of(boxes, tmp_path, NIGHT)
    wall(box, 2026, 1, 15, 20, 0)  # 21:00 in Berlin
    box.settle(**BUSY)
    assert quota_cores(box) == pytest.approx(0.8, abs=0.01)

    wall(box, 2026, 1, 15, 21, 0)
    status = box.settle(2, **BUSY)
    assert quota_cores(box) == pytest.approx(2.8, abs=0.01)
    assert [window.name for window in status.cpu.windows] == ["night"]

    wall(box, 2026, 7, 15, 20, 0)  # summer: 22:00 there already
    box.settle(2, **BUSY)
    assert quota_cores(box) == pytest.approx(2.8, abs=0.01)

    wall(box, 2026, 1, 15, 11, 30)
    box.settle(2, **BUSY)
    assert quota_cores(box) == pytest.approx(0.2, abs=0.01), "paused: the floor"


@pytest.mark.parametrize("jump", [-86_400 * 3000, 86_400 * 3000, -3600, 60])
def test_a_wall_clock_that_jumps_does_no_more_than_the_window_it_lands_in(
    boxes: list[Box], tmp_path: Path, jump: int
) -> None:
    box = box_of(boxes, tmp_path, NIGHT)
    wall(box, 2026, 1, 15, 20, 0)
    box.settle(**BUSY)
    box.sys.wall_seconds += jump
    status = box.tick(**BUSY)
    box.sys.wall_seconds -= jump
    box.settle(2, **BUSY)

    assert status.mode == "enforce"
    assert quota_cores(box) == pytest.approx(0.8, abs=0.01)


def test_a_zone_lost_from_the_host_is_said_and_opens_nothing(
    boxes: list[Box], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = box_of(boxes, tmp_path, NIGHT)
    wall(box, 2026, 1, 15, 22, 0)

    def lost(zone: str, _seconds: float) -> int:
        raise ValueError(f"No time zone found with key {zone}")

    monkeypatch.setattr("qosd.clock.minute_of_week", lost)
    status = box.settle(**BUSY)

    assert status.mode == "enforce"
    assert quota_cores(box) == pytest.approx(0.8, abs=0.01)
    assert any(sensor.name == "time zone Europe/Berlin" for sensor in status.sensors)


def test_windows_are_taken_over_by_a_reload(boxes: list[Box], tmp_path: Path) -> None:
    box = box_of(boxes, tmp_path, QUOTA + "[host]\ncpu_target_pct = 50\n")
    wall(box, 2026, 1, 15, 22, 0)
    box.settle(**BUSY)
    box.engine.reconfigure(decode(NIGHT + TIERS.format(ls="", be="")))
    box.settle(3, **BUSY)

    assert quota_cores(box) == pytest.approx(2.8, abs=0.01)


def throttle(box: Box, periods: int, throttled: int, cores: float) -> Status:
    """A tick in which ls.slice ran into its own limit so many times."""
    box.pass_time(1.0, ls=cores)
    stat = box.root / "ls.slice/cpu.stat"
    usage = stat.read_text().splitlines()[0]
    rewrite(
        stat,
        f"{usage}\nuser_usec 0\nsystem_usec 0\nnr_periods {periods}\nnr_throttled {throttled}\n"
        "throttled_usec 0\nnr_bursts 3\nburst_usec 0\n",
    )
    return box.engine.tick()


def test_a_limit_of_ls_is_raised_with_its_burst_in_the_kernels_order_and_given_back(
    boxes: list[Box], tmp_path: Path
) -> None:
    box = box_of(boxes, tmp_path, '[cpu.burst]\nenforce = "both"\n')
    rewrite(box.root / "ls.slice/cpu.max", "50000 100000\n")
    before = box.contents()
    for tick in range(1, 9):
        status = throttle(box, 10 * tick, 10 * tick, 0.5)

    assert quota_cores(box, "ls.slice") > 0.9
    assert text_of(box.root / "ls.slice/cpu.max.burst") == "50000"
    assert status.cpu.bursts[0].path == "ls.slice"
    assert [setting.error for setting in status.settings if setting.error] == []
    box.engine.release()
    assert box.contents() == before


def test_after_a_crash_the_limit_of_ls_is_what_it_was(boxes: list[Box], tmp_path: Path) -> None:
    box = box_of(boxes, tmp_path, '[cpu.burst]\nenforce = "both"\n')
    rewrite(box.root / "ls.slice/cpu.max", "50000 100000\n")
    before = box.contents()
    for tick in range(1, 9):
        throttle(box, 10 * tick, 10 * tick, 0.5)

    assert box.contents() != before
    restore_from(box.sys, str(box.run), str(box.root), BOOT)
    assert box.contents() == before


def test_ls_gets_its_cpus_be_is_kept_off_them_and_both_masks_go_again(
    boxes: list[Box], tmp_path: Path
) -> None:
    box = box_of(boxes, tmp_path, "", ls="cpus = 1")
    before = box.contents()
    status = box.settle(**BUSY)

    assert text_of(box.root / "ls.slice/cpuset.cpus") == "3"
    assert text_of(box.root / "be.slice/cpuset.cpus") == "0-2"
    reasons = {s.path: s.reason.text for s in status.settings if s.file == "cpuset.cpus"}
    assert "to itself" in reasons["ls.slice"]
    assert "kept off CPU 3" in reasons["be.slice"]
    box.engine.release()
    assert box.contents() == before


def test_a_cpu_that_goes_offline_leaves_both_masks(boxes: list[Box], tmp_path: Path) -> None:
    box = box_of(boxes, tmp_path, "", ls="cpus = 2")
    box.settle(**BUSY)
    assert text_of(box.root / "ls.slice/cpuset.cpus") == "2-3"
    rewrite(box.sysfs / "devices/system/cpu/online", "0-2\n")
    box.settle(2, **BUSY)

    assert text_of(box.root / "ls.slice/cpuset.cpus") == "1-2"
    assert text_of(box.root / "be.slice/cpuset.cpus") == "0"


def test_cpus_that_a_partition_has_to_itself_are_in_no_mask_of_ours(boxes: list[Box], tmp_path: Path) -> None:
    """The root's cpuset.cpus.effective is what partitions leave. Where it cannot say, all CPUs count."""
    box = box_of(boxes, tmp_path, '[cpu.bandwidth]\nenforce = "cpuset"\n[host]\ncpu_target_pct = 100\n')
    box.settle(6, **BUSY)
    assert text_of(box.root / "be.slice/cpuset.cpus") == "1-3"

    (box.root / "cpuset.cpus.effective").write_text("0-1\n")
    box.settle(2, **BUSY)
    assert text_of(box.root / "be.slice/cpuset.cpus") == "0-1"

    rewrite(box.root / "cpuset.cpus.effective", "many\n")
    status = box.settle(8, **BUSY)
    assert text_of(box.root / "be.slice/cpuset.cpus") == "0-1,3", "three again, and the two it is on stay"
    assert any(sensor.name == "cpuset.cpus.effective" and not sensor.ok for sensor in status.sensors)


def test_a_mask_that_stays_the_same_is_written_once(boxes: list[Box], tmp_path: Path) -> None:
    box = box_of(boxes, tmp_path, "", ls="cpus = 2")
    box.settle(20, **BUSY)

    written = [
        call for call in box.sys.writes() if call.name == "write" and call.path.endswith("cpuset.cpus")
    ]
    assert len(written) == 2


POOLS = '[[pool]]\nname = "batch"\npriority = 1\n[[pool]]\nname = "empty"\npriority = 2\n'


def test_pools_limit_be_and_an_empty_one_is_no_harm(boxes: list[Box], tmp_path: Path) -> None:
    box = box_of(boxes, tmp_path, POOLS, be='pool = "batch"')
    status = box.settle(12, **BUSY)

    assert 0 < quota_cores(box) <= NR_CPUS
    views = {view.name: view for view in status.cpu.pools}
    assert views["batch"].paths == ("be.slice",)
    assert views["empty"].paths == ()


def test_a_be_root_that_vanishes_mid_tick_ends_no_tick_and_empties_its_pool(
    boxes: list[Box], tmp_path: Path
) -> None:
    """Its files are open, and say ENODEV from one read to the next."""
    box = box_of(boxes, tmp_path, POOLS, be='pool = "batch"')
    box.settle(8, **BUSY)

    def hook(call: Call) -> None:
        if "be.slice" in call.path and call.name == "pread":
            shutil.rmtree(box.root / "be.slice", ignore_errors=True)
            raise OSError(errno.ENODEV, "No such device", call.path)

    box.sys.hooks.append(hook)
    status = box.tick(ls=1.0, system=0.2)
    box.sys.heal()
    later = box.settle(2, ls=1.0, system=0.2)

    assert {view.name: view.paths for view in status.cpu.pools} == {"batch": (), "empty": ()}
    assert later.mode == "enforce"
    make_tree(box.root / "be.slice", GROUP_FILES)
    box.used["be"] = 0.0
    box.settle(4, **BUSY)
    assert text_of(box.root / "be.slice/cpu.max") != "max 100000"


def test_a_target_of_ls_holds_be_while_it_has_tasks_and_goes_with_the_last_one(
    boxes: list[Box], tmp_path: Path
) -> None:
    """By cgroup.events, as the sensor reads it."""
    box = box_of(boxes, tmp_path, "", ls="cpu_target_pct = 60")
    rewrite(box.root / "ls.slice/cgroup.events", "populated 1\nfrozen 0\n")
    status = box.settle(6, **BUSY)

    assert quota_cores(box) == pytest.approx(0.6 * NR_CPUS - 1.2, abs=0.05)
    assert status.cpu.target is not None
    rewrite(box.root / "ls.slice/cgroup.events", "populated 0\nfrozen 0\n")
    status = box.settle(2, **BUSY)
    assert status.cpu.target is None
    assert text_of(box.root / "be.slice/cpu.max") == "max 100000"


class TestTopology:
    """Read from /sys/devices/system: at the start, and when a CPU comes or goes."""

    def host(self, tmp_path: Path, sys: Sys | None = None) -> tuple[HostFiles, Path]:
        siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
        system = make_tree(
            tmp_path / "sys",
            {
                "devices": {
                    "system": {
                        "cpu": {
                            "online": "0-3\n",
                            **{
                                f"cpu{n}": {"topology": {"thread_siblings_list": f"{text}\n"}}
                                for n, text in siblings.items()
                            },
                        },
                        "node": {
                            "node0": {"cpulist": "0,2\n"},
                            "node1": {"cpulist": "1,3\n"},
                            "online": "0-1\n",
                        },
                    }
                }
            },
        )
        proc = make_tree(tmp_path / "proc", {"stat": "cpu  1 1 1 1 1 1 1 1 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"})
        return HostFiles(sys or Sys(), str(proc), str(system)), system / "devices/system"

    def test_cores_and_nodes_are_found(self, tmp_path: Path) -> None:
        host, _ = self.host(tmp_path)
        assert host.sample({}).cpus_busy_usec is None, "nobody asks"
        host.follow(decode('[cpu.cpuset]\nmode = "always"'))
        rewrite(tmp_path / "proc/stat", "cpu  2 1 1 1 1 1 1 1 0 0\ncpu0 2 1 1 1 1 1 1 1 0 0\n")
        sample = host.sample({})

        assert sample.topology == Topology(((0, 2), (1, 3)), ((0, 2), (1, 3)))
        assert sample.cpus_busy_usec is not None
        host.close()

    def test_it_is_read_again_when_a_cpu_goes_and_not_before(self, tmp_path: Path) -> None:
        host, system = self.host(tmp_path)
        first = host.sample({}).topology
        rewrite(system / "node/node1/cpulist", "1\n")
        assert host.sample({}).topology is first
        rewrite(system / "cpu/online", "0-2\n")
        shutil.rmtree(system / "cpu/cpu3")

        assert host.sample({}).topology == Topology(((0, 2), (1,)), ((0, 2), (1,)))
        host.close()

    @pytest.mark.parametrize("garbage", ["", "kaputt", "9" * 5000, "3-1"])
    def test_a_damaged_list_is_said_and_topology_is_unknown(self, tmp_path: Path, garbage: str) -> None:
        host, system = self.host(tmp_path)
        rewrite(system / "cpu/cpu1/topology/thread_siblings_list", garbage)
        unknown: dict[str, str] = {}
        topology = host.sample(unknown).topology

        if garbage:
            assert topology is None
            assert "/sys/devices/system" in unknown
        else:
            assert topology is not None
        host.close()

    def test_what_could_not_be_opened_once_is_tried_again(self, tmp_path: Path) -> None:
        class Full(Sys):
            full = True

            def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
                if self.full and "thread_siblings_list" in path:
                    raise OSError(errno.EMFILE, "Too many open files")
                return Sys.open(path, flags, mode, dir_fd=dir_fd)

        sys = Full()
        host, _ = self.host(tmp_path, sys)
        assert host.sample({}).topology is None
        sys.full = False
        assert host.sample({}).topology is not None
        host.close()
