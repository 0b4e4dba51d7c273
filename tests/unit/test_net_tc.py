"""What would be sent to the kernel for a shape, and what its answers mean."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qosd.net import drift, tc
from qosd.net.device import BE_CLASS, BE_TIER, HANDLE, LINK_CLASS, LS_CLASS, ClassNews
from qosd.net.model import ClassSample, Leaf, Shape
from qosd.plan import Reason

GBIT = 10**9
MBIT = 10**6


def shape(**changes: object) -> Shape:
    fields = {"speed_bps": GBIT, "floor_bps": 10 * MBIT, "ceil_bps": 900 * MBIT, **changes}
    return Shape(2, "eth0", reason=Reason("test", "test"), **fields)  # type: ignore[arg-type]


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


def test_the_governor_and_the_session_do_not_import_pyroute2_until_something_is_shaped() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import qosd.net.uplinks, qosd.net.shaping;"
        "sys.exit('pyroute2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(Path(tc.__file__).parents[2])], check=False)
    assert done.returncode == 0
