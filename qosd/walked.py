"""One workload that is walked by BPF: the records of a tick as samples, each under its path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from qosd.discover import Below, Caps
from qosd.ebpf.treerecords import SIZE, decode, id_of, parent_of, split
from qosd.model import CgroupId, CgroupSample

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Walked:
    """`look` gives what lies right below a path: records have numbers, and only directories have names."""

    def __init__(
        self, subtree: int, path: str, below: Iterable[Below], look: Callable[[str], list[Below]]
    ) -> None:
        self.subtree = subtree
        self.cut: str | None = None
        """Why not all of it is seen."""
        self._path = path
        self._look = look
        self._found = {each.id: each.path for each in below}
        """Paths of cgroups that are not in the samples yet. A cgroup never changes its number or its path."""
        # Two, since ten thousand pairs would be as many things for the garbage collector to look at.
        self._records: dict[CgroupId, bytes] = {}
        self._samples: dict[CgroupId, CgroupSample] = {}

    def sample(self, raw: bytes, caps: Caps) -> list[CgroupSample]:
        """Each the very object of the last tick when nothing moved."""
        was, had, new = self._records, self._samples, []
        self._records, self._samples = records, samples = {}, {}
        for cgroup_id, (record,) in split(raw[SIZE:]):  # the first is the workload itself
            last = had.get(cgroup_id)
            if last is None:
                new.append((cgroup_id, record))
                continue
            if was[cgroup_id] != record:
                last = CgroupSample(cgroup_id, last.path, *decode(record, _PAGE_BYTES))
            records[cgroup_id] = record
            samples[cgroup_id] = last
        self.cut = self._take(new, caps, id_of(raw)) if new else None
        return list(samples.values())

    def _take(self, new: list[tuple[CgroupId, bytes]], caps: Caps, top: CgroupId) -> str | None:
        """Those that the last tick did not have, parents before children, as far as the caps let."""
        looked: set[str] = set()
        cut = None
        for cgroup_id, record in new:
            if len(self._samples) >= caps.cgroups:
                return f"more than {caps.cgroups} cgroups"
            if cgroup_id not in self._found:
                parent = self._path_of(parent_of(record), top)
                if parent is None or parent.count("/") - self._path.count("/") >= caps.depth:
                    cut = f"cgroups nested too deep below {self._path[:80]}"
                    continue
                self._look_into(parent, looked)
            path = self._found.get(cgroup_id)
            if path is not None:
                self._records[cgroup_id] = record
                self._samples[cgroup_id] = CgroupSample(cgroup_id, path, *decode(record, _PAGE_BYTES))
        self._found = {}
        return cut

    def _path_of(self, cgroup_id: CgroupId, top: CgroupId) -> str | None:
        if cgroup_id == top:
            return self._path
        sample = self._samples.get(cgroup_id)
        return None if sample is None else sample.path

    def _look_into(self, path: str, looked: set[str]) -> None:
        if path not in looked:
            looked.add(path)
            self._found.update((each.id, each.path) for each in self._look(path))
