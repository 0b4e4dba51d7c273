"""Decoding of what the probes leave in maps and rings."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qosd.ebpf.histogram import EMPTY, SLOTS, Histogram, delta, slot_bounds_ns
from qosd.ebpf.samples import (
    IoKey,
    ReclaimKey,
    RunqBlame,
    RunqBreach,
    RunqWaits,
    Tcp,
    Traffic,
    blames_delta,
    blkio_sample,
    decode_histogram,
    decode_io,
    decode_io_key,
    decode_reclaim_key,
    decode_runq_blame,
    decode_runq_breach,
    decode_runq_cpus,
    decode_runq_waits,
    decode_tcp,
    decode_traffic,
    reclaim_sample,
    tcp_sample,
)
from qosd.model import CgroupId

counts = st.lists(st.integers(0, 2**40), min_size=SLOTS, max_size=SLOTS).map(tuple)
histograms = st.builds(Histogram, slots=counts, total_ns=st.integers(0, 2**60))


def histogram(**slots: int) -> Histogram:
    values = [0] * SLOTS
    for name, count in slots.items():
        values[int(name.removeprefix("s"))] = count
    return Histogram(slots=tuple(values), total_ns=1000 * sum(values))


def blame(culprit: int, ns: int, count: int) -> RunqBlame:
    return RunqBlame(victim=CgroupId(1), culprit=CgroupId(culprit), culprit_root=None, ns=ns, count=count)


def test_slots_cover_every_nanosecond_once() -> None:
    bounds = [slot_bounds_ns(slot) for slot in range(SLOTS)]
    assert bounds[0] == (0, 1024)
    assert bounds[1] == (1024, 2048)
    assert all(earlier[1] == later[0] for earlier, later in itertools.pairwise(bounds))
    assert bounds[-1][0] == 1 << 32


def test_quantiles_of_an_empty_histogram_are_unknown() -> None:
    assert histogram().quantile_ns(0.5) is None


def test_a_quantile_lies_where_the_count_is() -> None:
    values = histogram(s0=99, s10=1)
    assert values.quantile_ns(0.5) == pytest.approx(1024 * 49.5 / 99, rel=0.02)
    p999 = values.quantile_ns(0.999)
    assert p999 is not None
    assert slot_bounds_ns(10)[0] <= p999 <= slot_bounds_ns(10)[1]


@given(histograms.filter(lambda h: h.count > 0), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_never_fall_as_q_grows(values: Histogram, p: float, q: float) -> None:
    low, high = values.quantile_ns(min(p, q)), values.quantile_ns(max(p, q))
    assert low is not None
    assert high is not None
    assert low <= high


@given(st.lists(st.integers(0, 2**32), min_size=1), st.floats(0.01, 0.99))
def test_a_quantile_is_within_a_factor_of_two_of_the_exact_one(waits: list[int], q: float) -> None:
    """Above the first slot; inside it nothing finer than a microsecond is known."""
    slots = [0] * SLOTS
    for ns in waits:
        slots[min(max((ns >> 10).bit_length(), 0), SLOTS - 1)] += 1
    estimate = Histogram(slots=tuple(slots), total_ns=sum(waits)).quantile_ns(q)
    ordered = sorted(waits)
    exact = ordered[min(max(0, -int(-q * len(ordered) // 1) - 1), len(ordered) - 1)]
    assert estimate is not None
    assert estimate <= 2 * max(exact, 512)
    assert estimate >= exact / 2 or exact < 1024


@given(histograms, histograms)
def test_the_difference_of_a_sum_is_what_was_added(one: Histogram, other: Histogram) -> None:
    assert one.plus(other).since(one) == other


def test_a_counter_that_went_back_is_unknown_not_zero() -> None:
    assert delta({1: histogram(s3=5)}, {1: histogram(s3=4)}) == {}


def test_what_is_new_counts_from_zero_and_what_is_gone_is_not_there() -> None:
    assert delta({1: histogram(s3=5)}, {2: histogram(s4=7)}) == {2: histogram(s4=7)}


def test_blame_is_the_difference_or_all_of_it_after_an_eviction() -> None:
    earlier = [blame(10, 100, 5), blame(11, 100, 5), blame(12, 100, 5)]
    now = [blame(10, 150, 6), blame(11, 40, 2), blame(12, 100, 5), blame(13, 7, 1)]
    assert blames_delta(earlier, now) == (blame(10, 50, 1), blame(11, 40, 2), blame(13, 7, 1))


def test_waits_are_summed_over_the_cpus() -> None:
    one = struct.pack("=24Q4Q32x", *([1] * 24), 100, 20, 30, 4)
    two = struct.pack("=24Q4Q32x", *([2] * 24), 200, 1, 1, 1)
    expected = RunqWaits(
        waits=Histogram(slots=(3,) * 24, total_ns=300), idle_ns=21, unknown_ns=31, breaches=5
    )
    assert decode_runq_waits(one + two) == expected


def test_a_culprit_outside_of_every_root_has_none() -> None:
    expected = blame(9, 5, 2)
    assert decode_runq_blame(struct.pack("=2Q", 1, 9), struct.pack("=3Q", 5, 2, 0)) == expected


def test_a_breach_without_a_culprit_says_none() -> None:
    record = struct.pack("=7Q2I", 10, 20, 1, 2, 0, 0, 0, 3, 42)
    expected = RunqBreach(
        monotonic_ns=10,
        wait_ns=20,
        victim=CgroupId(1),
        victim_cgroup=CgroupId(2),
        culprit=None,
        culprit_root=None,
        culprit_ns=0,
        cpu=3,
        pid=42,
    )
    assert decode_runq_breach(record) == expected


def test_per_cpu_counters_are_summed() -> None:
    cpu = bytes(32 * 24 + 8) + struct.pack("=4Q", 1, 2, 3, 4) + bytes(24)
    total = decode_runq_cpus(cpu + cpu)
    assert (total.lost_events, total.new_blames, total.unseen, total.cost_ns) == (2, 4, 6, 8 * 64)


def test_what_an_lru_has_thrown_out_is_what_was_made_less_what_is_there() -> None:
    stalls = {ReclaimKey(workload=CgroupId(1), kind="direct"): histogram(s3=1)}
    sample = reclaim_sample(stalls, struct.pack("=2Q", 4, 10))
    assert (sample.evicted, sample.cost_ns) == (3, 640)
    io = blkio_sample({}, struct.pack("=3Q", 2, 5, 1))
    assert (io.evicted, io.untimed, io.cost_ns) == (2, 5, 64)


def test_a_request_is_named_as_io_stat_names_its_device() -> None:
    key = struct.pack("=Q2I", 7, 254 << 20 | 16, 1)
    assert decode_io_key(key) == IoKey(workload=CgroupId(7), device="254:16", op="write")
    assert decode_io_key(struct.pack("=Q2I", 0, 8 << 20, 34)) == IoKey(workload=None, device="8:0", op="op34")


def test_io_and_reclaim_and_traffic_are_decoded() -> None:
    values = struct.pack("=24Q2Q", *range(24), 5, 4096)
    assert decode_io(values + values).bytes == 8192
    assert decode_io(values).latency == decode_histogram(values[: 25 * 8])
    assert decode_reclaim_key(struct.pack("=Q2I", 3, 1, 0)) == ReclaimKey(workload=CgroupId(3), kind="memcg")
    assert decode_traffic(struct.pack("=4Q", 1, 2, 3, 4)) == Traffic(bytes=4, packets=6)


def test_round_trips_and_retransmits_are_decoded_and_subtracted() -> None:
    tcp = decode_tcp(struct.pack("=24Q2Q", *range(24), 5000, 3))
    assert (tcp.rtt.slots, tcp.rtt.total_ns, tcp.retransmits) == (tuple(range(24)), 5000, 3)
    assert tcp.since(Tcp(EMPTY, 1)) == Tcp(tcp.rtt, 2)
    assert Tcp(EMPTY, 0).since(tcp) is None
    sample = tcp_sample({CgroupId(1): tcp}, struct.pack("=2Q", 3, 2))
    assert (sample.evicted, sample.cost_ns) == (2, 128)
