"""What background reclaim costs the job it takes cold cache from. Runs inside the guest.

The job is the harsh one: it reads its 50 MiB without a pause, so whatever takes its CPU or its pages shows.
Rounds with a watermark and without take turns in one boot.
"""

from __future__ import annotations

import json
import time

from bench.memscenes import (
    BE,
    CGROUP,
    LS,
    MIB,
    PAGE,
    RUN,
    cache,
    clean,
    hole,
    next_pass,
    qosd,
    real,
    refaults,
    run,
    stalled,
    start,
    stat,
    told,
    until,
)

SECONDS = 45
WATERMARK = 'page_cache_high = "100MiB"\npage_cache_low = "90MiB"\n'
COLD = 250


def pace(mode: str) -> dict[str, float | None]:
    clean()
    start(BE, "be", "job", "read", real("work", 50), hole("cold", COLD), RUN / "be", 0)
    start(LS, "ls", "hot", real("read", 80), "-", RUN / "ls", 1)
    until("both tiers work", lambda: told("be") >= 3 and told("ls") >= 3)
    qosd()
    time.sleep(3)
    held, before, waited = cache(BE), stat(BE), stalled(LS)
    qosd(WATERMARK if mode == "on" else "")
    first, begun = next_pass()
    used, others = _cpu(f"{BE}/bench-be.service"), _cpu("qosd.slice")
    time.sleep(SECONDS)
    last, ended = next_pass()
    used, others = _cpu(f"{BE}/bench-be.service") - used, _cpu("qosd.slice") - others
    after, passes, seconds = stat(BE), last - first, ended - begun
    freed, again = (after["pgsteal"] - before["pgsteal"]) * PAGE, refaults(before, after) * PAGE
    memory = json.loads(run("qosctl", "status", "--json"))["memory"]
    return {
        "job passes a second": passes / seconds,
        "job CPU ms a pass": used * 1e3 / passes,
        "qosd CPU share": others / seconds,
        "freed, of the cold cache": freed / (COLD * MIB),
        "refaulted, of what was freed": again / freed if freed else None,
        "refaulted MiB": again / MIB,
        "page cache before MiB": held,
        "page cache after MiB": cache(BE),
        "asked MiB": sum(each["asked"] for each in memory["workloads"] if each["path"] == BE) / MIB,
        "LS waited for memory, share": (stalled(LS) - waited) / seconds,
    }


def _cpu(group: str) -> float:
    lines = (CGROUP / group / "cpu.stat").read_text().splitlines()
    return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6
