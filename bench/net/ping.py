"""LS ping under a flood of BE: BE frozen, BE held by qosd, and the same flood in LS's own queue."""

from __future__ import annotations

import contextlib
import select
import socket
import statistics
import struct
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

from bench.net.wire import MBIT, load, mbit, shape, spread
from qosd.net.tc import Tc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from netns.lab import Lab

    from bench.net.wire import Wire

_SECONDS, _EVERY = 1.5, 0.0025
_SNDBUF = 256 << 10
"""More than a flow has in a queue at once (TCP small queues), and little to wait for once it is frozen."""
_BE_PORTS, _OTHER_PORTS = (5000, 5001), (5002, 5003)
_LEAF = "tc qdisc replace dev u0 parent a001:10"


class _Mode(NamedTuple):
    still: tuple[int, ...]
    """The ports on which nothing may come."""
    leaf: str = ""
    """The queue of LS's class where it is not the one that qosd builds: what a device without classes has."""


_MODES = {
    "frozen": _Mode(_BE_PORTS + _OTHER_PORTS),
    "qosd": _Mode(_OTHER_PORTS),
    "one FIFO": _Mode(_BE_PORTS, "pfifo limit 1000"),
    "one fq_codel": _Mode(_BE_PORTS, "fq_codel"),
}


class _Window(NamedTuple):
    p50: float
    p99: float
    be_bps: float
    pace: float
    """Seconds of the far end's clock in one of ours: they differ where a guest's goes by its instructions."""


def bench(wire: Wire, rounds: int) -> None:
    print(f"\nLS ping under 8 BE flows of TCP, {rounds} rounds of {_SECONDS:g} s, forwards and backwards")
    print("ms, median over rounds (range); target p99 at most 1.5 of frozen")
    print(
        f"{'link':>12} {'mode':>14} {'p50':>26} {'p99':>26} {'p99 / frozen':>14} {'BE, Mbit/s':>11}"
        f" {'far clock':>18} {'load':>6}"
    )
    for link in wire.links(100 * MBIT, 1000 * MBIT):
        results = _rounds(wire, link, rounds)
        frozen = statistics.median(each.p99 for each in results["frozen"])
        for mode, each in results.items():
            p99s = [window.p99 for window in each]
            print(
                f"{mbit(link):>12} {mode:>14} {spread([window.p50 for window in each], '.3f'):>26}"
                f" {spread(p99s, '.3f'):>26} {statistics.median(p99s) / frozen:>14.2f}"
                f" {statistics.median(window.be_bps for window in each) / MBIT:>11.4g}"
                f" {spread([window.pace for window in each], '.1f'):>18} {load():>6}",
                flush=True,
            )


def _rounds(wire: Wire, link: int, rounds: int) -> dict[str, list[_Window]]:
    with wire.laid() as (lab, be, _), contextlib.ExitStack() as left:
        other = lab.cgroup("other")
        tc = left.enter_context(contextlib.closing(Tc()))
        tc.build(shape(lab.link("u0").ifindex, link, int(0.9 * link)))
        modes = {name: mode for name, mode in _MODES.items() if mode.leaf != "fq_codel" or tc.has_fq_codel}
        results: dict[str, list[_Window]] = {name: [] for name in modes}
        if wire.busy:
            left.enter_context(_spinning(lab.cgroup("busy")))
        for cgroup, ports in ((be, _BE_PORTS), (other, _OTHER_PORTS)):
            for port in ports * 4:
                lab.send(port, "--sndbuf", str(_SNDBUF), cgroup=cgroup)
        lab.sink().settled_rate_bps(_BE_PORTS + _OTHER_PORTS, 0.1)
        for index in range(rounds):
            for name in modes if index % 2 == 0 else reversed(modes):
                freeze(be, frozen=name != "qosd")
                freeze(other, frozen=not modes[name].leaf)
                _drain(lab, modes[name].still)
                _queue(lab, modes[name].leaf, tc)
                results[name].append(_window(lab))
        freeze(be, frozen=False)
        freeze(other, frozen=False)
    return results


def _queue(lab: Lab, leaf: str, tc: Tc) -> None:
    """LS's queue for a mode, which is empty now; where it is not said, what qosd builds."""
    if leaf or tc.has_fq_codel:
        lab.run(f"{_LEAF} {leaf or 'fq_codel'}")


@contextlib.contextmanager
def _spinning(cgroup: Path) -> Iterator[None]:
    """What takes the CPU whenever nothing else wants it, the senders included.

    Its instructions take an emulated CPU long: the guest's clock is slow beside the host's all the time, and
    at one rate. So what the host does for a packet is little in it, with a flood or without.
    """
    spin = f"echo $$ >{cgroup}/cgroup.procs; exec chrt --idle 0 stress-ng --quiet --cpu 1 --cpu-method sqrt"
    with subprocess.Popen(["bash", "-c", spin]) as process:
        try:
            yield
        finally:
            process.terminate()


def _drain(lab: Lab, ports: tuple[int, ...]) -> None:
    """A frozen process's sockets go on sending what they hold: wait for the end of that."""
    deadline = time.monotonic() + 120
    while any(rate for port, rate in lab.sink().rate_bps(0.3).items() if port in ports):
        assert time.monotonic() < deadline, f"traffic on {ports} although frozen"


def freeze(cgroup: Path, *, frozen: bool) -> None:
    (cgroup / "cgroup.freeze").write_text(str(int(frozen)), encoding="ascii")


def _window(lab: Lab) -> _Window:
    begin, (far_begin, before) = time.monotonic(), lab.sink().bytes()
    p50, p99 = _ping("10.9.0.2")
    end, (far_end, after) = time.monotonic(), lab.sink().bytes()
    bits = 8 * (sum(after.values()) - sum(before.values()))
    return _Window(p50, p99, bits / (end - begin), (far_end - far_begin) / (end - begin))


def _ping(to: str) -> tuple[float, float]:
    """(p50, p99) of ICMP echo in ms, one every 2.5 ms; the peer's kernel answers, no process takes part."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.connect((to, 0))
        took: list[float] = []
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
