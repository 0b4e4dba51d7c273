"""The memory governors on a fake host: sense, decide, write, reclaim on the worker, restore."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakekernel import memory_stat, write_memory_stat
from memkit import MIB, changed
from treekit import (
    BOOT,
    MEMORY_FILES,
    Box,
    Call,
    make_tree,
    rewrite,
    text_of,
)

from qosd.config import Config, Mode
from qosd.errors import Malformed
from qosd.journal import restore_from
from qosd.replay import load, plain
from qosd.schema.memory import Limit
from qosd.schema.units import ByteSize
from qosd.status import Status
from qosd.sys import Sys
from qosd.sysfs import keep_lru_gen

STAT = {
    "anon": 0,
    "file": 0,
    "shmem": 0,
    "file_mapped": 0,
    "file_dirty": 0,
    "file_writeback": 0,
    "inactive_file": 0,
    "active_file": 0,
    "workingset_refault_anon": 0,
    "workingset_refault_file": 0,
    "pgscan": 0,
    "pgsteal": 0,
}
EVENTS = "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n"
LONG = 10.0


class MemoryBox(Box):
    """The fake host with the memory controller on; sizes in MiB."""

    def __init__(self, directory: Path, config: Config) -> None:
        super().__init__(directory, config)
        for tier in ("ls", "be"):
            group = self.root / f"{tier}.slice"
            make_tree(group, {**MEMORY_FILES, "memory.reclaim": "", "memory.events": EVENTS})
            self.use(tier)
        self.host()

    def use(self, tier: str, **mib: float) -> None:
        stat = {**STAT, **{key: round(value * MIB) for key, value in mib.items()}}
        stat["file"] = stat["inactive_file"] + stat["active_file"] + stat["shmem"]
        write_memory_stat(self.root / f"{tier}.slice", stat)

    def host(self, available: float = 800, free: float = 500, swap: float = 0) -> None:
        lines = {
            "MemTotal": 1024.0,
            "MemFree": free,
            "MemAvailable": available,
            "SwapTotal": swap,
            "SwapFree": swap,
        }
        rewrite(self.proc / "meminfo", "".join(f"{key}: {round(v * 1024)} kB\n" for key, v in lines.items()))

    def cache(self, tier: str = "be") -> float:
        stat = memory_stat(self.root / f"{tier}.slice")
        return (stat["inactive_file"] + stat["active_file"]) / MIB

    def tick(self, seconds: float = 1.0, **cores: float) -> Status:
        """With the worker's answer awaited, so that each tick sees the one before."""
        status = super().tick(seconds, **cores)
        self.wait()
        return status

    def wait(self) -> None:
        assert self.engine.reclaimer.worker.wait_idle(LONG)

    def file(self, path: str) -> str:
        return text_of(self.root / path)


def config(**reclaim: Any) -> Config:
    """be.slice may have 200 MiB of page cache, and goes down to 150."""
    base = changed(Config(), "reclaim", **reclaim)
    ls, be = base.workload
    be = msgspec.structs.replace(be, page_cache_high=ByteSize(200 * MIB))
    return msgspec.structs.replace(base, workload=(ls, be))


LIMITING = changed(Config(), "limits", enforce=Limit.HIGH)


@pytest.fixture
def boxes(tmp_path: Path) -> Iterator[Any]:
    made: list[MemoryBox] = []

    def make(config: Config) -> MemoryBox:
        made.append(MemoryBox(tmp_path, config))
        return made[-1]

    yield make
    for box in made:
        box.engine.reclaimer.close()
        box.wait()
        box.close()


def of(status: Status, path: str) -> Any:
    assert status.memory is not None
    return next(each for each in status.memory.workloads if each.path == path)


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
