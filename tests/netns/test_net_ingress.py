"""What BE receives, held by the policer: real TCP and UDP from another network namespace into cgroups."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from netns import lab as lab_module
from netns.traffic import PORTS, Sink, finish, sender

from qosd.ebpf.errors import BpfError
from qosd.ebpf.libbpf import Library
from qosd.model import CgroupId
from qosd.net.ingress import Ingress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from netns.lab import Lab

pytestmark = pytest.mark.native

MBIT = 10**6


@pytest.fixture
def ingress() -> Iterator[Ingress]:
    if lab_module.cgroup2_mount() is None:
        pytest.skip("needs a cgroup2 mount")
    try:
        opened = Ingress.open(Library())
    except BpfError as error:
        pytest.skip(str(error))
    yield opened
    opened.close()


class Receivers:
    """A sink in a cgroup of the host, and senders at the far end."""

    def __init__(self, lab: Lab, name: str, ports: range = PORTS) -> None:
        self.lab = lab
        self.path: Path = lab.cgroup(name)
        self.id = CgroupId(self.path.stat().st_ino)
        self.sink = Sink([], self.path, ports)
        lab.at_close(self.sink.close)

    def flood(self, port: int, *arguments: str, to: str = "10.9.0.1") -> None:
        process = sender(None, "--to", to, "--port", str(port), *arguments, enter=self.lab.enter)
        self.lab.at_close(lambda: finish(process))

    def open_dir(self, _cgroup: CgroupId) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)


@pytest.mark.parametrize("to", ["10.9.0.1", "fd09:0::1"])
@pytest.mark.parametrize("mbit", [20, 300])
def test_what_be_receives_by_tcp_comes_up_to_the_limit_and_no_further(
    lab: Lab, ingress: Ingress, mbit: int, to: str
) -> None:
    be = Receivers(lab, "be")
    assert ingress.sync(mbit * MBIT, [be.id], be.open_dir) == ()
    be.flood(5000, to=to)
    be.flood(5001, to=to)
    be.sink.settled_rate_bps((5000, 5001), 0.5)
    rates = be.sink.rate_bps(3.0)
    assert 0.75 * mbit * MBIT < rates[5000] + rates[5001] < 1.1 * mbit * MBIT


def test_a_flood_of_datagrams_is_cut_to_the_limit_and_counted(lab: Lab, ingress: Ingress) -> None:
    be = Receivers(lab, "be")
    ingress.sync(20 * MBIT, [be.id], be.open_dir)
    be.flood(5000, "--proto", "udp", "--mbit", "100")
    be.sink.settled_rate_bps((5000,), 0.2)
    before = ingress.read()
    rate = be.sink.rate_bps(2.0)[5000]
    after = ingress.read()
    # 28 bytes of headers for each 1400 are the difference between IP packets and payload.
    assert rate == pytest.approx(20 * MBIT * 1400 / 1428, rel=0.10)
    passed, dropped = after.bytes - before.bytes, after.dropped_bytes - before.dropped_bytes
    assert dropped > 2 * passed > 0
    assert after.dropped_packets > before.dropped_packets


def test_others_and_the_loopback_device_are_not_held(lab: Lab, ingress: Ingress) -> None:
    be, ls = Receivers(lab, "be", range(5000, 5001)), Receivers(lab, "ls", range(5001, 5002))
    ingress.sync(5 * MBIT, [be.id], be.open_dir)
    local = sender(None, "--to", "127.0.0.1", "--port", "5000", "--mbit", "100")
    lab.at_close(lambda: finish(local))
    assert be.sink.settled_rate_bps((5000,), 1.0)[5000] > 80 * MBIT
    ls.flood(5001, "--mbit", "100")
    assert ls.sink.settled_rate_bps((5001,), 1.0)[5001] > 80 * MBIT
    assert ingress.read().dropped_bytes == 0


def test_what_be_sends_does_not_suffer_from_it(lab: Lab, ingress: Ingress) -> None:
    """Bare acknowledgements are let through even while datagrams use up the whole limit."""
    be = Receivers(lab, "be")
    ingress.sync(5 * MBIT, [be.id], be.open_dir)
    be.flood(5000, "--proto", "udp", "--mbit", "50")
    be.sink.settled_rate_bps((5000,), 0.2)
    lab.send(5001, "--mbit", "100", cgroup=be.path)
    assert lab.sink().settled_rate_bps((5001,), 1.5)[5001] > 80 * MBIT


def test_a_limit_that_moves_or_goes_holds_from_then_on(lab: Lab, ingress: Ingress) -> None:
    be = Receivers(lab, "be")
    ingress.sync(10 * MBIT, [be.id], be.open_dir)
    be.flood(5000, "--proto", "udp", "--mbit", "100")
    be.sink.settled_rate_bps((5000,), 0.5)
    assert be.sink.rate_bps(1.5)[5000] < 12 * MBIT
    ingress.sync(40 * MBIT, [be.id], be.open_dir)
    be.sink.rate_bps(0.5)
    assert be.sink.rate_bps(1.5)[5000] == pytest.approx(40 * MBIT, rel=0.15)
    ingress.detach()
    be.sink.rate_bps(0.2)
    assert be.sink.rate_bps(1.0)[5000] > 80 * MBIT


def test_two_be_workloads_share_one_limit(lab: Lab, ingress: Ingress) -> None:
    one, other = Receivers(lab, "one", range(5000, 5001)), Receivers(lab, "other", range(5001, 5002))
    both = {each.id: each for each in (one, other)}
    ingress.sync(20 * MBIT, both, lambda cgroup: both[cgroup].open_dir(cgroup))
    one.flood(5000, "--proto", "udp", "--mbit", "60")
    other.flood(5001, "--proto", "udp", "--mbit", "60")
    other.sink.settled_rate_bps((5001,), 0.2)
    (begin, first), (_, second) = one.sink.bytes(), other.sink.bytes()
    time.sleep(2.0)
    (end, third), (_, fourth) = one.sink.bytes(), other.sink.bytes()
    came = third[5000] - first[5000] + fourth[5001] - second[5001]
    assert came * 8 / (end - begin) == pytest.approx(20 * MBIT, rel=0.15)
