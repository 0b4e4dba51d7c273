"""Whether QEMU can use KVM here: found out by booting a kernel with it, once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qosd.lab.image import cache_dir

if TYPE_CHECKING:
    from qosd.lab.image import Image

DEVICE = "/dev/kvm"
PROBE_SECONDS = 20


def accelerator(image: Image) -> str:
    """Answer "kvm" or "tcg", as $QOSD_LAB_ACCEL says or as the probe found on this host's kernel."""
    forced = os.environ.get("QOSD_LAB_ACCEL")
    if forced:
        return forced
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return "tcg"
    remembered = cache_dir() / f"accelerator-{os.uname().nodename}-{os.uname().release}"
    if not remembered.exists():
        answer = "kvm" if _kvm_boots(image) else "tcg"
        print(
            f"==> {DEVICE} {'boots a kernel' if answer == 'kvm' else 'does not boot a kernel: emulating'}",
            file=sys.stderr,
            flush=True,
        )
        fresh = Path(f"{remembered}.{os.getpid()}")
        fresh.write_text(answer)
        fresh.rename(remembered)
    return remembered.read_text()


def _kvm_boots(image: Image) -> bool:
    """Boot a kernel with no root: it panics within a second, and `panic=-1` ends QEMU.

    The device node alone says nothing: under some hypervisors it is there, and a guest hangs without a word.
    """
    command = [
        *(
            "setpriv",
            "--pdeathsig",
            "KILL",
            "qemu-system-x86_64",
            "-nodefaults",
            "-no-reboot",
            "-display",
            "none",
        ),
        *(
            "-accel",
            "kvm",
            "-cpu",
            "max",
            "-m",
            "256M",
            "-kernel",
            str(image.kernel("6.12")),
            "-serial",
            "stdio",
        ),
        *("-append", "console=ttyS0 panic=-1"),
    ]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and b"Kernel panic" in done.stdout
