"""HTB as we build it, on a real kernel: what it holds, what it leaves alone, what is left of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import pytest
from netns.lab import Lab

from qosd.config import Ownership
from qosd.net import drift, shaping, undo
from qosd.net.config import Net
from qosd.net.device import BE_CLASS, BE_TIER, HANDLE, LINK_CLASS, LS_CLASS
from qosd.net.model import Leaf, NetSample, Shape
from qosd.net.monitor import Monitor
from qosd.net.survey import survey
from qosd.net.tc import Fault, Tc, TcError
from qosd.net.uplinks import Uplinks
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


def net(**changes: object) -> Net:
    return msgspec.structs.replace(Net(uplinks=("u0",), link_speed={"u0": GBIT}), **changes)  # type: ignore[dict-item]


def class_bytes(lab: Lab, tc: Tc) -> dict[int, int]:
    return {sample.classid: sample.bytes for sample in tc.classes(lab.link("u0").ifindex)}


def tick(
    uplinks: Uplinks, prev: NetSample | None, state: shaping.State, usec: int
) -> tuple[NetSample, shaping.State]:
    """What the daemon does in a tick."""
    uplinks.refresh(usec)
    now = uplinks.sample(usec)
    now = uplinks.read_classes(now, shaping.wants_classes(uplinks.config, prev, now, state))
    state, shapes = shaping.decide(uplinks.config, prev, now, state)
    uplinks.apply(shapes, usec)
    return now, state


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
    lab.send(5001, "--proto", "udp")
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


def test_a_foreign_root_qdisc_is_refused_and_left_alone(lab: Lab) -> None:
    lab.run("tc qdisc add dev u0 root handle 1: htb default 10")
    before = lab.dump()
    uplinks = Uplinks(net(), Ownership(), lab.host)
    events = uplinks.refresh(0)
    assert uplinks.refused == {"u0": "u0 has a root qdisc of somebody else: htb 1:"}
    assert [event.failed for event in events] == [True]
    uplinks.apply((shape(lab),), 0)
    uplinks.close()
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


def test_a_device_deleted_and_made_again_is_shaped_again(lab: Lab) -> None:
    uplinks = Uplinks(net(), Ownership(), lab.host)
    now, state = tick(uplinks, None, shaping.INITIAL, 0)
    assert lab.root("u0").is_ours
    old = lab.link("u0").ifindex
    lab.run("ip link del u0")
    assert uplinks.on_readable()
    now, state = tick(uplinks, now, state, 1_000_000)
    assert uplinks.refused == {"u0": "no such device"}
    assert not uplinks.held
    lab.add_uplink(0)
    assert uplinks.on_readable()
    now, state = tick(uplinks, now, state, 2_000_000)
    assert lab.link("u0").ifindex != old
    assert lab.root("u0").is_ours
    uplinks.close()
    assert lab.root("u0").kind == "noqueue"


def test_a_renamed_uplink_stays_shaped_and_is_released_under_its_new_name(lab: Lab) -> None:
    uplinks = Uplinks(net(), Ownership(), lab.host)
    now, state = tick(uplinks, None, shaping.INITIAL, 0)
    lab.run("ip link set u0 down")
    lab.run("ip link set u0 name wan")
    lab.run("ip link set wan up")
    assert uplinks.on_readable()
    events = uplinks.refresh(1_000_000)
    assert [event.text for event in events] == ["uplink u0 is called wan now; it stays shaped"]
    tick(uplinks, now, state, 1_000_000)
    assert lab.root("wan").is_ours
    assert [status.name for status in uplinks.status()] == ["wan"]
    uplinks.close()
    assert lab.root("wan").kind == "noqueue"


def test_auto_is_the_device_of_the_default_route(lab: Lab) -> None:
    lab.add_uplink(1)
    config = net(uplinks="auto", link_speed={"u0": GBIT, "u1": GBIT})
    uplinks = Uplinks(config, Ownership(), lab.host)
    uplinks.refresh(0)
    assert not uplinks.held
    lab.run("ip route add default via 10.9.1.2")
    lab.run("ip link set u1 mtu 1400")
    assert uplinks.on_readable()
    tick(uplinks, None, shaping.INITIAL, 1_000_000)
    assert [status.name for status in uplinks.status()] == ["u1"]
    assert lab.root("u1").is_ours
    uplinks.close()


def test_a_link_of_unknown_speed_is_refused_with_the_remedy(lab: Lab) -> None:
    uplinks = Uplinks(Net(uplinks=("lo",)), Ownership(), lab.host)
    uplinks.refresh(0)
    assert uplinks.refused == {"lo": "lo is the loopback device"}
    uplinks.close()
    # A bridge without ports has no speed, as a virtio device has none.
    lab.run("ip link add b0 type bridge")
    host = lab.host._replace(allow_kinds=frozenset({"bridge"}))
    uplinks = Uplinks(Net(uplinks=("b0",)), Ownership(), host)
    uplinks.refresh(0)
    assert uplinks.refused == {"b0": "the speed of b0 is unknown: set net.link_speed.b0"}
    uplinks.close()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Net(), []),
        (Net(uplinks="auto"), ["there is no default route"]),
        (Net(uplinks=("u0", "lo", "gone")), ["u0 can be shaped", "loopback", "no device gone"]),
    ],
)
def test_doctor_has_a_sentence_for_each_uplink(lab: Lab, config: Net, words: list[str]) -> None:
    found = survey(config, lab.host)
    assert len(found) == len(words)
    for finding, word in zip(found, words, strict=True):
        assert word in finding.text
        assert finding.ok is (finding.remedy is None)


def test_two_uplinks_are_shaped_each_on_its_own(lab: Lab) -> None:
    lab.add_uplink(1)
    before = lab.dump()
    config = net(uplinks=("u0", "u1"), link_speed={"u0": 100 * MBIT, "u1": 50 * MBIT})
    uplinks = Uplinks(config, Ownership(), lab.host)
    tick(uplinks, None, shaping.INITIAL, 0)
    assert {status.name: status.shape.ceil_bps for status in uplinks.status()} == {
        "u0": 90 * MBIT,
        "u1": 45 * MBIT,
    }
    lab.send(5000, "--priority", BE)
    lab.send(5001, "--priority", BE, to="10.9.1.2")
    rates = lab.sink().settled_rate_bps((5000, 5001), 1.5)
    assert rates[5000] == pytest.approx(90 * MBIT, rel=0.08)
    assert rates[5001] == pytest.approx(45 * MBIT, rel=0.08)
    uplinks.close()
    assert lab.dump() == before


def test_a_link_that_goes_down_keeps_its_shape_and_its_speed(lab: Lab) -> None:
    before = lab.dump()
    uplinks = Uplinks(net(), Ownership(), lab.host)
    now, state = tick(uplinks, None, shaping.INITIAL, 0)
    lab.run("ip link set u0 down")
    assert uplinks.on_readable()
    now, state = tick(uplinks, now, state, 1_000_000)
    assert [(status.operstate, status.error) for status in uplinks.status()] == [("down", None)]
    lab.run("ip link set u0 up")
    tick(uplinks, now, state, 2_000_000)
    assert lab.root("u0").is_ours
    uplinks.close()
    lab.until(lambda: lab.dump() == before)


def test_a_deleted_root_is_put_back_twice_and_then_left_alone(lab: Lab) -> None:
    uplinks = Uplinks(net(), Ownership(), lab.host)
    now, state = tick(uplinks, None, shaping.INITIAL, 0)
    for fight in (1, 2, 3):
        lab.run("tc qdisc del dev u0 root")
        assert uplinks.on_readable()
        now, state = tick(uplinks, now, state, fight * 1_000_000)
        assert lab.root("u0").is_ours is (fight < 3)
    assert "contested" in uplinks.status()[0].error
    uplinks.close()
    assert lab.root("u0").kind == "noqueue"


def test_a_root_that_replaced_ours_is_theirs(lab: Lab) -> None:
    uplinks = Uplinks(net(), Ownership(), lab.host)
    tick(uplinks, None, shaping.INITIAL, 0)
    lab.run("tc qdisc del dev u0 root")
    lab.run("tc qdisc add dev u0 root handle 5: htb default 1")
    before = lab.dump()
    assert uplinks.on_readable()
    uplinks.refresh(1_000_000)
    assert "somebody else: htb 5:" in uplinks.refused["u0"]
    uplinks.close()
    assert lab.dump() == before


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (
            "class change dev u0 classid a001:2 parent a001:1 htb rate 10mbit ceil 10gbit",
            "changed our class a001:2",
        ),
        ("class del dev u0 classid a001:20", "deleted our class a001:20"),
    ],
)
def test_a_class_that_somebody_changes_is_put_back_within_a_tick_and_no_war_follows(
    lab: Lab, command: str, what: str
) -> None:
    """The kernel tells of it, so that no reading is needed; what we do ourselves is no news."""
    uplinks = Uplinks(net(), Ownership(), lab.host)
    now, state = tick(uplinks, None, shaping.INITIAL, 0)
    uplinks.on_readable()
    assert uplinks.refresh(500_000) == ()
    wanted = {sample.classid: sample.ceil_bps for sample in uplinks.tc.classes(lab.link("u0").ifindex)}
    for fight in (1, 2, 3):
        lab.run(f"tc {command}")
        assert uplinks.on_readable()
        (event,) = uplinks.refresh(fight * 10_000_000)
        assert what in event.text
        for more in (0, 5_000_000):  # building anew waits for its turn
            now, state = tick(uplinks, now, state, fight * 10_000_000 + more)
        classes = {sample.classid: sample.ceil_bps for sample in uplinks.tc.classes(lab.link("u0").ifindex)}
        assert (classes == wanted) is (fight < 3)
        uplinks.on_readable()
    assert "contested" in (uplinks.status()[0].error or "")
    uplinks.close()
    assert lab.root("u0").kind == "noqueue"


def test_a_change_that_no_news_told_of_is_found_by_the_next_reading(lab: Lab) -> None:
    uplinks = Uplinks(net(), Ownership(), lab.host)
    now, state = tick(uplinks, None, shaping.INITIAL, 0)
    lab.run("tc class change dev u0 classid a001:2 parent a001:1 htb rate 10mbit ceil 10gbit")
    uplinks.monitor.read()
    for second in range(1, 4):
        now, state = tick(uplinks, now, state, second * 1_000_000)
    ceils = {sample.classid: sample.ceil_bps for sample in uplinks.tc.classes(lab.link("u0").ifindex)}
    assert ceils[BE_TIER] == 900 * MBIT
    uplinks.close()


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


def test_a_deleted_class_makes_us_build_anew(lab: Lab) -> None:
    uplinks = Uplinks(net(), Ownership(), lab.host)
    tick(uplinks, None, shaping.INITIAL, 0)
    lab.run("tc class del dev u0 classid a001:20")
    lab.run("tc class del dev u0 classid a001:2")
    first = uplinks.apply((shape(lab, ceil_bps=30 * MBIT),), 1_000_000)
    assert [event.failed for event in first] == [True]
    uplinks.apply((shape(lab, ceil_bps=30 * MBIT),), 10_000_000)
    assert {sample.classid for sample in uplinks.tc.classes(lab.link("u0").ifindex)} >= {BE_TIER, BE_CLASS}
    uplinks.close()


def test_a_kernel_without_htb_is_one_clear_line(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel answers ENOENT for a kind it cannot load; here it is asked for one that it does not have."""
    monkeypatch.setattr(Tc, "build", lambda self, wanted: self._send(_unknown_kind(wanted)))
    uplinks = Uplinks(net(), Ownership(), lab.host)
    tick(uplinks, None, shaping.INITIAL, 0)
    events = uplinks.apply((shape(lab),), 1_000_000)
    assert events == ()
    assert uplinks.degraded == "the kernel has no HTB (module sch_htb): BE egress is not shaped"
    uplinks.close()


def _unknown_kind(wanted: Shape) -> object:
    from qosd.net.tc import Request  # noqa: PLC0415 - beside its only use

    return Request("add", "drr", wanted.ifindex, HANDLE, (("parent", 0xFFFF_FFFF),))


def test_fq_codel_leaves_are_used_where_the_kernel_has_them_and_missed_quietly(lab: Lab, tc: Tc) -> None:
    tc.build(shape(lab))
    has = "fq_codel" in lab.run("tc qdisc show dev u0")
    assert tc.has_fq_codel is has


def test_a_steady_link_costs_at_most_ten_netlink_requests_a_minute(lab: Lab) -> None:
    uplinks = Uplinks(net(), Ownership(), lab.host)
    now, state = tick(uplinks, None, shaping.INITIAL, 0)
    for second in range(1, 5):
        now, state = tick(uplinks, now, state, second * 1_000_000)
    before = uplinks.tc.requests
    for second in range(5, 65):
        now, state = tick(uplinks, now, state, second * 1_000_000)
    assert uplinks.tc.requests - before <= 10
    uplinks.close()
