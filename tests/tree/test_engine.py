"""Whole ticks, sense to act, on a fake host: what is missing, damaged, late or gone is survived and said."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from treekit import BOOT, CPU_FILES, GROUP_FILES, NR_CPUS, QUOTA, Box, Call, make_tree, rewrite, text_of

from qosd.config import Mode, Sense, WorkloadRule, decode
from qosd.journal import restore_from
from qosd.model import Tier
from qosd.sys import Sys

BUSY = {"ls": 1.0, "be": 2.0, "system": 0.2}
HOST_FILES = ("stat", "meminfo", "pressure/cpu", "pressure/memory", "pressure/io")
GARBAGE = [
    b"",
    b"\n",
    b"max",
    b"usage_usec 12\nuser_us",
    b"18446744073709551616\n",
    b"-1\n",
    b"\0\0\0\0",
    b"1\r\n2\r\n",
    b"some avg10=",
    b"\xff\xfe",
    b"9" * 5000,
]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.close()


def limit_of(box: Box, path: str = "be.slice") -> str:
    return text_of(box.root / path / "cpu.max")


def test_be_gets_what_ls_and_the_system_leave_and_the_host_is_whole_again_after(box: Box) -> None:
    before = box.contents()
    status = box.settle(**BUSY)

    quota, period = map(int, limit_of(box).split())
    assert status.mode == "enforce"
    assert quota / period == pytest.approx(NR_CPUS * 0.95 - 1.2, abs=0.01)
    assert text_of(box.root / "be.slice/cpu.idle") == "1"
    box.engine.release()
    assert box.contents() == before


def test_observe_mode_makes_no_write_at_all(tmp_path: Path) -> None:
    """Every system call of many ticks, recorded: none creates, writes, truncates or renames."""
    box = Box(tmp_path, msgspec.structs.replace(QUOTA, mode=Mode.OBSERVE))
    before = box.contents()

    for load in (0.5, 3.0, 0.1, 4.0, 0.0):
        status = box.settle(4, ls=load, be=1.0)
    box.engine.release()

    wanted = {(setting.path, setting.file) for setting in status.settings}
    assert {("be.slice", "cpu.max"), ("be.slice", "cpu.idle"), ("ls.slice", "cpu.weight")} <= wanted
    assert len(box.sys.calls) > 100
    assert box.sys.writes() == []
    assert box.contents() == before
    assert list(box.run.iterdir()) == []
    box.close()


def test_nothing_is_written_before_the_originals_were_seen_twice(box: Box) -> None:
    box.tick(**BUSY)
    box.tick(**BUSY)

    assert box.sys.writes() == []


def test_going_over_to_observe_gives_everything_back(box: Box) -> None:
    before = box.contents()
    box.settle(**BUSY)
    box.engine.reconfigure(msgspec.structs.replace(box.engine.config, mode=Mode.OBSERVE))

    box.tick(**BUSY)

    assert box.contents() == before


def test_dropping_a_workload_from_the_configuration_gives_it_back(box: Box) -> None:
    before = box.contents()
    box.settle(**BUSY)
    box.engine.reconfigure(decode('[[workload]]\nname = "other"\ntier = "be"\nmatch = ["other.slice"]\n'))

    box.settle(2, **BUSY)

    assert box.contents() == before


@pytest.mark.parametrize("file", sorted(GROUP_FILES))
@pytest.mark.parametrize("path", ["ls.slice", "be.slice"])
def test_a_cgroup_without_one_of_its_files_is_a_cgroup_all_the_same(box: Box, path: str, file: str) -> None:
    (box.root / path / file).unlink()
    before = box.contents()

    status = box.settle(**BUSY)
    box.engine.release()

    assert {workload.path for workload in status.workloads} == {"ls.slice", "be.slice"}
    assert box.contents() == before


@pytest.mark.parametrize("file", HOST_FILES)
def test_a_host_without_one_of_its_files_is_watched_all_the_same(tmp_path: Path, file: str) -> None:
    class Poorer(Box):
        def pass_time(self, seconds: float, **cores: float) -> None:
            super().pass_time(seconds, **cores)
            (self.proc / file).unlink(missing_ok=True)

    poor = Poorer(tmp_path)
    status = poor.settle(**BUSY)

    assert {workload.path for workload in status.workloads} == {"ls.slice", "be.slice"}
    poor.close()


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize(
    "file", ["be.slice/cpu.stat", "ls.slice/cpu.stat", "ls.slice/cpu.pressure", "be.slice/cpu.max"]
)
def test_a_damaged_file_is_unknown_and_never_tightens_anything(box: Box, file: str, garbage: bytes) -> None:
    """Held while it lasts, then released: no escalation on what is not known."""
    box.settle(**BUSY)
    held = limit_of(box)
    ticks = []
    for _ in range(3):
        box.pass_time(1, **BUSY)
        (box.root / file).write_bytes(garbage)
        ticks.append(box.engine.tick())

    assert all(status.mode == "enforce" for status in ticks)
    if file.endswith("cpu.stat"):
        assert limit_of(box) == held


def test_an_ls_use_that_stays_unknown_gives_be_its_limit_back(box: Box) -> None:
    box.settle(**BUSY)
    for _ in range(box.engine.config.cpu.bandwidth.release_ticks + 2):
        box.pass_time(1, **BUSY)
        (box.root / "ls.slice/cpu.stat").write_bytes(b"kaputt")
        box.engine.tick()

    assert limit_of(box) == "max 100000"


@pytest.mark.parametrize(
    "error", [errno.EOPNOTSUPP, errno.EIO, errno.EACCES, errno.EINTR], ids=errno.errorcode.get
)
def test_pressure_files_that_refuse_to_be_read_are_survived(box: Box, error: int) -> None:
    """EOPNOTSUPP is how PSI says that it is off: it is absent, not news each tick."""
    for file in ("cpu.pressure", "memory.pressure", "io.pressure", "cpu", "memory", "io"):
        box.sys.fail(error, name="pread", file=file)

    status = box.settle(**BUSY)

    assert status.mode == "enforce"
    assert limit_of(box) != "max 100000"
    assert any(sensor.detail for sensor in status.sensors) == (error != errno.EOPNOTSUPP)


@pytest.mark.parametrize("name", ["open", "pread", "scandir", "write", "create", "rename"])
@pytest.mark.parametrize(
    "error", [errno.EMFILE, errno.EIO, errno.ENOMEM, errno.EACCES], ids=errno.errorcode.get
)
def test_no_failing_call_ends_a_tick_or_leaves_anything_behind(box: Box, name: str, error: int) -> None:
    """Every call of one kind on every cgroup file fails for three ticks; then all is well again."""
    before = box.contents()
    box.settle(**BUSY)

    def hook(call: Call) -> None:
        if call.name == name and str(box.root) in call.path:
            raise OSError(error, os.strerror(error))

    box.sys.hooks.append(hook)
    for load in (1.0, 2.5, 0.2):
        box.tick(ls=load, be=1.0)
    box.sys.heal()
    status = box.settle(**BUSY)
    box.engine.release()

    assert status.mode == "enforce"
    assert box.contents() == before


@pytest.mark.parametrize("error", [errno.EMFILE, errno.EACCES], ids=errno.errorcode.get)
def test_a_start_without_fds_to_spare_ends_no_tick_and_leaks_none(box: Box, error: int) -> None:
    held = len(box.sys.fds)

    def hook(call: Call) -> None:
        if call.name == "open" and "be.slice/" in call.path:
            raise OSError(error, os.strerror(error))

    box.sys.hooks.append(hook)
    box.settle(70, **BUSY)
    assert len(box.sys.fds) <= held + 40
    box.sys.heal()

    box.settle(40, **BUSY)
    assert limit_of(box) != "max 100000"


def test_a_cgroup_that_goes_and_comes_back_is_another_one(box: Box) -> None:
    """Its files start over: nothing of the old one may be restored into it, no rate spans both."""
    box.settle(**BUSY)
    (box.root / "be.slice").rename(box.root.parent / "gone")
    box.settle(2, **BUSY)
    make_tree(box.root / "be.slice", GROUP_FILES)
    box.used["be"] = 0.0
    box.tick(**BUSY)

    box.settle(**BUSY)
    assert limit_of(box) != "max 100000"
    box.engine.release()
    assert {file: text_of(box.root / "be.slice" / file) for file in CPU_FILES} == {
        file: text.strip() for file, text in CPU_FILES.items()
    }


def test_a_controller_that_is_enabled_later_is_noticed(box: Box) -> None:
    """systemd adds cpu.* files to a living cgroup when a unit asks for CPUWeight=."""
    for file in CPU_FILES:
        (box.root / "be.slice" / file).unlink()
    box.settle(3, **BUSY)
    make_tree(box.root / "be.slice", CPU_FILES)

    box.settle(40, **BUSY)

    assert limit_of(box) != "max 100000"


def test_counters_that_go_back_are_no_use_for_a_tick(box: Box) -> None:
    box.settle(**BUSY)
    held = limit_of(box)
    box.used["ls"] = 0.0

    box.tick(**BUSY)

    assert limit_of(box) == held


@pytest.mark.parametrize(
    ("seconds", "suspended", "wall"), [(3600, 0, 0), (1, 3600, 0), (1, 0, -86400), (10, 0, 0)]
)
def test_no_jump_of_a_clock_makes_a_jump_of_the_limit(
    box: Box, seconds: int, suspended: int, wall: int
) -> None:
    """Rates are over the time that really went by; in suspend nobody ran."""
    box.settle(8, **BUSY)
    held = limit_of(box)
    box.sys.wall_seconds += wall
    box.sys.suspended_usec += suspended * 1_000_000

    status = box.tick(seconds, **BUSY)

    assert limit_of(box) == held
    assert status.tiers["be"].cpu_cores is None or status.tiers["be"].cpu_cores == pytest.approx(2.0, abs=0.1)


NAMES = [
    b"\xff\xfe",
    b"\x1b[31mred",
    b"tab\there",
    b"quote\"'back\\slash",
    b"-rf",
    b"cgroup.evil",
    b"x" * 255,
    "ünïcode\u202e".encode(),
    b" ",
    b"$(reboot)",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_cgroup_of_any_name_is_managed_restored_and_shown_without_harm(tmp_path: Path, name: bytes) -> None:
    rule = WorkloadRule(name="any", tier=Tier.BE, match=("any/*",))
    box = Box(tmp_path, msgspec.structs.replace(QUOTA, workload=(rule,)))
    (box.root / "any").mkdir()
    group = make_tree(box.root / "any" / os.fsdecode(name), GROUP_FILES)
    before = box.contents()

    status = box.settle(4, system=1.0)

    assert text_of(group / "cpu.max") != "max 100000"
    shown = msgspec.json.encode(status).decode()
    assert shown.isprintable()
    assert len(status.workloads) == 1
    box.close()
    restore_from(Sys(), str(box.run), str(box.root), BOOT)
    assert box.contents() == before


def test_a_thousand_comings_and_goings_keep_fds_and_the_ledger_flat(tmp_path: Path) -> None:
    box = Box(tmp_path, msgspec.structs.replace(QUOTA, sense=Sense(fd_budget=200)))
    files = {"cpu.stat": GROUP_FILES["cpu.stat"], "memory.current": "0\n"}
    box.settle(4, **BUSY)
    low = len(box.sys.fds)
    highest = 0
    for round_number in range(5):
        for number in range(200):
            make_tree(box.root / f"be.slice/{round_number}-{number}", files)
        rewrite(box.root / "be.slice/cgroup.stat", "nr_descendants 200\nnr_dying_descendants 0\n")
        box.settle(2, **BUSY)
        highest = max(highest, len(box.sys.fds))
        for number in range(200):
            shutil.rmtree(box.root / f"be.slice/{round_number}-{number}")
        rewrite(box.root / "be.slice/cgroup.stat", "nr_descendants 0\nnr_dying_descendants 0\n")
        box.settle(2, **BUSY)
        box.sys.calls.clear()

    assert highest <= 200 + low
    assert len(box.sys.fds) <= low + 10
    assert len(box.engine._ledger) <= 10
    box.close()


def test_a_tree_deeper_than_the_cap_is_cut_and_said(tmp_path: Path) -> None:
    box = Box(tmp_path, msgspec.structs.replace(QUOTA, sense=Sense(max_depth=5)))
    deep = box.root / "be.slice"
    for _ in range(12):
        deep = deep / "d"
        deep.mkdir()

    status = box.settle(3, **BUSY)

    assert any("too deep" in (sensor.detail or "") for sensor in status.sensors)
    box.close()
