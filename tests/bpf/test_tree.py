"""The walk over a cgroup subtree, beside the files."""

from __future__ import annotations

import os
from typing import Any

import pytest

from qosd.ebpf.errors import BpfError
from qosd.ebpf.libbpf import Library
from qosd.ebpf.tree import Tree


def usage_usec(cgroup: Any) -> int:
    lines = (cgroup.path / "cpu.stat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("usage_usec"))


def open_tree(library: Library, cgroup: Any, max_cgroups: int = 100) -> Tree:
    fd = os.open(cgroup.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return Tree.open(library, fd, max_cgroups)
    finally:
        os.close(fd)


def test_one_walk_sees_what_the_files_say(library: Library, cgroup: Any) -> None:
    """Sub-cgroups and times of finished children included; the walk flushes before it looks."""
    top, busy, idle = cgroup("top"), cgroup("top/busy"), cgroup("top/idle")
    assert busy.run("sum(range(3_000_000))").wait(timeout=60) == 0
    tree = open_tree(library, top)
    try:
        records = {record.id: record for record in tree.read()}
        sleeper = idle.run("import time; print(flush=True); time.sleep(60)")
        while not idle.path.joinpath("cgroup.procs").read_text():
            os.sched_yield()
        later = {record.id: record for record in tree.read()}
        sleeper.kill()
        sleeper.wait()
    finally:
        tree.close()
    assert set(records) == {top.id, busy.id, idle.id}
    assert records[busy.id].parent == top.id
    assert records[busy.id].usage_nsec // 1000 == usage_usec(busy) > 0
    assert records[top.id].usage_nsec == records[busy.id].usage_nsec
    assert [records[c.id].populated for c in (top, busy, idle)] == [False, False, False]
    assert [later[c.id].populated for c in (top, busy, idle)] == [True, False, True]


def test_a_tree_without_room_is_an_error_not_a_part_of_it(library: Library, cgroup: Any) -> None:
    top = cgroup("top")
    cgroup("top/one")
    tree = open_tree(library, top, max_cgroups=1)
    try:
        with pytest.raises(BpfError, match="tree: 2 cgroups, room for 1"):
            tree.read()
    finally:
        tree.close()
