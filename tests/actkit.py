"""What the tests of the actuator say of the one file they mostly look at."""

from __future__ import annotations

from pathlib import Path

from treekit import BOOT, Loop, cgroup_id

from qosd.files import Key
from qosd.journal import FILE, load
from qosd.model import CpuMax

HALF = CpuMax(50_000, 100_000)
THIRD = CpuMax(30_000, 100_000)
ORIGINAL = "max 100000"


def be_max(loop: Loop) -> Path:
    return loop.root / "be.slice/cpu.max"


def key(loop: Loop, file: str = "cpu.max", path: str = "be.slice") -> Key:
    return Key(cgroup_id(loop.root / path), file)


def on_file(loop: Loop) -> dict[Key, object]:
    """What a restore by another process would find in the journal."""
    return dict(load((loop.run / FILE).read_bytes(), BOOT))
