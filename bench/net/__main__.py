"""Network shaping, measured: `make bench-net`, natively over a veth pair, then in the guest over virtio NICs.

`ARGS="--native"` or `ARGS="--vm"` for one of them, and the names of parts for less than all. Natively it
needs root, cgroup2 and `make bpf`; a veth pair has no speed of its own, so the figures there are of queues
and not of a NIC. In the guest nothing but the parts themselves runs; what it cannot carry is not asked of it.
"""

from __future__ import annotations

import argparse
import os
import sys

from netns.lab import missing

from bench.net import daemon, governed, ping, rate
from bench.net.wire import GBIT, MBIT, Wire, described, load, mbit, reach
from qosd.net import undo

_PARTS = {
    "rate": (rate.bench, 5),
    "ping": (ping.bench, 6),
    "yield": (governed.bench_yield, 8),
    "steady": (governed.bench_steady, 1),
    "daemon": (daemon.bench, 1),
}
"""Each with its rounds; the installed daemon is looked at in the guest alone."""
_IN_GUEST = 3
"""Rounds there, where all takes several times as long."""

_OF_THE_CPU = ("rate", "ping", "yield")
"""What an emulated CPU is too slow for: in the guest these go by the instructions that it executes."""
_ICOUNT = "shift=0"
"""An instruction in a nanosecond of the guest's time: the most that QEMU has, and less than a core does."""


def here(parts: list[str], nics: tuple[str, str] | None, rounds: int | None, *, busy: bool = False) -> None:
    reason = missing()
    if reason is not None:
        sys.exit(f"bench-net: {reason}")
    os.nice(-20)  # senders too: what else this machine does is to count as little as it can
    wire = Wire(nics)
    reached = reach(wire)
    least = min(reached.values())
    print(f"{described(wire)}\nunshaped: {', '.join(f'{name} {mbit(bps)}' for name, bps in reached.items())}")
    print(f"load {load()}", flush=True)
    wire = Wire(nics, None if least > 2 * GBIT else int(least), busy)
    assert wire.carries(10 * MBIT), "not even the slowest ceiling can be reached"
    for part in parts:
        bench, usual = _PARTS[part]
        bench(wire, rounds or (usual if nics is None else min(usual, _IN_GUEST)))
    assert undo.remove_all() == undo.Undone(), "a qdisc of ours was left on this machine"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=", ".join(_PARTS))
    parser.add_argument("--native", action="store_true", help="only over a veth pair on this machine")
    parser.add_argument("--vm", action="store_true", help="only over virtio NICs in the guest")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--kernel", default="6.12")
    parser.add_argument("--icount", default=_ICOUNT, help="QEMU's -icount for what goes by it, or none")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for the guest")
    parser.add_argument("--nics", nargs=2, help="two cards on one wire, to run here over the first")
    parser.add_argument("--busy", action="store_true", help="with --nics: let the CPU never be idle")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(_PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if options.nics is not None:
        here(options.parts or list(_PARTS), tuple(options.nics), options.rounds, busy=options.busy)
        return
    if not options.vm:
        here([part for part in options.parts or _PARTS if part != "daemon"], None, options.rounds)
    if not options.native:
        from bench.net import guest  # noqa: PLC0415 - the lab is not in the package, which is all that the guest has

        rounds = [] if options.rounds is None else ["--rounds", str(options.rounds)]
        parts = options.parts or list(_PARTS)
        timed = [part for part in parts if part in _OF_THE_CPU and options.icount != "none"]
        plain = [part for part in parts if part not in timed]
        for icount, some in ((None, plain), (options.icount, timed)):
            if some:
                guest.measure(options.kernel, icount, [*rounds, *some], options.timeout)


if __name__ == "__main__":
    main()
