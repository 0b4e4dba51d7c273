"""One workload that is walked by BPF: the records of a tick as samples, by the paths that are known."""

from __future__ import annotations

import os
from collections.abc import Iterable

from qosd.discover import Below
from qosd.ebpf.treerecords import SIZE, decode, split
from qosd.model import CgroupId, CgroupSample

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Walked:
    __slots__ = ("_paths", "_records", "_samples", "subtree", "unnamed")

    def __init__(self, subtree: int) -> None:
        self.subtree = subtree
        self.unnamed: frozenset[CgroupId] = frozenset()
        """Cgroups that the last walk saw and whose path is not known. A cgroup never changes its path."""
        self._paths: dict[CgroupId, str] = {}
        self._records: dict[CgroupId, bytes] = {}
        self._samples: dict[CgroupId, CgroupSample] = {}
        # Two, since ten thousand tuples would be ten thousand things for the garbage collector to look at.

    def name(self, below: Iterable[Below]) -> None:
        """What a look into the directories found."""
        self._paths = {each.id: each.path for each in below}

    def sample(self, raw: bytes) -> tuple[list[CgroupSample], bool]:
        """The samples, each the very object of the last tick when nothing moved; whether somebody is new.

        Who has no name after the directories were looked into lies deeper than that goes, and is no news.
        """
        was, had, unnamed = self._records, self._samples, []
        self._records, self._samples = records, samples = {}, {}
        for cgroup_id, (record,) in split(raw[SIZE:]):  # the first is the workload itself
            if was.get(cgroup_id) == record:
                sample = had[cgroup_id]
            elif (path := self._paths.get(cgroup_id)) is not None:
                sample = CgroupSample(cgroup_id, path, *decode(record, _PAGE_BYTES))
            else:
                unnamed.append(cgroup_id)
                continue
            records[cgroup_id] = record
            samples[cgroup_id] = sample
        seen, self.unnamed = self.unnamed, frozenset(unnamed)
        return list(samples.values()), not self.unnamed <= seen
