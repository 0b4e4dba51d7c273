"""The scenes of bench/memory.py and what is measured of them: runs inside the guest."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

LOADS = Path(__file__).with_name("memload.py")
CGROUP = Path("/sys/fs/cgroup")
FILES = Path("/var/tmp")  # noqa: S108 - the guest's own disk
RUN = Path("/run/bench")
MIB, PAGE = 1 << 20, 4096
WARM = 5  # as in memload.py
LS, BE = "hot.slice", "be.slice"
PLAIN = "plain.slice"  # BE without the static settings of be.slice
STREAM = 640  # MiB: with LS and the system more than there is
EACH = 2  # times RAM that BE reads beside an LS that works, and then beside one in a lull


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


def start(slice_: str, name: str, *load: str | float | Path) -> None:
    run(
        *("systemd-run", "-q", "--collect", f"--unit=bench-{name}", f"--slice={slice_}"),
        *("-p", "MemoryAccounting=yes", sys.executable, str(LOADS), *map(str, load)),
    )


def until(what: str, holds: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            sys.exit(f"not within {seconds:g} s: {what}")
        time.sleep(0.2)


def real(name: str, mib: int) -> Path:
    """A file with blocks of its own: to read it again costs the disk. Not cached: who reads it is charged."""
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
    until("qosd enforces", lambda: json.loads(run("qosctl", "status", "--json"))["mode"] == "enforce", 60)


def ram() -> float:
    return kib("/proc/meminfo", "MemTotal:") / 1024


def protect(mode: str) -> dict[str, float]:
    """LS just started, then at work with pauses, then in a lull; BE reads a large file over and over."""
    clean()
    files = (real("read", 80), real("map", 40))
    if mode != "none":
        qosd(AUTO if mode == "auto" else "")
    start(LS, "ls", "hot", *files, RUN / "ls", 4, "lull")
    until("LS has read its files", lambda: told("ls") == 1)
    started, events = stat(LS), _low_events()
    time.sleep(3)
    start(BE, "be", "stream", hole("stream", STREAM), RUN / "be")
    figures = _beside(files, "fresh") | _back("fresh", WARM)
    run("systemctl", "thaw", "bench-be")
    figures |= _beside(files, "pauses")
    _toggle_lull()
    figures |= _beside(files, "lull") | _back("lull", 1)
    return figures | {
        "LS pages refaulted": refaults(started, stat(LS)),
        "LS pages evicted": stat(LS)["pgsteal"] - started["pgsteal"],
        "memory.events low": _low_events() - events,
        "memory.low MiB": _size("memory.low"),
        "memory.min MiB": _size("memory.min"),
    }


def _back(when: str, passes: int) -> dict[str, float]:
    """BE rests, and LS has to do again: what it must read from the disk for that."""
    run("systemctl", "freeze", "bench-be")
    before, done = stat(LS), told("ls")
    _toggle_lull()
    until("LS is back", lambda: told("ls") >= done + passes)
    return {f"{when}: LS pages refaulted when it came back": refaults(before, stat(LS))}


def _toggle_lull() -> None:
    run("systemctl", "kill", "-s", "USR1", "bench-ls")


def _beside(files: tuple[Path, ...], when: str) -> dict[str, float]:
    """What becomes of the hot set while BE reads so much."""
    begun, streamed, seen = time.monotonic(), told("be"), [1.0]
    while told("be") - streamed < EACH * ram():
        time.sleep(2)
        seen.append(min(map(resident, files)))
        if time.monotonic() - begun > 200:
            sys.exit(f"{when}: BE read {told('be') - streamed:.0f} MiB in 200 s")
    return {
        f"{when}: hot set resident, least": min(seen),
        f"{when}: BE read MiB a second": (told("be") - streamed) / (time.monotonic() - begun),
    }


def refaults(first: dict[str, int], last: dict[str, int]) -> int:
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
        until("the cold cache is read", lambda: told("cold") == 1)
    start(LS, "ls", "hot", real("read", 80), "-", RUN / "ls", 1)
    until("both tiers work", lambda: told("be") >= 3 and told("ls") >= 3)
    qosd()
    time.sleep(3)
    held, first = cache(BE), _pace(10)
    before, waited, begun = stat(BE), stalled(LS), time.monotonic()
    qosd("" if mode == "off" else 'page_cache_high = "100MiB"\npage_cache_low = "90MiB"\n')
    second = _pace(40)
    time.sleep(5)
    after = stat(BE)
    memory = json.loads(run("qosctl", "status", "--json"))["memory"]
    be = next(each for each in memory["workloads"] if each["path"] == BE)
    freed, again = (after["pgsteal"] - before["pgsteal"]) * PAGE, refaults(before, after) * PAGE
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
    first, begun = next_pass()
    time.sleep(seconds)
    last, ended = next_pass()
    return (last - first) / (ended - begun)


def next_pass() -> tuple[float, float]:
    now = told("be")
    while (then := told("be")) == now:
        time.sleep(0.005)
    return then, time.monotonic()


AUTO = '[memory.protection]\nenforce = "auto"'
LIMITS = """
[host]
memory_target_pct = 80
[memory.limits]
enforce = "high"
"""
ISOL = {"qosd": "", "auto": AUTO, "limits": LIMITS}
RATE = 12  # units a second, far below what the guest can do


def isol(mode: str) -> dict[str, float]:
    """LS with a fixed rate of work beside BE that streams and allocates in bursts."""
    clean()
    path = real("read", 80)
    start(LS, "ls", "paced", path, RUN / "ls", RATE)
    if mode in ISOL:
        qosd(ISOL[mode])
    slice_ = PLAIN if mode == "uncontrolled" else BE
    until("LS works", (RUN / "ls").exists)
    time.sleep(3)
    start(slice_, "be", "stream", hole("stream", STREAM), RUN / "be")
    start(slice_, "burst", "burst", round(ram() / 3), RUN / "burst")
    time.sleep(3)
    first, waited, before, read = len(seconds_done()), stalled(LS), stat(LS), told("be")
    allocated, direct = told("burst"), DirectReclaim()
    time.sleep(15)
    of_ls, of_all = direct.counts(run("systemctl", "show", "-P", "MainPID", "bench-ls").strip())
    done = list(seconds_done().values())[first:-1]
    shares = sorted(min(count / RATE, 1.0) for count in done)
    return {
        "LS throughput of its target, mean": sum(shares) / len(shares),
        "LS throughput of its target, p01": shares[0],
        "seconds": len(shares),
        "LS waited for memory, s": stalled(LS) - waited,
        "LS had to reclaim itself, times": of_ls,
        "all had to reclaim themselves, times": of_all,
        "LS pages refaulted": refaults(before, stat(LS)),
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


def seconds_done() -> dict[str, int]:
    counts: dict[str, int] = json.loads((RUN / "ls").read_text())
    return counts


def _high(slice_: str) -> float:
    text = (CGROUP / slice_ / "memory.high").read_text().strip()
    return ram() if text == "max" else int(text) / MIB


def edge(mode: str) -> dict[str, float | None]:
    """BE suddenly needs so much that LS's page cache has to go: who is killed, and how long does it take?"""
    clean()
    files = (real("read", 80), real("map", 40))
    if mode != "none":
        qosd(AUTO if mode == "auto" else "")
    start(LS, "ls", "hot", *files, RUN / "ls", 4, "lull")
    until("LS has read its files", lambda: told("ls") == 1)
    time.sleep(5)
    size, killed = round(kib("/proc/meminfo", "MemAvailable:") / 1024 - 50), kib("/proc/vmstat", "oom_kill")
    protected, begun = _size("memory.min"), time.monotonic()
    start(BE, "burst", "burst", size, RUN / "burst")
    until("BE has its memory or was killed", lambda: told("burst") > 0 or not _runs("bench-burst"), 60)
    took = time.monotonic() - begun
    return {
        "BE had its memory after, s": took if told("burst") else None,
        "killed by the OOM killer": kib("/proc/vmstat", "oom_kill") - killed,
        "hot set resident afterwards": min(map(resident, files)),
        "memory.min before MiB": protected,
        "memory.min afterwards MiB": _size("memory.min"),
    }


def _runs(unit: str) -> bool:
    return subprocess.run(["systemctl", "-q", "is-active", unit], check=False).returncode == 0


def kib(file: str, key: str) -> int:
    lines = (line.split() for line in Path(file).read_text().splitlines())
    return next(int(fields[1]) for fields in lines if fields[0] == key)
