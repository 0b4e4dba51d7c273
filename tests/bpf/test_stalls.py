"""Block IO and reclaim on the running kernel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qosd.ebpf.histogram import delta
from qosd.ebpf.libbpf import Library
from qosd.ebpf.runq import Root
from qosd.ebpf.samples import ReclaimKey
from qosd.ebpf.tracing import Tracing, TracingOptions


def device_of(path: Path) -> str | None:
    """The whole disk under a filesystem, as io.stat names it."""
    number = path.stat().st_dev
    block = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    disk = block.parent if (block / "partition").exists() else block
    try:
        return (disk / "dev").read_text().strip()
    except FileNotFoundError:
        return None


def test_written_bytes_and_their_latency_are_seen_on_the_device(library: Library, tmp_path: Path) -> None:
    device = device_of(tmp_path)
    if device is None:
        pytest.skip(f"{tmp_path} is not on a block device")
    tracing = Tracing.open(library, {}, TracingOptions(probes=("blkio",)))
    try:
        before = tracing.read().blkio
        with (tmp_path / "file").open("wb") as file:
            file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
        after = tracing.read().blkio
    finally:
        tracing.close()
    assert before is not None
    assert after is not None
    writes = [
        io for key, io in delta(before.io, after.io).items() if key.op == "write" and key.device == device
    ]
    assert sum(io.bytes for io in writes) >= 1 << 20
    assert all(io.latency.count and io.latency.total_ns / io.latency.count > 1000 for io in writes)


WRITE_64_MIB = """
import os, sys
with open({path!r}, 'wb') as file:
    for _ in range(64): file.write(bytes(1 << 20))
"""


def v1_memory() -> Path | None:
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        fields = [line.split() for line in mounts]
    return next((Path(f[1]) for f in fields if f[2] == "cgroup" and "memory" in f[3].split(",")), None)


def test_a_task_at_its_memory_limit_is_seen_to_reclaim(library: Library, cgroup: Any, tmp_path: Path) -> None:
    """On a hybrid host the limit is v1's, the workload is still the cgroup2 cgroup's root."""
    mount = v1_memory()
    if mount is None:
        pytest.skip("no v1 memory hierarchy to set a limit in; tests/vm does it with memory.max")
    ls, child = cgroup("ls"), cgroup("ls/child")
    limited = mount / f"qosd-test-{os.getpid()}"
    limited.mkdir()
    tracing = Tracing.open(library, {ls.id: Root(watched=True)}, TracingOptions(probes=("reclaim",)))
    try:
        (limited / "memory.limit_in_bytes").write_text(str(16 << 20))
        enter = f"open({str(limited / 'cgroup.procs')!r}, 'w').write('0')\n"
        writer = child.run(enter + WRITE_64_MIB.format(path=str(tmp_path / "file")))
        assert writer.wait(timeout=60) == 0
        sample = tracing.read().reclaim
    finally:
        tracing.close()
        limited.rmdir()
    assert sample is not None
    stalls = sample.stalls[ReclaimKey(workload=ls.id, kind="memcg")]
    assert stalls.count > 0
    assert stalls.total_ns > 1000 * stalls.count
    assert sample.evicted == 0


def test_reclaim_stalls_are_absent_not_zero_while_nobody_reclaims(library: Library) -> None:
    tracing = Tracing.open(library, {}, TracingOptions(probes=("reclaim",)))
    try:
        sample = tracing.read()
    finally:
        tracing.close()
    assert sample.runq is None
    assert sample.blkio is None
    assert sample.reclaim is not None
    assert all(stall.count > 0 for stall in sample.reclaim.stalls.values())
