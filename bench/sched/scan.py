"""At which utilisation this kernel's wake-ups stop looking for an idle CPU (docs/cpu.md).

    python -m bench.sched.scan SECONDS

Watches the machine as it is, adds no load, and changes nothing. For hosts with one last-level cache.
"""

from __future__ import annotations

import collections
import contextlib
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time

from qosd.ebpf.libbpf import Library
from qosd.ebpf.loader import Object

_HERE = os.path.dirname(os.path.abspath(__file__))
_CPUS = 8
_FULL = 1024  # SCHED_CAPACITY_SCALE
_BIN_PCT = 5
_LOOK_SEC = 0.02


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    with contextlib.ExitStack() as stack:
        target = f"{stack.enter_context(tempfile.TemporaryDirectory())}/scan.bpf.o"
        subprocess.run(["packaging/bpf", f"{_HERE}/scan.bpf.c", target], check=True)
        with open(target, "rb") as file:
            probe = stack.enter_context(contextlib.closing(Object(Library(), "scan", file.read())))
        probe.load()
        probe.attach("pelt")
        memory = probe.map("scan").mapped()
        _watch(memory, seconds)


def _watch(memory: mmap.mmap, seconds: float) -> None:
    nr_cpus = os.cpu_count() or 1
    full = nr_cpus * _FULL
    bins: dict[int, list[int]] = collections.defaultdict(list)
    end = time.monotonic() + seconds
    scan = imbalance_pct = span = 0
    while time.monotonic() < end:
        time.sleep(_LOOK_SEC)
        scan, imbalance_pct, span = struct.unpack_from("<3q", memory, 0)
        util = sum(min(u, _FULL) for u in struct.unpack_from(f"<{nr_cpus}Q", memory, 8 * _CPUS))
        bins[min(100 * util // full, 99) // _BIN_PCT * _BIN_PCT].append(scan)
    if not span:
        raise SystemExit("no last-level cache domain seen: SMT siblings, or one CPU")
    threshold = 100 * (1 - 1 / span) ** 0.5 / (imbalance_pct / 100)
    print(f"{span} CPUs share a cache, imbalance_pct {imbalance_pct}: blind from {threshold:.0f} % in theory")
    for low in sorted(bins):
        blind = sum(value == 0 for value in bins[low]) / len(bins[low])
        print(f"utilisation {low}-{low + _BIN_PCT} %: blind {100 * blind:.0f} % of {len(bins[low])} looks")


if __name__ == "__main__":
    main()
