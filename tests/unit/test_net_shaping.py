"""The ceiling governor as tables and properties."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qosd.net import shaping
from qosd.net.config import Net
from qosd.net.device import BE_TIER, LS_CLASS, LinkSample
from qosd.net.model import ClassSample, NetSample, Shape, UplinkSample

GBIT = 10**9
MBIT = 10**6
SECOND = 1_000_000
CONFIG = Net(uplinks=("eth0",))
LINK = LinkSample(2, "eth0", physical=True)


class Wire:
    """Counters of an uplink that a test drives with rates: what the kernel would have counted."""

    def __init__(self, speed_bps: int = GBIT, *, bpf: bool = True) -> None:
        self.speed_bps = speed_bps
        self.bpf = bpf
        self.usec = 0
        self.ls = self.be = self.counted = 0
        self.prev: NetSample | None = None
        self.state = shaping.INITIAL
        self.reads = 0

    def tick(
        self,
        ls_bps: float,
        be_bps: float,
        *,
        seconds: float = 1.0,
        config: Net = CONFIG,
        read: bool | None = None,
        offered_bps: float | None = None,
    ) -> Shape:
        """`offered_bps`: what BE hands on and BPF counts, where it is not what its class sends."""
        self.usec += int(seconds * SECOND)
        self.ls += int(ls_bps * seconds / 8)
        self.be += int(be_bps * seconds / 8)
        self.counted += int((be_bps if offered_bps is None else offered_bps) * seconds / 8)
        counted = self.counted if self.bpf else None
        uplink = UplinkSample(LINK, self.speed_bps, self.ls + self.be, be_counted_bytes=counted)
        now = NetSample(self.usec, (uplink,))
        wanted = shaping.wants_classes(config, self.prev, now, self.state) if read is None else read
        if wanted:
            self.reads += 1
            uplink = msgspec.structs.replace(now.uplinks[0], classes=self.classes())
            now = msgspec.structs.replace(now, uplinks=(uplink,))
        self.state, (shape,) = shaping.decide(config, self.prev, now, self.state)
        self.prev = now
        return shape

    def classes(self) -> tuple[ClassSample, ...]:
        return (
            ClassSample(LS_CLASS, self.ls, 0, 0, GBIT, GBIT),
            ClassSample(BE_TIER, self.be, 0, 0, 0, 0),
        )


def settled(ls_bps: float, be_bps: float = 0, ticks: int = 30, *, bpf: bool = True) -> tuple[Wire, Shape]:
    wire = Wire(bpf=bpf)
    shape = wire.tick(ls_bps, be_bps)
    for _ in range(ticks):
        shape = wire.tick(ls_bps, min(be_bps, shape.ceil_bps))
    return wire, shape


@pytest.mark.parametrize(
    ("ls_mbit", "ceil_mbit", "clamp"),
    [
        (0, 900, None),
        (100, 800, None),
        (500, 400, None),
        (889, 11, None),
        (895, 10, "floor"),
        (2000, 10, "floor"),
    ],
)
def test_the_ceiling_is_what_the_target_leaves_after_ls(
    ls_mbit: int, ceil_mbit: int, clamp: str | None
) -> None:
    _, shape = settled(ls_mbit * MBIT)
    assert shape.ceil_bps == pytest.approx(ceil_mbit * MBIT, abs=CONFIG.deadband_pct / 100 * GBIT)
    if clamp == "floor":
        assert shape.ceil_bps == shape.floor_bps
        assert shape.reason.clamp == "floor"


def test_nothing_is_known_in_the_first_tick_and_the_static_ceiling_stands() -> None:
    shape = Wire().tick(500 * MBIT, 0)
    assert shape.ceil_bps == 900 * MBIT
    assert shape.reason.rule == "net.shaping/hold"


@pytest.mark.parametrize("be_mbit", [800, 400, 300])
def test_be_yields_at_once_when_ls_steps_up(be_mbit: int) -> None:
    """With 300, LS took exactly what BE lost: the total does not say so, BPF's count of BE does."""
    wire, _ = settled(100 * MBIT, be_bps=GBIT)
    assert wire.tick(600 * MBIT, be_mbit * MBIT).ceil_bps <= 310 * MBIT


def test_a_flood_that_its_queue_drops_is_taken_for_no_more_than_the_ceiling() -> None:
    """BPF counts before the queue. On a full link the classes are read; the second reading is of one tick."""
    wire, shape = settled(100 * MBIT)
    for _ in range(30):
        shape = wire.tick(100 * MBIT, shape.ceil_bps, offered_bps=5 * GBIT)
    assert shape.ceil_bps == pytest.approx(800 * MBIT, abs=25 * MBIT)
    wire.tick(600 * MBIT, 400 * MBIT, offered_bps=5 * GBIT)
    assert wire.tick(600 * MBIT, 400 * MBIT, offered_bps=5 * GBIT).ceil_bps <= 310 * MBIT
    before = wire.reads
    for _ in range(60):
        shape = wire.tick(600 * MBIT, shape.ceil_bps, offered_bps=5 * GBIT)
    assert wire.reads - before <= 5


def test_without_bpf_a_hidden_exchange_is_seen_at_the_next_refresh() -> None:
    wire, _ = settled(100 * MBIT, be_bps=GBIT, bpf=False)
    ceilings = [wire.tick(600 * MBIT, 300 * MBIT).ceil_bps for _ in range(22)]
    assert ceilings[-1] <= 310 * MBIT


def test_be_yields_in_the_same_tick_even_after_ticks_without_a_reading() -> None:
    """BE at its ceiling, LS takes more: the total says so although the classes were not read for a while."""
    wire, before = settled(100 * MBIT, be_bps=GBIT, ticks=40)
    after = wire.tick(400 * MBIT, before.ceil_bps)
    assert after.ceil_bps == pytest.approx(500 * MBIT, abs=30 * MBIT)


def test_be_gets_back_only_a_share_of_the_link_per_second() -> None:
    wire, shape = settled(800 * MBIT)
    ceilings = [shape.ceil_bps, *(wire.tick(0, 0).ceil_bps for _ in range(35))]
    steps = [after - before for before, after in pairwise(ceilings)]
    assert max(steps) <= CONFIG.up_pct / 100 * GBIT
    assert min(steps) >= 0
    assert ceilings[-1] >= 880 * MBIT


def test_the_rise_is_per_second_and_not_per_tick() -> None:
    config = msgspec.structs.replace(CONFIG, hold_sec=0.1)
    wire = Wire()
    for _ in range(10):
        shape = wire.tick(880 * MBIT, 0, seconds=0.2, config=config)
    start = shape.ceil_bps
    for _ in range(5):
        shape = wire.tick(0, 0, seconds=0.2, config=config)
    assert shape.ceil_bps - start <= 100 * MBIT


def test_a_wobble_within_the_deadband_moves_nothing() -> None:
    wire, shape = settled(300 * MBIT)
    ceilings = {wire.tick((300 + wobble) * MBIT, 0).ceil_bps for wobble in (5, -5, 9, -9, 0, 7)}
    assert ceilings == {shape.ceil_bps}


def test_be_starting_from_idle_is_not_taken_for_ls_for_longer_than_a_tick() -> None:
    wire, before = settled(100 * MBIT, ticks=20)
    for _ in range(3):
        after = wire.tick(100 * MBIT, before.ceil_bps)
    assert after.ceil_bps == pytest.approx(before.ceil_bps, abs=20 * MBIT)


def test_a_steady_link_is_read_three_times_a_minute() -> None:
    wire, _ = settled(100 * MBIT, be_bps=GBIT)
    before = wire.reads
    for _ in range(60):
        wire.tick(100 * MBIT, 800 * MBIT)
    assert wire.reads - before <= 3


@pytest.mark.parametrize("wander_mbit", [5, 20, 50, 100])
@pytest.mark.parametrize("of_be", [0.0, 1.0])
def test_rates_that_wander_cost_at_most_ten_requests_a_minute(wander_mbit: int, of_be: float) -> None:
    """A request for each reading and each moved ceiling; LS's rate wanders, and BE's with it or not."""
    random = Random(wander_mbit)  # noqa: S311 - a sequence that is the same each time
    wire, shape = settled(300 * MBIT, be_bps=GBIT)
    requests = -wire.reads
    for _ in range(20 * 60):
        ls = max(0.0, random.gauss(300, wander_mbit)) * MBIT
        be = shape.ceil_bps - of_be * abs(random.gauss(0, wander_mbit)) * MBIT
        after = wire.tick(ls, max(0.0, be))
        requests += after.ceil_bps != shape.ceil_bps
        shape = after
    assert (requests + wire.reads) / 20 <= 10


def test_a_count_that_begins_or_ends_is_not_taken_for_traffic_that_did() -> None:
    """Until the count has been compared with the classes once more, what is known before it is not used."""
    wire, shape = settled(300 * MBIT, be_bps=GBIT, bpf=False)
    for wire.bpf in (True, False):
        ceilings = {wire.tick(300 * MBIT, shape.ceil_bps).ceil_bps for _ in range(30)}
        assert ceilings == {shape.ceil_bps}


def test_a_driver_that_counts_headers_of_segments_is_not_taken_for_ls() -> None:
    """BPF counts 64 KiB packets with one header, tx_bytes 45 of them: 4 % of BE more."""
    wire, shape = settled(100 * MBIT, be_bps=GBIT)
    for _ in range(60):
        shape = wire.tick(100 * MBIT, 700 * MBIT, offered_bps=670 * MBIT)
    assert shape.ceil_bps == pytest.approx(800 * MBIT, abs=25 * MBIT)


def test_what_goes_to_bes_class_unseen_is_not_taken_for_ls() -> None:
    wire, shape = settled(100 * MBIT)
    for _ in range(60):
        shape = wire.tick(100 * MBIT, 400 * MBIT, offered_bps=0)
    assert shape.ceil_bps == pytest.approx(800 * MBIT, abs=25 * MBIT)


def test_an_unknown_rate_holds_the_ceiling_and_then_releases_it() -> None:
    wire, shape = settled(600 * MBIT)
    held = shape.ceil_bps
    for tick in range(1, CONFIG.release_ticks + 2):
        now = NetSample(wire.usec + tick * SECOND, (UplinkSample(LINK, GBIT, None),))
        wire.state, (shape,) = shaping.decide(CONFIG, wire.prev, now, wire.state)
        wire.prev = now
        assert shape.ceil_bps == (held if tick <= CONFIG.release_ticks else 900 * MBIT)
    assert shape.reason.rule == "net.shaping/release"


def test_counters_that_went_back_are_unknown_and_not_negative() -> None:
    wire, shape = settled(600 * MBIT)
    wire.ls = wire.be = 0
    again = wire.tick(600 * MBIT, 0, read=True)
    assert again.ceil_bps == shape.ceil_bps
    assert again.reason.rule == "net.shaping/hold"


def test_a_link_that_became_slower_gets_a_smaller_ceiling_at_once() -> None:
    wire, _ = settled(0)
    wire.speed_bps = 100 * MBIT
    assert wire.tick(0, 0).ceil_bps <= 90 * MBIT


def test_every_be_workload_with_a_limit_has_a_class_of_its_own() -> None:
    now = NetSample(1, (UplinkSample(LINK, GBIT, 0),))
    _, (shape,) = shaping.decide(CONFIG, None, now, {}, limits=(("backup", 20 * MBIT), ("sync", 5 * MBIT)))
    assert [(leaf.workload, leaf.classid & 0xFFFF, leaf.ceil_bps) for leaf in shape.leaves] == [
        ("backup", 0x30, 20 * MBIT),
        ("sync", 0x40, 5 * MBIT),
    ]


def test_the_reason_names_link_egress_target_and_what_decided() -> None:
    _, shape = settled(500 * MBIT)
    assert shape.reason.rule == "net.shaping/ceiling"
    assert {item.name for item in shape.reason.inputs} == {
        "link",
        "ls_egress",
        "ls_egress_peak",
        "total_egress",
    }
    assert shape.reason.threshold == "egress_target_pct = 90"
    assert "BE may send 400.0 Mbit/s of 1.00 Gbit/s" in shape.reason.text


@settings(deadline=None)  # two cores may be somebody else's for a while
@given(st.lists(st.tuples(st.floats(0, 2e9), st.floats(0, 2e9), st.booleans()), min_size=1, max_size=40))
def test_the_ceiling_is_always_between_floor_and_target(ticks: list[tuple[float, float, bool]]) -> None:
    wire = Wire()
    for ls, be, read in ticks:
        shape = wire.tick(ls, be, read=read)
        assert shape.floor_bps <= shape.ceil_bps <= 900 * MBIT


@settings(deadline=None)  # two cores may be somebody else's for a while
@given(st.integers(0, 880), st.integers(0, 880))
def test_more_ls_never_means_more_be(one: int, other: int) -> None:
    low, high = sorted((one, other))
    deadband = CONFIG.deadband_pct / 100 * GBIT
    assert settled(high * MBIT)[1].ceil_bps <= settled(low * MBIT)[1].ceil_bps + deadband


@settings(deadline=None)  # two cores may be somebody else's for a while
@given(st.integers(0, 880))
def test_once_settled_the_same_ceiling_is_wanted_again(ls_mbit: int) -> None:
    wire, shape = settled(ls_mbit * MBIT, ticks=60)
    assert wire.tick(ls_mbit * MBIT, 0).ceil_bps == shape.ceil_bps
