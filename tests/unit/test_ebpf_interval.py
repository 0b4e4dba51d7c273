"""What the probes counted between two reads, workload by workload."""

from __future__ import annotations

from qosd.ebpf.histogram import EMPTY, SLOTS, Histogram
from qosd.ebpf.interval import between
from qosd.ebpf.samples import (
    BlkioSample,
    Io,
    IoKey,
    ReclaimKey,
    ReclaimSample,
    RunqBlame,
    RunqSample,
    RunqWaits,
    Tcp,
    TcpSample,
    TracingSample,
)
from qosd.model import CgroupId, Preemptor

LS, BE, JOB = CgroupId(1), CgroupId(2), CgroupId(3)


def waits(count: int) -> Histogram:
    return Histogram(slots=(0, 0, count, *(0,) * (SLOTS - 3)), total_ns=3000 * count)


def runq(count: int, blames: tuple[RunqBlame, ...] = ()) -> RunqSample:
    workloads = {LS: RunqWaits(waits=waits(count), idle_ns=count, unknown_ns=0, breaches=count // 10)}
    return RunqSample(workloads=workloads, blames=blames, lost_events=0, evicted=0, unseen=0, cost_ns=0)


def test_the_first_read_tells_of_all_since_the_probes_were_opened() -> None:
    (ls,) = between(None, TracingSample(runq(50), None, None), [LS])
    assert ls.runq == waits(50)
    assert ls.breaches == 5


def test_between_two_reads_only_what_was_added_counts() -> None:
    blames = [RunqBlame(LS, JOB, BE, ns, count) for ns, count in ((100, 1), (900, 4))]
    earlier = TracingSample(runq(50, (blames[0],)), None, None)
    (ls,) = between(earlier, TracingSample(runq(70, (blames[1],)), None, None), [LS])
    assert ls.runq == waits(20)
    assert ls.idle_ns == 20
    assert ls.preemptors == (Preemptor(JOB, BE, 800, 3),)


def test_a_probe_that_does_not_run_is_unknown_and_one_without_a_stall_is_none() -> None:
    (ls,) = between(None, TracingSample(None, ReclaimSample({}, 0), None), [LS])
    assert ls.runq is None
    assert ls.blkio is None
    assert ls.reclaim == EMPTY
    assert ls.reclaim_memcg == EMPTY


def test_stalls_are_told_apart_by_kind_and_flushes_are_not_block_latency() -> None:
    stalls = {ReclaimKey(LS, "memcg"): waits(3), ReclaimKey(BE, "direct"): waits(9)}
    io = {
        IoKey(LS, "254:0", "read"): Io(waits(2), 8192),
        IoKey(LS, "254:16", "write"): Io(waits(1), 4096),
        IoKey(LS, "254:0", "flush"): Io(waits(7), 0),
        IoKey(None, "254:0", "write"): Io(waits(7), 0),
    }
    ls, be = between(None, TracingSample(None, ReclaimSample(stalls, 0), BlkioSample(io, 0, 0)), [LS, BE])
    assert (ls.reclaim, ls.reclaim_memcg) == (EMPTY, waits(3))
    assert (be.reclaim, be.reclaim_memcg) == (waits(9), EMPTY)
    assert ls.blkio == waits(3)
    assert be.blkio == EMPTY


def test_without_the_tcp_probe_it_is_unknown_and_with_it_nobodys_packets_are_none() -> None:
    (unknown,) = between(None, TracingSample(None, None, None), [LS])
    assert (unknown.tcp_rtt, unknown.tcp_retransmits) == (None, None)
    earlier = TracingSample(None, None, None, TcpSample({LS: Tcp(waits(3), 2)}, 0))
    now = TracingSample(None, None, None, TcpSample({LS: Tcp(waits(5), 6)}, 0))
    ls, be = between(earlier, now, [LS, BE])
    assert (ls.tcp_rtt, ls.tcp_retransmits) == (waits(2), 4)
    assert (be.tcp_rtt, be.tcp_retransmits) == (EMPTY, 0)
