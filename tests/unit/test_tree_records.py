"""The records of the walk, from bytes as the kernel leaves them."""

from __future__ import annotations

import struct

import pytest

from qosd.ebpf.treerecords import SIZE, decode, id_of, parent_of, split
from qosd.model import CpuStat

USAGE, THROTTLED, BURST, PAGES = 1_999_999, 5_678_901, 2_500, 3


def record(has: int, number: int = 7) -> bytes:
    return struct.pack("=6Q4I", number, 5, USAGE, THROTTLED, BURST, PAGES, 10, 4, 2, has)


@pytest.mark.parametrize(
    ("has", "cpu", "memory"),
    [
        pytest.param(0, CpuStat(1999), None, id="no controller"),
        pytest.param(4, CpuStat(1999), 3 * 4096, id="memory"),
        pytest.param(1, CpuStat(1999, None, None, 10, 4, 5678), None, id="cpu without bursts"),
        pytest.param(3, CpuStat(1999, None, None, 10, 4, 5678, 2, 2), None, id="cpu"),
        pytest.param(7, CpuStat(1999, None, None, 10, 4, 5678, 2, 2), 3 * 4096, id="all"),
    ],
)
def test_what_a_cgroup_does_not_have_is_none_and_microseconds_are_cut(
    has: int, cpu: CpuStat, memory: int | None
) -> None:
    assert decode(record(has), 4096) == (cpu, memory)


def test_records_are_split_by_cgroup() -> None:
    first, second = record(7, 11), record(0, 1 << 63)
    assert list(split(first + second)) == [(11, (first,)), (1 << 63, (second,))]
    assert list(split(b"")) == []
    assert (id_of(second), parent_of(second)) == (1 << 63, 5)
    assert len(first) == SIZE
