"""`make demo HOST=1` on a host that is cgroup v2 only: the guest."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from vm.guest import NEWER, Guest

ROOT = Path(__file__).resolve().parents[2]
# Cgroups, what is in force in them, units made at run time, and files that a demo might forget.
STATE = (
    "find /sys/fs/cgroup -type d -path '*demo*'; ls -d /run/*demo* /run/systemd/*/*demo* /tmp/*demo* 2>/dev/null;"
    " systemctl list-units --all --plain --no-legend '*demo*'; cd /sys/fs/cgroup;"
    " grep -s . system.slice/cpu.weight system.slice/cpu.max system.slice/cgroup.freeze || true"
)

pytestmark = [pytest.mark.vm, NEWER]


def test_a_demo_on_the_host_itself_leaves_nothing_behind(installed: Guest, share: Path) -> None:
    """One pass with the daemon and its jobs: it ends with the table and the report, and the host is as it was."""
    installed.reset()
    for name in ("qosd", "systemd"):
        shutil.copytree(ROOT / name, share / "tree" / name, dirs_exist_ok=True)
    source, binary = ROOT / "qosd/lab/load/openloop.c", share / "openloop"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(binary), str(source), "-lm"], check=True)
    before = installed.sh(STATE)
    said = installed.sh(
        "systemctl stop qosd; cd /mnt/share/tree && PYTHONPATH=. PYTHONDONTWRITEBYTECODE=1 /usr/lib/qosd/bin/python3"
        " -m qosd.lab.demo --host --modes qosd --rounds 1 --openloop /mnt/share/openloop"
        " --output /mnt/share/demo-out",
        timeout=240,
    )

    assert "with qosd" in (share / "demo-out/report.html").read_text()
    assert "qosd" in said
    assert installed.sh(STATE) == before
