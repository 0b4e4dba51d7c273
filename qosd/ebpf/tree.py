"""What every cgroup of a subtree has used, in one walk: for trees of a thousand cgroups and more."""

from __future__ import annotations

import contextlib
import struct
from typing import cast

import msgspec

from qosd.ebpf.errors import BpfError
from qosd.ebpf.libbpf import Library
from qosd.ebpf.loader import Object, read_object
from qosd.model import CgroupId

NAME = "tree"

_RECORD = struct.Struct("=3Q2I")
_HEAD = struct.Struct("=2Q")
_FIRST = (0).to_bytes(4, "little")


class TreeRecord(msgspec.Struct, frozen=True, gc=False):
    id: CgroupId
    parent: CgroupId
    usage_nsec: int
    """cpu.stat's usage_usec before its rounding, with all cgroups below."""
    level: int
    populated: bool


class Tree:
    """Open with `Tree.open`; each `read` is one walk, parents before children."""

    def __init__(self, loaded: Object, iterator: int, max_cgroups: int) -> None:
        self._object = loaded
        self._iterator = iterator
        self._max = max_cgroups
        self._head = loaded.map(".data.tree")
        self._records = loaded.map("tree_records").mapped()

    @classmethod
    def open(cls, library: Library, cgroup_fd: int, max_cgroups: int = 16384) -> Tree:
        """The subtree of a cgroup directory's fd. Needs the cgroup iterator and a flush kfunc (6.1)."""
        opened = Object(library, NAME, read_object(NAME))
        with contextlib.ExitStack() as undo:
            undo.callback(opened.close)
            opened.resize("tree_records", max_cgroups)
            opened.load()
            tree = cls(opened, opened.attach_cgroup_iterator("tree_walk", cgroup_fd), max_cgroups)
            undo.pop_all()
        return tree

    def read(self) -> list[TreeRecord]:
        """Raises a BpfError if the tree has outgrown `max_cgroups`: a part of it would be worse than none."""
        return decode_tree(self._walk())

    def usage(self) -> dict[CgroupId, int]:
        """`usage_nsec` alone, by id: a third of the price of `read`. Raises as it does."""
        return decode_usage(self._walk())

    def _walk(self) -> bytes:
        self._object.run_iterator(self._iterator)
        value = self._head.lookup(_FIRST)
        count, flushed = _HEAD.unpack(value or bytes(_HEAD.size))
        if not flushed:
            raise BpfError(f"{NAME}: this kernel has no kfunc to flush the counters: they would be stale")
        if not 0 < count <= self._max:
            raise BpfError(f"{NAME}: {count} cgroups, room for {self._max}")
        return self._records[: count * _RECORD.size]

    def close(self) -> None:
        self._records.close()
        self._object.close()


def decode_usage(records: bytes) -> dict[CgroupId, int]:
    words = memoryview(records).cast("Q")  # four to a record
    # Not by CgroupId(), which is a call for each.
    ids = cast("list[CgroupId]", words[::4].tolist())
    return dict(zip(ids, words[2::4].tolist(), strict=True))


def decode_tree(records: bytes) -> list[TreeRecord]:
    return [
        TreeRecord(CgroupId(number), CgroupId(parent), usage, level, bool(populated))
        for number, parent, usage, level, populated in _RECORD.iter_unpack(records)
    ]
