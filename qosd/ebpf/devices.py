"""Bytes by network device, counted by BPF programs in a hash of which user space decides the keys."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from qosd.ebpf.maps import Map

_KEY = struct.Struct("=I")
_COUNT = struct.Struct("=Q")


class DeviceBytes:
    """A per-CPU hash by ifindex; the programs count only for keys that are there."""

    def __init__(self, counted: Map) -> None:
        self._map = counted
        self._held: frozenset[int] = frozenset()

    def read(self, devices: frozenset[int]) -> Mapping[int, int]:
        """Of exactly these devices from now on; those that are new begin at 0."""
        for gone in self._held - devices:
            self._map.delete(_KEY.pack(gone))
        for new in devices - self._held:
            self._map.update(_KEY.pack(new), bytes(self._map.value_size))
        self._held = devices
        values = {ifindex: self._map.lookup(_KEY.pack(ifindex)) for ifindex in devices}
        return {
            ifindex: sum(count for (count,) in _COUNT.iter_unpack(value))
            for ifindex, value in values.items()
            if value is not None
        }
