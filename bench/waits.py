"""From a burst of LS to BE's limit: by the run-queue probe, and by the tick alone, for the same bursts.

Natively, as root: `make bench-ebpf` runs it. Two whole daemons look at the same two real cgroups, one with
`fast.probe_waits`, one without; tasks, waits, probe, ring buffer and evidence are the kernel's. Where the
kernel's cgroups lack cpu.max (a hybrid host has the cpu controller in v1) each daemon gets a file in a tmpfs
for it, so what is measured ends with that write, and not with what the scheduler makes of it.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qosd.daemon import Daemon, Paths
from qosd.model import Breach
from qosd.sys import Sys

SIDES = {"probe": "true", "poll": "false"}
PLAIN = {"cpu.max": "max 100000", "cpu.max.burst": "0", "cpu.weight": "100", "cpu.idle": "0"}
CONFIG = """interval = "1s"
[metrics]
listen = ""
[cpu.weight]
be_idle = "never"
[cpu.bandwidth]
enforce = "max"
[fast]
max_triggers = 0
hold_max = "1s"
probe_waits = {probe_waits}
[ebpf]
probes = ["runq"]
event_gap = "10ms"
[ebpf.baseline]
runq_cold = "2ms"
"""


def be_important(nice: int) -> None:
    """A nice value counts within its session only, where the kernel groups tasks so (SCHED_AUTOGROUP)."""
    import os  # noqa: PLC0415 - children run this text alone

    if os.getpgid(0) != os.getpid():
        os.setsid()
    os.nice(nice)
    if os.path.exists("/proc/self/autogroup"):
        with open("/proc/self/autogroup", "w", encoding="utf-8") as file:
            file.write(str(nice))


SPIN = f"{inspect.getsource(be_important)}\nbe_important(-15)\nwhile True: pass"


class Overlay(Sys):
    """Files that this kernel's cgroups lack are looked for in a directory of plain ones; writes are timed.

    What else runs on this host is not the question, but it would take BE's allowance: /proc/stat is made up.
    """

    def __init__(self, plain: dict[int, Path], work: Path) -> None:
        self._plain = plain
        self._log = (work / "log").open("a", buffering=1, encoding="utf-8")
        self._stat = -1
        self._limit = (work / "be.slice/cpu.max").stat().st_ino

    def close_log(self) -> None:
        self._log.close()

    def note(self, what: str, at_ns: int, text: str) -> None:
        self._log.write(json.dumps([what, at_ns, text]) + "\n")

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:  # type: ignore[override]
        try:
            fd = os.open(path, flags, mode, dir_fd=dir_fd)
        except FileNotFoundError:
            plain = None if dir_fd is None else self._plain.get(os.fstat(dir_fd).st_ino)
            if plain is None:
                raise
            fd = os.open(plain / path, flags, mode)
        if path == "stat":
            self._stat = fd
        return fd

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        if fd != self._stat:
            return os.pread(fd, size, offset)
        idle = time.monotonic_ns() // 10_000_000  # in ticks of 10 ms, on all CPUs
        cpus = range(os.cpu_count() or 1)
        lines = [f"cpu  1 0 1 {idle * len(cpus)} 0 0 0 0 0 0"]
        lines += [f"cpu{number} 0 0 0 {idle} 0 0 0 0 0 0" for number in cpus]
        return "\n".join((*lines, "intr 0\n")).encode()[offset:]

    def write(self, fd: int, data: bytes) -> int:  # type: ignore[override]
        written = os.write(fd, data)
        now = time.monotonic_ns()
        if os.fstat(fd).st_ino == self._limit:
            self.note("write", now, data.decode().strip())
        return written


class Timed(Daemon):
    """The daemon, on a root that is not the mount's, with each reaction timed from the kernel's own stamp."""

    def __init__(self, sys_: Overlay, paths: Paths) -> None:
        super().__init__(sys_, paths)
        inner = self.engine.react

        def react(event: Breach) -> str:
            outcome = inner(event)
            sys_.note("react", time.monotonic_ns() - event.at_usec * 1000, outcome)
            return outcome

        self.engine.react = react  # type: ignore[method-assign]

    def _on_cgroups(self) -> bool:
        return True  # below the mount


def serve(root: str, work: str) -> None:
    """One daemon, in a process of its own."""
    be_important(-20)  # as its unit has it by CPUWeight
    plain = {os.stat(Path(root) / name).st_ino: Path(work) / name for name in ("ls.slice", "be.slice")}
    paths = Paths(f"{work}/qosd.toml", f"{work}/run", root)
    sys.exit(Timed(Overlay(plain, Path(work)), paths).run())


@contextlib.contextmanager
def cgroups() -> Iterator[Path]:
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        mount = next(Path(line.split()[1]) for line in mounts if line.split()[2] == "cgroup2")
    root = mount / f"qosd-bench-{os.getpid()}-waits"
    paths = (root, root / "ls.slice", root / "be.slice")
    for path in paths:
        path.mkdir()
    try:
        yield root
    finally:
        (root / "cgroup.kill").write_text("1")
        for path in reversed(paths):
            while "populated 1" in (path / "cgroup.events").read_text():
                time.sleep(0.01)
            path.rmdir()


def start(root: Path, work: Path, side: str) -> subprocess.Popen[bytes]:
    for name in ("ls.slice", "be.slice"):
        (work / name).mkdir(parents=True)
        for file, text in PLAIN.items():
            (work / name / file).write_text(text + "\n")
    (work / "qosd.toml").write_text(CONFIG.format(probe_waits=SIDES[side]))
    (work / "log").touch()
    command = [sys.executable, "-c", "import sys; from bench.waits import serve; serve(*sys.argv[1:])"]
    with (work / "said").open("w") as said:
        return subprocess.Popen([*command, str(root), str(work)], stderr=said)


def spin(cgroup: Path, count: int) -> list[subprocess.Popen[bytes]]:
    enter = f"open({str(cgroup / 'cgroup.procs')!r}, 'w').write('0')\n"
    return [subprocess.Popen([sys.executable, "-I", "-S", "-c", enter + SPIN]) for _ in range(count)]


def read_log(work: Path) -> list[tuple[str, int, str]]:
    return [tuple(json.loads(line)) for line in (work / "log").read_text().splitlines()]


def cores(text: str) -> float:
    quota, _, period = text.partition(" ")
    return float("inf") if quota == "max" else int(quota) / int(period or 100_000)


def limit(work: Path) -> float:
    return cores((work / "be.slice/cpu.max").read_text())


def wait_for_calm(works: dict[str, Path]) -> dict[str, float]:
    """Until no limit has moved for two ticks."""
    before: dict[str, float] = {}
    for _ in range(60):
        time.sleep(2.2)
        now = {side: limit(work) for side, work in works.items()}
        if before == now and all(value != float("inf") for value in now.values()):
            return now
        before = now
    message = f"the limits do not settle: {before}"
    raise TimeoutError(message)


def first_cut(work: Path, began: int, calm: float) -> float | None:
    """Milliseconds to the first lower limit."""
    cuts = [
        at - began
        for what, at, text in read_log(work)
        if what == "write" and at > began and cores(text) < 0.98 * calm
    ]
    return cuts[0] / 1e6 if cuts else None


def bursts(root: Path, works: dict[str, Path], count: int) -> dict[str, list[float]]:
    ls, be = (root / name / "cgroup.freeze" for name in ("ls.slice", "be.slice"))
    for freezer in (ls, be):
        freezer.write_text("1")
        spin(freezer.parent, 2)
    found: dict[str, list[float]] = {side: [] for side in works}
    for _ in range(count):
        calm = wait_for_calm(works)
        be.write_text("0")
        time.sleep(1.2 + random.random())  # noqa: S311 - where in a tick the burst begins
        began = time.monotonic_ns()
        ls.write_text("0")
        time.sleep(1.8)
        for freezer in (ls, be):
            freezer.write_text("1")
        cuts = {side: first_cut(work, began, calm[side]) for side, work in works.items()}
        for side, cut in cuts.items():
            found[side].append(float("inf") if cut is None else cut)
    return found


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def measure(count: int) -> tuple[dict[str, list[float]], list[float], dict[str, int]]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory, cgroups() as root:
        works = {side: Path(directory) / side for side in SIDES}
        daemons = [start(root, work, side) for side, work in works.items()]
        try:
            found = bursts(root, works, count)
        finally:
            for daemon in daemons:
                daemon.send_signal(signal.SIGTERM)
            for daemon in daemons:
                daemon.wait(timeout=30)
        reactions: list[Any] = [entry for entry in read_log(works["probe"]) if entry[0] == "react"]
        outcomes: dict[str, int] = {}
        for _, _, outcome in reactions:
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        return found, [took / 1000 for _, took, outcome in reactions if outcome == "cut"], outcomes


def report(count: int) -> None:
    found, reactions, outcomes = measure(count)
    print(f"burst of LS to BE's lower limit, ms; interval 1 s, the same {count} bursts for both")
    for side, values in found.items():
        print(f"  {side:6}{quantiles(values)}")
    for q in (0.5, 0.99):
        ratio = quantile(found["poll"], q) / quantile(found["probe"], q)
        print(f"  p{q * 100:.0f}: 1/{ratio:.1f} of polling")
    if not reactions:
        sys.exit(f"no cut came of the probe: nothing was compared ({outcomes})")
    print(f"  end of the wait in the kernel to cpu.max written, with evidence and journal, µs ({outcomes}):")
    print(f"  {quantiles(reactions)}  max {max(reactions):.0f}")


def quantiles(values: list[float]) -> str:
    return "  ".join(f"p{q * 100:.0f} {quantile(values, q):.1f}" for q in (0.5, 0.9, 0.99))


if __name__ == "__main__":
    report(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
