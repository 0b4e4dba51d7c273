"""DSCP on the wire, and containers' traffic in its tier: tc's hooks on a real kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from netns import sniff
from netns.traffic import finish

from qosd.ebpf.errors import BpfError
from qosd.ebpf.libbpf import Library
from qosd.ebpf.skbprio import ClassId, SkbPrio
from qosd.model import CgroupId
from qosd.net.device import BE_CLASS, LS_CLASS
from qosd.net.marking import NO_TCX, Marking, Settings
from qosd.net.model import Shape
from qosd.net.tc import Tc
from qosd.plan import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns.lab import Lab

pytestmark = pytest.mark.native

MBIT = 10**6
CS1, LE, AF41 = 8, 1, 34


@pytest.fixture
def library() -> Library:
    try:
        return Library()
    except BpfError as error:
        pytest.skip(str(error))


@pytest.fixture
def marking(library: Library) -> Iterator[Marking]:
    try:
        marking = Marking.open(library)
    except BpfError as error:
        pytest.skip(str(error))
    yield marking
    marking.close()


@pytest.fixture
def tc() -> Iterator[Tc]:
    connection = Tc()
    yield connection
    connection.close()


@pytest.fixture
def be(lab: Lab, library: Library) -> Iterator[Path]:
    """A BE cgroup that is classified."""
    path, ls = lab.cgroup("be"), lab.cgroup("ls")
    skbprio = SkbPrio.open(library)
    for cgroup, class_id in ((path, BE_CLASS), (ls, LS_CLASS)):
        fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
        skbprio.attach(CgroupId(cgroup.stat().st_ino), fd, ClassId(class_id >> 16, class_id & 0xFFFF))
        os.close(fd)
    yield path
    skbprio.close()


class Sniffer:
    def __init__(self, lab: Lab) -> None:
        self.seen: set[tuple[int, int, int, bool]] = set()
        command = [*lab.enter, sys.executable, sniff.__file__, "p0"]
        self.process: subprocess.Popen[str] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.stdout: Any = self.process.stdout
        self.stdout.readline()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self.stdout:
            self.seen.add(tuple(json.loads(line)))

    def dscp(self, port: int) -> set[int]:
        return {dscp for _, to, dscp, _ in self.seen if to == port}

    def close(self) -> None:
        self.process.terminate()
        self.thread.join(5)
        finish(self.process)


@pytest.fixture
def sniffer(lab: Lab) -> Iterator[Sniffer]:
    sniffer = Sniffer(lab)
    yield sniffer
    sniffer.close()


def attach(marking: Marking, uplinks: list[int], veths: list[int]) -> None:
    errors = marking.sync(uplinks, veths)
    if errors == (NO_TCX,):
        pytest.skip(NO_TCX)
    assert errors == ()


def build(lab: Lab, tc: Tc) -> int:
    ifindex = lab.link("u0").ifindex
    tc.build(Shape(ifindex, "u0", 10**9, 10 * MBIT, 50 * MBIT, Reason("test", "test")))
    return ifindex


@pytest.fixture
def shaped(lab: Lab, tc: Tc) -> tuple[Lab, int]:
    return lab, build(lab, tc)


@pytest.mark.parametrize("to", ["10.9.0.2", "fd09:0::2"])
@pytest.mark.parametrize("proto", ["tcp", "udp", "udp-gso"])
def test_be_gets_its_dscp_ls_its_own_and_the_system_none(
    shaped: tuple[Lab, int], marking: Marking, be: Path, sniffer: Sniffer, proto: str, to: str
) -> None:
    lab, ifindex = shaped
    marking.configure(Settings(dscp_be=LE, dscp_ls=AF41), ())
    attach(marking, [ifindex], [])
    lab.send(5000, "--proto", proto, cgroup=be, to=to)
    lab.send(5001, "--proto", proto, "--mbit", "20", cgroup=be.parent / "ls", to=to)
    lab.send(5002, "--proto", proto, "--mbit", "20", to=to)
    rates = lab.sink().settled_rate_bps((5000, 5001, 5002), 0.5)
    assert (sniffer.dscp(5000), sniffer.dscp(5001), sniffer.dscp(5002)) == ({LE}, {AF41}, {0})
    assert all(checksum_right for *_, checksum_right in sniffer.seen)
    assert min(rates[port] for port in (5000, 5001, 5002)) > 0


def test_marking_goes_with_its_links_and_leaves_no_trace(
    lab: Lab, marking: Marking, tc: Tc, be: Path, sniffer: Sniffer
) -> None:
    ifindex = build(lab, tc)
    before = lab.dump()
    marking.configure(Settings(dscp_be=CS1), ())
    attach(marking, [ifindex], [])
    assert lab.dump() == before
    attach(marking, [], [])
    lab.send(5000, cgroup=be)
    lab.sink().settled_rate_bps((5000,), 0.2)
    assert sniffer.dscp(5000) == {0}


@pytest.fixture
def container(lab: Lab) -> Iterator[list[str]]:
    """Another network namespace behind a veth, routed to the uplink; yields the words that enter it."""
    holder = subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE, text=True)
    enter = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
    ours = os.stat("/proc/thread-self/ns/net").st_ino
    lab.until(lambda: os.stat(f"/proc/{holder.pid}/ns/net").st_ino != ours)
    lab.run(f"ip link add c0 type veth peer name c1 netns {holder.pid}")
    lab.run("ip addr add 10.8.0.1/24 dev c0")
    lab.run("ip link set c0 up")
    for command in (
        "ip addr add 10.8.0.2/24 dev c1",
        "ip link set c1 up",
        "ip route add default via 10.8.0.1",
    ):
        lab.run(" ".join((*enter, command)))
    lab.far("ip route add 10.8.0.0/24 via 10.9.0.1")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")
    yield enter
    finish(holder)


def send_from(lab: Lab, enter: list[str], port: int, *arguments: str, cgroup: Path) -> None:
    from netns import traffic  # noqa: PLC0415 - beside its only use

    lab.sink()
    command = [*enter, sys.executable, traffic.__file__, "send", "--to", "10.9.0.2", "--port", str(port)]
    process = subprocess.Popen(
        [*command, *arguments, "--cgroup", str(cgroup)], stdin=subprocess.PIPE, text=True
    )
    lab.at_close(lambda: finish(process))


def test_routed_container_traffic_is_not_shaped_without_the_mark(
    lab: Lab, tc: Tc, be: Path, container: list[str]
) -> None:
    """Documented: the packet lost its priority at the veth, and LS's class is the default."""
    build(lab, tc)
    send_from(lab, container, 5000, cgroup=be)
    assert lab.sink().settled_rate_bps((5000,), 0.7)[5000] > 100 * MBIT


def test_routed_container_traffic_of_be_is_held_by_the_mark_and_that_of_ls_is_not(
    lab: Lab, marking: Marking, tc: Tc, be: Path, container: list[str]
) -> None:
    ifindex = build(lab, tc)
    marking.configure(Settings(mark=1 << 20, dscp_be=CS1), [CgroupId(be.stat().st_ino)])
    attach(marking, [ifindex], [lab.link("c0").ifindex])
    assert marking.forwarded_to(frozenset({ifindex})) == {ifindex: 0}
    job = lab.cgroup("be/job")
    send_from(lab, container, 5000, cgroup=job)
    send_from(lab, container, 5001, "--mbit", "150", cgroup=be.parent / "ls")
    rates = lab.sink().settled_rate_bps((5000, 5001), 1.5)
    assert rates[5000] == pytest.approx(50 * MBIT, rel=0.12)
    assert rates[5001] > 140 * MBIT
    _, received = lab.sink().bytes()
    sent = marking.forwarded_to(frozenset({ifindex}))[ifindex]
    assert received[5000] <= sent < received[5000] + received[5001]


def test_a_device_that_is_gone_is_no_error(marking: Marking) -> None:
    assert marking.sync([99_999], []) in ((), (NO_TCX,))
