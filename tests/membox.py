"""An engine on a tree with memory files that change as the kernel would have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from fakekernel import memory_stat, write_memory_stat
from memkit import MIB, changed
from treekit import (
    MEMORY_FILES,
    Box,
    make_tree,
    rewrite,
    text_of,
)

from qosd.config import Config
from qosd.schema.memory import Limit
from qosd.schema.units import ByteSize
from qosd.status import Status

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


def of(status: Status, path: str) -> Any:
    assert status.memory is not None
    return next(each for each in status.memory.workloads if each.path == path)
