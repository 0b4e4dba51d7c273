"""A limit for what all of BE receives: a BPF policer on each BE root, one bucket for all of them.

Off unless `[net] be_ingress_max` is set. What it drops has used the link already: senders slow down because
they miss it. It needs no uplink, qdisc or mark, and knows containers' sockets in whichever network namespace.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import msgspec

from qosd.ebpf.errors import BpfError
from qosd.ebpf.loader import Object, opened
from qosd.errors import CgroupGone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from qosd.ebpf.libbpf import Library
    from qosd.model import CgroupId

NAME = "ingress"

DEPTH_NS = 250_000_000
"""More than TCP's shortest retransmission timeout of 200 ms (TCP_RTO_MIN): what a flow that lost all it sent
leaves meanwhile is still there afterwards. With 50 ms, flows got a quarter to three quarters of the limit."""
_SHIFT = 20
_LIMIT = struct.Struct("=2Q")
_RECEIVED = struct.Struct("=3Q")
_ZERO = struct.pack("=I", 0)


class Received(msgspec.Struct, frozen=True, gc=False):
    """What came for BE's sockets since the limit was set."""

    bytes: int
    dropped_bytes: int
    dropped_packets: int


class Ingress:
    """Open with `Ingress.open`, then `sync` every tick. All of it goes with the process."""

    def __init__(self, loaded: Object) -> None:
        self._object = loaded
        self._limit = loaded.map("ingress_limit")
        self._received = loaded.map("ingress_received")
        self._links: dict[CgroupId, int] = {}
        self._bps = 0

    @classmethod
    def open(cls, library: Library) -> Ingress:
        return opened(library, NAME, cls)

    def sync(
        self, bps: int, roots: Iterable[CgroupId], open_dir: Callable[[CgroupId], int]
    ) -> tuple[str, ...]:
        """Hold exactly these cgroups to the rate together; returns what was refused."""
        if bps != self._bps:
            self._limit.update(_ZERO, _LIMIT.pack(scaled_ns(bps), DEPTH_NS))
            self._bps = bps
        wanted = frozenset(roots)
        self._keep(wanted)
        refused = [self._attach(root, open_dir) for root in wanted - self._links.keys()]
        return tuple(why for why in refused if why is not None)

    @property
    def attached(self) -> frozenset[CgroupId]:
        return frozenset(self._links)

    def detach(self) -> None:
        """From everything: nothing is dropped any more."""
        self._keep(frozenset())

    def _keep(self, wanted: frozenset[CgroupId]) -> None:
        for gone in self._links.keys() - wanted:
            self._object.detach(self._links.pop(gone))

    def _attach(self, root: CgroupId, open_dir: Callable[[CgroupId], int]) -> str | None:
        try:
            fd = open_dir(root)
        except CgroupGone:
            return None
        try:
            self._links[root] = self._object.attach_cgroup("ingress_police", fd)
        except BpfError as error:
            return str(error)
        finally:
            os.close(fd)
        return None

    def read(self) -> Received:
        columns = zip(*_RECEIVED.iter_unpack(self._received.lookup(_ZERO) or b""), strict=True)
        return Received(*(sum(column) for column in columns))

    def close(self) -> None:
        self._object.close()


def scaled_ns(bps: int) -> int:
    """The time that a byte takes, in 2^-20 ns.

    A largest packet's fits 64 bits at 100 kbit/s; at 1 Tbit/s it is exact to 0.01 %.
    """
    return (8 * 10**9 << _SHIFT) // bps
