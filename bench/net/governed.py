"""The loop of the daemon as far as the network goes: how soon BE yields, and what a steady minute costs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench.net.wire import GBIT, class_bytes, load, mbit, spread
from qosd.config import Ownership
from qosd.net import shaping
from qosd.net.config import Bitrate, Net
from qosd.net.device import BE_TIER
from qosd.net.uplinks import Uplinks

if TYPE_CHECKING:
    from netns.lab import Lab

    from bench.net.wire import Wire
    from qosd.ebpf.skbprio import SkbPrio
    from qosd.net.model import NetSample
    from qosd.net.tc import Tc

_STEADY_SECONDS = 60


class Governed:
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


def bench_yield(wire: Wire, rounds: int) -> None:
    link = wire.links(GBIT)[-1]
    print(f"\nBE yields after LS stepped from 0 to half of {mbit(link)}, {rounds} rounds, load {load()}")
    print("ms, median (range); target 200")
    found = [_one_yield(wire, link) for _ in range(rounds)]
    ticks, yields, ls_rates = zip(*found, strict=True)
    print(f"  governor's wake-up to ceiling in the kernel {spread(list(ticks))}")
    print(f"  governor's wake-up to BE's rate below the new ceiling {spread(list(yields), '.0f')}")
    print(f"  LS in the second before, by HTB's priority alone, Mbit/s {spread(list(ls_rates), '.0f')}")


def _one_yield(wire: Wire, link: int) -> tuple[float, float, float]:
    with wire.laid() as (lab, be, skbprio):
        governed, ifindex = Governed(lab, link, skbprio), lab.link("u0").ifindex
        lab.send(5000, cgroup=be)
        governed.tick()
        lab.sink().settled_rate_bps((5000,), 0.5)
        for _ in range(4):
            before = governed.tick()
            time.sleep(1.0)
        lab.send(5001, "--proto", "tcp", "--mbit", str(link / 2e6))
        lab.sink().settled_rate_bps((5001,), 0.0)
        ls = lab.sink().rate_bps(1.0)[5001]
        begin = time.monotonic()
        ceil = governed.tick()
        applied = time.monotonic()
        assert ceil < before - 0.1 * link, f"the ceiling stayed at {ceil}"
        took = _until_below(governed.uplinks.tc, ifindex, ceil * 1.05)
        governed.uplinks.close()
        return (applied - begin) * 1000, (took - begin) * 1000, ls / 1e6


def _until_below(tc: Tc, ifindex: int, bps: float) -> float:
    """When a window first held BE to the rate: 20 ms, or 8 packets of 64 KiB where those take longer."""
    window = max(0.02, 8 * 8 * 65536 / bps)
    while True:
        begin, before = time.monotonic(), class_bytes(tc, ifindex, BE_TIER)
        time.sleep(window)
        end, after = time.monotonic(), class_bytes(tc, ifindex, BE_TIER)
        if (after - before) * 8 / (end - begin) <= bps:
            return end


def bench_steady(wire: Wire, _rounds: int) -> None:
    link = wire.links(GBIT)[-1]
    with wire.laid() as (lab, be, skbprio):
        governed = Governed(lab, link, skbprio)
        governed.tick()
        lab.send(5000, cgroup=be)
        lab.send(5001, "--mbit", str(link / 10e6))
        lab.sink().settled_rate_bps((5000, 5001), 0.1)
        for _ in range(12):
            governed.tick()
            time.sleep(1.0)
        before, cpu = governed.uplinks.tc.requests, time.process_time()
        ceilings = set()
        for _ in range(_STEADY_SECONDS):
            ceilings.add(governed.tick())
            time.sleep(1.0)
        cpu = time.process_time() - cpu
        sent = governed.uplinks.tc.requests - before
        governed.uplinks.close()
        print(
            f"\nSteady for {_STEADY_SECONDS} s, BE at its ceiling and LS at a tenth of {mbit(link)}: {sent}"
            f" netlink requests (target 10 a minute), {len(ceilings)} ceiling(s),"
            f" {1000 * cpu / _STEADY_SECONDS:.2f} ms CPU a tick, load {load()}"
        )
