"""Page cache of LS beside BE that streams, background reclaim of BE's cold cache, LS's pace under pressure.

`make bench-memory`, in the lab's guest with little memory, so that a multiple of it is soon read. Counts and
same-run ratios only: emulated time says nothing. Modes take turns; each round has fresh cgroups and an empty
page cache. What the loads do is in bench/memload.py.

protect  LS in a slice with no protection of its own, so that all of it is qosd's: with a pause of 4 s between
         its passes (it works), and with a lull as long as BE needs for four times RAM (its night). BE reads a
         file of more than half of RAM over and over, as a build or a training job does: what it reads twice
         counts as used, and is worth as much as LS's to a kernel that knows no tiers. "low" is qosd without
         memory.min.
reclaim  BE with 250 MiB of cold cache and 50 MiB that it works on: two jobs, or one that reads or maps it.
isol     LS with a fixed rate of work (resctl-bench's isol) beside BE that streams, and allocates nearly half
         of RAM in bursts; with [memory.limits] and a watermark of MemFree too.
"""

from __future__ import annotations

import argparse
import json
import operator
import statistics
from pathlib import Path
from typing import Any

from qosd.lab.machine import Machine

ROOT = Path(__file__).resolve().parents[1]
RAM = "768M"
MODES = {
    "protect": ("none", "low", "qosd"),
    "reclaim": ("two jobs", "read", "map"),
    "isol": ("none", "qosd", "limits"),
}
GOALS: dict[str, tuple[str, float, str]] = {
    "pauses: hot set resident, least": (">=", 0.98, ""),
    "pauses: LS pages refaulted": ("<=", 0.1, "none"),
    "lull: hot set resident after it": (">=", 0.98, ""),
    "lull: LS pages refaulted": ("<=", 0.1, "none"),
    "freed, of the cold cache": (">=", 0.20, ""),
    "refaulted, of what was freed": ("<=", 0.01, ""),
    "work passes a second, of before": (">=", 0.98, ""),
    "LS waited for memory, share": ("<=", 0.001, ""),
    "LS throughput of its target, mean": (">=", 0.95, ""),
    "LS throughput of its target, p01": (">=", 0.90, ""),
    "LS waited for memory, s": ("<=", 0.1, "none"),
}
"""Of the medians; a goal with a mode is a share of what was measured there."""
COMPARE = {">=": operator.ge, "<=": operator.le}
Rows = list[tuple[str, dict[str, Any]]]


def turns(modes: tuple[str, ...], rounds: int) -> list[str]:
    """Forwards and backwards, so that a drift of the machine meets all alike."""
    return [mode for n in range(rounds) for mode in (modes if n % 2 == 0 else modes[::-1])]


def values(rows: Rows, mode: str, key: str) -> list[float]:
    return [row[key] for name, row in rows if name == mode and row[key] is not None]


def verdict(rows: Rows, mode: str, key: str, median: float) -> str:
    if key not in GOALS or mode == "none":
        return ""
    sign, goal, of = GOALS[key]
    if of:
        base = statistics.median(values(rows, of, key))
        goal *= base
    reached = COMPARE[sign](median, goal)
    return f" {'ok' if reached else 'NOT'} ({sign} {goal:.3g})"


def table(part: str, rows: Rows, rounds: int) -> None:
    print(f"\n{part}: median (least to most) of {rounds} rounds of each mode, in turns")
    for key in rows[0][1]:
        print(f"  {key}")
        for mode in dict.fromkeys(mode for mode, _ in rows):
            seen = values(rows, mode, key)
            if not seen:
                print(f"    {mode:9} -")
                continue
            median = statistics.median(seen)
            spread = f"({min(seen):.4g} to {max(seen):.4g})"
            print(f"    {mode:9} {median:<8.4g} {spread:22}{verdict(rows, mode, key, median)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=list(MODES), choices=list(MODES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kernel", default="6.12")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    built = sorted((ROOT / "dist").glob("qosd_*.deb"))
    assert built, "dist has no package: make deb"
    results: dict[str, Rows] = {}
    with Machine.boot(kernel=arguments.kernel, memory=RAM, smp="1", share=built[-1].parent) as machine:
        machine.run(
            f"apt-get install -q -y --no-install-recommends /mnt/share/{built[-1].name}; systemctl stop qosd",
            timeout=400,
        )
        machine.run("cat >/var/tmp/memload.py", input=(ROOT / "bench/memload.py").read_bytes())
        lru = machine.run("cat /sys/kernel/mm/lru_gen/enabled 2>/dev/null || echo none").stdout.strip()
        release = machine.run("uname -r").stdout.strip()
        print(f"Linux {release}, lru_gen {lru}, {RAM} of RAM, one CPU, {machine.accelerator}", flush=True)
        for part in arguments.parts:
            rows = results[part] = []
            for mode in turns(MODES[part], arguments.rounds):
                done = machine.run(f"python3 /var/tmp/memload.py measure {part} '{mode}'", timeout=400)
                rows.append((mode, json.loads(done.stdout)))
                print(f"  {part} {mode}: {rows[-1][1]}", flush=True)
            table(part, rows, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
