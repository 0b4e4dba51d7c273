"""Which devices may be shaped, and how links and the kernel's news of them are read."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from qosd.net import links, monitor, rtnl
from qosd.net.device import (
    BE_CLASS,
    BE_TIER,
    HANDLE,
    LINK_CLASS,
    LS_CLASS,
    ClassNews,
    LinkSample,
    QdiscSample,
)

GBIT = 10**9
ETH = LinkSample(2, "eth0", physical=True, operstate="up", speed_mbit=1000)
DEFAULT = QdiscSample(2, "pfifo_fast", 0)


@pytest.mark.parametrize(
    ("link", "root", "word"),
    [
        (ETH._replace(name="lo", loopback=True, physical=False), None, "loopback"),
        (ETH._replace(name="v0", kind="veth", physical=False), None, "veth"),
        (ETH._replace(name="br0", kind="bridge", physical=False), None, "bridge"),
        (ETH._replace(name="wg0", kind="wireguard", physical=False), None, "wireguard"),
        (ETH._replace(name="cilium_host", physical=False), None, "container network"),
        (ETH._replace(name="docker0", physical=False), None, "container network"),
        (ETH._replace(name="odd0", physical=False), None, "not backed by a device"),
        (ETH._replace(master=7, slave_kind="bond"), None, "list the bond instead"),
        (ETH._replace(master=7, slave_kind="team"), None, "enslaved to a team"),
        (ETH, QdiscSample(2, "fq", 0x8001_0000), "somebody else: fq 8001:"),
        (ETH, QdiscSample(2, "mq", 0x1_0000), "somebody else: mq 1:"),
        (ETH, QdiscSample(2, "htb", HANDLE, 0x99), "somebody else: htb a001:"),
    ],
)
def test_what_is_not_ours_to_shape_is_refused_with_a_clear_word(
    link: LinkSample, root: QdiscSample | None, word: str
) -> None:
    why = links.refusal(link, root)
    assert why is not None
    assert word in why


@pytest.mark.parametrize(
    ("link", "root"),
    [
        (ETH, DEFAULT),
        (ETH, QdiscSample(2, "mq", 0)),
        (ETH, QdiscSample(2, "fq_codel", 0)),
        (ETH, None),
        (ETH._replace(master=7, slave_kind="bridge"), DEFAULT),
        (ETH, QdiscSample(2, "htb", HANDLE, LS_CLASS & 0xFFFF)),
        (ETH._replace(name="bond0", kind="bond", physical=False), DEFAULT),
        (ETH._replace(name="eth0.7", kind="vlan", physical=False), DEFAULT),
    ],
)
def test_a_physical_device_a_bond_and_a_vlan_with_the_kernels_default_root_may_be_shaped(
    link: LinkSample, root: QdiscSample | None
) -> None:
    assert links.refusal(link, root) is None


def test_ciliums_bandwidth_manager_is_left_alone() -> None:
    why = links.refusal(ETH, DEFAULT, bandwidth_manager=True)
    assert why is not None
    assert "Cilium" in why


def test_tests_may_shape_veth_only_by_saying_so() -> None:
    veth = LinkSample(3, "u0", kind="veth")
    assert links.refusal(veth, None) is not None
    assert links.refusal(veth, None, allow_kinds=frozenset({"veth"})) is None


@pytest.mark.parametrize(
    ("queues", "mbit", "asked"), [(8, 10_000, False), (9, 1000, True), (1, 25_000, True)]
)
def test_auto_leaves_fast_and_many_queued_devices_to_an_explicit_word(
    queues: int, mbit: int, *, asked: bool
) -> None:
    assert (links.reservation(ETH._replace(tx_queues=queues, speed_mbit=mbit)) is not None) is asked


@pytest.mark.parametrize(
    ("content", "expected"), [("1000\n", 1000), ("-1\n", None), ("40000\n", 40_000), (None, None)]
)
def test_an_unknown_speed_is_none(tmp_path: Path, content: str | None, expected: int | None) -> None:
    (tmp_path / "eth0").mkdir()
    if content is not None:
        (tmp_path / "eth0" / "speed").write_text(content, encoding="ascii")
    assert links.read_speed_mbit("eth0", str(tmp_path)) == expected


ROUTE = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0002A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
"""
ROUTE6 = """00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth1
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
"""  # noqa: E501 - as the kernel prints it


@pytest.mark.parametrize(
    ("route", "route6", "expected"),
    [(ROUTE, "", ("eth0",)), (ROUTE, ROUTE6, ("eth0", "eth1")), ("", ROUTE6, ("eth1",)), ("", "", ())],
)
def test_auto_means_the_default_routes_of_the_lowest_metric(
    route: str, route6: str, expected: tuple[str, ...]
) -> None:
    assert links.parse_default_routes(route, route6) == expected


@pytest.mark.parametrize(
    ("names", "present", "held", "expected"),
    [
        (("eth0",), {2: "eth0"}, {}, {"eth0": 2}),
        (("eth0",), {2: "lan0"}, {2: "eth0"}, {"eth0": 2}),
        (("eth0",), {2: "lan0", 5: "eth0"}, {2: "eth0"}, {"eth0": 5}),
        (("eth0",), {}, {2: "eth0"}, {}),
        (("eth0", "eth1"), {2: "eth1", 3: "eth0"}, {2: "eth0", 3: "eth1"}, {"eth0": 3, "eth1": 2}),
    ],
    ids=["found", "renamed", "name taken by a new device", "gone", "names swapped"],
)
def test_uplinks_are_found_by_name_and_kept_by_ifindex(
    names: tuple[str, ...], present: dict[int, str], held: dict[int, str], expected: dict[str, int]
) -> None:
    links_ = {ifindex: LinkSample(ifindex, name) for ifindex, name in present.items()}
    assert links.resolve(names, links_, held) == expected


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def class_body(kind: bytes, handle: int, rate: int, ceil: int, wide: tuple[int, int] | None = None) -> bytes:
    parms = struct.pack("=8xI8xI", rate, ceil) + bytes(20)
    options = attribute(1, parms)
    if wide is not None:
        options += attribute(6, struct.pack("=Q", wide[0])) + attribute(7, struct.pack("=Q", wide[1]))
    head = struct.pack("=BxxxiIII", 0, 8, handle, LINK_CLASS, 0)
    return head + attribute(1, kind + b"\0") + attribute(2 | 0x8000, options)


@pytest.mark.parametrize(
    ("kind", "body", "told"),
    [
        (40, class_body(b"htb", BE_TIER, 125, 250), ClassNews(BE_TIER, (1000, 2000))),
        (40, class_body(b"htb", BE_TIER, 2**32 - 1, 2**32 - 1, (5 * 10**9, 6 * 10**9)),
         ClassNews(BE_TIER, (40 * GBIT, 48 * GBIT))),
        (41, class_body(b"htb", BE_CLASS, 125, 250), ClassNews(BE_CLASS, None)),
        (40, class_body(b"htb", 0x1_0010, 125, 250), None),
        (40, class_body(b"fq_codel", BE_TIER, 125, 250), None),
    ],
    ids=["changed", "above 34 Gbit/s", "deleted", "another's", "another kind"],
)  # fmt: skip
def test_news_of_our_classes_have_their_rates(kind: int, body: bytes, told: ClassNews | None) -> None:
    expected = () if told is None else (monitor.LinkEvent(8, news=told),)
    assert monitor.parse_events(message(kind, body)) == expected


def test_what_sends_through_an_uplink_counts_as_sent_to_it() -> None:
    present = {
        2: LinkSample(2, "eth0", master=4),
        3: LinkSample(3, "eth0.7", kind="vlan", lower=2),
        4: LinkSample(4, "br0", kind="bridge"),
        5: LinkSample(5, "br0.9", kind="vlan", lower=4),
        6: LinkSample(6, "eth1"),
        7: LinkSample(7, "veth0", kind="veth", lower=2),
    }
    assert links.carried_by(2, present) == {2, 3, 4, 5}
    assert links.carried_by(6, present) == {6}


@pytest.mark.parametrize("kind", [rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE])
def test_of_routes_only_default_ones_are_events(kind: int) -> None:
    default = struct.pack("=8BI", 2, 0, 0, 0, 254, 4, 0, 1, 0)
    ordinary = struct.pack("=8BI", 2, 24, 0, 0, 254, 4, 0, 1, 0)
    events = monitor.parse_events(message(kind, ordinary) + message(kind, default))
    assert events == (monitor.LinkEvent(0, default_route=True),)


def test_events_are_of_links_root_qdiscs_and_our_classes() -> None:
    link = message(rtnl.RTM_NEWLINK, struct.pack("=BxHiII", 0, 1, 7, 0, 0) + attribute(3, b"eth7\0"))
    info = attribute(18, attribute(1, b"vlan\0"))
    vlan = message(rtnl.RTM_NEWLINK, struct.pack("=BxHiII", 0, 1, 6, 0, 0) + attribute(3, b"eth7.2\0") + info)
    root = message(rtnl.RTM_DELQDISC, struct.pack("=BxxxiIII", 0, 8, HANDLE, 0xFFFF_FFFF, 0))
    inner = message(rtnl.RTM_NEWQDISC, struct.pack("=BxxxiIII", 0, 9, 0, LS_CLASS, 0))
    klass = message(40, struct.pack("=BxxxiIII", 0, 8, BE_TIER, LINK_CLASS, 0))
    assert monitor.parse_events(link + vlan + root + inner + klass) == (
        monitor.LinkEvent(7, "eth7"),
        monitor.LinkEvent(6, "eth7.2", vlan=True),
        monitor.LinkEvent(8),
    )


@pytest.mark.parametrize("data", [b"\1\0", struct.pack("=IHHII", 500, 16, 0, 0, 0), b"\0" * 16])
def test_a_torn_netlink_message_is_an_error_and_not_an_endless_loop(data: bytes) -> None:
    with pytest.raises(ValueError, match="netlink"):
        list(rtnl.split(data))


def test_a_torn_attribute_is_an_error() -> None:
    with pytest.raises(ValueError, match="attribute"):
        rtnl.attributes(struct.pack("=HH", 40, 3) + b"eth0")


def test_undo_and_the_monitor_import_the_standard_library_only() -> None:
    """ExecStopPost must work with a broken virtualenv; `-S` hides site-packages."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import qosd.net.undo, qosd.net.monitor;"
        "known = (*sys.stdlib_module_names, 'qosd', '__main__');"
        "outside = [name for name in sys.modules if name.split('.')[0] not in known];"
        "sys.exit(repr(outside) if outside else 0)"
    )
    root = str(Path(links.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, root], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
