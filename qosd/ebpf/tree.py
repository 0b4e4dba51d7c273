"""What every cgroup of a subtree has used, in one walk: the cgroup iterator, one flush, a mapped array."""

from __future__ import annotations

import contextlib

from qosd.ebpf.errors import BpfError, HookMissingError
from qosd.ebpf.libbpf import BTF_KIND_FUNC, Library
from qosd.ebpf.loader import Object, kernel_has, read_object
from qosd.ebpf.treerecords import SIZE

NAME = "tree"

_OBJECTS = {"css_rstat_flush": "tree", "cgroup_rstat_flush": "treecgroup"}
"""By the kfunc that flushes: the first one since 6.15, the other one before."""
_NONE = (0).to_bytes(8, "little")
_FIRST = (0).to_bytes(4, "little")


class Tree:
    """`Tree.open`, then `attach` to a subtree; each `walk` of it is one pass, parents before children."""

    def __init__(self, loaded: Object, max_cgroups: int) -> None:
        self._object = loaded
        self._max = max_cgroups
        self._count = loaded.map(".data.tree")
        self._records = loaded.map("tree_records").mapped()

    @classmethod
    def open(cls, library: Library, max_cgroups: int = 16384) -> Tree:
        """Needs the cgroup iterator and a kfunc that flushes (6.1). `max_cgroups` is for one subtree."""
        known = kernel_has(library, _OBJECTS, BTF_KIND_FUNC)
        name = next((_OBJECTS[kfunc] for kfunc in _OBJECTS if kfunc in known), None)
        if name is None:
            raise HookMissingError(NAME, tuple(_OBJECTS))
        opened = Object(library, NAME, read_object(name))
        with contextlib.ExitStack() as undo:
            undo.callback(opened.close)
            opened.resize("tree_records", max_cgroups)
            opened.load()
            tree = cls(opened, max_cgroups)
            undo.pop_all()
        return tree

    def attach(self, cgroup_fd: int) -> int:
        """The subtree of a cgroup directory's fd, for `walk`. It is held until `detach`, the fd is not."""
        return self._object.attach_cgroup_iterator("tree_walk", cgroup_fd)

    def detach(self, subtree: int) -> None:
        self._object.detach(subtree)

    def walk(self, subtree: int) -> bytes:
        """The records of the cgroup and of all below it; none if it is gone.

        Raises a BpfError if there are more than `max_cgroups`: a part of them would be worse than none.
        """
        self._count.update(_FIRST, _NONE)
        self._object.run_iterator(subtree)
        count = int.from_bytes(self._count.lookup(_FIRST) or _NONE, "little")
        if count > self._max:
            raise BpfError(f"{NAME}: {count} cgroups, room for {self._max}")
        return self._records[: count * SIZE]

    def close(self) -> None:
        self._records.close()
        self._object.close()
