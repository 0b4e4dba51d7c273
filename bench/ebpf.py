"""What the probes cost and how fast an answer is: `make bench-ebpf`, as root, on a quiet machine.

Sides are interleaved in every round; the table shows the median and (lowest-highest).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.waits import be_important
from qosd.config import Config, Sense
from qosd.descend import FILES, Descendants
from qosd.discover import Below, Caps
from qosd.ebpf.libbpf import Library
from qosd.ebpf.loader import Object
from qosd.ebpf.maps import RunTime, run_time_statistics
from qosd.ebpf.runq import Root, RunqOptions
from qosd.ebpf.tracing import Tracing, TracingOptions
from qosd.ebpf.tree import Tree
from qosd.model import CgroupId, CgroupSample
from qosd.sys import DIRECTORY, Sys
from qosd.walked import Walked
from qosd.walks import Walks

HERE = Path(__file__).parent
CPU = 1
MS = 1_000_000


def spread(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def cgroup2() -> Path:
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        return next(Path(line.split()[1]) for line in mounts if line.split()[2] == "cgroup2")


@contextlib.contextmanager
def child_cgroup(name: str) -> Iterator[tuple[Path, CgroupId]]:
    path = cgroup2() / f"qosd-bench-{os.getpid()}-{name}"
    path.mkdir()
    try:
        yield path, CgroupId(path.stat().st_ino)
    finally:
        while "populated 1" in (path / "cgroup.events").read_text():
            os.sched_yield()
        path.rmdir()


# 1. The price of a context switch


@contextlib.contextmanager
def nothing(_library: Library, _cgroup: CgroupId) -> Iterator[None]:
    yield


@contextlib.contextmanager
def nop(library: Library, _cgroup: CgroupId, elf: bytes) -> Iterator[Object]:
    opened = Object(library, "nop", elf)
    try:
        opened.load()
        for program in opened.programs:
            opened.attach(program)
        yield opened
    finally:
        opened.close()


@contextlib.contextmanager
def runq(library: Library, roots: dict[CgroupId, Root]) -> Iterator[Tracing]:
    tracing = Tracing.open(library, roots, TracingOptions(probes=("runq",)))
    try:
        yield tracing
    finally:
        tracing.close()


def ping_pong(binary: Path, cgroup: Path, rounds: int) -> float:
    """Nanoseconds per sched_wakeup + sched_switch pair, the pipe's own work included."""

    def enter() -> None:
        (cgroup / "cgroup.procs").write_text("0")

    command = [str(binary), str(rounds), str(CPU)]
    return float(subprocess.run(command, preexec_fn=enter, capture_output=True, text=True, check=True).stdout)


def bench_switch(library: Library, work: Path, rounds: int, switches: int) -> None:
    binary, nop_object = work / "pingpong", work / "nop.bpf.o"
    subprocess.run(["cc", "-O2", "-o", str(binary), str(HERE / "pingpong.c")], check=True)
    include = f"/usr/include/{os.uname().machine}-linux-gnu"
    clang = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-idirafter", include, "-c"]
    subprocess.run([*clang, str(HERE / "nop.bpf.c"), "-o", str(nop_object)], check=True)
    elf = nop_object.read_bytes()
    with child_cgroup("switch") as (path, cgroup):
        sides: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
            "nothing attached": lambda: nothing(library, cgroup),
            "no-op on the same hooks": lambda: nop(library, cgroup, elf),
            "runq, tasks of no workload": lambda: runq(library, {}),
            "runq, tasks of a watched workload": lambda: runq(
                library, {cgroup: Root(watched=True, threshold_ns=10 * MS)}
            ),
        }
        results: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds):
            for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
                with sides[name]():
                    results[name].append(ping_pong(binary, path, switches))
        report_switch(results)
        run_times(library, sides, binary, path)


def report_switch(results: dict[str, list[float]]) -> None:
    base = results["nothing attached"]
    print(f"CPU ns per sched_wakeup + sched_switch pair, pipe ping-pong on one CPU ({len(base)} rounds)")
    for name, values in results.items():
        extra = [value - bare for value, bare in zip(values, base, strict=True)]
        print(f"  {name:36}{spread(values):>20}   added {spread(extra)}")


def run_times(
    library: Library,
    sides: dict[str, Callable[[], contextlib.AbstractContextManager[object]]],
    binary: Path,
    path: Path,
) -> None:
    """The kernel's own count. It includes the two clock reads of the statistics, as the no-op shows."""
    print("ns per run by run_time_ns / run_cnt (statistics on)")
    for name, side in sides.items():
        with run_time_statistics(library), side() as probe:
            if probe is None:
                continue
            before = programs(probe)
            ping_pong(binary, path, 200_000)
            after = programs(probe)
        for program, late in after.items():
            runs = late.run_cnt - before[program].run_cnt
            if runs > 1000:
                ns = (late.run_time_ns - before[program].run_time_ns) / runs
                print(f"  {name:36}{program:20}{ns:8.1f}")


def programs(probe: object) -> dict[str, RunTime]:
    loaded = probe._object if isinstance(probe, Tracing) else probe  # noqa: SLF001 - the bench looks inside
    assert isinstance(loaded, Object)
    return loaded.run_time()


# 2. Start-up and memory, each round in a fresh process


FRESH = """
import json, sys, time
def rss():
    with open("/proc/self/smaps_rollup") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("Rss:"))
from qosd.ebpf.libbpf import Library
from qosd.ebpf.skbprio import SkbPrio
from qosd.ebpf.tracing import Tracing
before = rss()
start = time.perf_counter()
library = Library()
tracing = Tracing.open(library, {})
prio = SkbPrio.open(library)
opened = time.perf_counter() - start
after = rss()
for _ in range(100): tracing.read()
absent = sorted(tracing.absent)
json.dump({"ms": opened * 1e3, "rss": after - before, "later": rss() - before, "absent": absent}, sys.stdout)
"""


def bench_start(rounds: int) -> None:
    results = []
    for _ in range(rounds):
        fresh = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, check=True)
        results.append(json.loads(fresh.stdout))
    assert not results[0]["absent"], results[0]["absent"]
    print(f"all probes opened, verified and attached, in a fresh process ({rounds} rounds)")
    print(f"  time                {spread([r['ms'] for r in results], 1)} ms")
    print(f"  RSS added           {spread([r['rss'] for r in results])} kB")
    print(f"  after 100 reads     {spread([r['later'] for r in results])} kB")


# 3. From the event in the kernel to a finished write


VICTIM = """
import time
while True:
    end = time.perf_counter() + .002
    while time.perf_counter() < end: pass
    time.sleep(.001)
"""
SLEEPER = "import time; time.sleep(600)"


def bench_event(library: Library, events: int) -> None:
    os.sched_setaffinity(0, {0})
    with (
        child_cgroup("victim") as (victim, victim_id),
        child_cgroup("hog") as (hog, hog_id),
        child_cgroup("frozen") as (frozen, _),
    ):
        options = TracingOptions(probes=("runq",), runq=RunqOptions(event_gap_ns=5 * MS))
        tracing = Tracing.open(library, {victim_id: Root(watched=True, threshold_ns=MS)}, options)
        children = [run_in(victim, VICTIM), run_in(hog, "while True: pass"), run_in(frozen, SLEEPER)]
        freeze = os.open(frozen / "cgroup.freeze", os.O_WRONLY)
        try:
            latencies, blamed = act_on_events(tracing, freeze, events, hog_id)
            bare = bare_writes(freeze, events)
        finally:
            for child in children:
                child.kill()
                child.wait()
            os.close(freeze)
            tracing.close()
    print(f"ring-buffer event -> Python -> cgroup.freeze written, µs ({events} events, {blamed} of the hog)")
    for name, values in (("event to write done", latencies), ("the bare write", bare)):
        quantiles = "  ".join(f"p{100 * q:.0f} {quantile(values, q):.0f}" for q in (0.5, 0.9, 0.99))
        print(f"  {name:20}{quantiles}  max {max(values):.0f}")


def run_in(cgroup: Path, code: str) -> subprocess.Popen[bytes]:
    procs = str(cgroup / "cgroup.procs")
    enter = f"import os; open({procs!r}, 'w').write('0'); os.sched_setaffinity(0, {{{CPU}}})\n"
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", enter + code])


def act_on_events(tracing: Tracing, freeze: int, events: int, hog: CgroupId) -> tuple[list[float], int]:
    assert tracing.fd is not None
    poll = select.epoll()
    poll.register(tracing.fd, select.EPOLLIN)
    latencies: list[float] = []
    blamed = 0
    deadline = time.monotonic() + 60
    while len(latencies) < events and time.monotonic() < deadline:
        poll.poll(1)
        for event in tracing.events():
            os.pwrite(freeze, b"1", 0)
            latencies.append((time.monotonic_ns() - event.monotonic_ns) / 1000)
            blamed += event.culprit == hog
            os.pwrite(freeze, b"0", 0)
    poll.close()
    assert len(latencies) >= events, f"only {len(latencies)} events in 60 s"
    return latencies, blamed


def bare_writes(freeze: int, count: int) -> list[float]:
    took = []
    for _ in range(count):
        start = time.monotonic_ns()
        os.pwrite(freeze, b"1", 0)
        took.append((time.monotonic_ns() - start) / 1000)
        os.pwrite(freeze, b"0", 0)
    return took


# 4. A whole tree


def bench_tree(library: Library, size: int, rounds: int) -> None:
    """What the sensor pays for the cgroups below a workload; only the files that this hierarchy has."""
    sides: dict[str, list[float]] = {}
    with child_cgroup("tree") as (root, _):
        paths = [root / f"c{number}" for number in range(size)]
        for path in paths:
            path.mkdir()
        with contextlib.ExitStack() as opened:
            for path in paths:
                opened.callback(path.rmdir)
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            opened.callback(os.close, fd)
            tree = Tree.open(library, size + 1)
            opened.callback(tree.close)
            subtree = tree.attach(fd)
            walked = descendants(opened, root, fd, size, walk_from=1)
            kept = descendants(opened, root, fd, size, walk_from=size + 1)
            assert {each.id for each in walked.sample({})[0]} == {each.id for each in kept.sample({})[0]}
            below = [Below(each.path, each.id) for each in kept.sample({})[0]]
            work: dict[str, Callable[[], object]] = {
                "walk, undecoded": lambda: tree.walk(subtree),
                "walk, nothing has moved": lambda: walked.sample({}),
                "walk, everything has moved": lambda: fresh(below, tree.walk(subtree)),
                "kept fds, nothing has moved": lambda: kept.sample({}),
                "cpu.stat alone: open, read, close": lambda: read_files(paths),
            }
            for _ in range(rounds):
                for name, action in work.items():
                    sides.setdefault(name, []).append(per_cgroup(action, size))
    print(f"  {size} cgroups")
    for name, values in sides.items():
        print(f"    {name:36}{spread(values, 2):>20}")


def descendants(opened: contextlib.ExitStack, root: Path, fd: int, size: int, walk_from: int) -> Descendants:
    """As the sensor has them, after their first look into the directories."""
    sense = Sense(max_cgroups=size, walk_from=walk_from)
    walks = Walks(Config(sense=sense), [])
    opened.callback(walks.close)
    walks.allow()
    found = Descendants(Sys(), os.open(root.parent, DIRECTORY), sense)
    opened.callback(found.close)
    found.walks = walks
    found.rescan(fd, root.name, FILES * (size + 1))
    return found


def fresh(below: list[Below], raw: bytes) -> list[CgroupSample]:
    """By one that has seen nothing yet, so that it decodes everything."""
    return Walked(0, "", below, lambda _: []).sample(raw, Caps(len(below), 1))


def per_cgroup(work: Callable[[], object], size: int) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e6 / size


def read_files(paths: list[Path]) -> None:
    for path in paths:
        fd = os.open(path / "cpu.stat", os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--switches", type=int, default=300_000)
    parser.add_argument("--events", type=int, default=300)
    arguments = parser.parse_args()
    be_important(-20)  # what else runs here is not the question
    print(f"{os.uname().release}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    library = Library()
    with tempfile.TemporaryDirectory() as work:
        bench_switch(library, Path(work), arguments.rounds, arguments.switches)
    bench_start(arguments.rounds)
    bench_event(library, arguments.events)
    print("µs per cgroup")
    for size in (10, 100, 1000, 10_000):
        bench_tree(library, size, arguments.rounds)


if __name__ == "__main__":
    main()
