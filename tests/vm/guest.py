"""What the VM tests say to a guest with qosd installed."""

from __future__ import annotations

import json
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


class Guest:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def install(self, deb: str) -> None:
        self.sh(
            f"DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends /mnt/share/{deb}",
            timeout=300,
        )

    def sh(self, command: str, *, timeout: float = 60) -> str:
        """Standard output of a command that must succeed."""
        return self.machine.run(command, timeout=timeout).stdout

    def status_of(self, command: str) -> tuple[int | None, str]:
        """Exit status and everything printed."""
        done = self.machine.run(command, check=False)
        return done.returncode, done.stdout + done.stderr

    def until(self, condition: str, seconds: int = 30) -> None:
        """Wait for a shell condition, with a bound in the guest's own time."""
        self.sh(f"timeout {seconds} bash -c 'until {condition}; do sleep 0.1; done'", timeout=seconds + 60)

    def read(self, file: str) -> str:
        return self.sh(f"cat {CGROUP}/{file}").strip()

    def reset(self) -> None:
        """Stop everything a test may have left; configuration and units are as the package has them."""
        self.sh(
            "systemctl stop 'test-*' 2>/dev/null; systemctl kill -s CONT qosd 2>/dev/null; systemctl stop qosd;"
            " systemctl reset-failed; rm -rf /run/systemd/system.control /etc/systemd/system.control"
            f" /etc/systemd/system/*.slice.d {DROP_IN}; systemctl daemon-reload"
        )
        self.configure("")

    def configure(self, extra: str) -> None:
        """The defaults, these lines, and unless they say otherwise a quota on BE: most tests look at cpu.max."""
        if "[cpu.bandwidth]" not in extra:
            extra += '\n[cpu.bandwidth]\nenforce = "max"'
        elif "enforce =" not in extra:
            extra = extra.replace("[cpu.bandwidth]", '[cpu.bandwidth]\nenforce = "max"')
        self.sh(f"install -m 644 /dev/stdin {CONFIG} <<'END'\n{extra}\nEND\n")

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
        names = " -o ".join(f"-name {name}" for name in (*FILES, "cgroup.freeze"))
        out = self.sh(
            f"find {CGROUP}/ls.slice {CGROUP}/be.slice -type f '(' {names} ')' -exec grep -H '' {{}} + | sort"
        )
        return dict(line.split(":", 1) for line in out.splitlines())

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.sh("qosctl status --json"))
        return document

    def status_when(self, holds: Callable[[dict[str, Any]], bool], tries: int = 30) -> dict[str, Any]:
        """The first status for which something holds, asked once a second or, emulated, more slowly."""
        for _ in range(tries):
            code, said = self.status_of("sleep 0.5; qosctl status --json")
            if code == 0 and holds(status := json.loads(said)):
                return dict(status)
        raise AssertionError(f"did not come to hold; last: {said}")

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
