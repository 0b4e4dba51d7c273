"""The walk over a cgroup subtree, beside the files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qosd.cgroupfs import parse_cpu_stat
from qosd.config import Config, Mode, Sense, WorkloadRule
from qosd.ebpf.errors import BpfError, HookMissingError
from qosd.ebpf.libbpf import BTF_KIND_FUNC, Library
from qosd.ebpf.loader import kernel_has
from qosd.ebpf.tree import Tree
from qosd.ebpf.treerecords import decode, split
from qosd.engine import Engine
from qosd.journal import Journal
from qosd.model import CgroupId, CpuStat, Tier
from qosd.sense import HostFiles
from qosd.sys import DIRECTORY, Sys

PAGE = os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def walking(library: Library, cgroup: Any, max_cgroups: int = 100) -> Iterator[Callable[[], bytes]]:
    fd = os.open(cgroup.path, DIRECTORY)
    tree = Tree.open(library, max_cgroups)
    try:
        subtree = tree.attach(fd)
        os.close(fd)
        yield lambda: tree.walk(subtree)
    finally:
        tree.close()


def told(raw: bytes) -> dict[CgroupId, tuple[CpuStat, int | None]]:
    return {cgroup_id: decode(record, PAGE) for cgroup_id, (record,) in split(raw)}


def test_one_walk_sees_what_the_files_say(library: Library, cgroup: Any) -> None:
    """Sub-cgroups and times of finished children included; the walk flushes before it looks."""
    top, busy, idle = cgroup("top"), cgroup("top/busy"), cgroup("top/idle")
    assert busy.run("sum(range(3_000_000))").wait(timeout=60) == 0
    with walking(library, top) as walk:
        values = told(walk())
    assert list(values) == [top.id, busy.id, idle.id]
    for each in (top, busy, idle):
        cpu, memory = values[each.id]
        file = parse_cpu_stat((each.path / "cpu.stat").read_bytes())
        assert (cpu.usage_usec, cpu.nr_periods) == (file.usage_usec, file.nr_periods)
        assert (memory is not None) == (each.path / "memory.current").exists()
    assert values[busy.id][0].usage_usec > 0


def test_a_subtree_that_is_gone_has_no_records(library: Library, cgroup: Any) -> None:
    """Not those of the last walk either; the dead are left out while something still holds them."""
    top = cgroup("top")
    one = top.path / "one"
    one.mkdir()
    with walking(library, top) as walk:
        assert len(told(walk())) == 2
        one.rmdir()
        assert list(told(walk())) == [top.id]
        top.path.rmdir()
        assert walk() == b""
        top.path.mkdir()
        assert walk() == b"", "another cgroup of the same name"


def test_a_tree_without_room_is_an_error_not_a_part_of_it(library: Library, cgroup: Any) -> None:
    top = cgroup("top")
    cgroup("top/one")
    with walking(library, top, max_cgroups=1) as walk, pytest.raises(BpfError, match="2 cgroups, room for 1"):
        walk()


def test_a_kernel_without_a_kfunc_to_flush_is_told(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qosd.ebpf.tree.kernel_has", lambda *_: frozenset())
    with pytest.raises(HookMissingError, match="no css_rstat_flush, cgroup_rstat_flush"):
        Tree.open(library, 10)


def test_the_engine_walks_a_large_workload_and_names_who_comes(cgroup: Any, tmp_path: Path) -> None:
    """The daemon's own way on a real kernel: usage by path, births and deaths at once."""
    top, busy = cgroup("be"), cgroup("be/busy")
    others = [cgroup(f"be/{number}") for number in range(30)]
    assert busy.run("sum(range(3_000_000))").wait(timeout=60) == 0
    engine, close = engine_of(top, tmp_path)
    try:
        engine.probes.walks.allow()
        for _ in range(2):
            status = engine.tick()
        assert status.ebpf is not None
        assert ("tree", "attached") in {(each.name, each.state) for each in status.ebpf.probes}
        seen = below(engine)
        assert len(seen) == 31
        file = parse_cpu_stat((busy.path / "cpu.stat").read_bytes())
        assert seen["be/busy"].cpu.usage_usec == file.usage_usec > 0
        others[0].path.rmdir()
        others[0].path.mkdir()
        engine.tick()
        assert len(below(engine)) == 31
        assert below(engine)["be/0"].id == os.stat(others[0].path).st_ino != others[0].id
    finally:
        close()


def test_where_the_kernel_refuses_the_object_the_files_tell(
    cgroup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object of another kernel: it calls what is not there, or cannot be called like that."""
    top = cgroup("be")
    for number in range(30):
        cgroup(f"be/{number}")
    real = kernel_has(Library(), ("css_rstat_flush", "cgroup_rstat_flush"), BTF_KIND_FUNC)
    other = {"css_rstat_flush", "cgroup_rstat_flush"} - real
    monkeypatch.setattr("qosd.ebpf.tree.kernel_has", lambda *_: other)
    engine, close = engine_of(top, tmp_path)
    try:
        engine.probes.walks.allow()
        for _ in range(3):
            engine.tick()
        status = engine.probes.walks.status()
        assert (status.state, engine.probes.walks.failures) == ("absent", 1)
        assert "the kernel refused" in str(status.why)
        assert len(below(engine)) == 30
        assert all(each.cpu.user_usec is not None for each in below(engine).values())
    finally:
        close()


def engine_of(be: Any, run: Path) -> tuple[Engine, Callable[[], None]]:
    """The real engine over a cgroup as BE, and what closes it."""
    config = Config(
        mode=Mode.OBSERVE,
        workload=(WorkloadRule(name="be", tier=Tier.BE, match=("be",)),),
        sense=Sense(walk_from=20),
    )
    sys = Sys()
    root_fd = os.open(be.path.parent, DIRECTORY)
    journal = Journal(sys, str(run), "boot")
    engine = Engine(sys, root_fd, config, journal, None, HostFiles(sys, "/proc", "/sys"))

    def close() -> None:
        engine.close()
        os.close(root_fd)

    return engine, close


def below(engine: Engine) -> dict[str, Any]:
    assert engine.snapshot is not None
    return {each.path: each for each in engine.snapshot.descendants}
