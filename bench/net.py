"""Network shaping on real kernel queues: network namespaces joined by a veth pair, BE and LS in cgroups of
their own.

`make bench-net`, or `bench/net.py [rate] [ping] [yield] [steady]` for a part. Needs root, cgroup2 and `make
bpf`. The veth pair has no speed of its own: the link is HTB's link class, so the figures are of queues, not
of a NIC.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import statistics
import struct
import sys
import time
from typing import TYPE_CHECKING

import msgspec
from netns.lab import Lab, missing

from qosd.config import Ownership
from qosd.ebpf.libbpf import Library
from qosd.ebpf.skbprio import ClassId, SkbPrio
from qosd.model import CgroupId
from qosd.net import shaping, undo
from qosd.net.config import Bitrate, Net
from qosd.net.device import BE_CLASS, BE_TIER
from qosd.net.model import NetSample, Shape
from qosd.net.tc import Tc
from qosd.net.uplinks import Uplinks
from qosd.plan import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GBIT, MBIT = 10**9, 10**6
RATE_ROUNDS, RATE_FLOWS, RATE_SECONDS = 3, 4, 5.0
PING_ROUNDS, PING_SECONDS, PING_EVERY = 6, 3.0, 0.005
YIELD_ROUNDS = 8
STEADY_SECONDS = 60


@contextlib.contextmanager
def bench_lab() -> Iterator[tuple[Lab, Path, SkbPrio]]:
    """A lab with a classified BE cgroup; everything is removed at the end."""
    lab = Lab()
    skbprio = SkbPrio.open(Library())
    try:
        be = lab.cgroup("be")
        fd = os.open(be, os.O_RDONLY | os.O_DIRECTORY)
        skbprio.attach(CgroupId(be.stat().st_ino), fd, ClassId(BE_CLASS >> 16, BE_CLASS & 0xFFFF))
        os.close(fd)
        yield lab, be, skbprio
    finally:
        lab.close()
        skbprio.close()


def shape(ifindex: int, speed: int, ceil: int) -> Shape:
    return Shape(ifindex, "u0", speed, speed // 100, ceil, Reason("bench", "the benchmark asks for it"))


def class_bytes(tc: Tc, ifindex: int, classid: int) -> int:
    return next(sample.bytes for sample in tc.classes(ifindex) if sample.classid == classid)


def spread(values: list[float], form: str = ".2f") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def bench_rate() -> None:
    print(
        f"BE rate against its ceiling, {RATE_FLOWS} flows, {RATE_ROUNDS} rounds of {RATE_SECONDS:g} s,"
        " median (range); target 2 %"
    )
    print(f"{'ceiling':>14} {'proto':>8} {'class counter, error %':>32} {'nothing waits, %':>32} {'load':>6}")
    for mbit in (10, 100, 1000):
        for proto in ("tcp", "udp-gso"):
            errors, empties = [], []
            for _ in range(RATE_ROUNDS):
                error, empty = one_rate(mbit * MBIT, proto)
                errors.append(error)
                empties.append(empty)
            print(
                f"{mbit:>7} Mbit/s {proto:>8} {spread(errors):>32} {spread(empties):>32}"
                f" {os.getloadavg()[0]:>6.1f}",
                flush=True,
            )


def one_rate(ceil: int, proto: str) -> tuple[float, float]:
    """(error in %, share of looks in % that found nothing waiting: then it is the senders who are late)"""
    with bench_lab() as (lab, be, _):
        tc, ifindex = Tc(), lab.link("u0").ifindex
        # The usual floor, 1 % of 10 Gbit/s, would be above the smallest ceiling.
        tc.build(msgspec.structs.replace(shape(ifindex, 10 * GBIT, ceil), floor_bps=MBIT))
        ports = tuple(range(5000, 5000 + RATE_FLOWS))
        for port in ports:
            lab.send(port, "--proto", proto, cgroup=be)
        lab.sink().settled_rate_bps(ports, 0.5)
        begin, before = time.monotonic(), class_bytes(tc, ifindex, BE_TIER)
        looks = []
        while time.monotonic() < begin + RATE_SECONDS:
            time.sleep(0.01)
            looks.append(next(each.backlog for each in tc.classes(ifindex) if each.classid == BE_CLASS))
        end, after = time.monotonic(), class_bytes(tc, ifindex, BE_TIER)
        tc.close()
        empty = 100 * sum(not backlog for backlog in looks) / len(looks)
        return 100 * ((after - before) * 8 / (end - begin) / ceil - 1), empty


def bench_ping() -> None:
    print(f"\nLS ping under a BE flood (8 TCP flows), {PING_ROUNDS} interleaved rounds of {PING_SECONDS:g} s")
    print("ms, median over rounds (range); target p99 at most 1.5 of frozen")
    print(f"{'link':>14} {'mode':>14} {'p50':>26} {'p99':>26} {'p99 / frozen':>14} {'load':>6}")
    for mbit in (100, 1000):
        results = ping_rounds(mbit * MBIT)
        frozen = statistics.median(p99 for _, p99 in results["frozen"])
        for mode, rounds in results.items():
            p50s, p99s = [p50 for p50, _ in rounds], [p99 for _, p99 in rounds]
            ratio = statistics.median(p99s) / frozen
            print(
                f"{mbit:>7} Mbit/s {mode:>14} {spread(p50s, '.3f'):>26} {spread(p99s, '.3f'):>26}"
                f" {ratio:>14.2f} {os.getloadavg()[0]:>6.1f}",
                flush=True,
            )


def ping_rounds(link: int) -> dict[str, list[tuple[float, float]]]:
    """ABBA over the modes. uncontrolled: the same link, one queue for all; qosd: BE in its class at 90 %."""
    results: dict[str, list[tuple[float, float]]] = {"frozen": [], "qosd": [], "uncontrolled": []}
    with bench_lab() as (lab, be, _):
        other = lab.cgroup("other")
        tc, ifindex = Tc(), lab.link("u0").ifindex
        tc.build(shape(ifindex, link, int(0.9 * link)))
        be_ports, other_ports = (5000, 5001), (5002, 5003)
        for cgroup, ports in ((be, be_ports), (other, other_ports)):
            for _ in range(4):
                for port in ports:
                    lab.send(port, cgroup=cgroup)
        lab.sink().settled_rate_bps(be_ports + other_ports, 0.1)
        order = list(results)
        for index in range(PING_ROUNDS):
            for mode in order if index % 2 == 0 else reversed(order):
                freeze(be, frozen=mode != "qosd")
                freeze(other, frozen=mode != "uncontrolled")
                still = {"frozen": (be_ports + other_ports), "qosd": other_ports, "uncontrolled": be_ports}[
                    mode
                ]
                drain(lab, still)
                results[mode].append(ping("10.9.0.2", PING_SECONDS))
        freeze(be, frozen=False)
        freeze(other, frozen=False)
        tc.close()
    return results


def drain(lab: Lab, ports: tuple[int, ...]) -> None:
    """A frozen process's kernel goes on sending what its sockets hold, megabytes each: wait for the end of
    that."""
    deadline = time.monotonic() + 30
    while any(rate for port, rate in lab.sink().rate_bps(0.3).items() if port in ports):
        assert time.monotonic() < deadline, f"traffic on {ports} although frozen"


def freeze(cgroup: Path, *, frozen: bool) -> None:
    (cgroup / "cgroup.freeze").write_text(str(int(frozen)), encoding="ascii")


def ping(to: str, seconds: float) -> tuple[float, float]:
    """(p50, p99) of ICMP echo in ms, one every 5 ms; the peer's kernel answers, no process takes part."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    sock.connect((to, 0))
    took = []
    deadline = time.monotonic() + seconds
    sequence = 0
    while time.monotonic() < deadline:
        sequence = (sequence + 1) & 0xFFFF
        begin = time.monotonic()
        sock.send(echo(sequence))
        while True:
            readable, _, _ = select.select([sock], [], [], 2.0)
            assert readable, "a ping was lost"
            data = sock.recv(200)
            if data[20] == 0 and struct.unpack_from("!H", data, 26)[0] == sequence:
                break
        took.append((time.monotonic() - begin) * 1000)
        time.sleep(max(0.0, begin + PING_EVERY - time.monotonic()))
    sock.close()
    took.sort()
    return took[len(took) // 2], took[int(len(took) * 0.99)]


def echo(sequence: int) -> bytes:
    body = struct.pack("!BBHHH", 8, 0, 0, 0x51, sequence) + b"qosd" * 12
    total = sum(struct.unpack(f"!{len(body) // 2}H", body))
    total = (total & 0xFFFF) + (total >> 16)
    return body[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + body[4:]


class Governed:
    """The loop of the daemon as far as the network goes."""

    def __init__(self, lab: Lab, link: int, skbprio: SkbPrio) -> None:
        self.skbprio = skbprio
        self.uplinks = Uplinks(Net(uplinks=("u0",), link_speed={"u0": Bitrate(link)}), Ownership(), lab.host)
        self.prev: NetSample | None = None
        self.state = shaping.INITIAL

    def tick(self) -> int:
        """One tick; returns the ceiling."""
        usec = time.monotonic_ns() // 1000
        self.uplinks.on_readable()
        self.uplinks.refresh(usec)
        carriers = self.uplinks.carriers().items()
        sent = {uplink: sum(self.skbprio.sent_to(each).values()) for uplink, each in carriers}
        now = self.uplinks.sample(usec, sent)
        wanted = shaping.wants_classes(self.uplinks.config, self.prev, now, self.state)
        now = self.uplinks.read_classes(now, wanted)
        self.state, shapes = shaping.decide(self.uplinks.config, self.prev, now, self.state)
        self.uplinks.apply(shapes, usec)
        self.prev = now
        return shapes[0].ceil_bps


def bench_yield() -> None:
    print(f"\nBE yields after LS stepped from 0 to 500 of 1000 Mbit/s, {YIELD_ROUNDS} rounds")
    print("ms, median (range); target 200")
    ticks, yields, ls_rates = [], [], []
    for _ in range(YIELD_ROUNDS):
        tick_ms, yield_ms, ls = one_yield()
        ticks.append(tick_ms)
        yields.append(yield_ms)
        ls_rates.append(ls / MBIT)
    print(f"  governor's wake-up to ceiling in the kernel {spread(ticks)}")
    print(f"  governor's wake-up to BE's rate below the new ceiling (20 ms windows) {spread(yields, '.0f')}")
    print(f"  LS in the second before, by HTB's priority alone, Mbit/s {spread(ls_rates, '.0f')}")


def one_yield() -> tuple[float, float, float]:
    with bench_lab() as (lab, be, skbprio):
        governed, ifindex = Governed(lab, GBIT, skbprio), lab.link("u0").ifindex
        lab.send(5000, cgroup=be)
        governed.tick()
        lab.sink().settled_rate_bps((5000,), 0.5)
        for _ in range(4):
            before = governed.tick()
            time.sleep(1.0)
        lab.send(5001, "--proto", "tcp", "--mbit", "500")
        lab.sink().settled_rate_bps((5001,), 0.0)
        ls = lab.sink().rate_bps(1.0)[5001]
        begin = time.monotonic()
        ceil = governed.tick()
        applied = time.monotonic()
        assert ceil < before - 100 * MBIT, f"the ceiling stayed at {ceil}"
        took = until_below(governed.uplinks.tc, ifindex, ceil * 1.05)
        governed.uplinks.close()
        return (applied - begin) * 1000, (took - begin) * 1000, ls


def until_below(tc: Tc, ifindex: int, bps: float) -> float:
    """When a 20 ms window first held BE to the rate."""
    while True:
        begin, before = time.monotonic(), class_bytes(tc, ifindex, BE_TIER)
        time.sleep(0.02)
        end, after = time.monotonic(), class_bytes(tc, ifindex, BE_TIER)
        if (after - before) * 8 / (end - begin) <= bps:
            return end


def bench_steady() -> None:
    with bench_lab() as (lab, be, skbprio):
        governed = Governed(lab, GBIT, skbprio)
        governed.tick()
        lab.send(5000, cgroup=be)
        lab.send(5001, "--mbit", "100")
        lab.sink().settled_rate_bps((5000, 5001), 0.1)
        for _ in range(12):
            governed.tick()
            time.sleep(1.0)
        before, cpu = governed.uplinks.tc.requests, time.process_time()
        ceilings = set()
        for _ in range(STEADY_SECONDS):
            ceilings.add(governed.tick())
            time.sleep(1.0)
        cpu = time.process_time() - cpu
        sent = governed.uplinks.tc.requests - before
        governed.uplinks.close()
        print(
            f"\nSteady for {STEADY_SECONDS} s, BE at its ceiling and LS at 100 Mbit/s: {sent} netlink"
            f" requests (target 10 a minute), {len(ceilings)} ceilings,"
            f" {1000 * cpu / STEADY_SECONDS:.2f} ms CPU a tick"
        )


PARTS = {"rate": bench_rate, "ping": bench_ping, "yield": bench_yield, "steady": bench_steady}


def main() -> None:
    reason = missing()
    if reason is not None:
        sys.exit(f"bench/net.py: {reason}")
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
    assert undo.remove_all() == undo.Undone(), "a qdisc of ours was left on this machine"


if __name__ == "__main__":
    main()
