from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from membox import MemoryBox
from reflexkit import BUSY, MAX
from treekit import CPU_FILES, Box, FakeSys, Loop, make_tree

from qosd.config import Config, decode


@pytest.fixture
def sys() -> FakeSys:
    return FakeSys()


@pytest.fixture
def loop(tmp_path: Path, sys: FakeSys) -> Iterator[Loop]:
    """A host with be.slice, a job below it, ls.slice and init.scope, all at the kernel's defaults."""
    root = make_tree(
        tmp_path / "cgroup",
        {
            "be.slice": {**CPU_FILES, "job": CPU_FILES},
            "ls.slice": CPU_FILES,
            "init.scope": CPU_FILES,
        },
    )
    run = tmp_path / "run"
    run.mkdir()
    loop = Loop(sys, root, run)
    yield loop
    loop.crash()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """An engine past its starting ticks that limits BE by cpu.max, with all CPUs in use."""
    box = Box(tmp_path, decode(MAX))
    box.settle(**BUSY)
    yield box
    box.close()


@pytest.fixture
def boxes(tmp_path: Path) -> Iterator[Any]:
    """Engines with memory files, by their configuration."""
    made: list[MemoryBox] = []

    def make(config: Config) -> MemoryBox:
        made.append(MemoryBox(tmp_path, config))
        return made[-1]

    yield make
    for box in made:
        box.engine.reclaimer.close()
        box.wait()
        box.close()
