"""IO on a fake host: which disks there are, a line of a file at a time, and exact undoing in any company."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from treekit import IO_FILES, PRESSURE, Box, FakeSys, Loop, make_tree, rewrite, text_of

from qosd.config import Config, decode
from qosd.disks import find
from qosd.model import MAX, IoMax, IoWeight
from qosd.status import Status

ENFORCING = decode("[io.limits]\nenforce = true\n")
MIB = 1 << 20
LIMIT = IoMax("8:16", MAX, 2 * MIB, MAX, MAX)
LINE = "8:16 rbps=max wbps=2097152 riops=max wiops=max"
THEIRS = "8:0 rbps=1048576 wbps=max riops=max wiops=max"
DISK = {"dev": "8:0\n", "slaves": {}}
SYSFS = {
    "block": {
        "sda": {**DISK, "sda1": {"dev": "8:1\n", "partition": "1\n"}},
        "sdb": {"dev": "8:16\n", "slaves": {}},
        "dm-0": {"dev": "253:0\n", "slaves": {}},
        "md0": {"dev": "9:0\n", "slaves": {}},
        "nbd0": {"dev": "43:0\n"},
    },
    "dev": {"block": {}},
    "class": {"block": {}},
}


def make_sysfs(root: Path) -> Path:
    """Two disks, one with a partition; LVM on the partition; RAID over LVM and the second disk."""
    root.mkdir(exist_ok=True)
    make_tree(root, {name: content for name, content in SYSFS.items() if not (root / name).exists()})
    places = {
        "8:0": "sda",
        "8:1": "sda/sda1",
        "8:16": "sdb",
        "253:0": "dm-0",
        "9:0": "md0",
        "43:0": "nbd0",
    }
    for number, place in places.items():
        (root / "dev/block" / number).symlink_to(root / "block" / place)
        (root / "class/block" / os.path.basename(place)).symlink_to(root / "block" / place)
    (root / "block/dm-0/slaves/sda1").symlink_to(root / "block/sda/sda1")
    (root / "block/md0/slaves/dm-0").symlink_to(root / "block/dm-0")
    (root / "block/md0/slaves/sdb").symlink_to(root / "block/sdb")
    return root


def mountinfo(*mounts: str) -> str:
    lines = []
    for mount in mounts:
        device, point, fstype, source = mount.split()
        lines.append(f"30 23 {device} / {point} rw,relatime - {fstype} {source} rw\n")
    return "".join(lines)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = io_box(tmp_path, ENFORCING)
    yield box
    box.close()


def io_box(directory: Path, config: Config) -> Box:
    box = Box(directory, config)
    for slice_ in ("ls.slice", "be.slice"):
        make_tree(box.root / slice_, IO_FILES)
    make_sysfs(box.sysfs)
    make_tree(box.proc / "1", {"mountinfo": mountinfo("8:1 / ext4 /dev/sda1", "8:16 /srv xfs /dev/sdb")})
    return box


class Load:
    """What io.stat and io.pressure of the two slices count up."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.mib = {"ls.slice": 0.0, "be.slice": 0.0}
        self.waited_usec = 0

    def tick(self, waits: float, be: float, ls: float = 1.0) -> Status:
        self.waited_usec += round(waits * 10_000)
        for slice_, did in (("ls.slice", ls), ("be.slice", be)):
            self.mib[slice_] += did
            count = round(self.mib[slice_] * MIB)
            rewrite(
                self.box.root / slice_ / "io.stat",
                f"8:16 rbytes=0 wbytes={count} rios=0 wios={count // 4096} dbytes=0 dios=0\n",
            )
        rewrite(
            self.box.root / "ls.slice/io.pressure",
            PRESSURE.replace("total=0", f"total={self.waited_usec}", 1),
        )
        return self.box.tick(ls=1.0, be=2.0)


def test_be_is_limited_at_the_disk_where_ls_waits_and_all_is_as_before_in_the_end(box: Box) -> None:
    before = box.contents()
    load = Load(box)
    for _ in range(3):
        load.tick(waits=0, be=100)
    load.tick(waits=50, be=100)

    line = text_of(box.root / "be.slice/io.max")
    assert line == f"8:16 rbps=max wbps={50 * MIB} riops=max wiops={50 * 256}"
    load.tick(waits=50, be=50)
    assert f"wbps={25 * MIB}" in text_of(box.root / "be.slice/io.max")
    for _ in range(20):
        load.tick(waits=0, be=25)
    assert text_of(box.root / "be.slice/io.max") == ""
    assert text_of(box.root / "be.slice/io.weight") == "default 10"
    box.engine.release()
    assert box.contents() == before


def test_the_reason_says_who_waited_and_for_how_long(box: Box) -> None:
    load = Load(box)
    for _ in range(3):
        load.tick(waits=0, be=100)
    status = load.tick(waits=50, be=100)

    (limit,) = [each for each in status.settings if each.file == "io.max 8:16"]
    assert limit.original == "rbps=max wbps=max riops=max wiops=max"
    assert "ls waited for IO 50.0 %" in limit.reason.text


def test_by_default_no_disk_is_looked_for_and_no_limit_set(tmp_path: Path) -> None:
    box = io_box(tmp_path, Config())
    load = Load(box)
    for _ in range(5):
        load.tick(waits=80, be=100)

    assert text_of(box.root / "be.slice/io.max") == ""
    assert not [call for call in box.sys.calls if "mountinfo" in call.path]
    box.close()


@pytest.mark.parametrize("config", ["[io.limits]\nenforce = true\n", '[io.latency]\ntarget = "5ms"\n'])
@pytest.mark.parametrize("name", ["open", "pread", "write", "scandir"])
def test_no_failing_call_at_the_disks_ends_a_tick(tmp_path: Path, config: str, name: str) -> None:
    box = io_box(tmp_path, decode(config))
    load = Load(box)
    for file in ("mountinfo", "dev", "slaves", "io.stat", "io.max", "io.latency", "io.weight"):
        box.sys.fail(errno.EIO, name, file)
    for _ in range(4):
        load.tick(waits=80, be=100)
    box.sys.heal()
    load.tick(waits=80, be=100)

    assert box.engine.mode == "enforce"
    box.close()


def test_an_ls_target_is_set_at_each_disk_and_taken_back(tmp_path: Path) -> None:
    box = io_box(tmp_path, decode('[io.latency]\ntarget = "5ms"\n'))
    before = box.contents()
    box.settle(4)

    assert text_of(box.root / "ls.slice/io.latency") == "8:0 target=5000\n8:16 target=5000"
    assert text_of(box.root / "be.slice/io.latency") == ""
    box.engine.release()
    assert box.contents() == before
    box.close()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    root = make_tree(tmp_path / "cgroup", {"be.slice": {**IO_FILES, "io.max": f"{THEIRS}\n"}})
    (tmp_path / "run").mkdir()
    loop = Loop(FakeSys(), root, tmp_path / "run")
    yield loop
    loop.crash()


def io_max(loop: Loop) -> str:
    return text_of(loop.root / "be.slice/io.max")


def test_somebody_elses_device_in_the_same_file_stays_as_it_is(loop: Loop) -> None:
    wanted = loop.want("be.slice", LIMIT)
    loop.tick(wanted)
    assert io_max(loop) == f"{THEIRS}\n{LINE}"

    rewrite(loop.root / "be.slice/io.max", f"8:0 rbps=5 wbps=max riops=max wiops=max\n{LINE}\n")
    plan, _ = loop.tick(wanted)
    assert plan.writes == (), "the other device is no business of ours"
    loop.tick()
    assert io_max(loop) == "8:0 rbps=5 wbps=max riops=max wiops=max"


def test_our_line_changed_by_somebody_is_theirs(loop: Loop) -> None:
    wanted = loop.want("be.slice", LIMIT)
    loop.tick(wanted)
    other = LINE.replace("2097152", "7")
    rewrite(loop.root / "be.slice/io.max", f"{THEIRS}\n{other}\n")
    loop.tick(wanted)
    loop.tick()

    assert io_max(loop) == f"{THEIRS}\n{other}"


def test_a_crash_leaves_the_file_to_the_journal_line_by_line(loop: Loop) -> None:
    loop.tick(loop.want("be.slice", LIMIT), loop.want("be.slice", IoMax("8:0", MIB, MAX, 5, MAX)))
    loop.crash()
    loop.start()

    assert io_max(loop) == THEIRS
    assert {outcome.result for outcome in loop.restored} == {"done"}


def test_a_device_that_is_gone_is_no_error_and_leaves_nothing_to_undo(loop: Loop) -> None:
    gone = IoMax("8:99", MIB, MAX, MAX, MAX)
    _, report = loop.tick(loop.want("be.slice", gone))
    assert [done.result for done in report.applied] == ["gone"]

    wanted = loop.want("be.slice", LIMIT)
    loop.tick(wanted)
    rewrite(loop.root / "be.slice/io.max", f"{THEIRS}\n")
    _, report = loop.tick()
    assert [outcome.result for outcome in report.restored] == ["done"]
    assert io_max(loop) == THEIRS
    assert loop.journal.entries == {}


def test_weights_of_single_devices_stay_under_a_default_of_ours(loop: Loop) -> None:
    rewrite(loop.root / "be.slice/io.weight", "default 100\n8:0 200\n")
    loop.tick(loop.want("be.slice", IoWeight(10)))
    assert text_of(loop.root / "be.slice/io.weight") == "default 10\n8:0 200"

    loop.tick()
    assert text_of(loop.root / "be.slice/io.weight") == "default 100\n8:0 200"


@pytest.mark.parametrize(
    ("mounts", "disks", "unsupported"),
    [
        (["8:1 / ext4 /dev/sda1"], ("8:0",), []),
        (["253:0 / ext4 /dev/mapper/root"], ("8:0",), []),
        (["9:0 /srv xfs /dev/md0", "8:16 /x ext4 /dev/sdb"], ("8:0", "8:16"), []),
        (["0:40 /data btrfs /dev/sdb"], ("8:16",), []),
        (["0:41 /tmp tmpfs tmpfs", "0:42 /net nfs4 host:/x", "7:1 /snap squashfs /dev/loop1"], (), []),
        (["43:0 /n ext4 /dev/nbd0"], ("43:0",), []),
        (["0:43 /pool btrfs /dev/mapper/gone", "8:99 /y ext4 /dev/sdz"], (), ["/pool", "/y"]),
    ],
)
def test_the_disks_under_the_mounts_are_found(
    tmp_path: Path, mounts: list[str], disks: tuple[str, ...], unsupported: list[str]
) -> None:
    """A partition stands for its disk, LVM and RAID for what they lie on."""
    sysfs = make_sysfs(tmp_path / "sys")
    proc = make_tree(tmp_path / "proc", {"self": {"mountinfo": mountinfo(*mounts)}})

    found = find(FakeSys(), str(proc), str(sysfs))
    assert found.disks == disks
    assert sorted(found.unsupported) == unsupported
