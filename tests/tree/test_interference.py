"""The ladder on a fake cgroupfs: what is written, in which order, and what is not written at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from treekit import BOOT, GROUP_FILES, MEMINFO, Box, make_tree, rewrite, text_of

from qosd.config import Config, Mode, WorkloadRule
from qosd.interference.kills import Spent
from qosd.journal import restore_from
from qosd.model import Tier
from qosd.schema.interference import Interference, Kill, MaxAnswer
from qosd.schema.units import Duration
from qosd.spent import SpentFile
from qosd.status import Status

SECOND = 1_000_000
RULES = (
    WorkloadRule(name="ls", tier=Tier.LS, match=("ls.slice",)),
    WorkloadRule(name="be", tier=Tier.BE, match=("be.slice",), kill=True),
)
FREEZE = Interference(
    answer=MaxAnswer.FREEZE,
    enter_ticks=1,
    baseline_ticks=1,
    dwell_up=Duration(0),
    dwell_down=Duration(60 * SECOND),
    kill=Kill(after=Duration(2 * SECOND), term_grace=Duration(2 * SECOND)),
)
KILL = msgspec.structs.replace(FREEZE, answer=MaxAnswer.KILL, freeze_lease=Duration(2 * SECOND))
SCARCE = MEMINFO.replace("MemAvailable: 4194304", "MemAvailable: 629145")


class Suffering(Box):
    """LS waits for a CPU or for memory while BE has most of both."""

    def __init__(self, directory: Path, section: Interference, mode: Mode = Mode.ENFORCE) -> None:
        super().__init__(directory, Config(mode=mode, interference=section, workload=RULES))
        self.waited = {"cpu": 0, "memory": 0}

    def suffer(self, kind: str, share: float = 0.6) -> Status:
        self.waited[kind] += round(share * SECOND)
        line = f"avg10=0.00 avg60=0.00 avg300=0.00 total={self.waited[kind]}"
        rewrite(self.root / f"ls.slice/{kind}.pressure", f"some {line}\nfull {line}\n")
        return self.tick(ls=1, be=3)

    def short_of_memory(self) -> None:
        rewrite(self.proc / "meminfo", SCARCE)
        for name in ("be.slice", "be.slice/job.service"):
            rewrite(self.root / name / "memory.current", f"{7 << 30}\n")

    @property
    def frozen(self) -> str:
        return text_of(self.root / "be.slice/cgroup.freeze")

    def written(self, file: str) -> list[str]:
        return [
            os.path.relpath(call.path, self.root)
            for call in self.sys.calls
            if call.name == "write" and os.path.basename(call.path) == file
        ]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Any]:
    boxes: list[Suffering] = []

    def make(section: Interference, mode: Mode = Mode.ENFORCE) -> Suffering:
        directory = tmp_path / str(len(boxes))
        directory.mkdir()
        boxes.append(Suffering(directory, section, mode))
        boxes[-1].settle()
        return boxes[-1]

    yield make
    for box in boxes:
        box.close()


def freeze(box: Suffering) -> None:
    for _ in range(5):
        box.suffer("cpu")
    assert box.frozen == "1"


def test_be_is_frozen_with_the_original_on_record_and_thawed_by_the_release(made: Any) -> None:
    box = made(FREEZE)
    freeze(box)

    journal = (box.run / "journal.jsonl").read_text()
    assert '"cgroup.freeze"], "path": "be.slice", "original": "0"' in journal
    box.engine.release()
    assert box.frozen == "0"


def test_what_a_crash_left_frozen_is_thawed_by_the_restore(made: Any) -> None:
    box = made(FREEZE)
    freeze(box)

    outcomes = restore_from(box.sys, str(box.run), str(box.root), BOOT)

    assert outcomes[0].key.file == "cgroup.freeze"
    assert box.frozen == "0"


def test_a_thaw_by_somebody_else_is_undone_once_and_is_no_war(made: Any) -> None:
    """systemd thaws a slice when it stops a unit in there."""
    box = made(FREEZE)
    freeze(box)
    found = []
    for _ in range(5):
        rewrite(box.root / "be.slice/cgroup.freeze", "0\n")
        box.suffer("cpu")
        found.append(box.frozen)

    assert found == ["1", "1", "0", "0", "0"]


def test_a_freeze_that_does_not_complete_is_said_and_nothing_waits_for_it(made: Any) -> None:
    box = made(FREEZE)
    freeze(box)
    seen = []
    for _ in range(4):
        rewrite(box.root / "be.slice/cgroup.events", "populated 1\nfrozen 0\n")
        seen.append(box.suffer("cpu").interference.incomplete)

    assert seen == [(), (), ("be.slice",), ("be.slice",)]


def test_after_the_lease_be_runs_again_however_ls_does(made: Any) -> None:
    box = made(FREEZE)
    freeze(box)
    states = []
    for _ in range(12):
        box.suffer("cpu")
        states.append(box.frozen)

    assert states.index("0") <= 10
    assert states[states.index("0") :] == ["0"] * (12 - states.index("0"))


def kills(box: Suffering, until: str = "cgroup.kill") -> Status:
    """LS waits for scarce memory for half a minute, or until that was done."""
    box.short_of_memory()
    for _ in range(30):
        status = box.suffer("memory")
        if until in {record.file for record in box.engine.records}:
            break
    return status


def test_a_kill_comes_after_sigterm_with_the_budget_on_file_and_the_workload_thawed(made: Any) -> None:
    box = made(KILL)
    kills(box)

    told = [(record.file, record.path, record.result) for record in box.engine.records]
    asked = told.index(("SIGTERM", "be.slice/job.service", "signalled"))
    done = told.index(("cgroup.kill", "be.slice/job.service", "killed"))
    assert told.index(("cgroup.freeze", "be.slice", "restore done")) < asked < done
    assert box.written("cgroup.kill") == ["be.slice/job.service/cgroup.kill"]
    calls = [os.path.basename(call.path) for call in box.sys.calls if call.name in ("write", "rename")]
    assert calls.count("kills.json") == 1, "SIGTERM and the SIGKILL after it are one kill"
    assert calls.index("kills.json") < calls.index("cgroup.kill")
    assert box.frozen == "0"


def test_a_victim_that_ends_by_itself_is_not_killed_and_the_ladder_settles(made: Any) -> None:
    box = made(KILL)
    kills(box, until="SIGTERM")
    rewrite(box.root / "be.slice/job.service/cgroup.events", "populated 0\nfrozen 0\n")
    status = [box.suffer("memory") for _ in range(10)][-1]

    assert box.written("cgroup.kill") == []
    rungs = {rung.kind: rung.rung for rung in status.interference.rungs}
    assert rungs["memory"] == "reclaim"


def test_observe_mode_signals_and_kills_and_freezes_nothing(made: Any) -> None:
    box = made(KILL, Mode.OBSERVE)
    before = box.contents()
    kills(box)

    assert box.sys.writes() == []
    assert box.contents() == before
    assert "SIGTERM" not in {record.file for record in box.engine.records}


def test_a_budget_that_cannot_be_put_on_file_allows_no_kill(made: Any) -> None:
    box = made(KILL)
    box.sys.fail(errno.ENOSPC, "rename", "kills.json")
    kills(box)

    assert box.written("cgroup.kill") == []
    assert {record.result for record in box.engine.records if record.file == "SIGTERM"} == {"refused"}


def test_a_budget_that_cannot_be_read_is_an_alarm_and_allows_no_kill(made: Any) -> None:
    """Nobody knows then how many there were."""
    first = made(KILL)
    (first.run / "kills.json").write_text("{")
    spent = SpentFile(first.sys, str(first.run))

    assert spent.error is not None
    with pytest.raises(OSError, match=r"kills\.json"):
        spent.add(Spent(1, "job"))
    first.engine.answering._killer.spent = spent
    status = kills(first)
    assert first.written("cgroup.kill") == []
    assert "kills.json" in status.interference.alarm


def test_without_a_journal_nobody_is_killed_either(made: Any) -> None:
    box = made(KILL)
    box.sys.fail(errno.ENOSPC, "write", "journal.jsonl")
    kills(box)

    assert box.written("cgroup.kill") == []
    assert "SIGTERM" not in {record.file for record in box.engine.records}


def test_a_victim_replaced_before_the_act_is_gone_and_its_namesake_lives(made: Any) -> None:
    box = made(KILL)
    kills(box, until="SIGTERM")
    (box.root / "be.slice/job.service").rename(box.root / "elsewhere")
    make_tree(box.root / "be.slice/job.service", GROUP_FILES)
    for _ in range(6):
        box.suffer("memory")

    assert box.written("cgroup.kill") == []


def test_the_default_only_reports(made: Any) -> None:
    """On the very load for which `kill` kills, nothing of the ladder's is written."""
    box = made(Interference(enter_ticks=1))
    status = kills(box)

    assert [record.verdict.cause.value for record in status.interference.verdicts] == ["be"]
    assert box.written("cgroup.freeze") == []
    assert box.written("cgroup.kill") == []
    assert {rung.rung for rung in status.interference.rungs} == {"idle"}
