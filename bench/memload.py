"""The loads of bench/memory.py and what is measured of them: runs inside the guest, standard library only.

memload.py measure SCENE MODE     one round, its figures as JSON
memload.py LOAD ARGUMENTS...      one of the loads below, in whatever cgroup it was started in
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
FILES = Path("/var/tmp")  # noqa: S108 - the guest's own disk
RUN = Path("/run/bench")
MIB, PAGE, BLOCK = 1 << 20, 4096, 1 << 16
WARM = 5  # passes over the hot set before anything is measured
LS, BE = "hot.slice", "be.slice"
PLAIN = "plain.slice"  # BE without the static settings of be.slice
STREAM = 640  # MiB: with LS and the system more than there is
EACH = 2  # times RAM that BE reads beside an LS that works, and then beside one in a lull


# --- loads


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
            awake[0] = awake[0] and not (count == 1 and first == "lull")
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


def job(how: str, work: str, cold: str, report: str) -> None:
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
        time.sleep(0.2)


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


LOADS = {"hot": hot, "stream": stream, "job": job, "cold": cold, "burst": burst, "paced": paced}


# --- what is looked at


def stat(group: str) -> dict[str, int]:
    lines = (CGROUP / group / "memory.stat").read_text().splitlines()
    return {key: int(value) for key, value in (line.split() for line in lines)}


def cache(group: str) -> float:
    now = stat(group)
    return (now["inactive_file"] + now["active_file"]) / MIB


def stalled(group: str) -> float:
    """Seconds in which some task of the group waited for memory."""
    line = (CGROUP / group / "memory.pressure").read_text().split("\n")[0]
    return int(line.rpartition("total=")[2]) / 1e6


def resident(path: Path) -> float:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    fd = os.open(path, os.O_RDONLY)
    size = ctypes.c_size_t(os.fstat(fd).st_size)
    address = ctypes.c_void_p(libc.mmap(None, size, 1, 1, fd, ctypes.c_long(0)))
    pages = (ctypes.c_ubyte * (size.value // PAGE))()
    if libc.mincore(address, size, pages):
        raise OSError(ctypes.get_errno(), "mincore")
    libc.munmap(address, size)
    os.close(fd)
    return sum(page & 1 for page in pages) / len(pages)


def told(name: str) -> float:
    report = RUN / name
    return float(report.read_text()) if report.exists() else 0.0


def run(*command: str) -> str:
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout


def start(slice_: str, name: str, *load: str | Path) -> None:
    run(
        *("systemd-run", "-q", "--collect", f"--unit=bench-{name}", f"--slice={slice_}"),
        *("-p", "MemoryAccounting=yes", sys.executable, __file__, *map(str, load)),
    )


def until(holds: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "did not come to hold"
        time.sleep(0.2)


def real(name: str, mib: int) -> Path:
    """A file with blocks of its own: to read it again costs the disk. None of it is cached yet: who reads it pays."""
    path = FILES / f"bench-{name}"
    if not path.exists():
        run("dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={mib}", "oflag=direct", "status=none")
    return path


def hole(name: str, mib: int) -> Path:
    """A file without blocks: it fills the page cache like any other, and is read fast."""
    path = FILES / f"bench-{name}"
    with open(path, "wb") as file:
        file.truncate(mib * MIB)
    return path


def clean() -> None:
    subprocess.run(["systemctl", "stop", "qosd", "bench-*"], check=False, capture_output=True)
    shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir()
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def qosd(extra: str = "") -> None:
    rules = "".join(
        f'[[workload]]\nname = "{tier}"\ntier = "{tier}"\nmatch = ["{match}"]\n{more}'
        for tier, match, more in (("ls", LS, ""), ("be", BE, extra if "page_cache" in extra else ""))
    )
    sections = "" if "page_cache" in extra else extra
    Path("/etc/qosd/qosd.toml").write_text(f'[memory]\nstat_interval = "1s"\n{sections}\n{rules}')
    if subprocess.run(["systemctl", "-q", "is-active", "qosd"], check=False).returncode == 0:
        run("qosctl", "reload")
        return
    run("systemctl", "start", "qosd")
    until(lambda: json.loads(run("qosctl", "status", "--json"))["mode"] == "enforce", 60)


def ram() -> float:
    line = Path("/proc/meminfo").read_text().split("\n")[0]
    return int(line.split()[1]) / 1024


# --- scenes


def protect(mode: str) -> dict[str, float]:
    """LS that was just started, that comes back every 4 s, that has a lull; BE reads a large file over and over."""
    clean()
    files = (real("read", 80), real("map", 40))
    if mode != "none":
        qosd('[memory.protection]\nenforce = "auto"' if mode == "auto" else "")
    start(LS, "ls", "hot", *files, RUN / "ls", 4, "lull")
    until(lambda: told("ls") == 1)
    started = stat(LS)
    time.sleep(3)
    start(BE, "be", "stream", hole("stream", STREAM), RUN / "be")
    figures = _beside(files, "fresh") | _back("fresh", WARM)
    run("systemctl", "thaw", "bench-be")
    figures |= _beside(files, "pauses")
    _toggle_lull()
    figures |= _beside(files, "lull") | _back("lull", 1)
    return figures | {
        "LS pages refaulted": _refaults(started, stat(LS)),
        "LS pages evicted": stat(LS)["pgsteal"] - started["pgsteal"],
        "memory.events low": _low_events(),
        "memory.low MiB": _size("memory.low"),
        "memory.min MiB": _size("memory.min"),
    }


def _back(when: str, passes: int) -> dict[str, float]:
    """BE rests, and LS has to do again: what it must read from the disk for that."""
    run("systemctl", "freeze", "bench-be")
    before, done = stat(LS), told("ls")
    _toggle_lull()
    until(lambda: told("ls") >= done + passes)
    return {f"{when}: LS pages refaulted as it came back": _refaults(before, stat(LS))}


def _toggle_lull() -> None:
    run("systemctl", "kill", "-s", "USR1", "bench-ls")


def _beside(files: tuple[Path, ...], when: str) -> dict[str, float]:
    """What becomes of the hot set while BE reads so much."""
    begun, streamed, before, seen = time.monotonic(), told("be"), stat(LS), [1.0]
    while told("be") - streamed < EACH * ram():
        time.sleep(2)
        seen.append(min(map(resident, files)))
        assert time.monotonic() - begun < 200, "BE does not get on"
    return {
        f"{when}: hot set resident, least": min(seen),
        f"{when}: LS pages refaulted": _refaults(before, stat(LS)),
        f"{when}: BE read MiB a second": (told("be") - streamed) / (time.monotonic() - begun),
    }


def _refaults(first: dict[str, int], last: dict[str, int]) -> int:
    return last["workingset_refault_file"] - first["workingset_refault_file"]


def _low_events() -> int:
    lines = (CGROUP / LS / "memory.events").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("low "))


def _size(file: str) -> float:
    return int((CGROUP / LS / file).read_text()) / MIB


def reclaim(mode: str) -> dict[str, float | None]:
    """BE with 250 MiB that nobody reads again and 50 MiB it works on: two jobs, or one that reads or maps."""
    clean()
    work, unused = real("work", 50), hole("cold", 250)
    how = "map" if mode == "map" else "read"
    start(BE, "be", "job", how, work, "-" if mode == "two jobs" else unused, RUN / "be")
    if mode == "two jobs":
        start(BE, "cold", "cold", unused, RUN / "cold")
        until(lambda: told("cold") == 1)
    start(LS, "ls", "hot", real("read", 80), "-", RUN / "ls", 1)
    until(lambda: told("be") >= 3 and told("ls") >= 3)
    qosd()
    time.sleep(3)
    held, first = cache(BE), _pace(10)
    before, waited, begun = stat(BE), stalled(LS), time.monotonic()
    qosd('page_cache_high = "100MiB"\npage_cache_low = "90MiB"\n')
    second = _pace(45)
    time.sleep(5)
    after = stat(BE)
    memory = json.loads(run("qosctl", "status", "--json"))["memory"]
    be = next(each for each in memory["workloads"] if each["path"] == BE)
    freed, again = (after["pgsteal"] - before["pgsteal"]) * PAGE, _refaults(before, after) * PAGE
    return {
        "freed, of the cold cache": freed / (250 * MIB),
        "page cache before MiB": held,
        "page cache after MiB": cache(BE),
        "refaulted, of what was freed": again / freed if freed else None,
        "refaulted MiB": again / MIB,
        "work passes a second, of before": second / first,
        "LS waited for memory, share": (stalled(LS) - waited) / (time.monotonic() - begun),
        "asked MiB": be["asked"] / MIB,
        "working set resident": resident(work),
    }


def _pace(seconds: float) -> float:
    """Passes a second, from the end of one to the end of another."""
    first, begun = _next_pass()
    time.sleep(seconds)
    last, ended = _next_pass()
    return (last - first) / (ended - begun)


def _next_pass() -> tuple[float, float]:
    now = told("be")
    while (then := told("be")) == now:
        time.sleep(0.005)
    return then, time.monotonic()


LIMITS = """
[host]
memory_target_pct = 80
[memory.limits]
enforce = "high"
"""
WATERMARK = """
[memory.reclaim]
free_low_pct = 8
"""
ISOL = {"qosd": "", "limits": LIMITS, "limits+free": LIMITS + WATERMARK}
RATE = 12  # units a second, far below what the guest can do


def isol(mode: str) -> dict[str, float]:
    """LS with a fixed rate of work beside BE that streams and allocates in bursts."""
    clean()
    path = real("read", 80)
    start(LS, "ls", "paced", path, RUN / "ls", RATE)
    if mode in ISOL:
        qosd(ISOL[mode])
    slice_ = PLAIN if mode == "uncontrolled" else BE
    until((RUN / "ls").exists)
    time.sleep(4)
    start(slice_, "be", "stream", hole("stream", STREAM), RUN / "be")
    start(slice_, "burst", "burst", round(ram() / 3), RUN / "burst")
    time.sleep(3)
    first, waited, before, read = len(_seconds()), stalled(LS), stat(LS), told("be")
    allocated, direct = told("burst"), DirectReclaim()
    time.sleep(20)
    of_ls, of_all = direct.counts(run("systemctl", "show", "-P", "MainPID", "bench-ls").strip())
    done = list(_seconds().values())[first:-1]
    shares = sorted(min(count / RATE, 1.0) for count in done)
    return {
        "LS throughput of its target, mean": sum(shares) / len(shares),
        "LS throughput of its target, p01": shares[0],
        "seconds": len(shares),
        "LS waited for memory, s": stalled(LS) - waited,
        "LS had to reclaim itself, times": of_ls,
        "all had to reclaim themselves, times": of_all,
        "LS pages refaulted": _refaults(before, stat(LS)),
        "BE read MiB": told("be") - read,
        "BE bursts": told("burst") - allocated,
        "BE memory.high MiB": _high(slice_),
    }


class DirectReclaim:
    """Counts, from now on, who entered direct reclaim: the kernel's own histogram on its tracepoint."""

    EVENT = Path("/sys/kernel/tracing/events/vmscan/mm_vmscan_direct_reclaim_begin")

    def __init__(self) -> None:
        if not self.EVENT.exists():
            run("mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing")
        (self.EVENT / "trigger").write_text("hist:keys=common_pid")

    def counts(self, pid: str) -> tuple[int, int]:
        """Of the process, and of all."""
        text = (self.EVENT / "hist").read_text()
        (self.EVENT / "trigger").write_text("!hist:keys=common_pid")
        found = re.findall(r"common_pid: +(\d+) *} hitcount: +(\d+)", text)
        return sum(int(count) for each, count in found if each == pid), sum(int(count) for _, count in found)


def _seconds() -> dict[str, int]:
    counts: dict[str, int] = json.loads((RUN / "ls").read_text())
    return counts


def _high(slice_: str) -> float:
    text = (CGROUP / slice_ / "memory.high").read_text().strip()
    return ram() if text == "max" else int(text) / MIB


SCENES: dict[str, Callable[[str], object]] = {"protect": protect, "reclaim": reclaim, "isol": isol}


def main() -> None:
    name, *rest = sys.argv[1:]
    if name == "measure":
        print(json.dumps(SCENES[rest[0]](rest[1])))
        clean()
    else:
        LOADS[name](*rest)  # type: ignore[operator]


if __name__ == "__main__":
    main()
