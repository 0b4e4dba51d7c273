"""BE's jobs take memory on all CPUs at once: does LS have to reclaim some itself? Runs inside the guest.

LS works at its rate as in `isol`. BE is a build or a batch run of the common sort: as many jobs read files as
there are two of for each CPU, and every two seconds a step takes a third of RAM with as many processes, and
ends. Transparent huge pages are off, as databases and caches ask for: with them khugepaged raises
min_free_kbytes, and the way from the low to the min watermark, in which kswapd has to win, is 8.5 MiB here.
That is more than this guest's CPUs take before kswapd runs. Without them it is 0.8 MiB, 0.1 % of RAM as on
any large host.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.memscenes import (
    BE,
    LIMITS,
    LS,
    PLAIN,
    RATE,
    RUN,
    STREAM,
    DirectReclaim,
    clean,
    hole,
    kib,
    qosd,
    ram,
    real,
    refaults,
    run,
    seconds_done,
    stalled,
    start,
    stat,
    told,
    until,
)

SECONDS = 24
PAUSE = 2  # seconds between two steps of BE
QOSD = {"qosd": "", "watermark": "[memory.reclaim]\nfree_low_pct = 10\n", "limits": LIMITS}
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
COUNTED = ("pgscan_kswapd", "pgscan_direct", "allocstall_dma32", "allocstall_normal", "allocstall_movable")


def direct(mode: str) -> dict[str, float]:
    clean()
    HUGE_PAGES.write_text("never")
    start(LS, "ls", "paced", real("read", 80), RUN / "ls", RATE)
    if mode in QOSD:
        qosd(QOSD[mode])
    slice_ = PLAIN if mode == "uncontrolled" else BE
    jobs = 2 * (os.cpu_count() or 1)
    until("LS works", (RUN / "ls").exists)
    for number in range(jobs):
        start(slice_, f"be{number}", "stream", hole(f"stream{number}", STREAM // jobs), RUN / f"be{number}")
    start(slice_, "step", "step", round(ram() / 3), jobs, PAUSE, RUN / "step")
    until("BE's first step is over", lambda: told("step") >= 1)
    before, figures = _now(jobs), {}
    first, reclaims = len(seconds_done()), DirectReclaim()
    time.sleep(SECONDS)
    of_ls, of_all = reclaims.counts(run("systemctl", "show", "-P", "MainPID", "bench-ls").strip())
    figures = {key: value - before[key] for key, value in _now(jobs).items()}
    shares = sorted(min(count / RATE, 1.0) for count in list(seconds_done().values())[first:-1])
    return {
        "LS had to reclaim itself, times": of_ls,
        "all had to reclaim themselves, times": of_all,
        "LS throughput of its target, mean": sum(shares) / len(shares),
        "LS throughput of its target, p01": shares[0],
        **figures,
        "MemFree MiB": kib("/proc/meminfo", "MemFree:") / 1024,
    }


def _now(jobs: int) -> dict[str, float]:
    counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    stats = stat(LS)
    return {
        "LS waited for memory, s": stalled(LS),
        "LS pages refaulted": refaults(dict.fromkeys(stats, 0), stats),
        "BE steps": told("step"),
        "BE read MiB": sum(told(f"be{number}") for number in range(jobs)),
        **{key: float(counters[key]) for key in COUNTED if key in counters},
    }
