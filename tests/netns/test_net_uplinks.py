"""The uplinks of a run on a real kernel: found, refused, lost, contested, and given back."""

from __future__ import annotations

import msgspec
import pytest
from netns.lab import Lab

from qosd.config import Ownership
from qosd.net import shaping
from qosd.net.config import Net
from qosd.net.device import BE_CLASS, BE_TIER, HANDLE
from qosd.net.model import NetSample, Shape
from qosd.net.survey import survey
from qosd.net.tc import Request, Tc
from qosd.net.uplinks import Uplinks
from qosd.plan import Reason

pytestmark = pytest.mark.native

GBIT = 10**9
MBIT = 10**6
BE = f"{BE_CLASS:x}"


def shape(lab: Lab, **changes: object) -> Shape:
    base = Shape(
        lab.link("u0").ifindex, "u0", GBIT, 10 * MBIT, 50 * MBIT, Reason("test", "a test asks for it")
    )
    return msgspec.structs.replace(base, **changes)


def net(**changes: object) -> Net:
    return msgspec.structs.replace(Net(uplinks=("u0",), link_speed={"u0": GBIT}), **changes)  # type: ignore[dict-item]


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
    assert [(status.name, status.formerly) for status in uplinks.status()] == [("wan", ("u0",))]
    uplinks.close()
    assert lab.root("wan").kind == "noqueue"


def test_auto_is_the_device_of_the_default_route(lab: Lab) -> None:
    lab.add_uplink(1)
    config = net(uplinks="auto", link_speed={"u0": GBIT, "u1": GBIT})
    uplinks = Uplinks(config, Ownership(), lab.host)
    assert [event.text for event in uplinks.refresh(0)] == ["not shaped: there is no default route"]
    assert uplinks.refused == {"auto": "there is no default route"}
    lab.run("ip route add default via 10.9.1.2")
    assert uplinks.on_readable()
    tick(uplinks, None, shaping.INITIAL, 1_000_000)
    assert [status.name for status in uplinks.status()] == ["u1"]
    assert lab.root("u1").is_ours
    lab.run("ip route replace default via 10.9.0.2")
    assert uplinks.on_readable()
    tick(uplinks, None, shaping.INITIAL, 2_000_000)
    assert (lab.root("u0").is_ours, lab.root("u1").kind, uplinks.refused) == (True, "noqueue", {})
    uplinks.close()


def test_only_auto_listens_to_routes_and_a_reload_changes_that(lab: Lab) -> None:
    uplinks = Uplinks(net(), Ownership(), lab.host)
    tick(uplinks, None, shaping.INITIAL, 0)
    uplinks.on_readable()
    uplinks.refresh(500_000)
    lab.run("ip route add default via 10.9.0.2")
    assert not uplinks.on_readable()
    uplinks.reload(net(uplinks="auto"))
    uplinks.refresh(1_000_000)
    lab.run("ip route del default")
    assert uplinks.on_readable()
    uplinks.close()


def test_what_is_refused_is_said_once_however_many_devices_come_and_go(lab: Lab) -> None:
    lab.run("tc qdisc add dev u0 root handle 1: htb default 10")
    uplinks = Uplinks(net(uplinks=("u0", "u7"), forwarded_mark=1), Ownership(), lab.host)
    said = {(event.uplink, event.text) for event in uplinks.refresh(0)}
    foreign = "not shaped: u0 has a root qdisc of somebody else: htb 1:"
    assert said == {("u0", foreign), ("u7", "not shaped: no such device")}
    lab.run("ip link add x0 type bridge")
    assert uplinks.on_readable()
    assert uplinks.refresh(1_000_000) == ()
    lab.run("tc qdisc del dev u0 root")
    lab.run("tc qdisc add dev u0 root handle 2: htb default 10")
    assert uplinks.on_readable()
    assert [event.text for event in uplinks.refresh(2_000_000)] == [foreign.replace("1:", "2:")]
    lab.run("tc qdisc del dev u0 root")
    assert uplinks.on_readable()
    tick(uplinks, None, shaping.INITIAL, 3_000_000)
    assert lab.root("u0").is_ours
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
    monkeypatch.undo()
    uplinks.reload(net())
    tick(uplinks, None, shaping.INITIAL, 60_000_000)
    assert (uplinks.degraded, lab.root("u0").is_ours) == (None, True)
    uplinks.close()


def _unknown_kind(wanted: Shape) -> object:
    return Request("add", "drr", wanted.ifindex, HANDLE, (("parent", 0xFFFF_FFFF),))


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
