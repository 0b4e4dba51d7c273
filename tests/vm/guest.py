"""What the VM tests say to a guest with qosd installed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from typing import Any

import pytest

from qosd.lab.machine import Machine

NEWER = pytest.mark.parametrize("kernel", ["6.12"], ids=["linux-6.12"], indirect=True)
"""For what differs between kernels in nothing that the test asks: emulated minutes are dear."""
CGROUP = "/sys/fs/cgroup"
DROP_IN = "/run/systemd/system/qosd.service.d/test.conf"
CONFIG = "/etc/qosd/qosd.toml"
FILES = (
    "cpu.max",
    "cpu.max.burst",
    "cpu.weight",
    "cpu.idle",
    "cpuset.cpus",
    "memory.high",
    "memory.low",
    "memory.min",
    "io.weight",
    "io.bfq.weight",
    "io.max",
    "io.latency",
    "memory.oom.group",
)
_NAMES = " -o ".join(f"-name {name}" for name in (*FILES, "cgroup.freeze"))
VALUES = f"find {CGROUP}/ls.slice {CGROUP}/be.slice -type f '(' {_NAMES} ')' -exec grep -H '' {{}} + | sort"
TICK = "500ms"
"""Twice the ticks a second of the defaults: a test waits for so many of them, and not for its second to pass."""
STATUSES = """
import socket, time

def answer():
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(30)
        line.connect("/run/qosd/control.sock")
        question = b'{"command": "status"}'
        line.sendall(len(question).to_bytes(4, "big") + question)
        with line.makefile("rb") as frames:
            while length := int.from_bytes(frames.read(4), "big"):
                yield frames.read(length)

while True:
    try:
        print(b"".join(answer()).decode())
    except OSError:
        pass
    time.sleep(0.2)
"""
"""What `qosctl status --json` asks (qosd/control.py), again and again, without starting qosctl each time."""


def waiting(condition: str, seconds: int = 30) -> str:
    """Waits for a shell condition, as a shell command."""
    # The shell's own `read` of a pipe that nobody writes: an emulated CPU takes long to start a sleep.
    loop = f"exec 9<> <(:); until {condition}; do read -rt 0.1 -u 9 || :; done"
    return f"timeout {seconds} bash -c {shlex.quote(loop)}"


def values_in(text: str) -> dict[str, str]:
    """What VALUES printed."""
    return dict(line.split(":", 1) for line in text.splitlines())


class Guest:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def install(self, deb: str) -> None:
        """By dpkg alone: all it depends on is in the image. What apt makes of it is test_package's question."""
        self.sh(f"dpkg --force-unsafe-io --install /mnt/share/{deb}", timeout=300)

    def sh(self, command: str, *, timeout: float = 60) -> str:
        """Standard output of a command that must succeed."""
        return self.machine.run(command, timeout=timeout).stdout

    def status_of(self, command: str) -> tuple[int | None, str]:
        """Exit status and everything printed."""
        done = self.machine.run(command, check=False)
        return done.returncode, done.stdout + done.stderr

    def until(self, condition: str, seconds: int = 30) -> None:
        """Wait for a shell condition, with a bound in the guest's own time."""
        self.sh(waiting(condition, seconds), timeout=seconds + 60)

    def read(self, file: str) -> str:
        return self.sh(f"cat {CGROUP}/{file}").strip()

    def reset(self) -> None:
        """Stop everything a test may have left; configuration and units are as the package has them, nothing is learned."""
        # Slices end with their last unit (StopWhenUnneeded=), and what was written to their files with them.
        self.sh(
            "systemctl kill -s CONT qosd 2>/dev/null; systemctl stop qosd 'test-*' 2>/dev/null; systemctl reset-failed;"
            " left=$(ls -d /run/systemd/system.control /etc/systemd/system.control /etc/systemd/system/*.slice.d"
            f' {DROP_IN} 2>/dev/null); [ -z "$left" ] || {{ rm -rf $left; systemctl daemon-reload; }}; set -e\n'
            "rm -f /var/lib/qosd/*.json\n" + self._configuration(""),
            timeout=120,
        )

    def configure(self, extra: str) -> None:
        """The defaults, these lines, and unless they say otherwise a quota on BE: most tests look at cpu.max."""
        self.sh(self._configuration(extra))

    def _configuration(self, extra: str) -> str:
        if "[cpu.bandwidth]" not in extra:
            extra += '\n[cpu.bandwidth]\nenforce = "max"'
        elif "enforce =" not in extra:
            extra = extra.replace("[cpu.bandwidth]", '[cpu.bandwidth]\nenforce = "max"')
        if not re.search("^interval =", extra, re.MULTILINE):
            extra = f'interval = "{TICK}"\n{extra}'
        return f"install -m 644 /dev/stdin {CONFIG} <<'END'\n{extra}\nEND\n"

    def drop_in(self, text: str) -> None:
        self.sh(
            f"mkdir -p $(dirname {DROP_IN}); cat >{DROP_IN} <<'END'\n{text}\nEND\nsystemctl daemon-reload"
        )

    def job(self, name: str = "test-job", slice_: str = "be.slice") -> None:
        """A job that asks for nothing: its slice is there, and an emulated machine is left in peace."""
        self.sh(f"systemd-run -q --collect --unit={name} --slice={slice_} sleep 10000")

    def hog(self, threads: int = 4, name: str = "test-hog", slice_: str = "be.slice") -> None:
        self.sh(f"systemd-run -q --collect --unit={name} --slice={slice_} stress-ng --quiet --cpu {threads}")

    def limited(self) -> None:
        """Wait until BE is limited."""
        self.until(f"! grep -q ^max {CGROUP}/be.slice/cpu.max")

    def values(self) -> dict[str, str]:
        """Every control file of the tiers' slices, as the auditor sees them."""
        return values_in(self.sh(VALUES))

    def status(self) -> dict[str, Any]:
        return self.status_when(lambda _: True)

    def status_when(self, holds: Callable[[dict[str, Any]], bool], tries: int = 30) -> dict[str, Any]:
        """The first status for which something holds; a try is worth four seconds of the host's."""
        job = self.machine.start(["python3", "-I", "-S", "-u", "-c", STATUSES])
        last = None
        try:
            for line in job.lines(tries * 4.0):
                last = json.loads(line).get("ok")  # nothing before the first tick
                if last and holds(last):
                    return dict(last)
        finally:
            job.kill()
        raise AssertionError(f"did not come to hold; last: {last}")

    def setting(self, path: str, file: str) -> dict[str, Any]:
        for setting in self.status()["settings"]:
            if (setting["path"], setting["file"]) == (path, file):
                return dict(setting)
        raise AssertionError(f"no setting for {path} {file}")

    def journal_text(self) -> str:
        """What the daemon said since it was last started."""
        return self.sh(
            "journalctl -u qosd --no-pager -o cat _SYSTEMD_INVOCATION_ID=$(systemctl show -p InvocationID --value qosd)"
        )
