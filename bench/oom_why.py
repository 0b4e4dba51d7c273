"""What LS waited for in the seconds in which it was late: counters that tell one reason from another.

Runs in the guest beside bench/oom_guest.py, with what the guest's own Python has.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

CGROUP = Path("/sys/fs/cgroup")
TICKS = os.sysconf("SC_CLK_TCK")
HOST = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
BUSIEST = 4
EVERY = 1.0  # seconds between two looks at all processes, which cost most
WORST = 12  # so many late stretches are told


def _total(group: str, resource: str) -> float:
    line = (CGROUP / group / f"{resource}.pressure").read_text().split("\n")[0]
    return int(line.rpartition("total=")[2]) / 1e6


def _run(pid: int | str) -> tuple[float, float]:
    """Seconds on a CPU, and seconds in which it could have run and did not."""
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    return int(fields[0]) / 1e9, int(fields[1]) / 1e9


def _all() -> dict[str, tuple[str, float]]:
    """The name of every process, which kworkers change, and its seconds of CPU time."""
    found: dict[str, tuple[str, float]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                head, _, tail = Path(f"/proc/{entry}/stat").read_text().rpartition(") ")
            except OSError:
                continue
            name, times = head.partition("(")[2], tail.split()
            found[entry] = (name, (int(times[11]) + int(times[12])) / TICKS)
    return found


class Why:
    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._looked = 0.0

    def sample(self, at: float) -> dict[str, Any]:
        try:
            return self._sample(at)
        except OSError:
            return {"LS": "gone"}

    def _sample(self, at: float) -> dict[str, Any]:
        host = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        stat = Path(f"/proc/{self._pid}/stat").read_text().rpartition(") ")[2].split()
        ran, waited = _run(self._pid)
        own, late = _run("self")
        found: dict[str, Any] = {
            **{f"host {name}": int(value) / TICKS for name, value in zip(HOST, host, strict=False)},
            **{f"LS some {each}": _total("ls.slice", each) for each in ("cpu", "io", "memory")},
            "LS ran": ran,
            "LS could have run": waited,
            "LS major faults": int(stat[9]),
            "we ran": own,
            "we could have run": late,
            "LS": f"{stat[0]} {Path(f'/proc/{self._pid}/wchan').read_text()}",
        }
        if at - self._looked >= EVERY:
            self._looked = at
            found["all"] = _all()
        return found


def told(seen: list[dict[str, Any]], late: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """Of the stretches in which LS was late, (from, to) each, how much of what went by."""
    stretches: list[list[float]] = []
    for begun, ended in sorted(late):
        if stretches and begun <= stretches[-1][1]:
            stretches[-1][1] = max(stretches[-1][1], ended)
        else:
            stretches.append([begun, ended])
    longest = sorted(stretches, key=lambda each: each[0] - each[1])[:WORST]
    return [_stretch(seen, begun, ended) for begun, ended in sorted(longest)]


def _stretch(seen: list[dict[str, Any]], begun: float, ended: float) -> dict[str, Any]:
    first = max((each for each in seen if each["at"] <= begun), key=lambda each: each["at"], default=seen[0])
    last = min((each for each in seen if each["at"] >= ended), key=lambda each: each["at"], default=seen[-1])
    between = [each for each in seen if first["at"] <= each["at"] <= last["at"]]
    moved = {
        key: round(last[key] - value, 3)
        for key, value in first.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and last.get(key) is not None
    }
    gaps = [after["at"] - before["at"] for before, after in pairwise(between)]
    return {
        "from": round(begun - seen[0]["at"], 2),
        "late": round(ended - begun, 2),
        "longest gap of ours": round(max(gaps, default=0.0), 2),
        "was": sorted({each["LS"] for each in between}),
        "frozen": any(each["frozen"] == 1 for each in between),
        **{key: value for key, value in moved.items() if abs(value) >= 0.01},
        "busiest": _busiest(seen, first["at"], last["at"]),
    }


def _busiest(seen: list[dict[str, Any]], begun: float, ended: float) -> list[str]:
    looks = [each for each in seen if "all" in each]
    before = [each for each in looks if each["at"] <= begun][-1:] or looks[:1]
    after = [each for each in looks if each["at"] >= ended][:1] or looks[-1:]
    if not before or not after:
        return []
    spent = [
        (seconds - before[0]["all"].get(pid, ("", 0.0))[1], name)
        for pid, (name, seconds) in after[0]["all"].items()
    ]
    return [f"{name} {seconds:.2f}" for seconds, name in sorted(spent, reverse=True)[:BUSIEST] if seconds > 0]
