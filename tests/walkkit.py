"""The walk without a kernel: the records of a tree of mere files."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from treekit import Box

from qosd.cgroupfs import parse_flat_keyed
from qosd.ebpf.errors import BpfError
from qosd.model import CgroupId, CgroupSample
from qosd.walks import Walks

PAGE = os.sysconf("SC_PAGE_SIZE")


class FakeTree:
    """As `Tree`, over the files of the directories it is attached to."""

    def __init__(self) -> None:
        self.error: BpfError | None = None
        self.attached: dict[int, Path] = {}
        self.walks = 0
        self.closed = False
        self._links = 0

    def attach(self, cgroup_fd: int) -> int:
        if self.error is not None:
            raise self.error
        self._links += 1
        self.attached[self._links] = Path(os.readlink(f"/proc/self/fd/{cgroup_fd}"))
        return self._links

    def detach(self, subtree: int) -> None:
        del self.attached[subtree]

    def walk(self, subtree: int) -> bytes:
        if self.error is not None:
            raise self.error
        self.walks += 1
        return b"".join(_record(Path(path)) for path, _, _ in os.walk(self.attached[subtree]))

    def close(self) -> None:
        self.closed = True
        self.attached.clear()


def _record(path: Path) -> bytes:
    stat = {key.decode(): value for key, value in _stat(path).items()}
    memory = path / "memory.current"
    has = 1 * ("nr_periods" in stat) | 2 * ("nr_bursts" in stat) | 4 * memory.exists()
    return struct.pack(
        "=6Q4I",
        path.stat().st_ino,
        path.parent.stat().st_ino,
        stat["usage_usec"] * 1000,
        stat.get("throttled_usec", 0) * 1000,
        stat.get("burst_usec", 0) * 1000,
        int(memory.read_text()) // PAGE if memory.exists() else 0,
        *(stat.get(key, 0) for key in ("nr_periods", "nr_throttled", "nr_bursts")),
        has,
    )


def _stat(path: Path) -> dict[bytes, int]:
    file = path / "cpu.stat"
    return parse_flat_keyed(file.read_bytes(), "cpu.stat") if file.exists() else {b"usage_usec": 0}


class Opener:
    """Gives out fake trees; `trees` are those it gave, `rooms` what they were to have room for."""

    def __init__(self, error: BpfError | None = None) -> None:
        self.error = error
        self.trees: list[FakeTree] = []
        self.rooms: list[int] = []

    def __call__(self, max_cgroups: int) -> FakeTree:
        self.rooms.append(max_cgroups)
        if self.error is not None:
            raise self.error
        self.trees.append(FakeTree())
        return self.trees[-1]


def let_walk(box: Box, opener: Opener) -> Walks:
    """Walks by the opener in this engine, allowed as if it were ready."""
    probes = box.engine.probes
    probes.walks = Walks(box.engine.config, probes.news, opener)  # type: ignore[arg-type]
    probes.walks.allow()
    box.engine._sensor.descendants.walks = probes.walks
    return probes.walks


def below(box: Box) -> dict[str, CgroupSample]:
    """What the last tick saw below the workloads, by path."""
    snapshot = box.engine.snapshot
    assert snapshot is not None
    return {each.path: each for each in snapshot.descendants}


def ids(box: Box) -> set[CgroupId]:
    return {each.id for each in below(box).values()}
