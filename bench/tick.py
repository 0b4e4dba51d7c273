"""What looking costs: tick time and syscalls a cgroup, memory, idle CPU, start-up. Run as root.

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
from qosd.watch import CgroupFiles

NAMES = tuple(field.replace("_", ".") for field in CgroupFiles._fields)
ROUNDS = 15
BOOT = "import sys; sys.path.insert(0, {!r}); from qosd.__main__ import main; sys.exit(main())"


class CountingSys(Sys):
    """Counts the calls that enter the kernel."""

    def __init__(self) -> None:
        self.calls = 0

    def pread(self, fd: int, size: int, offset: int) -> bytes:  # type: ignore[override]
        self.calls += 1
        return os.pread(fd, size, offset)

    def open(self, *args: object, **kwargs: object) -> int:  # type: ignore[override]
        self.calls += 1
        return os.open(*args, **kwargs)  # type: ignore[arg-type]

    def close(self, fd: int) -> None:  # type: ignore[override]
        self.calls += 1
        os.close(fd)


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


def naive(top: Path, paths: list[str], files: tuple[str, ...]) -> None:
    """What most agents do: open, read, split, by path."""
    for path in paths:
        for file in files:
            with open(top / path / file, encoding="ascii") as stream:
                stream.read().split()


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - start) / 1000


def tick_cost(count: int) -> dict[str, float]:
    """Microseconds a cgroup for a snapshot and for the naive walk of the same files, interleaved."""
    with tree(count) as top:
        root_fd = os.open(top, DIRECTORY)
        sensor = Sensor(Sys(), root_fd, Config(), WATCHED, (), HostFiles(Sys(), "/proc", "/sys"))
        present = tuple(name for name in NAMES if (top / "be.slice" / name).exists())
        tick = 0
        ours, theirs, read = [], [], []
        for tick in range(1, 2 * ROUNDS + 5):
            if tick % 2:
                sensor.snapshot(tick)
                continue
            snapshots = []
            ours.append(timed(lambda tick=tick, snapshots=snapshots: snapshots.append(sensor.snapshot(tick))))  # type: ignore[misc]
            sampled = [sample.path for sample in snapshots[0].descendants]
            paths = [*sampled, "ls.slice", "be.slice"]
            read.append(len(paths))
            theirs.append(timed(lambda paths=paths: naive(top, paths, present)))  # type: ignore[misc]
        sensor.close()
        counting = CountingSys()
        counted = Sensor(counting, root_fd, Config(), WATCHED, (), HostFiles(Sys(), "/proc", "/sys"))
        for warm in range(1, 4):
            counted.snapshot(warm)
        counting.calls = 0
        last = counted.snapshot(4)
        calls = counting.calls
        counted.close()
        os.close(root_fd)
    per_tick = statistics.median(ours)
    return {
        "cgroups": count,
        "read a tick": statistics.median(read),
        "qosd us": per_tick,
        "qosd us/cgroup": per_tick / count,
        "qosd us/read": per_tick / statistics.median(read),
        "naive us/read": statistics.median(theirs) / statistics.median(read),
        "ratio": statistics.median(o / t for o, t in zip(ours, theirs, strict=True)),
        "ratio min": min(o / t for o, t in zip(ours, theirs, strict=True)),
        "ratio max": max(o / t for o, t in zip(ours, theirs, strict=True)),
        "syscalls/cgroup": calls / (len(last.descendants) + 2),
        "files": len(present),
    }


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
