"""LS ping under a flood of BE: BE frozen, BE held by qosd, and the same flood in LS's own class."""

from __future__ import annotations

import select
import socket
import statistics
import struct
import time
from typing import TYPE_CHECKING

from bench.net.wire import MBIT, load, mbit, shape, spread
from qosd.net.tc import Tc

if TYPE_CHECKING:
    from pathlib import Path

    from netns.lab import Lab

    from bench.net.wire import Wire

_SECONDS, _EVERY = 3.0, 0.005
_BE_PORTS, _OTHER_PORTS = (5000, 5001), (5002, 5003)
_STILL = {
    "frozen": _BE_PORTS + _OTHER_PORTS,
    "qosd": _OTHER_PORTS,
    "uncontrolled": _BE_PORTS,
}
"""The modes, and the ports on which nothing may come in each."""


def bench(wire: Wire, rounds: int) -> None:
    print(f"\nLS ping under 8 BE flows of TCP, {rounds} rounds of {_SECONDS:g} s, forwards and backwards")
    print("ms, median over rounds (range); target p99 at most 1.5 of frozen")
    print(f"{'link':>12} {'mode':>14} {'p50':>26} {'p99':>26} {'p99 / frozen':>14} {'load':>6}")
    for link in wire.links(100 * MBIT, 1000 * MBIT):
        results = _rounds(wire, link, rounds)
        frozen = statistics.median(p99 for _, p99 in results["frozen"])
        for mode, each in results.items():
            p50s, p99s = [p50 for p50, _ in each], [p99 for _, p99 in each]
            ratio = statistics.median(p99s) / frozen
            print(
                f"{mbit(link):>12} {mode:>14} {spread(p50s, '.3f'):>26} {spread(p99s, '.3f'):>26}"
                f" {ratio:>14.2f} {load():>6}",
                flush=True,
            )


def _rounds(wire: Wire, link: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    results: dict[str, list[tuple[float, float]]] = {mode: [] for mode in _STILL}
    with wire.laid() as (lab, be, _):
        other = lab.cgroup("other")
        tc = Tc()
        tc.build(shape(lab.link("u0").ifindex, link, int(0.9 * link)))
        for cgroup, ports in ((be, _BE_PORTS), (other, _OTHER_PORTS)):
            for port in ports * 4:
                lab.send(port, *(("--idle",) if wire.nics is not None else ()), cgroup=cgroup)
        lab.sink().settled_rate_bps(_BE_PORTS + _OTHER_PORTS, 0.1)
        for index in range(rounds):
            for mode in _STILL if index % 2 == 0 else reversed(_STILL):
                freeze(be, frozen=mode != "qosd")
                freeze(other, frozen=mode != "uncontrolled")
                _drain(lab, _STILL[mode])
                results[mode].append(_ping("10.9.0.2"))
        freeze(be, frozen=False)
        freeze(other, frozen=False)
        tc.close()
    return results


def _drain(lab: Lab, ports: tuple[int, ...]) -> None:
    """A frozen process's sockets go on sending what they hold, megabytes each: wait for the end of that."""
    deadline = time.monotonic() + 120
    while any(rate for port, rate in lab.sink().rate_bps(0.3).items() if port in ports):
        assert time.monotonic() < deadline, f"traffic on {ports} although frozen"


def freeze(cgroup: Path, *, frozen: bool) -> None:
    (cgroup / "cgroup.freeze").write_text(str(int(frozen)), encoding="ascii")


def _ping(to: str) -> tuple[float, float]:
    """(p50, p99) of ICMP echo in ms, one every 5 ms; the peer's kernel answers, no process takes part."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.connect((to, 0))
        took = []
        deadline = time.monotonic() + _SECONDS
        while (begin := time.monotonic()) < deadline:
            _once(sock, len(took) & 0xFFFF)
            took.append((time.monotonic() - begin) * 1000)
            time.sleep(max(0.0, begin + _EVERY - time.monotonic()))
    took.sort()
    return took[len(took) // 2], took[int(len(took) * 0.99)]


def _once(sock: socket.socket, sequence: int) -> None:
    sock.send(_echo(sequence))
    while True:
        readable, _, _ = select.select([sock], [], [], 5.0)
        assert readable, "a ping was lost"
        data = sock.recv(200)
        if data[20] == 0 and struct.unpack_from("!H", data, 26)[0] == sequence:
            return


def _echo(sequence: int) -> bytes:
    body = struct.pack("!BBHHH", 8, 0, 0, 0x51, sequence) + b"qosd" * 12
    total = sum(struct.unpack(f"!{len(body) // 2}H", body))
    total = (total & 0xFFFF) + (total >> 16)
    return body[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + body[4:]
