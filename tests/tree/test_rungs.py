"""The rungs that write through other governors, on a fake cgroupfs: each one's file, reason and restore."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakekernel import write_memory_stat
from treekit import (
    BOOT,
    IO_FILES,
    MEMORY_FILES,
    PRESSURE,
    Box,
    make_tree,
    rewrite,
    text_of,
)

from qosd.config import Config, Mode
from qosd.journal import restore_from
from qosd.oomkillers import OomKillers
from qosd.schema.interference import Interference, MaxAnswer
from qosd.schema.units import Duration
from qosd.status import Status

MIB = 1 << 20
SECOND = 1_000_000
THROTTLE = Interference(
    answer=MaxAnswer.THROTTLE,
    enter_ticks=1,
    leave_ticks=1,
    dwell_up=Duration(SECOND),
    dwell_down=Duration(2 * SECOND),
)
STAT = dict.fromkeys(
    (
        *("anon", "file", "shmem", "file_mapped", "file_dirty", "file_writeback"),
        *("inactive_file", "active_file", "workingset_refault_file", "pgsteal"),
    ),
    0,
)


class Waiting(Box):
    """LS waits for a CPU, for memory or for a disk, while BE uses, grows and writes most."""

    def __init__(self, directory: Path, section: Interference, mode: Mode = Mode.ENFORCE) -> None:
        super().__init__(directory, Config(mode=mode, interference=section))
        for slice_ in ("ls.slice", "be.slice"):
            make_tree(self.root / slice_, {**IO_FILES, **MEMORY_FILES, "memory.reclaim": ""})
            write_memory_stat(self.root / slice_, STAT)
        make_tree(self.sysfs, {"dev": {"block": {"8:16": {"dev": "8:16\n", "slaves": {}}}}})
        mounts = "30 23 8:16 / /srv rw,relatime - xfs /dev/sdb rw\n"
        make_tree(self.proc, {"1": {"mountinfo": mounts}})
        self.waited = {"cpu": 0, "memory": 0, "io": 0}
        self.did = {"ls.slice": 0, "be.slice": 0}
        self.cache = 200 * MIB

    def wait_for(self, kind: str | None) -> Status:
        if kind is not None:
            self.waited[kind] += round(0.6 * SECOND)
            line = f"total={self.waited[kind]}"
            rewrite(self.root / f"ls.slice/{kind}.pressure", PRESSURE.replace("total=0", line, 1))
        for slice_, did in (("ls.slice", 1), ("be.slice", 100)):
            self.did[slice_] += did * MIB if kind == "io" else 0
            count = self.did[slice_]
            rewrite(
                self.root / slice_ / "io.stat", f"8:16 rbytes=0 wbytes={count} rios=0 wios={count >> 12}\n"
            )
        self.cache += 10 * MIB if kind == "memory" else 0
        write_memory_stat(self.root / "be.slice", {**STAT, "file": self.cache, "inactive_file": self.cache})
        status = self.tick(ls=1, be=3 if kind == "cpu" else 0)
        self.engine.reclaimer.worker.wait_idle(10.0)
        return status

    def file(self, path: str) -> str:
        """An inherited mask of a populated group comes back as all there can be: cpuset refuses ""."""
        text = text_of(self.root / path)
        return "" if path.endswith("cpuset.cpus") and text == "0-3" else text

    def setting(self, status: Status, file: str) -> Any:
        return next(each for each in status.settings if each.path == "be.slice" and each.file == file)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "possible").write_text("0-3\n")
    monkeypatch.setattr("qosd.journal.POSSIBLE_CPUS", str(tmp_path / "possible"))
    boxes: list[Waiting] = []

    def make(section: Interference = THROTTLE, mode: Mode = Mode.ENFORCE) -> Waiting:
        directory = tmp_path / str(len(boxes))
        directory.mkdir()
        boxes.append(Waiting(directory, section, mode))
        for _ in range(6):
            boxes[-1].wait_for(None)
        return boxes[-1]

    yield make
    for box in boxes:
        box.engine.reclaimer.close()
        box.close()


RUNGS = {"cpu": "cpuset.cpus", "memory": "memory.high", "io": "io.max"}


@pytest.mark.parametrize("kind", sorted(RUNGS))
def test_each_ladder_writes_its_own_file_with_the_verdict_and_gives_it_back_when_it_steps_down(
    made: Any, kind: str
) -> None:
    """And nothing of the others': who waits for a disk gets nothing from BE's CPUs or memory."""
    box = made()
    calm = {file: box.file(f"be.slice/{file}") for file in (*RUNGS.values(), "cpu.max")}
    for _ in range(4):
        status = box.wait_for(kind)

    line = "io.max 8:16" if kind == "io" else RUNGS[kind]
    setting = box.setting(status, line)
    assert box.file(f"be.slice/{RUNGS[kind]}") != calm[RUNGS[kind]]
    assert "(verdict 1)" in setting.reason.text
    assert setting.reason.rule.endswith("/ladder")
    others = {file for other, file in RUNGS.items() if other != kind}
    others |= set() if kind == "cpu" else {"cpu.max"}
    assert {file: box.file(f"be.slice/{file}") for file in others} == {file: calm[file] for file in others}
    for _ in range(12):
        box.wait_for(None)
    assert {file: box.file(f"be.slice/{file}") for file in calm} == calm


@pytest.mark.parametrize("kind", sorted(RUNGS))
def test_what_a_rung_wrote_is_undone_after_a_crash_and_by_a_stop(made: Any, kind: str) -> None:
    crashed, stopped = made(), made()
    calm = crashed.file(f"be.slice/{RUNGS[kind]}")
    for box in (crashed, stopped):
        for _ in range(4):
            box.wait_for(kind)
        assert box.file(f"be.slice/{RUNGS[kind]}") != calm

    restore_from(crashed.sys, str(crashed.run), str(crashed.root), BOOT)
    stopped.engine.release()

    assert [box.file(f"be.slice/{RUNGS[kind]}") for box in (crashed, stopped)] == [calm] * 2


@pytest.mark.parametrize("kind", sorted(RUNGS))
@pytest.mark.parametrize("why", ["report", "observe"])
def test_by_default_and_while_only_observing_no_rung_writes_anything(made: Any, kind: str, why: str) -> None:
    section = msgspec.structs.replace(THROTTLE, answer=MaxAnswer.REPORT) if why == "report" else THROTTLE
    box = made(section, Mode.OBSERVE if why == "observe" else Mode.ENFORCE)
    calm = box.contents()
    for _ in range(8):
        status = box.wait_for(kind)

    assert len(status.interference.verdicts) == 1
    assert box.contents() == calm
    assert "memory.reclaim" not in {Path(call.path).name for call in box.sys.writes()}


def test_ls_keeps_every_file_whatever_it_waits_for(made: Any) -> None:
    box = made()
    before = {file: text for file, text in box.contents().items() if file.startswith("ls.slice")}
    for kind in ("cpu", "memory", "io"):
        for _ in range(4):
            box.wait_for(kind)

    after = {file: text for file, text in box.contents().items() if file.startswith("ls.slice")}
    raised = {"ls.slice/memory.low"}
    assert {file for file in before if before[file] != after[file]} <= raised


def test_the_memory_rung_asks_be_for_page_cache_at_once(made: Any) -> None:
    box = made()
    for _ in range(3):
        box.wait_for("memory")

    asked = [call for call in box.sys.writes() if call.path.endswith("/memory.reclaim")]
    assert {Path(call.path).parent.name for call in asked} == {"be.slice"}
    told = {record.reason.rule for record in box.engine.records}
    assert "memory.limits/ladder" in told


def test_other_daemons_that_kill_are_said_while_they_run(made: Any) -> None:
    box = made()
    assert box.wait_for(None).oom_killers == ()
    events = {"cgroup.events": "populated 1\nfrozen 0\n"}
    make_tree(
        box.root, {"system.slice": {"earlyoom.service": events, "oomd.service": {"cgroup.events": "x"}}}
    )
    found = OomKillers(box.sys, box.engine._root_fd)

    assert found.sample(1) == ("earlyoom",)
    rewrite(box.root / "system.slice/earlyoom.service/cgroup.events", "populated 0\nfrozen 0\n")
    assert found.sample(2) == ("earlyoom",), "looked at now and then"
    assert found.sample(31) == ()
