"""What runs beside the load in a dynamic mode: a law in a loop, or qosd's own Engine."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable

import msgspec

from bench.sched.groups import Group, Groups
from bench.sched.laws import Sample, State
from qosd.config import Config
from qosd.engine import Engine
from qosd.journal import Journal, read_boot_id
from qosd.procfs import parse_stat
from qosd.sense import HostFiles
from qosd.sys import Sys

Law = Callable[[Sample, State], tuple[State, float]]
_MIN_QUOTA_USEC = 1000


class LawLoop:
    """A law of `laws`, its allowance written as a quota. Its first interval only looks."""

    def __init__(self, groups: Groups, law: Law, interval: float, period_usec: int) -> None:
        self.interval = interval
        self.writes = 0
        self._groups = groups
        self._law = law
        self._period = period_usec
        self._state = State()
        self._quota: int | None = None
        self._before: tuple[float, int, int] | None = None

    def tick(self) -> None:
        with open("/proc/stat", "rb") as file:
            cpu = parse_stat(file.read(65536), os.sysconf("SC_CLK_TCK"))
        now = (time.monotonic(), cpu.busy_usec, self._groups.be.usage_usec())
        before, self._before = self._before, now
        if before is None or now[0] <= before[0]:
            return
        elapsed = (now[0] - before[0]) * 1e6
        be = (now[2] - before[2]) / elapsed
        other = max((now[1] - before[1]) / elapsed - be, 0.0)
        self._state, cores = self._law(Sample(now[0], other, be, cpu.nr_cpus), self._state)
        quota = max(round(cores * self._period), _MIN_QUOTA_USEC)
        if quota != self._quota:
            self._groups.be.set_max(quota, self._period)
            self._quota = quota
            self.writes += 1

    def close(self) -> None:
        """Nothing of its own is left behind."""


class Daemon:
    """The real Engine (sense, governors, plan, act, journal) over a mirror of the two groups.

    The groups carry the floor when it starts, as the shipped slices do; otherwise the two ticks that it only
    looks on would leave LS at 80 % a backlog that outlasts the segment.

    The mirror is a directory of v2 interface files: filled from the groups before a tick, and what the tick
    changed in it is written to the groups after. So qosd itself needs to know nothing of cgroup v1.
    """

    def __init__(self, groups: Groups, config: Config) -> None:
        self.interval = int(config.interval) / 1e6
        self.writes = 0
        self._dir = tempfile.mkdtemp(prefix="qosd-bench-", dir="/dev/shm")
        self._groups = {"ls.slice": groups.ls, "be.slice": groups.be}
        self._held: dict[str, str] = {}
        for name in self._groups:
            os.mkdir(f"{self._dir}/{name}")
            for file, text in _DEFAULTS.items():
                held = _FLOOR.get((name, file), text)
                self._held[f"{name}/{file}"] = held
                self._put(f"{name}/{file}", held)
                _set(self._groups[name], file, held)
        self._fill()
        sys = Sys()
        self._root_fd = os.open(self._dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        journal = Journal(sys, self._dir, read_boot_id())
        self._engine = Engine(sys, self._root_fd, config, journal, None, HostFiles(sys, "/proc", "/sys"))

    def tick(self) -> None:
        self._fill()
        self._engine.tick()
        for label, held in self._held.items():
            with open(f"{self._dir}/{label}", encoding="ascii") as file:
                now = file.read().strip()
            if now != held:
                self._held[label] = now
                self.writes += 1
                name, _, file_name = label.partition("/")
                _set(self._groups[name], file_name, now)

    def close(self) -> None:
        self._engine.close()
        os.close(self._root_fd)
        shutil.rmtree(self._dir)

    def _fill(self) -> None:
        for name, group in self._groups.items():
            usage = group.usage_usec()
            periods, throttled, usec = group.throttled()
            self._put(
                f"{name}/cpu.stat",
                f"usage_usec {usage}\nuser_usec {usage}\nsystem_usec 0\nnr_periods {periods}\n"
                f"nr_throttled {throttled}\nthrottled_usec {usec}",
            )

    def _put(self, label: str, text: str) -> None:
        """In place: qosd keeps its files open, as it does on the real thing."""
        with open(f"{self._dir}/{label}", "r+" if os.path.exists(f"{self._dir}/{label}") else "w") as file:
            file.write(text + "\n")
            file.truncate()


_DEFAULTS = {
    "cpu.weight": "100",
    "cpu.idle": "0",
    "cpu.max": "max 100000",
    "cpu.max.burst": "0",
    "cpuset.cpus": "",
}

_FLOOR = {("ls.slice", "cpu.weight"): "1000", ("be.slice", "cpu.idle"): "1"}
"""What systemd/ls.slice and systemd/be.slice say."""


def _set(group: Group, file: str, text: str) -> None:
    match file:
        case "cpu.weight":
            group.set_weight(int(text))
        case "cpu.idle":
            group.set_idle(idle=text == "1")
        case "cpu.max":
            quota, period = text.split()
            group.set_max(None if quota == "max" else int(quota), int(period))
        case "cpu.max.burst":
            group.set_burst(int(text))
        case "cpuset.cpus":
            group.set_cpus(text)
        case _:
            message = f"no group of the benchmark has {file}"
            raise ValueError(message)


KEYS = {"X": ("host", "cpu_target_pct"), "interval": ("", "interval")}
"""Options of a mode by their short names: table and key. All others are of `[cpu.bandwidth]`."""
TIMES = ("interval", "period", "mean")
"""In milliseconds."""


def configured(options: dict[str, str]) -> Config:
    """qosd's defaults with the options of a mode."""
    config = Config()
    document = msgspec.to_builtins(config, enc_hook=int)
    for name, value in options.items():
        section, key = KEYS.get(name, ("bandwidth", name))
        number: object = value if name in ("enforce", "estimate") else float(value)
        if name in TIMES:
            number = int(float(value) * 1000)
        place = document["cpu"]["bandwidth"] if section == "bandwidth" else document
        (place[section] if section == "host" else place)[key] = number
    return msgspec.convert(document, Config, dec_hook=lambda kind, value: kind(value))
