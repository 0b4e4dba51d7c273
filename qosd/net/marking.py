"""DSCP on the uplinks and the tier of container traffic: BPF at tc's hooks, by TCX links that die with us.

cgroup_skb programs may not write to packets, and what comes out of another network namespace has lost its
skb->priority and, once routed, its socket. TCX (Linux 6.6) takes its place beside what others have there;
clsact filters would outlive a crash, so that older kernels go without, and say so.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

import msgspec

from qosd.ebpf.devices import DeviceBytes
from qosd.ebpf.errors import BpfCallError
from qosd.ebpf.loader import Object, opened
from qosd.net.device import BE_CLASS, LS_CLASS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from qosd.ebpf.libbpf import Library
    from qosd.model import CgroupId

NAME = "uplink"
NO_TCX = "the kernel has no TCX (Linux 6.6): no DSCP, and container traffic is LS's class"

_TCX_INGRESS, _TCX_EGRESS = 46, 47
_NO_DSCP = 64
_SETTINGS = struct.Struct("=6I")
_ZERO = struct.pack("=I", 0)


class Settings(msgspec.Struct, frozen=True, gc=False):
    dscp_be: int | None = None
    dscp_ls: int | None = None
    mark: int | None = None
    """One bit of skb->mark for container traffic, on its way from the veth to the uplink."""

    @property
    def wanted(self) -> bool:
        return any(value is not None for value in (self.dscp_be, self.dscp_ls, self.mark))

    def pack(self) -> bytes:
        return _SETTINGS.pack(
            BE_CLASS,
            LS_CLASS,
            BE_CLASS & 0xFFFF,
            self.mark or 0,
            _NO_DSCP if self.dscp_be is None else self.dscp_be,
            _NO_DSCP if self.dscp_ls is None else self.dscp_ls,
        )


class Marking:
    """Open with `Marking.open`, then `sync` whenever uplinks, veth devices or BE roots may have changed."""

    def __init__(self, loaded: Object) -> None:
        self._object = loaded
        self._settings = loaded.map("uplink_settings")
        self._be_roots = loaded.map("uplink_be_roots")
        self._forwarded = DeviceBytes(loaded.map("uplink_forwarded"))
        self._links: dict[tuple[str, int], int] = {}
        self._roots: frozenset[CgroupId] = frozenset()

    @classmethod
    def open(cls, library: Library) -> Marking:
        return opened(library, NAME, cls)

    def configure(self, settings: Settings, be_roots: Iterable[CgroupId]) -> None:
        """Takes effect on the next packet."""
        self._settings.update(_ZERO, settings.pack())
        wanted = frozenset(be_roots)
        for root in self._roots - wanted:
            self._be_roots.delete(struct.pack("=Q", root))
        for root in wanted - self._roots:
            self._be_roots.update(struct.pack("=Q", root), _ZERO)
        self._roots = wanted

    def sync(self, uplinks: Iterable[int], veths: Iterable[int]) -> tuple[str, ...]:
        """Attach to exactly these devices, by ifindex; returns what could not be done."""
        wanted = {("uplink_egress", i) for i in uplinks} | {("veth_ingress", i) for i in veths}
        for gone in self._links.keys() - wanted:
            os.close(self._links.pop(gone))
        errors = []
        for program, ifindex in sorted(wanted - self._links.keys()):
            attach_type = _TCX_EGRESS if program == "uplink_egress" else _TCX_INGRESS
            try:
                self._links[program, ifindex] = self._object.attach_device(program, ifindex, attach_type)
            except BpfCallError as error:
                if error.errno == errno.EINVAL:
                    return (NO_TCX,)
                if error.errno != errno.ENODEV:
                    errors.append(str(error))
        return tuple(errors)

    def forwarded_to(self, uplinks: frozenset[int]) -> Mapping[int, int]:
        """Bytes of other network namespaces' BE on each uplink since it was first asked for."""
        return self._forwarded.read(uplinks)

    def close(self) -> None:
        for fd in self._links.values():
            os.close(fd)
        self._links = {}
        self._object.close()
