"""The same in the lab's guest, over a virtio NIC: the host's side, which is also the far end of the wire.

The far end is not in the guest: there its receiving would take turns with LS on the one emulated CPU.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from netns.lab import far_end

from qosd.lab.machine import Machine
from qosd.lab.taps import BRIDGE

_ROOT = Path(__file__).resolve().parents[2]
_INSTALL = "DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends /mnt/share/qosd.deb"
_BENCH = "cd /mnt/share && PYTHONDONTWRITEBYTECODE=1 /usr/lib/qosd/bin/python3 -m bench.net --nics eth0 eth1"


def measure(kernel: str, icount: str | None, arguments: list[str], timeout: float) -> None:
    """Print what the benchmark prints in there, as it comes."""
    built = sorted((_ROOT / "dist").glob("qosd_*.deb"))
    assert built, "dist has no package: make deb"
    with tempfile.TemporaryDirectory() as directory:
        share = Path(directory)
        shutil.copy(built[-1], share / "qosd.deb")
        for package in ("bench", "tests/netns"):
            shutil.copytree(_ROOT / package, share / Path(package).name)
        with Machine.boot(
            kernel=kernel, smp="1", share=share, nics=2, offloads=True, icount=icount
        ) as machine:
            _lead(machine.qemu_pid)
            machine.run(f"{_INSTALL} && systemctl stop qosd", timeout=300)
            release = machine.run("uname -r").stdout.strip()
            print(
                f"\nIn the guest: Linux {release}, one CPU, {machine.accelerator}, icount {icount}",
                flush=True,
            )
            with far_end(machine.wire_namespace, BRIDGE):
                busy = [] if icount is None else ["--busy"]
                _follow(machine, [_BENCH, *busy, *arguments], time.monotonic() + timeout)


def _lead(qemu: int) -> None:
    """QEMU's main thread carries the packets: it is not to wait for a CPU, not even for the emulated one."""
    os.sched_setscheduler(qemu, os.SCHED_FIFO, os.sched_param(1))


def _follow(machine: Machine, command: list[str], deadline: float) -> None:
    job = machine.start(" ".join(command))
    shown = 0
    while job.running and time.monotonic() < deadline:
        time.sleep(1)
        shown = _show(job.so_far.stdout, shown)
    _show(job.wait(timeout=1).stdout, shown)


def _show(text: str, shown: int) -> int:
    print(text[shown:], end="", flush=True)
    return len(text)
