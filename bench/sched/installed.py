"""The daemon as it is installed, over the very ls.slice and be.slice: the mode `qosd` in the lab's guest."""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator

from bench.sched.control import KEYS, TIMES
from bench.sched.groups import Groups, V2Group
from qosd.ctl import client
from qosd.ctl.exits import Failure
from qosd.status import Status

_CONFIG = "/etc/qosd/qosd.toml"
_SOCKET = "/run/qosd/control.sock"
_METRICS = "http://127.0.0.1:9753/metrics"
_LIMITS = re.compile(
    r'^qosd_writes_total\{file="(?:cpu\.max|cpuset\.cpus)",outcome="(\w+)"\} (\S+)$', re.MULTILINE
)
_WRITTEN = ("written", "reasserted")
_FIRST_TICKS = 4
_PATIENCE_SEC = 60
_HOLDS = {
    # As qosd.service does: it keeps the controllers of the top-level slices on between two runs of it,
    # so that systemd has no reason to write their files.
    "root": ("qosd.slice", "Delegate=cpu cpuset io memory"),
    "ls": ("ls.slice", "Nice=0"),
    "be": ("be.slice", "Nice=0"),
}


@contextlib.contextmanager
def slices() -> Iterator[Groups]:
    """ls.slice and be.slice, there for as long as this lasts, with a child each for the loads."""
    names = [f"qosd-bench-{name}.service" for name in _HOLDS]
    for name, (slice_, what) in zip(names, _HOLDS.values(), strict=True):
        unit = (f"--unit={name}", f"--slice={slice_}", "-p", what)
        _run("systemd-run", "-q", "--collect", *unit, "sleep", "1d")
    try:
        groups = Groups((V2Group("ls.slice", "qosd-bench"), V2Group("be.slice", "qosd-bench")))
        yield groups
        groups.remove()
    finally:
        _run("systemctl", "stop", *names)


class Installed:
    """qosd.service, started anew with a configuration; it ticks by itself."""

    interval = math.inf

    def __init__(self, groups: Groups, options: dict[str, str]) -> None:
        groups.ls.set_weight(1000)
        groups.be.set_idle(idle=True)
        with open(_CONFIG, "w", encoding="utf-8") as file:
            file.write(toml(options))
        _run("systemctl", "reset-failed", "qosd")  # five starts a minute are its limit
        _run("systemctl", "restart", "qosd")
        _await_ticks()
        self._before = limit_writes()
        self.writes = 0

    def tick(self) -> None:
        """Not for us to say."""

    def close(self) -> None:
        try:
            self.writes = limit_writes() - self._before
        finally:
            _run("systemctl", "stop", "qosd")


def toml(options: dict[str, str]) -> str:
    """The options of a mode as a configuration, by the short names of the table."""
    tables: dict[str, list[str]] = {}
    for name, value in options.items():
        table, key = KEYS.get(name, ("cpu.bandwidth", name))
        text = f'"{value}"' if value.isalpha() else f"{float(value)}"
        tables.setdefault(table, []).append(f"{key} = " + (f'"{value}ms"' if name in TIMES else text))
    # Keys of no table come first.
    return "".join(
        (f"[{table}]\n" if table else "") + "\n".join(lines) + "\n" for table, lines in sorted(tables.items())
    )


def limit_writes() -> int:
    """How often the daemon has written a limit since it started, by its own metric."""
    with urllib.request.urlopen(_METRICS, timeout=30) as answer:
        return counted(answer.read().decode())


def counted(metrics: str) -> int:
    return sum(int(float(number)) for outcome, number in _LIMITS.findall(metrics) if outcome in _WRITTEN)


def _await_ticks() -> None:
    """Until it has looked, decided and written a few times."""
    deadline = time.monotonic() + _PATIENCE_SEC
    while time.monotonic() < deadline:
        with contextlib.suppress(Failure):
            status = client.ask_for(_SOCKET, "status", Status)
            if status.mode == "enforce" and status.tick >= _FIRST_TICKS:
                return
        time.sleep(0.2)
    raise RuntimeError("qosd did not come to enforce")


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
