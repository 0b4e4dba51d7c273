"""The same in the lab's guest, over two virtio NICs on one wire: the host's side."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from qosd.lab.machine import Machine

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
            machine.run(f"{_INSTALL} && systemctl stop qosd", timeout=300)
            release = machine.run("uname -r").stdout.strip()
            print(
                f"\nIn the guest: Linux {release}, one CPU, {machine.accelerator}, icount {icount}",
                flush=True,
            )
            job = machine.start(" ".join([_BENCH, *arguments]))
            shown, deadline = 0, time.monotonic() + timeout
            while job.running and time.monotonic() < deadline:
                time.sleep(1)
                shown = _show(job.so_far.stdout, shown)
            done = job.wait(timeout=1)
            _show(done.stdout, shown)


def _show(text: str, shown: int) -> int:
    print(text[shown:], end="", flush=True)
    return len(text)
