"""Background reclaim by the whole engine: what is asked of memory.reclaim, and what comes of it."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakekernel import memory_stat, write_memory_stat
from membox import LONG, STAT, MemoryBox, config, of
from memkit import MIB
from treekit import (
    MEMORY_FILES,
    Box,
    Call,
    make_tree,
    rewrite,
)

from qosd.config import Mode


def test_page_cache_goes_down_to_the_low_watermark_and_what_came_of_it_is_told(boxes: Any) -> None:
    box = boxes(config())
    box.use("be", inactive_file=300, active_file=60)
    status = box.settle(12)

    assert 149 <= box.cache() <= 151
    told = of(status, "be.slice")
    assert told.freed == told.asked
    assert 209 * MIB <= told.freed <= 211 * MIB
    assert told.phase == "below"
    written = [call.data for call in box.sys.writes() if call.path.endswith("memory.reclaim") and call.data]
    assert all(data.endswith(b" swappiness=0\n") for data in written)
    assert max(int(data.split()[0]) for data in written) <= 16 * MIB
    events = [(record.old, record.new) for record in box.engine.records if record.file == "memory.reclaim"]
    assert [new for _, new in events] == ["reclaiming", "below"]


def job(box: MemoryBox, name: str, cpu_usec: int = 0, **mib: float) -> Path:
    """A cgroup below be.slice with memory of its own."""
    group = box.root / f"be.slice/{name}"
    group.mkdir(exist_ok=True)
    make_tree(group, {**MEMORY_FILES, "memory.reclaim": "", "memory.current": "0", "memory.stat": ""})
    rewrite(group / "cpu.stat", f"usage_usec {cpu_usec}\nuser_usec {cpu_usec}\nsystem_usec 0\n")
    stat = {**STAT, **{key: round(value * MIB) for key, value in mib.items()}}
    stat["file"] = stat["inactive_file"] + stat["active_file"]
    write_memory_stat(group, stat)
    return group


def test_each_cgroup_below_is_asked_for_itself_and_the_whole_for_what_ended_ones_left(boxes: Any) -> None:
    """Asked as a whole it would give from the hot one, too, in proportion to size."""
    box = boxes(config(settle=5_000_000))
    job(box, "cold.service", inactive_file=150)
    job(box, "small.service", inactive_file=0.5)
    job(box, "nested.slice", inactive_file=100)
    inner = job(box, "nested.slice/inner.service", inactive_file=100, file_dirty=100)
    box.use("be", inactive_file=350, file_dirty=100)
    for _ in range(6):
        box.tick()
    asked: dict[str, int] = {}
    for call in box.sys.writes():
        if call.path.endswith("memory.reclaim") and call.data:
            group = os.path.relpath(os.path.dirname(call.path), box.root)
            asked[group] = asked.get(group, 0) + int(call.data.split()[0])

    assert set(asked) == {"be.slice/cold.service", "be.slice"}
    assert asked["be.slice"] <= 100 * MIB, "what no cgroup below has: the ended ones' and small.service's"
    assert memory_stat(inner)["inactive_file"] == 100 * MIB


def test_a_cgroup_that_ends_while_it_is_asked_is_no_failure_of_the_workload(boxes: Any) -> None:
    box = boxes(config())
    cold = job(box, "cold.service", inactive_file=300)
    box.use("be", inactive_file=300)

    def ended(call: Call) -> None:
        if call.name == "write" and call.path.endswith("cold.service/memory.reclaim"):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    box.sys.hooks.append(ended)
    box.settle(8)
    assert memory_stat(cold)["inactive_file"] == 300 * MIB
    assert box.engine.failed is False


def test_observe_mode_reclaims_nothing(boxes: Any) -> None:
    box = boxes(msgspec.structs.replace(config(), mode=Mode.OBSERVE))
    box.use("be", inactive_file=300)
    status = box.settle(12)

    assert box.cache() == 300
    assert box.sys.writes() == []
    assert of(status, "be.slice").phase == "reclaiming"


def test_a_cgroup_without_memory_reclaim_is_left_alone_and_it_is_said(boxes: Any) -> None:
    box = boxes(config())
    (box.root / "be.slice/memory.reclaim").unlink()
    box.use("be", inactive_file=300)
    status = box.settle(12)

    told = of(status, "be.slice")
    assert told.phase == "held"
    assert "no memory.reclaim" in told.reclaim
    assert told.errors == {"absent": 1}


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_refused_reclaim_is_told_and_ends_nothing(boxes: Any, error: int) -> None:
    box = boxes(config())
    box.use("be", inactive_file=300)
    box.sys.fail(error, file="memory.reclaim")
    status = box.settle(12)

    assert box.cache() == 300
    assert of(status, "be.slice").errors == {"failed": 1}
    assert box.engine.failed is False


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.EACCES])
def test_a_worker_that_can_open_nothing_asks_nothing_and_tries_again_later(boxes: Any, error: int) -> None:
    """Case 47, for the part that is not on the tick's thread."""
    box = boxes(config(hold=5_000_000))
    box.use("be", inactive_file=300)

    def no_more_files(call: Call) -> None:
        if call.name == "open" and threading.current_thread().name.startswith("qosd-reclaim"):
            raise OSError(error, os.strerror(error))

    box.sys.hooks.append(no_more_files)
    status = box.settle(6)
    assert of(status, "be.slice").errors == {"failed": 1}
    assert box.cache() == 300
    box.sys.hooks.clear()
    box.settle(16)
    assert box.cache() <= 151


def test_less_than_asked_is_no_failure(boxes: Any) -> None:
    """EAGAIN: half of it is dirty, and stays."""
    box = boxes(config())
    box.use("be", inactive_file=400, file_dirty=100)
    status = box.settle(20)

    assert 149 <= box.cache() <= 400
    assert of(status, "be.slice").errors == {}


def test_a_kernel_that_takes_more_than_it_is_asked_for_is_not_asked_to_the_end(boxes: Any) -> None:
    """The classic LRU does: half as much again was seen on Linux 6.1."""
    box = boxes(config())
    box.use("be", inactive_file=600)

    def half_as_much_again(call: Call) -> None:
        if call.name == "write" and call.path.endswith("memory.reclaim"):
            pages = int(call.data.split()[0]) // 2 // 4096
            stat = memory_stat(box.root / "be.slice")
            stat["inactive_file"] -= pages * 4096
            stat["pgsteal"] += pages
            write_memory_stat(box.root / "be.slice", stat)

    box.sys.hooks.append(half_as_much_again)
    status = box.settle(16)

    assert 150 - 8 <= box.cache() <= 151, "half a chunk beyond the low watermark at most"
    assert of(status, "be.slice").freed > of(status, "be.slice").asked


def test_a_kernel_that_does_not_know_swappiness_is_asked_without_it(boxes: Any) -> None:
    box = boxes(config())
    box.use("be", inactive_file=300)

    def before_6_9(call: Call) -> None:
        if call.name == "write" and call.path.endswith("memory.reclaim") and b"swappiness" in call.data:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    box.sys.hooks.append(before_6_9)
    status = box.settle(12)

    assert 149 <= box.cache() <= 151
    assert status.memory is not None
    assert status.memory.swappiness_key is False
    assert of(status, "be.slice").errors == {}


def test_a_reclaim_that_hangs_keeps_only_its_cgroup_from_being_asked_and_stops_no_tick(boxes: Any) -> None:
    box = boxes(config(deadline=1_000_000))
    box.use("be", inactive_file=300)
    release = threading.Event()

    def hang(call: Call) -> None:
        if call.name == "write" and call.path.endswith("memory.reclaim"):
            assert release.wait(LONG)

    box.sys.hooks.append(hang)
    try:
        for _ in range(12):
            status = Box.tick(box)
        assert status.memory is not None
        assert status.memory.stuck == 1
        assert box.engine.workers_alive
        assert status.tick_ms < 5000
    finally:
        release.set()
    box.wait()
    assert Box.tick(box).memory is not None
