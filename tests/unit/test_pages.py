"""In a process of its own: what is locked stays locked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCK = """
import resource
resource.setrlimit(resource.RLIMIT_MEMLOCK, ({limit}, {limit}))
from qosd import pages
why_not = pages.lock()
held = bytearray(1 << 24)
locked = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmLck"))
print(locked, why_not)
"""


def lock(limit: str) -> tuple[int, str]:
    """KiB that are locked, and why it could not be done."""
    script = LOCK.format(limit=limit)
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    locked, why_not = done.stdout.strip().split(" ", 1)
    return int(locked), why_not


def may_raise() -> bool:
    """With CAP_SYS_RESOURCE, or where nothing is limited: not in every container."""
    return (
        subprocess.run(
            ["prlimit", "--memlock=unlimited", "true"], check=False, capture_output=True
        ).returncode
        == 0
    )


@pytest.mark.skipif(
    not may_raise(), reason="RLIMIT_MEMLOCK cannot be raised here; the VM tests see the daemon's pages locked"
)
def test_everything_is_locked_what_comes_later_too() -> None:
    locked, why_not = lock("resource.RLIM_INFINITY")

    assert why_not == "None"
    assert locked > 1 << 14


def test_under_a_limit_nothing_is_locked_and_it_says_which() -> None:
    """Past the limit every mmap(2) would fail."""
    assert lock("65536") == (
        0,
        "RLIMIT_MEMLOCK is 65536 bytes, which the unit has as LimitMEMLOCK=infinity",
    )
