"""What is sent over: a veth pair, or a virtio NIC whose far end is the host. BE is a cgroup, told by BPF."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

from netns.lab import Lab

from qosd.ebpf.libbpf import Library
from qosd.ebpf.skbprio import ClassId, SkbPrio
from qosd.model import CgroupId
from qosd.net.device import BE_CLASS
from qosd.net.model import Shape
from qosd.plan import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from qosd.net.tc import Tc

GBIT, MBIT = 10**9, 10**6
_OFFLOADS = ("tx-scatter-gather", "tx-checksum-ip-generic", "tx-tcp-segmentation", "tx-udp-segmentation")
"""What lets a packet of 64 KiB come to HTB whole."""


class Wire(NamedTuple):
    """`nics` are two cards on one wire, whose far end is another machine; None is a veth pair.

    The second card is there for what needs a far end in here: the installed daemon's own minute.
    """

    nics: tuple[str, str] | None = None
    reach_bps: int | None = None
    """What it carries with nobody shaping; None where that is far beyond all that is asked of it."""
    busy: bool = False
    """The CPU is never to be idle: the clock goes by its instructions, and else by the host's."""

    @contextlib.contextmanager
    def laid(self) -> Iterator[tuple[Lab, Path, SkbPrio]]:
        """A lab with a classified BE cgroup, idle as the shipped be.slice is; all is removed at the end."""
        lab = Lab(nic=self.nics[0] if self.nics is not None else None)
        skbprio = SkbPrio.open(Library())
        try:
            be = lab.cgroup("be")
            _make_idle(be.parent)
            fd = os.open(be, os.O_RDONLY | os.O_DIRECTORY)
            skbprio.attach(CgroupId(be.stat().st_ino), fd, ClassId(BE_CLASS >> 16, BE_CLASS & 0xFFFF))
            os.close(fd)
            yield lab, be, skbprio
        finally:
            lab.close()
            skbprio.close()

    def carries(self, bps: int) -> bool:
        """With room: what is to be the bottleneck is HTB."""
        return self.reach_bps is None or bps <= 0.7 * self.reach_bps

    def links(self, *wanted: int) -> tuple[int, ...]:
        """Those of the wanted speeds that it carries, and for those it does not, the most it does."""
        can = tuple(bps for bps in wanted if self.carries(bps))
        if can == wanted or self.reach_bps is None:
            return can
        most = int(0.7 * self.reach_bps) // (5 * MBIT) * (5 * MBIT)
        return (*can, most) if most > max(can, default=0) else can


def _make_idle(cgroup: Path) -> None:
    """With cpu.idle and not a policy of its tasks: groups are weighed against groups, whatever is in them."""
    if (cgroup / "cpu.idle").exists():  # not where the cpu controller is in another hierarchy
        (cgroup / "cpu.idle").write_text("1", encoding="ascii")


def shape(ifindex: int, speed: int, ceil: int) -> Shape:
    return Shape(ifindex, "u0", speed, speed // 100, ceil, Reason("bench", "the benchmark asks for it"))


def class_bytes(tc: Tc, ifindex: int, classid: int) -> int:
    return next(sample.bytes for sample in tc.classes(ifindex) if sample.classid == classid)


def spread(values: list[float], form: str = ".2f") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def mbit(bps: float) -> str:
    return f"{bps / MBIT:.4g} Mbit/s"


def load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def described(wire: Wire) -> str:
    """The device, its driver and what it takes over from the kernel."""
    from pyroute2 import Ethtool  # noqa: PLC0415 - in the lab's namespace alone

    with wire.laid() as (lab, _, _):
        link = lab.link("u0")
        with contextlib.closing(Ethtool()) as ethtool:
            found = ethtool.get_features("u0").features
        sysfs = f"{lab.host.sysfs_net}/u0/device/driver"
        driver = os.path.basename(os.readlink(sysfs)) if os.path.lexists(sysfs) else link.kind
        on = [f"{name} {'on' if found[name].enable else 'off'}" for name in _OFFLOADS if name in found]
        root = lab.root("u0")
        queue = "none" if root is None else root.kind
        return f"{driver}, {link.tx_queues} transmit queue(s), root qdisc {queue}; {', '.join(on)}"


def reach(wire: Wire) -> dict[str, float]:
    """Bit/s that leave the device with nobody shaping, by protocol: 4 flows, 3 s by its own counter."""
    reached = {}
    for proto in ("tcp", "udp-gso"):
        with wire.laid() as (lab, be, _):
            ports = (5000, 5001, 5002, 5003)
            for port in ports:
                lab.send(port, "--proto", proto, cgroup=be)
            lab.sink().settled_rate_bps(ports, 0.1)
            counter = f"{lab.host.sysfs_net}/u0/statistics/tx_bytes"
            begin, before = time.monotonic(), _number(counter)
            time.sleep(3.0)
            reached[proto] = 8 * (_number(counter) - before) / (time.monotonic() - begin)
    return reached


def _number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())
