"""Class ids on the egress of workloads, and what they send: a cgroup_skb program on each workload's root.

Needs neither BTF nor tracing, only CAP_BPF and CAP_NET_ADMIN. Sockets keep the cgroup that they were made in.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import msgspec

from qosd.ebpf.devices import DeviceBytes
from qosd.ebpf.libbpf import Library
from qosd.ebpf.loader import Object, opened
from qosd.ebpf.maps import RunTime
from qosd.ebpf.samples import Traffic, decode_traffic
from qosd.model import CgroupId

NAME = "skbprio"

_CLASS = struct.Struct("=2I")
_KEY = struct.Struct("=QII")
"""struct bpf_cgroup_storage_key: the cgroup's id, the attach type, padding."""
_EGRESS = 1
"""BPF_CGROUP_INET_EGRESS"""


class ClassId(msgspec.Struct, frozen=True, gc=False):
    """An HTB class as `tc` writes it: a001:20 is ClassId(0xA001, 0x20)."""

    major: int
    minor: int

    @property
    def priority(self) -> int:
        return self.major << 16 | self.minor


class SkbPrio:
    """Open with `SkbPrio.open`, then attach cgroup by cgroup."""

    def __init__(self, loaded: Object) -> None:
        self._object = loaded
        self._classes = loaded.map("skbprio_class")
        self._traffic = loaded.map("skbprio_traffic")
        self._devices = DeviceBytes(loaded.map("skbprio_device"))
        self._links: dict[CgroupId, int] = {}

    @classmethod
    def open(cls, library: Library) -> SkbPrio:
        return opened(library, NAME, cls)

    @property
    def attached(self) -> frozenset[CgroupId]:
        return frozenset(self._links)

    def attach(self, cgroup: CgroupId, cgroup_fd: int, class_id: ClassId | None) -> None:
        """The cgroup's egress, and that of the cgroups below, goes to the class now; None only counts.

        The fd may be closed afterwards. Removing the cgroup detaches by itself.
        """
        if cgroup not in self._links:
            self._links[cgroup] = self._object.attach_cgroup("skbprio_egress", cgroup_fd)
        self.set_class(cgroup, class_id)

    def set_class(self, cgroup: CgroupId, class_id: ClassId | None) -> None:
        value = _CLASS.pack(class_id.priority if class_id else 0, 0)
        self._classes.update(_KEY.pack(cgroup, _EGRESS, 0), value)

    def detach(self, cgroup: CgroupId) -> None:
        """Its counters go too."""
        link = self._links.pop(cgroup, None)
        if link is not None:
            self._object.detach(link)

    def read(self) -> Mapping[CgroupId, Traffic]:
        """Since each was attached; a removed cgroup is missing once the kernel has let go of it."""
        values = {cgroup: self._traffic.lookup(_KEY.pack(cgroup, _EGRESS, 0)) for cgroup in self._links}
        return {cgroup: decode_traffic(value) for cgroup, value in values.items() if value is not None}

    def sent_to(self, devices: frozenset[int]) -> Mapping[int, int]:
        """Bytes that cgroups with a BE class handed to each of these devices since it was first asked for."""
        return self._devices.read(devices)

    def run_time(self) -> RunTime:
        return self._object.run_time()["skbprio_egress"]

    def close(self) -> None:
        """Detach everywhere."""
        self._object.close()
