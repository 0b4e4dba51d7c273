"""Which devices may be shaped, how links and events are read, and what would be sent."""

from __future__ import annotations

import errno
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qosd.net import drift, links, monitor, rtnl, tc
from qosd.net.config import Net, check, parse_bitrate, parse_dscp
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
from qosd.net.model import ClassSample, Leaf, Shape
from qosd.plan import Reason

GBIT = 10**9
MBIT = 10**6
ETH = LinkSample(2, "eth0", physical=True, operstate="up", speed_mbit=1000)
DEFAULT = QdiscSample(2, "pfifo_fast", 0)


def shape(**changes: object) -> Shape:
    fields = {"speed_bps": GBIT, "floor_bps": 10 * MBIT, "ceil_bps": 900 * MBIT, **changes}
    return Shape(2, "eth0", reason=Reason("test", "test"), **fields)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("speed", [GBIT, 40 * GBIT])
def test_a_class_that_is_not_as_applied_is_named(speed: int) -> None:
    applied = shape(speed_bps=speed, leaves=(Leaf("x", BE_CLASS + 0x10, 5 * MBIT),))
    requests = [r for r in tc.build_requests(applied) if r.command == "add-class"]
    options = {request.handle: dict(request.options) for request in requests}
    rates = {handle: (8 * each["rate"], 8 * each["ceil"]) for handle, each in options.items()}
    samples = tuple(ClassSample(number, 0, 0, 0, *each) for number, each in rates.items())
    news = tuple(ClassNews(number, each) for number, each in rates.items())
    assert drift.of_reading(applied, samples) is None
    assert drift.of_news(applied, news) is None
    assert drift.of_news(applied, ()) is None
    assert drift.of_reading(applied, samples[:-1]) == "somebody deleted our class a001:30"
    changed = ClassNews(BE_TIER, (8000, 16_000))
    assert drift.of_news(applied, (*news, changed)) == "somebody changed our class a001:2"
    assert drift.of_news(applied, (changed, *news)) is None
    assert drift.of_news(applied, (ClassNews(BE_CLASS, None),)) == "somebody deleted our class a001:20"
    assert drift.of_news(applied, (ClassNews(HANDLE | 0x999, (1, 1)),)) is None


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


@pytest.mark.parametrize(
    ("bps", "burst"),
    [
        (10 * MBIT, 65_536),
        (100 * MBIT, 65_536),
        (GBIT, 125_000),
        (40 * GBIT, 5_000_000),
        (400 * GBIT, 50_000_000),
    ],
)
def test_a_bucket_holds_a_largest_packet_or_a_millisecond(bps: int, burst: int) -> None:
    assert tc.burst_bytes(bps) == burst


def test_be_makes_up_for_ten_milliseconds_below_its_ceil_and_the_link_for_one() -> None:
    """BE borrows from the link class, whose small bucket is what the device sees."""
    requests = tc.build_requests(shape(speed_bps=40 * GBIT, floor_bps=400 * MBIT, ceil_bps=36 * GBIT))
    options = {request.handle: dict(request.options) for request in requests}
    assert {number: options[number]["cburst"] for number in (LINK_CLASS, LS_CLASS, BE_TIER, BE_CLASS)} == {
        LINK_CLASS: 5_000_000, LS_CLASS: 5_000_000, BE_TIER: 45_000_000, BE_CLASS: 50_000_000,
    }  # fmt: skip
    assert options[BE_TIER]["burst"] == 65_536


def test_the_tree_is_built_from_the_root_down() -> None:
    requests = tc.build_requests(shape(leaves=(Leaf("backup", BE_CLASS + 1, 5 * MBIT),)))
    assert [request.handle for request in requests[:6]] == [
        HANDLE, LINK_CLASS, LS_CLASS, BE_TIER, BE_CLASS, BE_CLASS + 1,
    ]  # fmt: skip
    parents = {request.handle: dict(request.options)["parent"] for request in requests}
    for request in requests[1:]:
        assert parents[request.handle] in parents
    assert all(request.optional for request in requests if request.kind == "fq_codel")


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_floors_of_all_classes_add_up_to_the_link_and_no_more(count: int) -> None:
    leaves = tuple(Leaf(str(i), BE_CLASS + 1 + i, 500 * MBIT) for i in range(count))
    requests = tc.build_requests(shape(leaves=leaves))
    rates = {r.handle: dict(r.options).get("rate", 0) for r in requests}
    assert rates[LS_CLASS] + rates[BE_TIER] <= rates[LINK_CLASS]
    assert sum(rates[BE_CLASS + i] for i in range(count + 1)) <= rates[BE_TIER]


def test_only_a_moved_ceiling_is_sent() -> None:
    before = shape()
    assert tc.change_requests(before, shape()) == ()
    (request,) = tc.change_requests(before, shape(ceil_bps=500 * MBIT)) or ()
    assert (request.command, request.handle) == ("change-class", BE_TIER)
    assert dict(request.options)["ceil"] == 500 * MBIT // 8


def test_other_leaves_need_a_new_tree() -> None:
    assert tc.change_requests(shape(), shape(leaves=(Leaf("x", BE_CLASS + 1, MBIT),))) is None


def test_a_faster_link_changes_every_class_in_place() -> None:
    requests = tc.change_requests(shape(), shape(speed_bps=10 * GBIT, floor_bps=100 * MBIT))
    assert [request.handle for request in requests or ()] == [LINK_CLASS, LS_CLASS, BE_TIER, BE_CLASS]


def test_the_socket_is_renewed_before_the_librarys_sequence_numbers_run_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []

    class Fake:
        def __init__(self) -> None:
            opened.append("open")

        def tc(self, _command: str, **_options: object) -> list[object]:
            return []

        def get_classes(self, index: int) -> list[object]:
            assert index == 2
            return []

        def close(self) -> None:
            opened.append("close")

    monkeypatch.setattr("pyroute2.IPRoute", Fake)
    connection = tc.Tc()
    for _ in range(40_001):
        connection.classes(2)
    assert opened == ["open", "close", "open", "close", "open"]
    assert connection.requests == 40_001


@pytest.mark.parametrize(
    ("code", "command", "fault"),
    [
        (errno.ENOENT, "add", tc.Fault.MISSING),
        (errno.ENOENT, "change-class", tc.Fault.GONE),
        (errno.ENODEV, "add", tc.Fault.GONE),
        (errno.EEXIST, "add", tc.Fault.BUSY),
        (errno.EPERM, "add", tc.Fault.DENIED),
        (errno.EINVAL, "add", tc.Fault.OTHER),
    ],
)
def test_every_refusal_of_the_kernel_has_a_word(
    monkeypatch: pytest.MonkeyPatch, code: int, command: str, fault: tc.Fault
) -> None:
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 - beside its only use

    class Fake:
        def tc(self, _command: str, **_options: object) -> list[object]:
            raise NetlinkError(code)

        def close(self) -> None:
            """Nothing to close."""

    monkeypatch.setattr("pyroute2.IPRoute", Fake)
    with pytest.raises(tc.TcError) as raised:
        tc.Tc()._send(tc.Request(command, "htb", 2, HANDLE))
    assert raised.value.fault is fault


class Message(dict[str, int]):
    """As pyroute2 decodes an RTM_NEWTCLASS."""

    def __init__(self, ifindex: int, handle: int, kind: str) -> None:
        super().__init__(index=ifindex, handle=handle)
        self.attributes: dict[str, object] = {"TCA_KIND": kind}
        if kind == "htb":
            rate = Message(0, 0, "")
            rate.attributes = {"TCA_HTB_PARMS": {"rate": 125, "ceil": 250}}
            counts = Message(0, 0, "")
            counts.attributes = {
                "TCA_STATS_BASIC": {"bytes": 10, "packets": 1},
                "TCA_STATS_QUEUE": {"drops": 2, "backlog": 3},
            }
            self.attributes |= {"TCA_OPTIONS": rate, "TCA_STATS2": counts}

    def get_attr(self, name: str) -> object:
        return self.attributes.get(name)


def test_of_a_dump_only_our_own_classes_are_read() -> None:
    """fq_codel leaves dump the flows in them as classes that have no rate."""
    dump = [
        Message(2, BE_CLASS, "htb"),
        Message(2, 0xA020_0001, "fq_codel"),
        Message(2, 0x1_0001, "htb"),
        Message(3, BE_CLASS, "htb"),
    ]
    connection = tc.Tc()
    connection.route = SimpleNamespace(get_classes=lambda **_: dump)  # type: ignore[assignment]
    (only,) = connection.classes(2)
    assert (only.classid, only.bytes, only.drops, only.ceil_bps) == (BE_CLASS, 10, 2, 2000)


def test_undo_and_the_monitor_import_the_standard_library_only() -> None:
    """ExecStopPost must work with a broken virtualenv; `-S` hides site-packages."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import qosd.net.undo, qosd.net.monitor;"
        "known = (*sys.stdlib_module_names, 'qosd', '__main__');"
        "outside = [name for name in sys.modules if name.split('.')[0] not in known];"
        "sys.exit(repr(outside) if outside else 0)"
    )
    root = str(Path(tc.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, root], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_governor_and_the_session_do_not_import_pyroute2_until_something_is_shaped() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import qosd.net.uplinks, qosd.net.shaping;"
        "sys.exit('pyroute2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(Path(tc.__file__).parents[2])], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("text", "bps"),
    [("200Mbit", 200 * MBIT), ("1Gbit", GBIT), ("2.5Gbit", 2_500 * MBIT), ("500 kbit", 500_000)],
)
def test_rates_are_written_with_their_unit(text: str, bps: int) -> None:
    assert parse_bitrate(text) == bps


@pytest.mark.parametrize("text", ["200", "200MB", "-1Mbit", "1kbit", "2000Gbit", "Mbit"])
def test_rates_without_a_unit_or_out_of_range_are_errors(text: str) -> None:
    with pytest.raises(ValueError, match="expected a rate"):
        parse_bitrate(text)


@pytest.mark.parametrize(
    ("text", "dscp"), [("CS1", 8), ("LE", 1), ("EF", 46), ("AF41", 34), ("AF13", 14), ("63", 63)]
)
def test_dscp_names_are_those_of_the_rfcs(text: str, dscp: int) -> None:
    assert parse_dscp(text) == dscp


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Net(dscp_be="CS9"), "net.dscp_be"),
        (Net(dscp_ls="64"), "net.dscp_ls"),
        (Net(forwarded_mark=0x300), "net.forwarded_mark"),
        (Net(be_floor_pct=50, egress_target_pct=50), "net.be_floor_pct"),
        (Net(uplinks=("eth0",), link_speed={"eth1": parse_bitrate("1Gbit")}), "net.link_speed.eth1"),
    ],
)
def test_a_bad_section_names_its_key(net: Net, words: str) -> None:
    assert words in (check(net) or "")
    assert check(Net()) is None
