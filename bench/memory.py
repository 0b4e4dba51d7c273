"""Page cache of LS beside BE that streams, background reclaim of BE's cold cache, LS's pace under pressure.

`make bench-memory`, in the lab's guest with little memory, so that a multiple of it is soon read. Counts and
same-run ratios only: emulated time says nothing. Modes take turns; each round has fresh cgroups and an empty
page cache. What is done is in bench/memscenes.py, bench/mempace.py and bench/memdirect.py.

protect  LS in a slice with no protection of its own, so that all of it is qosd's, beside BE that reads a
         file a little larger than what LS leaves over and over, as a build or a training job does. Three
         times, each as long as BE needs for twice RAM: LS was just started and has read its files once (a
         deployment); it works, with a pause of 4 s between its passes; it has a lull (its night). "auto"
         may write memory.min too.
reclaim  BE with 250 MiB of cold cache and 50 MiB that it works on: two jobs, or one that reads or maps it.
         "off" is one that reads, and no watermark: what its pace does by itself.
pace     one job that reads without a pause, with a watermark and without, timed by the instructions that
         are executed: does it lose any of its pace?
isol     LS with a fixed rate of work (resctl-bench's isol) beside BE that streams, and allocates a third of
         RAM in bursts: that fits beside LS, the system and the reserve of memory_target_pct. "uncontrolled"
         is BE in a slice without be.slice's static settings, "none" with them and qosd stopped; then qosd
         as it comes, with "auto", and with [memory.limits].
direct   LS as in isol, and BE takes a third of RAM at once, with as many processes as it needs to outrun
         kswapd, while other jobs of it read: who has to reclaim for himself? "watermark" is qosd with
         free_low_pct.
edge     LS as if just started, and BE needs so much at once that LS's page cache has to go.
"""

from __future__ import annotations

import argparse
import json
import operator
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench.sched.stats import interval, ratios
from qosd.lab.machine import Machine, Options

ROOT = Path(__file__).resolve().parents[1]
RAM = "768M"
MODES = {
    "protect": ("none", "qosd", "auto"),
    "reclaim": ("off", "two jobs", "read", "map"),
    "pace": ("off", "on"),
    "isol": ("uncontrolled", "none", "qosd", "auto", "limits"),
    "direct": ("uncontrolled", "none", "qosd", "watermark", "limits"),
    "edge": ("none", "qosd", "auto"),
}
ICOUNT: dict[str, Options] = {
    "pace": {"smp": "1", "icount": "shift=2"},
    "direct": {"smp": "2", "icount": "shift=2"},
}
"""Scenes that count what the host must not be felt in: QEMU's -icount, 4 ns an instruction."""
GUEST = ("memload.py", "memscenes.py", "mempace.py", "memdirect.py", "memround.py")
GOALS: dict[str, tuple[str, float, str]] = {
    **{f"{when}: hot set resident, least": (">=", 0.98, "") for when in ("fresh", "pauses", "lull")},
    "LS pages refaulted": ("<=", 0.1, "none"),
    "freed, of the cold cache": (">=", 0.20, ""),
    "refaulted, of what was freed": ("<=", 0.01, ""),
    "work passes a second, of before": (">=", 0.98, "off"),
    "job passes a second": (">=", 0.98, "off"),
    "LS waited for memory, share": ("<=", 0.001, ""),
    "LS throughput of its target, mean": (">=", 0.95, ""),
    "LS throughput of its target, p01": (">=", 0.90, ""),
    "LS waited for memory, s": ("<=", 0.1, "uncontrolled"),
    "LS had to reclaim itself, times": ("<=", 0.1, "uncontrolled"),
}
"""Of the medians; a goal with a mode is a share of what was measured there."""
CONTROLS = ("none", "uncontrolled", "off")
COMPARE = {">=": operator.ge, "<=": operator.le}
Rows = list[tuple[str, dict[str, Any]]]


def turns(modes: tuple[str, ...], rounds: int) -> list[str]:
    """Forwards and backwards, so that a drift of the machine meets all alike."""
    return [mode for n in range(rounds) for mode in (modes if n % 2 == 0 else modes[::-1])]


def values(rows: Rows, mode: str, key: str) -> list[float]:
    return [row[key] for name, row in rows if name == mode and row[key] is not None]


def verdict(rows: Rows, mode: str, key: str, median: float) -> str:
    if key not in GOALS or mode in CONTROLS:
        return ""
    sign, goal, of = GOALS[key]
    base = values(rows, of, key) if of else [1.0]
    if not base:
        return ""
    goal *= statistics.median(base)
    reached = COMPARE[sign](median, goal)
    ratio = f", {median / statistics.median(base):.3g} of {of}" if of and statistics.median(base) else ""
    return f" {'ok' if reached else 'NOT'} ({sign} {goal:.3g}{ratio})"


def table(part: str, rows: Rows) -> None:
    print(f"\n{part}: median (least to most) of the rounds of each mode, in turns")
    for key in rows[0][1]:
        print(f"  {key}")
        for mode in dict.fromkeys(mode for mode, _ in rows):
            seen = values(rows, mode, key)
            if not seen:
                print(f"    {mode:12} -")
                continue
            median = statistics.median(seen)
            spread = f"({min(seen):.4g} to {max(seen):.4g}; {len(seen)})"
            said = verdict(rows, mode, key, median) + pairs(rows, mode, key)
            print(f"    {mode:12} {median:<8.4g} {spread:25}{said}")


def pairs(rows: Rows, mode: str, key: str) -> str:
    """Round by round against the mode that the goal is a share of: the median and its bootstrap interval."""
    of = GOALS.get(key, ("", 0, ""))[2]
    ours, theirs = values(rows, mode, key), values(rows, of, key)
    if mode in CONTROLS or not of or len(ours) != len(theirs) or not (each := ratios(ours, theirs)):
        return ""
    found = interval(each)
    return f"; by rounds {found.median:.4g}, 95 % interval {found.low:.4g} to {found.high:.4g}"


def scene(machine: Machine, part: str, modes: tuple[str, ...], rounds: int) -> tuple[Rows, list[str]]:
    """The rounds that came to an end, and what kept the others from it."""
    rows: Rows = []
    failures: list[str] = []
    for mode in turns(modes, rounds):
        done = machine.run(
            f"cd /var/tmp && python3 -m bench.memround {part} '{mode}'", timeout=900, check=False
        )
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
            failures.append(f"{part} {mode}: no figures: {why}")
            print(f"  {failures[-1]}", flush=True)
            continue
        rows.append((mode, json.loads(done.stdout)))
        print(f"  {part} {mode}: {json.dumps(rows[-1][1])}", flush=True)
    return rows, failures


def kernel(name: str, deb: Path, parts: list[str], rounds: int) -> tuple[dict[str, Rows], list[str]]:
    begun = time.monotonic()
    results: dict[str, Rows] = {}
    failures: list[str] = []
    plain: Options = {"smp": "1"}
    for hardware in (plain, *ICOUNT.values()):
        those = [part for part in parts if ICOUNT.get(part, plain) == hardware]
        if those:
            found, failed = boot(name, deb, (hardware, those), rounds)
            results |= found
            failures += failed
    print(f"\nLinux {name}, in {(time.monotonic() - begun) / 60:.0f} min")
    for part, rows in results.items():
        if rows:
            table(part, rows)
    return results, failures


def boot(
    name: str, deb: Path, what: tuple[Options, list[str]], rounds: int
) -> tuple[dict[str, Rows], list[str]]:
    """The scenes that want the same machine, in one boot of it."""
    results: dict[str, Rows] = {}
    failures: list[str] = []
    hardware, parts = what
    options: Options = {"kernel": name, "memory": RAM, **hardware}
    with Machine.boot(share=deb.parent, **options) as machine:
        machine.run(
            f"apt-get install -q -y --no-install-recommends /mnt/share/{deb.name}; systemctl stop qosd",
            timeout=400,
        )
        machine.run("mkdir /var/tmp/bench")
        for file in GUEST:
            machine.run(f"cat >/var/tmp/bench/{file}", input=(ROOT / "bench" / file).read_bytes())
        lru = machine.run("cat /sys/kernel/mm/lru_gen/enabled 2>/dev/null || echo none").stdout.strip()
        release = machine.run("uname -r").stdout.strip()
        print(f"Linux {release}, lru_gen {lru}, {RAM} of RAM, {hardware}, {machine.accelerator}", flush=True)
        # Without the multi-generational LRU "auto" is what "low" is.
        same = {"auto"} if lru in ("none", "0x0000") else set()
        for part in parts:
            modes = tuple(mode for mode in MODES[part] if mode not in same)
            results[part], failed = scene(machine, part, modes, rounds)
            failures += failed
    return results, failures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=list(MODES), choices=list(MODES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kernel", nargs="+", default=["6.1", "6.12"])
    parser.add_argument("--modes", nargs="+", help="of each scene those of these that it has")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    built = sorted((ROOT / "dist").glob("qosd_*.deb"))
    assert built, "dist has no package: make deb"
    results: dict[str, dict[str, Rows]] = {}
    failures: list[str] = []
    for part, modes in MODES.items() if arguments.modes else ():
        MODES[part] = tuple(mode for mode in modes if mode in arguments.modes)
    for name in arguments.kernel:
        results[name], failed = kernel(name, built[-1], arguments.parts, arguments.rounds)
        failures += [f"Linux {name}: {each}" for each in failed]
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1))
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
