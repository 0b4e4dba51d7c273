"""What only the kernel itself can show, in child cgroups of our own."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from native.conftest import engine_for
from treekit import BOOT, FakeSys

from qosd.config import Config, Mode, Sense, WorkloadRule
from qosd.engine import Engine
from qosd.errors import CgroupGone
from qosd.files import Key
from qosd.journal import Entry, Journal, restore
from qosd.model import Tier
from qosd.sense import HostFiles
from qosd.sys import DIRECTORY, Sys, open_cgroup, open_same_cgroup, read_interface, write_interface

pytestmark = pytest.mark.native


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def root_fd(group: Path) -> Iterator[int]:
    fd = os.open(group, DIRECTORY)
    yield fd
    os.close(fd)


def test_a_value_is_written_and_read_back(group: Path, root_fd: int) -> None:
    """ftruncate() before the write is for test trees: kernfs must take no notice of it."""
    write_interface(Sys(), root_fd, "cgroup.max.depth", "7")
    assert read_interface(Sys(), root_fd, "cgroup.max.depth") == b"7\n"

    write_interface(Sys(), root_fd, "cgroup.max.depth", "max")
    assert (group / "cgroup.max.depth").read_text() == "max\n"


def test_a_value_the_kernel_refuses_leaves_the_one_that_stood(group: Path, root_fd: int) -> None:
    write_interface(Sys(), root_fd, "cgroup.max.depth", "7")

    with pytest.raises(OSError, match=r"Invalid argument|out of range"):
        write_interface(Sys(), root_fd, "cgroup.max.depth", "-1")
    assert (group / "cgroup.max.depth").read_text() == "7\n"


def test_restore_thaws_what_a_crash_left_frozen(group: Path, root_fd: int) -> None:
    (group / "job").mkdir()
    (group / "job/cgroup.freeze").write_text("1")
    key = Key((group / "job").stat().st_ino, "cgroup.freeze")

    outcomes = restore(Sys(), root_fd, {key: Entry("job", "0", ("1",))})

    assert [outcome.result for outcome in outcomes] == ["done"]
    assert (group / "job/cgroup.freeze").read_text() == "0\n"


def test_a_removed_cgroup_is_gone_to_every_way_of_reaching_it(group: Path, root_fd: int) -> None:
    job = group / "job"
    job.mkdir()
    number = job.stat().st_ino
    held = open_same_cgroup(Sys(), root_fd, "job", number)
    job.rmdir()

    with pytest.raises(CgroupGone):
        open_same_cgroup(Sys(), root_fd, "job", number)
    with pytest.raises(OSError, match=r"No such") as caught:
        write_interface(Sys(), held, "cgroup.freeze", "1")
    assert caught.value.errno in (errno.ENOENT, errno.ENODEV)
    os.close(held)


def test_a_cgroup_made_anew_under_the_same_path_is_another_one(group: Path, root_fd: int) -> None:
    job = group / "job"
    job.mkdir()
    number = job.stat().st_ino
    job.rmdir()
    job.mkdir()

    assert job.stat().st_ino != number
    with pytest.raises(CgroupGone):
        open_same_cgroup(Sys(), root_fd, "job", number)
    outcomes = restore(Sys(), root_fd, {Key(number, "cgroup.freeze"): Entry("job", "1", ("0",))})
    assert [outcome.result for outcome in outcomes] == ["gone"]
    assert (job / "cgroup.freeze").read_text() == "0\n"


def test_workloads_that_are_removed_while_watched_leave_no_fd_and_no_error(
    group: Path, tmp_path: Path
) -> None:
    """rmdir under kept fds: ENODEV from each of them, for the tier's own cgroup and for those below it."""
    engine = engine_for(group, tmp_path, Config(mode=Mode.OBSERVE))
    for name in ("ls", "be", "be/a", "be/b", "be/b/c"):
        (group / name).mkdir()
    engine.tick()
    before = open_fds()
    for _ in range(20):
        for name in ("be/b/c", "be/b", "be/a", "be"):
            (group / name).rmdir()
        gone = engine.tick()
        for name in ("be", "be/a", "be/b", "be/b/c"):
            (group / name).mkdir()
        there = engine.tick()
        assert {workload.path for workload in gone.workloads} == {"ls"}
        assert {workload.path for workload in there.workloads} == {"ls", "be"}
        assert not any(sensor.detail for sensor in (*gone.sensors, *there.sensors))

    assert open_fds() <= before + 5
    engine.close()


def test_real_use_is_measured(group: Path, tmp_path: Path) -> None:
    """One spinning process in a cgroup of ours shows as about one CPU in the status."""
    engine = engine_for(group, tmp_path, Config(mode=Mode.OBSERVE))
    for name in ("ls", "be"):
        (group / name).mkdir()
    spin = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    try:
        (group / "be/cgroup.procs").write_text(str(spin.pid))
        engine.tick()
        time.sleep(1)
        status = engine.tick()
    finally:
        spin.kill()
        spin.wait()

    used = {workload.path: workload.cpu_cores for workload in status.workloads}
    assert 0.2 < used["be"] <= 1.1, "another process may have taken most of the CPU, not nearly all of it"
    assert used["ls"] == pytest.approx(0, abs=0.01)
    engine.close()


def test_cgroups_nested_400_deep_are_opened_and_walked_to_the_cap(group: Path, tmp_path: Path) -> None:
    """8 kB of path: open() by path is ENAMETOOLONG there, openat a component at a time is not."""
    name = "deep-cgroup-of-a-test"
    (group / "be").mkdir()
    (group / "ls").mkdir()
    fd = os.open(group / "be", DIRECTORY)
    for _ in range(400):
        os.mkdir(name, dir_fd=fd)
        child = os.open(name, DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = child
    inode = os.fstat(fd).st_ino
    os.close(fd)
    path = "be/" + "/".join([name] * 400)
    root = os.open(group, DIRECTORY)
    assert len(path) > 8000
    before = open_fds()

    same = open_cgroup(Sys(), root, path)
    assert os.fstat(same).st_ino == inode
    os.close(same)
    for depth in (64, 500):
        engine = engine_for(group, tmp_path, Config(mode=Mode.OBSERVE, sense=Sense(max_depth=depth)))
        statuses = [engine.tick() for _ in range(3)]
        cut = [sensor.detail for sensor in statuses[-1].sensors if "too deep" in (sensor.detail or "")]
        assert len(cut) == (1 if depth == 64 else 0)
        engine.close()
    os.close(root)

    assert open_fds() <= before + 4


NAMES = [b"\xff\xfe", b"\x1b[2Jx", b"tab\there", b"quote\"'", b"-rf", b"cgroup.evil", b"x" * 255, b"cpu.max"]


@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_takes_any_name_and_so_do_we(group: Path, tmp_path: Path, name: bytes) -> None:
    (group / "ls").mkdir()
    (group / "be").mkdir()
    os.mkdir(os.fsencode(group / "be") + b"/" + name)
    engine = engine_for(group, tmp_path, Config(mode=Mode.OBSERVE))

    engine.tick()
    status = engine.tick()

    assert not any(sensor.detail for sensor in status.sensors)
    assert {workload.path for workload in status.workloads} == {"ls", "be"}
    engine.close()


def test_observing_writes_nothing_on_a_real_host_either(group: Path, tmp_path: Path) -> None:
    sys = FakeSys()
    (group / "be").mkdir()
    rule = WorkloadRule(name="be", tier=Tier.BE, match=("be",))
    root = sys.open(str(group), DIRECTORY)
    journal = Journal(sys, str(tmp_path), BOOT)
    config = Config(mode=Mode.OBSERVE, workload=(rule,))
    engine = Engine(sys, root, config, journal, None, HostFiles(sys, "/proc", "/sys"))

    for _ in range(5):
        engine.tick()
    engine.release()

    assert sys.writes() == []
    assert list(tmp_path.iterdir()) == []
    engine.close()
