"""One round of `bench/oom.py` in the guest, with what the guest's own Python has: a mode's name in, JSON out.

Started as `round MODE SECONDS`; the loads start themselves from this file: `ls LOG`, `hog`, `bystander`.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # -I leaves it out
import oom_why  # type: ignore[import-not-found]

CGROUP = Path("/sys/fs/cgroup")
FILE, LOG = Path("/var/lib/ls.data"), Path("/run/bench-ls.log")
MIB = 1 << 20
FILE_MIB = 96
PERIOD = 0.02  # seconds between two requests of LS, whether or not the last was answered
PAGES, FRESH = 32, 256 << 10  # of a request: pages of its file, bytes of new memory
HOG_MIB_PER_SECOND = 100
SETTLE, CALM, AFTER = 5.0, 6.0, 4.0  # seconds from a daemon's start; before the hog's; after its end
LATE = 50  # times the calm median: such a request of LS is as good as lost
SAMPLE = 0.1
RECORDS = 64 << 10
SERVICES = {"systemd-oomd": "systemd-oomd", "oomd": "oomd", "earlyoom": "earlyoom", "nohang": "nohang"}


def serve(log: str) -> None:
    """LS: each request reads pages of a file and fills new memory. Kept: when it was due, and how late."""
    with open(FILE, "rb") as file, open(log, "r+b") as out:
        data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        records = mmap.mmap(out.fileno(), 0)
    pages = len(data) // mmap.PAGESIZE
    for page in range(pages):
        data[page * mmap.PAGESIZE]
    chance = random.Random(7)  # noqa: S311 - pages to be had again
    number, due = 0, time.monotonic()
    while True:
        time.sleep(max(due - time.monotonic(), 0))
        for _ in range(PAGES):
            data[chance.randrange(pages) * mmap.PAGESIZE]
        bytes(b"x" * FRESH)
        done = time.monotonic()
        struct.pack_into("<dd", records, 16 + number % RECORDS * 16, due, done - due)
        number += 1
        struct.pack_into("<Q", records, 0, number)
        due += PERIOD


def hog() -> None:
    """BE: takes memory at a steady rate, until somebody stops it."""
    held, start = [], time.monotonic()
    while True:
        held.append(b"x" * (4 * MIB))
        time.sleep(max(start + len(held) * 4 / HOG_MIB_PER_SECOND - time.monotonic(), 0))


def bystander() -> None:
    """BE: a small job that does nothing wrong."""
    held = b"x" * (20 * MIB)
    while True:
        sum(held[:: 64 << 10])
        time.sleep(0.05)


def sh(command: str, *, check: bool = True) -> str:
    done = subprocess.run(["bash", "-c", command], check=check, capture_output=True, text=True)
    return done.stdout.strip()


def start(slice_: str, name: str, *argv: str) -> None:
    unit = ["-p", "MemoryAccounting=yes", "-p", "KillSignal=SIGKILL", "--collect", f"--unit=bench-{name}"]
    own = ["/usr/bin/python3", "-I", os.path.abspath(__file__), name, *argv]
    subprocess.run(["systemd-run", "-q", *unit, f"--slice={slice_}", *own], check=True)


def pid_of(name: str) -> int:
    return int(sh(f"systemctl show -p MainPID --value bench-{name}") or 0)


def begin(mode: str, config: str) -> str:
    """Start what the mode is about; its version or its own words, once it is seen at work."""
    if mode == "none":
        return "the kernel alone"
    if mode.startswith("qosd"):
        Path("/etc/qosd/qosd.toml").write_text(config)
        sh("systemctl start qosd")
        until(lambda: "enforcing" in sh("qosctl status", check=False), 60)
        return sh("qosctl status | head -1", check=False)
    if mode == "systemd-oomd":
        sh("systemctl set-property --runtime be.slice ManagedOOMMemoryPressure=kill")
    sh(f"systemctl start {SERVICES[mode]}")
    time.sleep(2)
    state = sh(f"systemctl is-active {SERVICES[mode]}", check=False)
    words = sh(f"journalctl -q -u {SERVICES[mode]} -o cat --no-pager | tail -3", check=False)
    if state != "active":
        raise SystemExit(f"{mode} is {state}: {words}")
    return words.splitlines()[-1] if words else "active"


def until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise SystemExit("did not come to hold")
        time.sleep(0.2)


def clean() -> None:
    services = " ".join(SERVICES.values())
    sh(f"systemctl stop 'bench-*' qosd {services} systemd-oomd.socket 2>/dev/null", check=False)
    sh("systemctl set-property --runtime be.slice ManagedOOMMemoryPressure=auto", check=False)
    sh(
        "systemctl reset-failed; rm -f /run/qosd/kills.json; sync; echo 3 >/proc/sys/vm/drop_caches",
        check=False,
    )
    sh("swapoff -a && udevadm settle && swapon /dev/disk/by-id/virtio-swap", check=False)
    time.sleep(1)


def number(file: Path, key: str) -> int | None:
    try:
        for line in file.read_text().splitlines():
            if line.startswith(key):
                return int(line[len(key) :].split()[0].rpartition("=")[2])
    except OSError:
        return None
    return None


def sample() -> dict[str, Any]:
    """What is known at one moment, from a few files."""
    pressure = CGROUP / "ls.slice/memory.pressure"
    stalled = pressure.read_text().split() if pressure.exists() else []
    totals = [int(field[6:]) for field in stalled if field.startswith("total=")]
    return {
        "at": time.monotonic(),
        "available": number(Path("/proc/meminfo"), "MemAvailable:"),
        "some": totals[0] if totals else None,
        "hog": number(CGROUP / "be.slice/bench-hog.service/cgroup.events", "populated "),
        "frozen": number(CGROUP / "be.slice/cgroup.events", "frozen "),
    }


def pressed(seen: list[dict[str, Any]]) -> float | None:
    """From the first tenth of a second in which LS waited for memory for a tenth of it, to the last."""
    at = [
        now["at"]
        for before, now in pairwise(seen)
        if (now["some"] or 0) - (before["some"] or 0) > (now["at"] - before["at"]) * 1e5
    ]
    return at[-1] - at[0] if at else None


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def requests(since: float, until_: float) -> list[tuple[float, float]]:
    """When each was due, and how late it was answered."""
    raw = LOG.read_bytes()
    (count,) = struct.unpack_from("<Q", raw)
    records = [struct.unpack_from("<dd", raw, 16 + n * 16) for n in range(min(count, RECORDS))]
    return [(due, took) for due, took in records if since <= due < until_]


def latencies(since: float, until_: float) -> list[float]:
    return [took for _, took in requests(since, until_)]


def waiting(now: float) -> float:
    """How long the request that is not answered yet has waited, if LS hangs."""
    raw = LOG.read_bytes()
    (count,) = struct.unpack_from("<Q", raw)
    due = struct.unpack_from("<d", raw, 16 + (count - 1) * 16)[0] + PERIOD if count else now
    return max(now - due, 0.0)


def oom_kills() -> int:
    return number(Path("/proc/vmstat"), "oom_kill ") or 0


def victims_of_the_kernel(count: int) -> list[str]:
    """The last so many that the kernel says it killed."""
    said = sh(r"dmesg | grep -o 'task_memcg=[^,]*,task=[^,]*' || true").splitlines()
    return said[len(said) - count :]


def watch(seconds: float, why: oom_why.Why) -> list[dict[str, Any]]:
    """Samples from the hog's first moment until a while after its last."""

    def look() -> dict[str, Any]:
        found: dict[str, Any] = sample()
        return {**found, **why.sample(found["at"])}

    seen = [look()]
    gone = None
    while seen[-1]["at"] - seen[0]["at"] < seconds and (gone is None or seen[-1]["at"] - gone < AFTER):
        time.sleep(SAMPLE)
        seen.append(look())
        if gone is None and len(seen) > 10 and seen[-1]["hog"] != 1:
            gone = seen[-1]["at"]
    return seen


def measure(mode: str, config: str, seconds: float) -> dict[str, Any]:
    clean()
    LOG.write_bytes(bytes(16 + RECORDS * 16))
    sh(f"test -e {FILE} || head -c {FILE_MIB}M /dev/urandom >{FILE}")
    start("ls.slice", "ls", str(LOG))
    start("be.slice", "bystander")
    words = begin(mode, config)
    until(lambda: bool(latencies(0, time.monotonic())) and waiting(time.monotonic()) < 1, 60)
    time.sleep(SETTLE)
    pids = {name: pid_of(name) for name in ("ls", "bystander")}
    killed_before, calm_from = oom_kills(), time.monotonic()
    time.sleep(CALM)
    calm = latencies(calm_from, time.monotonic())
    began = time.monotonic()
    start("be.slice", "hog")
    seen = watch(seconds, oom_why.Why(pids["ls"]))
    end = time.monotonic()
    event = latencies(began, end)
    hung = waiting(end)
    event += [hung] if hung > 1 else []
    total = number(Path("/proc/meminfo"), "MemTotal:") or 1
    short = [each["at"] for each in seen if (each["available"] or 0) < total * 0.1]
    gone = next((each["at"] for each in seen[10:] if each["hog"] != 1), None)
    p50, p99 = quantile(calm, 0.5), quantile(event, 0.99)
    alive = {name: pid != 0 and pid_of(name) == pid for name, pid in pids.items()}
    decisions = sh("qosctl decisions --json 2>/dev/null", check=False) if mode.startswith("qosd") else ""
    result = {
        "mode": mode,
        "words": words,
        "requests": len(event),
        "calm_p50_ms": p50 * 1e3,
        "calm_p99": quantile(calm, 0.99) / p50,
        "event_p99": p99 / p50,
        "event_worst": max(event) / p50,
        "stood_still_s": max(now["at"] - before["at"] for before, now in pairwise(seen)),
        "late_s": sum(each > LATE * p50 for each in event) * PERIOD,
        "ls_pressed_s": pressed(seen),
        "ls_stalled_ms": ((seen[-1]["some"] or 0) - (seen[0]["some"] or 0)) / 1e3,
        "short_s": len(short) * SAMPLE if short else 0.0,
        "hog_s": gone - began if gone is not None else None,
        "hog_gone": gone is not None,
        "frozen_s": sum(each["frozen"] == 1 for each in seen) * SAMPLE,
        "ls_killed": not alive["ls"],
        "bystander_killed": not alive["bystander"],
        "why": oom_why.told(
            seen, [(due, due + took) for due, took in requests(began, end) if took > LATE * p50]
        ),
        "kernel_kills": oom_kills() - killed_before,
        "kernel_victims": victims_of_the_kernel(oom_kills() - killed_before),
        "told": sh(
            f"journalctl -q -u '{SERVICES.get(mode, 'qosd')}' --since -2min -o cat --no-pager | tail -4",
            check=False,
        ),
        "decisions": [
            f"{each['path']} {each['file']} {each['result']}" for each in json.loads(decisions or "[]")
        ][-40:],
    }
    clean()
    return result


def main() -> None:
    if sys.argv[1] == "ls":
        serve(sys.argv[2])
    elif sys.argv[1] == "hog":
        hog()
    elif sys.argv[1] == "bystander":
        bystander()
    else:
        # The one who measures is neither killed nor paged out.
        Path("/proc/self/oom_score_adj").write_text("-1000")
        ctypes.CDLL(None).mlockall(3)
        try:
            print(json.dumps(measure(sys.argv[2], sys.stdin.read(), float(sys.argv[3]))))
        finally:
            clean()


main()
