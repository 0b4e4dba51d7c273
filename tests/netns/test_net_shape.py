"""HTB as we build it, on a real kernel: what it holds, what it leaves alone, what is left of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from netns.lab import Lab

from qosd.net import drift, undo
from qosd.net.device import BE_CLASS, BE_TIER, LINK_CLASS, LS_CLASS
from qosd.net.model import Leaf, Shape
from qosd.net.monitor import Monitor
from qosd.net.tc import Fault, Tc, TcError
from qosd.plan import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.native

GBIT = 10**9
MBIT = 10**6
BE = f"{BE_CLASS:x}"


@pytest.fixture
def tc() -> Iterator[Tc]:
    connection = Tc()
    yield connection
    connection.close()


def shape(lab: Lab, **changes: object) -> Shape:
    base = Shape(
        lab.link("u0").ifindex, "u0", GBIT, 10 * MBIT, 50 * MBIT, Reason("test", "a test asks for it")
    )
    return msgspec.structs.replace(base, **changes)


def class_bytes(lab: Lab, tc: Tc) -> dict[int, int]:
    return {sample.classid: sample.bytes for sample in tc.classes(lab.link("u0").ifindex)}


@pytest.mark.parametrize(("proto", "to"), [("tcp", "10.9.0.2"), ("udp-gso", "fd09:0::2")])
def test_be_is_held_at_its_ceiling_and_ls_is_not(lab: Lab, tc: Tc, proto: str, to: str) -> None:
    tc.build(shape(lab))
    lab.send(5000, "--proto", proto, "--priority", BE, to=to)
    lab.send(5001, "--proto", proto, "--mbit", "200", to=to)
    lab.sink().settled_rate_bps((5000, 5001), 0.1)
    begin, before = time.monotonic(), class_bytes(lab, tc)
    rates = lab.sink().rate_bps(1.5)
    end, after = time.monotonic(), class_bytes(lab, tc)
    sent = {classid: 8 * (after[classid] - before[classid]) / (end - begin) for classid in after}
    assert sent[BE_CLASS] == pytest.approx(50 * MBIT, rel=0.04)
    assert 0 < rates[5000] < 51 * MBIT
    assert sent[LS_CLASS] > 190 * MBIT
    # Datagrams may be lost in the receiver's buffer when the machine is busy; then it is not the shaper's
    # doing.
    assert rates[5001] > (180 if proto == "tcp" else 100) * MBIT


def test_class_counters_tell_the_tiers_apart(lab: Lab, tc: Tc) -> None:
    tc.build(shape(lab))
    lab.send(5000, "--priority", BE)
    lab.send(5001, "--mbit", "100")
    lab.sink().settled_rate_bps((5000, 5001), 0.5)
    counted = {sample.classid: sample for sample in tc.classes(lab.link("u0").ifindex)}
    _, received = lab.sink().bytes()
    assert counted[BE_CLASS].bytes >= 0.9 * received[5000] > 0
    assert counted[LS_CLASS].bytes >= 0.9 * received[5001] > 0
    assert counted[BE_TIER].ceil_bps == pytest.approx(50 * MBIT, rel=1e-6)


def test_a_workload_with_its_own_limit_is_held_below_the_tiers_ceiling(lab: Lab, tc: Tc) -> None:
    tc.build(shape(lab, ceil_bps=100 * MBIT, leaves=(Leaf("backup", BE_CLASS + 1, 20 * MBIT),)))
    lab.send(5000, "--priority", BE)
    lab.send(5001, "--priority", f"{BE_CLASS + 1:x}")
    rates = lab.sink().settled_rate_bps((5000, 5001), 1.5)
    assert rates[5001] == pytest.approx(20 * MBIT, rel=0.08)
    assert rates[5000] + rates[5001] == pytest.approx(100 * MBIT, rel=0.08)


def test_ls_at_full_link_speed_leaves_be_its_floor(lab: Lab, tc: Tc) -> None:
    tc.build(shape(lab, speed_bps=100 * MBIT, floor_bps=10 * MBIT, ceil_bps=90 * MBIT))
    lab.send(5000, "--proto", "udp", "--priority", BE)
    # A socket that holds enough for a sender that has to wait for a CPU.
    lab.send(5001, "--proto", "udp", "--sndbuf", str(4 << 20))
    rates = lab.sink().settled_rate_bps((5000, 5001), 1.5)
    assert rates[5000] == pytest.approx(10 * MBIT, rel=0.15)
    assert rates[5001] == pytest.approx(90 * MBIT, rel=0.10)


def test_the_ceiling_moves_in_place_with_one_request(lab: Lab, tc: Tc) -> None:
    first = shape(lab)
    tc.build(first)
    sent = tc.requests
    second = msgspec.structs.replace(first, ceil_bps=80 * MBIT)
    tc.change(first, second)
    assert tc.requests == sent + 1
    tc.change(second, msgspec.structs.replace(second, reason=Reason("test", "another reason is no change")))
    assert tc.requests == sent + 1
    found = {sample.classid: sample.ceil_bps for sample in tc.classes(first.ifindex)}
    assert found[BE_TIER] == 80 * MBIT


@pytest.mark.parametrize("bps", [100_000, 10 * MBIT, GBIT, 40 * GBIT, 400 * GBIT])
def test_the_kernel_reads_back_the_rates_and_buckets_we_asked_for(lab: Lab, tc: Tc, bps: int) -> None:
    """Above 2^32 bytes per second the rate needs TCA_HTB_RATE64; pyroute2's own bucket would be 0 there."""
    tc.build(shape(lab, speed_bps=bps, floor_bps=bps // 100, ceil_bps=bps))
    found = {sample.classid: sample for sample in tc.classes(lab.link("u0").ifindex)}
    shown = lab.run("tc -d class show dev u0")
    assert found[BE_TIER].ceil_bps == pytest.approx(bps, rel=1e-6)
    assert found[LS_CLASS].rate_bps == pytest.approx(bps * 0.99, rel=1e-6, abs=8)
    assert " burst 0b" not in shown
    assert "cburst 0b" not in shown


def test_everything_is_byte_equal_after_release(lab: Lab, tc: Tc) -> None:
    before = lab.dump()
    tc.build(shape(lab, leaves=(Leaf("backup", BE_CLASS + 1, 20 * MBIT),)))
    assert lab.dump() != before
    assert undo.remove(lab.link("u0").ifindex)
    assert lab.dump() == before


def test_the_queues_of_a_multi_queue_device_come_back_byte_for_byte(lab: Lab, tc: Tc) -> None:
    """Its default root is mq, of which every queue has a qdisc of its own."""
    if not Path("/dev/net/tun").exists():
        pytest.skip("needs /dev/net/tun for a device with several queues")
    lab.run("ip tuntap add dev q0 mode tap multi_queue")
    lab.run("ip link set q0 up")
    before = lab.dump()
    assert "qdisc mq 0: dev q0 root" in before
    ifindex = lab.link("q0").ifindex
    tc.build(shape(lab, ifindex=ifindex))
    assert "qdisc mq 0: dev q0" not in lab.dump()
    assert undo.remove(ifindex)
    assert lab.dump() == before


def test_leftovers_of_a_crash_are_removed_and_nothing_else(lab: Lab, tc: Tc) -> None:
    lab.add_uplink(1)
    lab.run("tc qdisc add dev u1 root handle 1: htb default 10")
    before = lab.dump()
    tc.build(shape(lab))
    done = undo.remove_all()
    assert done == undo.Undone(removed=(lab.link("u0").ifindex,))
    assert lab.dump() == before
    assert undo.remove_all() == undo.Undone()


def test_a_root_of_somebody_else_with_our_handle_is_not_deleted(lab: Lab) -> None:
    lab.run("tc qdisc add dev u0 root handle a001: htb default 77")
    before = lab.dump()
    assert undo.remove_all() == undo.Undone()
    assert not undo.remove(lab.link("u0").ifindex)
    assert lab.dump() == before


def test_building_over_a_foreign_root_fails_and_leaves_it(lab: Lab, tc: Tc) -> None:
    """Between our look and our add somebody else was faster."""
    lab.run("tc qdisc add dev u0 root handle 1: htb default 10")
    before = lab.dump()
    with pytest.raises(TcError) as raised:
        tc.build(shape(lab))
    assert raised.value.fault is Fault.BUSY
    assert lab.dump() == before


def test_a_device_that_is_not_there_is_gone(lab: Lab, tc: Tc) -> None:
    with pytest.raises(TcError) as raised:
        tc.build(shape(lab, ifindex=9999))
    assert raised.value.fault is Fault.GONE


def test_a_link_of_40_gbit_is_built_as_wanted_and_its_classes_are_read_back(lab: Lab, tc: Tc) -> None:
    """Beyond 2^32 bytes/s, where rates have a second, wide attribute; and the kernel's news have it too."""
    ifindex = lab.link("u0").ifindex
    monitor = Monitor()
    wanted = shape(lab, speed_bps=40 * GBIT, floor_bps=400 * MBIT, ceil_bps=36 * GBIT)
    tc.build(wanted)
    classes = {sample.classid: (sample.rate_bps, sample.ceil_bps) for sample in tc.classes(ifindex)}
    assert classes[LINK_CLASS] == (40 * GBIT, 40 * GBIT)
    assert classes[BE_TIER] == (400 * MBIT, 36 * GBIT)
    assert drift.of_reading(wanted, tc.classes(ifindex)) is None
    news = [event.news for event in monitor.read() or () if event.news is not None]
    assert {each.classid: each.rates_bps for each in news} == classes
    assert drift.of_news(wanted, news) is None
    monitor.close()
    lab.send(5000, "--priority", BE)
    assert lab.sink().settled_rate_bps((5000,), 0.5)[5000] > 100 * MBIT


def test_fq_codel_leaves_are_used_where_the_kernel_has_them_and_missed_quietly(lab: Lab, tc: Tc) -> None:
    tc.build(shape(lab))
    has = "fq_codel" in lab.run("tc qdisc show dev u0")
    assert tc.has_fq_codel is has
