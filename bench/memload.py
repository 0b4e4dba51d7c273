"""The loads of bench/memory.py: runs inside the guest, standard library only.

memload.py LOAD ARGUMENTS...    one of the loads below, in whatever cgroup it was started in
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

MIB, PAGE, BLOCK = 1 << 20, 4096, 1 << 16
WARM = 5  # passes over the hot set before it pauses between them


def _tell(report: str, value: float) -> None:
    Path(f"{report}.new").write_text(str(value))
    os.rename(f"{report}.new", report)


def _read(path: str) -> Callable[..., None]:
    """A pass over a file with read(2)."""
    fd, buffer = os.open(path, os.O_RDONLY), bytearray(BLOCK)
    size = os.fstat(fd).st_size

    def once(progress: Callable[[int], None] = lambda _: None) -> None:
        for offset in range(0, size, BLOCK):
            progress(offset)
            os.preadv(fd, [buffer], offset)

    return once


def _touch(path: str) -> Callable[[], None]:
    """A pass over a file through a mapping."""
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    mapped = mmap.mmap(fd, size, prot=mmap.PROT_READ)

    def once() -> None:
        for offset in range(0, size, PAGE):
            mapped[offset]

    return once


def hot(read: str, mapped: str, report: str, pause: str, first: str = "") -> None:
    """A service: passes over what it reads and what it maps. SIGUSR1 begins a lull, or ends it.

    first="lull": it has just been started, has loaded its files, and nobody asks it for anything yet.
    """
    awake = [True]
    signal.signal(signal.SIGUSR1, lambda *_: awake.__setitem__(0, not awake[0]))
    passes = [_read(read)] + ([_touch(mapped)] if mapped != "-" else [])
    count = 0
    while True:
        if awake[0]:
            for once in passes:
                once()
            count += 1
            if count == 1 and first == "lull":
                awake[0] = False
            _tell(report, count)
        time.sleep(float(pause) if count >= WARM else 0.1)


def stream(path: str, report: str) -> None:
    """A batch job: the same files over and over, as a build or a training epoch."""
    once, size, passes = _read(path), os.path.getsize(path), 0

    def progress(offset: int) -> None:
        if offset % (32 * MIB) == 0:
            _tell(report, (passes * size + offset) / MIB)

    while True:
        once(progress)
        passes += 1


def job(how: str, work: str, cold: str, report: str, pause: str = "0.2") -> None:
    """A batch job that read a lot once, and works on a little."""
    once = _touch(work) if how == "map" else _read(work)
    for _ in range(WARM + 3):
        once()
    if cold != "-":
        _read(cold)()
    count = 0
    while True:
        once()
        count += 1
        _tell(report, count)
        time.sleep(float(pause))


def cold(path: str, report: str) -> None:
    _read(path)()
    _tell(report, 1)
    signal.pause()


def burst(mib: str, report: str) -> None:
    """Allocations that come and go."""
    count = 0
    while True:
        mapped = mmap.mmap(-1, int(mib) * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for offset in range(0, len(mapped), PAGE):
            mapped[offset] = 1
        count += 1
        _tell(report, count)
        time.sleep(0.3)
        mapped.close()


def step(mib: str, at_once: str, pause: str, report: str) -> None:
    """A step of a job that runs on all CPUs: so many processes, each with its part of it, and they end."""
    count = 0
    while True:
        pids = []
        for _ in range(int(at_once)):
            if (pid := os.fork()) == 0:
                bytes(b"x" * (int(mib) // int(at_once) * MIB))
                os._exit(0)
            pids.append(pid)
        for pid in pids:
            os.waitpid(pid, 0)
        count += 1
        _tell(report, count)
        time.sleep(float(pause))


def paced(path: str, report: str, rate: str) -> None:
    """Open loop: so many units a second are due; each reads 2 MiB of the hot set and fills 1 MiB of RAM."""
    _read(path)()
    fd, buffer, dice = os.open(path, os.O_RDONLY), bytearray(BLOCK), random.Random(1)  # noqa: S311 - load
    blocks = os.fstat(fd).st_size // BLOCK
    each, begun, done = 1 / float(rate), time.monotonic(), 0
    seconds: dict[int, int] = {}
    while True:
        due = begun + done * each
        if (early := due - time.monotonic()) > 0:
            time.sleep(early)
        for _ in range(32):
            os.preadv(fd, [buffer], dice.randrange(blocks) * BLOCK)
        mapped = mmap.mmap(-1, MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for offset in range(0, MIB, PAGE):
            mapped[offset] = 1
        mapped.close()
        done += 1
        second = int(time.monotonic() - begun)
        if second not in seconds and seconds:
            Path(f"{report}.new").write_text(json.dumps(seconds))
            os.rename(f"{report}.new", report)
        seconds[second] = seconds.get(second, 0) + 1


LOADS = {"hot": hot, "stream": stream, "job": job, "cold": cold, "burst": burst, "step": step, "paced": paced}


def main() -> None:
    name, *rest = sys.argv[1:]
    LOADS[name](*rest)  # type: ignore[operator]


if __name__ == "__main__":
    main()
