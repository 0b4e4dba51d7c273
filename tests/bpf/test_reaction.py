"""A wait of LS that the kernel sends word of cuts BE: the real probe, the real engine, its own evidence."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from treekit import BOOT

from bench.waits import CONFIG, PLAIN, Overlay
from qosd.config import decode
from qosd.engine import Engine
from qosd.journal import Journal
from qosd.sense import HostFiles
from qosd.sys import DIRECTORY

BUSY = """
import time
while True:
    end = time.perf_counter() + 0.003
    while time.perf_counter() < end: pass
    time.sleep(0.001)
"""


class Stage:
    """An engine over real cgroups; files that they lack here (cpu.max) are plain ones."""

    def __init__(self, cgroup: Any, work: Path, probe_waits: str) -> None:
        self.ls, self.be = cgroup("ls.slice"), cgroup("be.slice")
        plain = {each.id: work / each.path.name for each in (self.ls, self.be)}
        for directory in plain.values():
            directory.mkdir()
            for file, text in PLAIN.items():
                (directory / file).write_text(text + "\n")
        self.limit = work / "be.slice/cpu.max"
        self.sys = sys = Overlay(plain, work)
        root_fd = sys.open(str(self.ls.path.parent), DIRECTORY)
        config = decode(CONFIG.format(probe_waits=probe_waits))
        host = HostFiles(sys, "/proc", "/sys")
        self.engine = Engine(sys, root_fd, config, Journal(sys, str(work), BOOT), None, host)
        self.engine.probes.open()
        for _ in range(4):
            self.tick()

    def tick(self) -> None:
        time.sleep(0.1)
        self.engine.tick()

    def react(self) -> list[str]:
        """What came of the events that are sent until the first cut, or for some seconds."""
        outcomes: list[str] = []
        children = [self.be.run("while True: pass", cpu=1), self.ls.run(BUSY, cpu=1)]
        fd = self.engine.probes.fileno()
        assert fd is not None
        deadline = time.monotonic() + 20
        try:
            time.sleep(0.2)
            self.tick()
            while "cut" not in outcomes and time.monotonic() < deadline:
                select.select([fd], [], [], 1)
                outcomes += [self.engine.react(breach) for breach in self.engine.probes.hear()]
        finally:
            for child in children:
                child.kill()
                child.wait()
        return outcomes


@pytest.fixture
def stage(cgroup: Any, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(cgroup, tmp_path, "true")
    yield made
    made.engine.release()
    made.engine.close()
    made.sys.close_log()


def test_a_wait_behind_be_cuts_be_between_two_ticks_and_all_comes_back(stage: Stage) -> None:
    outcomes = stage.react()
    assert "cut" in outcomes
    cut = stage.limit.read_text()
    record = next(each for each in reversed(stage.engine.records) if each.file == "cpu.max")
    stage.engine.release()

    assert not cut.startswith("max")
    assert record.reason.rule == "cpu.bandwidth/cpu.squeeze"
    assert "runq wait" in record.reason.text
    assert stage.engine.reflex.reactions["ebpf"]["cut"] >= 1
    assert stage.limit.read_text() == "max 100000\n"
