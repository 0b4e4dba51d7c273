"""The memory governors on a fake host: sense, decide, write, reclaim on the worker, restore."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakekernel import write_memory_stat
from membox import LIMITING, LONG, STAT, config, of
from memkit import MIB
from treekit import (
    BOOT,
    MEMORY_FILES,
    Box,
    Call,
    make_tree,
    rewrite,
    text_of,
)

from qosd.config import Config
from qosd.errors import Malformed
from qosd.journal import restore_from
from qosd.replay import load, plain
from qosd.sys import Sys
from qosd.sysfs import keep_lru_gen


def test_ls_is_protected_as_far_as_it_uses_memory_and_gets_its_original_back(boxes: Any) -> None:
    box = boxes(Config())
    before = box.contents()
    box.use("ls", anon=50, active_file=300)
    box.settle(8)
    assert box.file("ls.slice/memory.low") == str(420 * MIB)

    box.engine.release()
    assert box.contents() == before


def test_the_order_of_restore_brings_limits_and_protection_back_after_a_crash(boxes: Any) -> None:
    box = boxes(LIMITING)
    before = box.contents()
    box.use("ls", anon=50, active_file=100)
    box.use("be", active_file=700)
    box.host(available=300)
    box.settle(20)
    assert box.file("be.slice/memory.high") != "max"
    assert box.file("ls.slice/memory.low") != "0"

    restore_from(box.sys, str(box.run), str(box.root), BOOT)
    assert box.contents() == before


def test_a_lowered_memory_high_that_holds_up_its_writer_holds_up_no_tick(boxes: Any) -> None:
    box = boxes(LIMITING)
    box.use("be", active_file=900)
    box.host(available=300)
    release = threading.Event()

    def reclaims_in_the_writer(call: Call) -> None:
        """memory_high_write() sets the limit first."""
        if call.name == "write" and call.path.endswith("memory.high") and not release.is_set():
            Path(call.path).write_bytes(call.data)
            assert release.wait(LONG)

    box.sys.hooks.append(reclaims_in_the_writer)
    try:
        for _ in range(40):
            status = box.tick()
            if box.file("be.slice/memory.high") != "max":
                break
        assert box.file("be.slice/memory.high") != "max"
        status = box.tick()
        assert status.mode == "enforce"
        assert [e.original for e in box.engine._actuator._journal.entries.values() if e.original == "max"]
    finally:
        release.set()
    box.engine.release()
    assert box.file("be.slice/memory.high") == "max"


def test_swap_added_and_taken_away_while_running_is_noticed(boxes: Any) -> None:
    box = boxes(LIMITING)
    box.use("be", anon=700)
    box.host(available=100)
    box.settle(40)
    held = str(700 << 20)
    assert box.file("be.slice/memory.high") == held, "the last of RAM is not BE's, and no less than it holds"
    box.host(available=100, swap=4096)
    box.settle(90)
    assert int(box.file("be.slice/memory.high")) < int(held)
    box.host(available=100)
    box.settle(3)
    assert box.file("be.slice/memory.high") == held


def test_memory_stat_is_read_in_turns_and_not_every_tick(boxes: Any) -> None:
    """It flushes rstat over the whole subtree."""
    box = boxes(Config())
    box.settle(4)
    box.sys.calls.clear()
    box.settle(20)

    reads = [call.path for call in box.sys.calls if call.name == "pread" and "memory.stat" in call.path]
    assert len(reads) <= 2 * 5


def test_a_damaged_memory_stat_is_unknown_and_takes_no_protection_away(boxes: Any) -> None:
    box = boxes(Config())
    box.use("ls", active_file=200)
    box.settle(8)
    held = box.file("ls.slice/memory.low")
    assert held != "0"
    rewrite(box.root / "ls.slice/memory.stat", "anon -5\n")
    said = [sensor.detail or "" for _ in range(8) for sensor in box.tick().sensors]
    assert box.file("ls.slice/memory.low") == held
    assert any("memory.stat" in detail for detail in said)


@pytest.mark.parametrize(
    ("text", "on"), [("0x0007\n", True), ("0x0000\n", False), ("0x0006\n", False), (None, None)]
)
def test_whether_the_multigenerational_lru_runs_is_read_and_followed(
    tmp_path: Path, text: str | None, on: Any
) -> None:
    """None: a kernel without it, which has the active and the inactive list."""
    if text is not None:
        make_tree(tmp_path, {"kernel": {"mm": {"lru_gen": {"enabled": text}}}})
    kept = keep_lru_gen(Sys(), str(tmp_path))

    assert (kept.read() if kept is not None else None) is on
    if kept is not None:
        rewrite(tmp_path / "kernel/mm/lru_gen/enabled", "y\n")
        with pytest.raises(Malformed):
            kept.read()
        os.close(kept.fd)


def test_the_ancestors_protection_is_seen(tmp_path: Path) -> None:
    base = Config()
    ls = msgspec.structs.replace(base.workload[0], match=("app.slice/web.service",))
    box = Box(tmp_path, msgspec.structs.replace(base, workload=(ls, base.workload[1])))
    try:
        files = {
            **MEMORY_FILES,
            "memory.current": "0\n",
            "memory.stat": "",
            "cgroup.stat": "nr_descendants 0\n",
        }
        make_tree(box.root / "app.slice", {**files, "web.service": files})
        group = box.root / "app.slice/web.service"
        write_memory_stat(group, {**STAT, "anon": 100 * MIB})
        rewrite(box.proc / "meminfo", "MemTotal: 1048576 kB\nMemAvailable: 900000 kB\n")
        told = of(box.settle(8), "app.slice/web.service").protection
        assert "app.slice has none" in told
        rewrite(box.root / "app.slice/memory.low", str(64 * MIB))
        box.settle(12)
        assert text_of(group / "memory.low") == str(64 * MIB)
        assert text_of(box.root / "app.slice/memory.low") == str(64 * MIB), "an ancestor is never written"
    finally:
        box.close()


def test_a_recorded_snapshot_is_read_back_as_it_was(boxes: Any) -> None:
    """What the worker reported and what stood before qosd are part of a trace."""
    box = boxes(msgspec.structs.replace(config(), memory=LIMITING.memory))
    box.use("ls", active_file=100)
    box.use("be", inactive_file=400)
    box.settle(5)
    snapshot = plain(box.engine.snapshot)

    assert snapshot.reclaimed != ()
    assert snapshot.originals
    assert list(load([msgspec.json.encode(msgspec.to_builtins(snapshot))])) == [snapshot]
