"""Egress classes on the running kernel, in a network namespace of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from qosd.ebpf.libbpf import Library
from qosd.ebpf.samples import Traffic
from qosd.ebpf.skbprio import ClassId, SkbPrio

SEND = """
import os, socket, sys
from pyroute2 import IPRoute
with IPRoute() as ip:
    lo = ip.link_lookup(ifname="lo")[0]
    ip.link("set", index=lo, state="up", mtu=1500)
    ip.tc("add", "htb", lo, 0xA0010000, default=0x10)
    for minor in (0x10, 0x20):
        ip.tc("add-class", "htb", lo, 0xA0010000 | minor, parent=0xA0010000, rate="1gbit", burst=65536)
    open(sys.argv[1], "w").write("0")  # before the socket is made: it keeps the cgroup it was made in
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for _ in range(10):
            udp.sendto(b"x" * 100, ("127.0.0.1", 9))
    packets = {}
    for item in ip.get_classes(index=lo):
        packets[hex(item["handle"])] = item.get_attr("TCA_STATS2").get_attr("TCA_STATS_BASIC")["packets"]
import json; print(json.dumps(packets))
"""


def send_from(path: os.PathLike[str]) -> dict[str, int]:
    """Ten datagrams of 100 bytes; packets by HTB class, ICMP's answers in the default class among them."""
    command = ["unshare", "--net", sys.executable, "-c", SEND, os.fspath(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    packets: dict[str, int] = json.loads(result.stdout)
    return packets


def attach(probe: SkbPrio, cgroup: Any, class_id: ClassId | None) -> None:
    fd = os.open(cgroup.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        probe.attach(cgroup.id, fd, class_id)
    finally:
        os.close(fd)


def test_packets_of_a_cgroup_and_those_below_go_to_its_class(library: Library, cgroup: Any) -> None:
    be, job = cgroup("be"), cgroup("be/job")
    probe = SkbPrio.open(library)
    try:
        attach(probe, be, ClassId(0xA001, 0x20))
        packets = send_from(job.path / "cgroup.procs")
        assert packets["0xa0010020"] == 10
        assert probe.read() == {be.id: Traffic(bytes=10 * 128, packets=10)}
    finally:
        probe.close()


def test_without_a_class_packets_are_counted_and_left_alone(library: Library, cgroup: Any) -> None:
    ls = cgroup("ls")
    probe = SkbPrio.open(library)
    try:
        attach(probe, ls, None)
        packets = send_from(ls.path / "cgroup.procs")
        assert packets.get("0xa0010020", 0) == 0
        assert probe.read()[ls.id].packets == 10
    finally:
        probe.close()


def test_two_workloads_have_their_own_class_and_counters(library: Library, cgroup: Any) -> None:
    one, two = cgroup("one"), cgroup("two")
    probe = SkbPrio.open(library)
    try:
        attach(probe, one, ClassId(0xA001, 0x10))
        attach(probe, two, ClassId(0xA001, 0x20))
        assert send_from(two.path / "cgroup.procs")["0xa0010020"] == 10
        probe.set_class(two.id, ClassId(0xA001, 0x10))
        assert send_from(two.path / "cgroup.procs").get("0xa0010020", 0) == 0
        assert probe.read()[one.id].packets == 0
        assert probe.read()[two.id].packets == 20
    finally:
        probe.close()


def test_where_roots_nest_a_limit_of_its_own_stays_and_a_shared_class_gives_way(
    library: Library, cgroup: Any
) -> None:
    outer, inner = cgroup("outer"), cgroup("outer/inner")
    probe = SkbPrio.open(library)
    try:
        for shared, own in ((0x10, 0x20), (0x20, 0x10)):
            attach(probe, outer, ClassId(0xA001, shared))
            attach(probe, inner, ClassId(0xA001, own))
            packets = send_from(inner.path / "cgroup.procs")
            assert packets.get("0xa0010020", 0) == (10 if shared == 0x20 else 0)
        # No class a001:30 in that namespace: such packets go where unknown ones go, and not to a001:20.
        attach(probe, inner, ClassId(0xA001, 0x30))
        assert send_from(inner.path / "cgroup.procs").get("0xa0010020", 0) == 0
    finally:
        probe.close()


def test_once_detached_the_class_is_no_longer_set(library: Library, cgroup: Any) -> None:
    be = cgroup("be")
    probe = SkbPrio.open(library)
    try:
        attach(probe, be, ClassId(0xA001, 0x20))
        probe.detach(be.id)
        assert probe.attached == frozenset()
        assert send_from(be.path / "cgroup.procs").get("0xa0010020", 0) == 0
    finally:
        probe.close()
