"""What looking costs: tick time and syscalls a file, memory, idle CPU, start-up. Run as root.

Everything is measured in one run beside something everybody knows: a walk with `open().read()` over the
same files, and `python3 -I -c pass`. Times are of this machine; the ratios are what to compare.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from qosd.config import Config, decode
from qosd.governors import WATCHED
from qosd.procfs import cgroup2_mount
from qosd.sense import HostFiles, Sensor
from qosd.sys import DIRECTORY, Sys

ROUNDS = 15
# The package has no typing_extensions, which msgspec imports where the linters have brought it along.
BOOT = """
import sys
sys.modules["typing_extensions"] = None
sys.path.insert(0, {!r})
from qosd.__main__ import main
sys.exit(main())
"""


class NotingSys(Sys):
    """Counts the calls that enter the kernel, and notes what each read is of."""

    def __init__(self) -> None:
        self.calls = 0
        self.read: list[str] = []

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        self.calls += 1
        self.read.append(os.readlink(f"/proc/self/fd/{fd}"))
        return os.pread(fd, size, offset)

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:  # type: ignore[override]
        self.calls += 1
        return os.open(path, flags, mode, dir_fd=dir_fd)

    def close(self, fd: int) -> None:
        self.calls += 1
        os.close(fd)

    def stat(  # type: ignore[override]
        self, path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> os.stat_result:
        self.calls += 1
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    def fstat(self, fd: int) -> os.stat_result:
        self.calls += 1
        return os.fstat(fd)


@contextlib.contextmanager
def tree(count: int) -> Iterator[Path]:
    """A tree of our own with `count` cgroups in be.slice, gone afterwards."""
    mount = cgroup2_mount()
    if mount is None:
        sys.exit("no cgroup2 mount on this machine")
    top = Path(mount) / f"qosd-bench-{os.getpid()}"
    leaves = [top / "be.slice" / f"job{number}.service" for number in range(count)]
    made = [top, top / "ls.slice", top / "be.slice", *leaves]
    try:
        for path in made:
            path.mkdir()
        yield top
    finally:
        for path in reversed(made):
            if path.exists():
                path.rmdir()


def naive(paths: list[str]) -> None:
    """What most agents do: open, read, split, by path."""
    for path in paths:
        with open(path, encoding="ascii") as stream:
            stream.read().split()


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - start) / 1000


def tick_cost(count: int) -> dict[str, float]:
    """Microseconds for a snapshot, all of it, and for the naive walk of the same files, interleaved."""
    with tree(count) as top:
        root_fd = os.open(top, DIRECTORY)
        noted = NotingSys()
        with sensor_of(root_fd, noted) as sensor:
            for warm in range(1, 4):
                sensor.snapshot(warm)
            noted.calls = 0
            noted.read.clear()
            cgroups = len(sensor.snapshot(4).descendants) + 2
            calls = noted.calls
        ours, theirs = [], []
        with sensor_of(root_fd, Sys()) as sensor:
            for tick in range(1, 2 * ROUNDS + 5):
                if tick % 2:
                    sensor.snapshot(tick)
                    continue
                ours.append(timed(lambda tick=tick, sensor=sensor: sensor.snapshot(tick)))  # type: ignore[misc]
                theirs.append(timed(lambda: naive(noted.read)))
        os.close(root_fd)
    hot = [path for path in noted.read if "/job" in path]
    files, per_tick = len(noted.read), statistics.median(ours)
    ratios = [o / t for o, t in zip(ours, theirs, strict=True)]
    return {
        "cgroups": count,
        "read a tick": cgroups,
        "files": files,
        "qosd us": per_tick,
        "qosd us/cgroup": per_tick / count,
        "qosd us/file": per_tick / files,
        "naive us/file": statistics.median(theirs) / files,
        "ratio": statistics.median(ratios),
        "ratio min": min(ratios),
        "ratio max": max(ratios),
        "syscalls/file": calls / files,
        "reads/hot file": len(hot) / len(set(hot)),
    }


@contextlib.contextmanager
def sensor_of(root_fd: int, sys_: Sys) -> Iterator[Sensor]:
    """One sensor of the tree, closed after use."""
    sensor = Sensor(sys_, root_fd, Config(), WATCHED, (), HostFiles(sys_, "/proc", "/sys"))
    try:
        yield sensor
    finally:
        sensor.close()


@contextlib.contextmanager
def daemon(top: Path, directory: Path, extra: str = "") -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """The daemon on our own tree, in observe mode; yields it and the seconds from exec to READY=1."""
    config = directory / "qosd.toml"
    config.write_text(f'mode = "observe"\n[metrics]\nlisten = "127.0.0.1:19754"\n{extra}')
    decode(config.read_text())
    address = str(directory / "notify")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(address)
        argv = [
            sys.executable,
            "-I",
            "-c",
            BOOT.format(os.getcwd()),
        ]
        argv += ["run", "--config", str(config), "--runtime", str(directory), "--cgroup-root", str(top)]
        start = time.perf_counter()
        with subprocess.Popen(argv, env={**os.environ, "NOTIFY_SOCKET": address}) as process:
            try:
                while b"READY=1" not in ready.recv(4096):
                    pass
                took = time.perf_counter() - start
                ready.close()
                yield process, took
            finally:
                process.terminate()
                process.wait(10)


def start_up() -> dict[str, float]:
    """Exec to READY beside a bare interpreter, interleaved."""
    ours, bare = [], []
    with tree(100) as top, tempfile.TemporaryDirectory() as directory:
        for _ in range(7):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-I", "-c", "pass"], check=True)
            bare.append(time.perf_counter() - start)
            with daemon(top, Path(directory)) as (_, took):
                ours.append(took)
    return {
        "READY ms": statistics.median(ours) * 1e3,
        "python3 -I -c pass ms": statistics.median(bare) * 1e3,
        "ratio": statistics.median(o / b for o, b in zip(ours, bare, strict=True)),
        "ratio max": max(o / b for o, b in zip(ours, bare, strict=True)),
    }


def at_rest(seconds: int, count: int) -> dict[str, float]:
    """Memory after a scrape, open files and CPU of a daemon that watches so many idle cgroups."""
    with (
        tree(count) as top,
        tempfile.TemporaryDirectory() as directory,
        daemon(top, Path(directory)) as (process, _),
    ):
        time.sleep(3)
        before_scrape = rss_mib(process.pid)
        urllib.request.urlopen("http://127.0.0.1:19754/metrics").read()
        start, cpu = time.monotonic(), cpu_seconds(process.pid)
        time.sleep(seconds)
        used = (cpu_seconds(process.pid) - cpu) / (time.monotonic() - start)
        return {
            "cgroups": count,
            "open files": len(os.listdir(f"/proc/{process.pid}/fd")),
            "RSS MiB before a scrape": before_scrape,
            "RSS MiB after": rss_mib(process.pid),
            "CPU % of a core": used * 100,
        }


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise LookupError("VmRSS")


def cpu_seconds(pid: int) -> float:
    """Nanosecond run time from schedstat: utime and stime tick in 10 ms."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=int, default=30, help="how long to watch an idle daemon")
    arguments = parser.parse_args()
    result: dict[str, list[dict[str, float]]] = {
        "tick": [tick_cost(count) for count in (10, 100, 1000, 10_000)],
        "start": [start_up()],
        "rest": [at_rest(arguments.seconds, count) for count in (100, 10_000)],
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    for rows in result.values():
        for row in rows:
            print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))


if __name__ == "__main__":
    main()
