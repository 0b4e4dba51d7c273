"""How close BE comes to its ceiling, with a queue that is never empty and with sockets as is the default.

A socket holds 212 992 bytes by default (net.core.wmem_default). Of datagrams that is 1.7 ms at 1 Gbit/s: a
sender that is off its CPU for longer leaves HTB nothing to send, and that is not HTB's error. So the datagram
senders are there twice.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from bench.net.wire import GBIT, MBIT, class_bytes, load, mbit, shape, spread
from qosd.net.device import BE_CLASS, BE_TIER
from qosd.net.tc import Tc

if TYPE_CHECKING:
    from bench.net.wire import Wire

_FLOWS, _SECONDS = 4, 5.0
_PORTS = tuple(range(5000, 5000 + _FLOWS))
_DEEP, _DEEP_FROM = ("--proto", "udp-gso", "--sndbuf", str(4 << 20)), 150 * MBIT
"""Below that the default socket holds more than 10 ms, and 16 MB would take long to pass."""
_SENDERS = {
    "TCP": ("--proto", "tcp"),
    "UDP with GSO": ("--proto", "udp-gso"),
    "UDP with GSO, 4 MB": _DEEP,
}


class Held(NamedTuple):
    error_pct: float
    empty_pct: float
    """Of all looks, those that found nothing waiting in BE's class."""


def bench(wire: Wire, rounds: int) -> None:
    print(
        f"\nBE against its ceiling by the class's counter, {_FLOWS} flows, {rounds} rounds of {_SECONDS:g} s,"
        " median (range); target 2 %"
    )
    print(f"{'ceiling':>12} {'senders':>20} {'error, %':>28} {'nothing waits, %':>24} {'load':>6}")
    for ceil in wire.links(10 * MBIT, 100 * MBIT, 1000 * MBIT):
        for senders, arguments in _SENDERS.items():
            if arguments == _DEEP and ceil < _DEEP_FROM:
                continue
            found = held(wire, ceil, arguments, rounds)
            errors, empty = [each.error_pct for each in found], [each.empty_pct for each in found]
            print(
                f"{mbit(ceil):>12} {senders:>20} {spread(errors):>28} {spread(empty):>24} {load():>6}",
                flush=True,
            )


def held(wire: Wire, ceil: int, senders: tuple[str, ...], rounds: int) -> list[Held]:
    with wire.laid() as (lab, be, _):
        tc, ifindex = Tc(), lab.link("u0").ifindex
        # The usual floor, 1 % of 10 Gbit/s, would be above the smallest ceiling.
        tc.build(msgspec.structs.replace(shape(ifindex, 10 * GBIT, ceil), floor_bps=MBIT))
        for port in _PORTS:
            lab.send(port, *senders, cgroup=be)
        lab.sink().settled_rate_bps(_PORTS, 0.5)
        found = [_one(tc, ifindex, ceil) for _ in range(rounds)]
        tc.close()
        return found


def _one(tc: Tc, ifindex: int, ceil: int) -> Held:
    looks: list[int] = []
    begin, before = time.monotonic(), class_bytes(tc, ifindex, BE_TIER)
    while (look := time.monotonic()) < begin + _SECONDS:
        looks.append(next(each.backlog for each in tc.classes(ifindex) if each.classid == BE_CLASS))
        # An emulated CPU takes long for a look, and is to be the senders'.
        time.sleep(max(0.01, 20 * (time.monotonic() - look)))
    end, after = time.monotonic(), class_bytes(tc, ifindex, BE_TIER)
    error = 100 * ((after - before) * 8 / (end - begin) / ceil - 1)
    return Held(error, 100 * sum(not backlog for backlog in looks) / len(looks))
