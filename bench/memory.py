"""Page cache of LS beside BE that streams through files, and background reclaim of BE's cold cache.

`make bench-memory`. In the lab's guest, with little memory so that four times of it are soon read. Counts and
same-run ratios only: emulated time says nothing. Modes take turns, each round with fresh cgroups:

protect  LS reads a hot set of files every 20 s, BE streams 4x RAM from a disk; once with the default
         qosd (LS in a slice with no protection of its own, so that all of it is qosd's), once without.
reclaim  BE holds cold cache and a hot set that it works on; once with page_cache_high, once without.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from qosd.lab.machine import Machine

ROOT = Path(__file__).resolve().parents[1]
MIB = 1 << 20
RAM = "1G"
HOT_MIB = 160
STREAM = 4 * 1024  # MiB
PASSES = 3  # of a third more than RAM each: BE refaults, and its pages count as used
LS_PAUSE = 20  # seconds between two passes of LS over its hot set: kept busy, the kernel keeps it by itself
COLD_MIB, BE_HOT_MIB = 400, 60
RECLAIM_SECONDS = 40

PROGRAM = '''
"""hot FILE: reads a file again and again and counts the passes; resident FILE: the pages of it in RAM."""
import ctypes, json, mmap, os, sys, time

def hot(path, report, pause):
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    passes = 0
    while True:
        for offset in range(0, size, 65536):
            os.pread(fd, 65536, offset)
        passes += 1
        with open(report + ".new", "w") as file:
            file.write(str(passes))
        os.rename(report + ".new", report)
        time.sleep(float(pause) if passes >= 4 else 0.2)

def resident(path):
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    pages = (size + 4095) // 4096
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(size), 1, 1, fd, ctypes.c_long(0))
    vector = (ctypes.c_ubyte * pages)()
    if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), vector):
        raise OSError(ctypes.get_errno(), "mincore")
    print(sum(byte & 1 for byte in vector) / pages)

hot(*sys.argv[2:]) if sys.argv[1] == "hot" else resident(sys.argv[2])
'''

PROTECT_CONFIG = """
[memory]
stat_interval = "1s"
[[workload]]
name = "web"
tier = "ls"
match = ["hot.slice"]
[[workload]]
name = "be"
tier = "be"
match = ["be.slice"]
"""
RECLAIM_CONFIG = """
[memory]
stat_interval = "1s"
[[workload]]
name = "ls"
tier = "ls"
match = ["ls.slice"]
[[workload]]
name = "be"
tier = "be"
match = ["be.slice"]
"""


class Guest:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def sh(self, command: str, timeout: float = 120) -> str:
        return self.machine.run(command, timeout=timeout).stdout

    def prepare(self, deb: str) -> None:
        self.sh(f"apt-get install -q -y --no-install-recommends /mnt/share/{deb}; systemctl stop qosd", 300)
        self.sh(f"cat >/var/tmp/load.py <<'END'\n{PROGRAM}\nEND")
        for name, size in (("hot", HOT_MIB), ("behot", BE_HOT_MIB), ("cold", COLD_MIB)):
            self.sh(f"head -c {size}M /dev/urandom >/var/tmp/{name}", 300)

    def clean(self) -> None:
        self.sh(
            "systemctl stop 'bench-*' qosd 2>/dev/null; rm -f /var/tmp/*.passes; sync;"
            " echo 3 >/proc/sys/vm/drop_caches; sleep 1"
        )

    def qosd(self, config: str) -> None:
        self.sh(f"cat >/etc/qosd/qosd.toml <<'END'\n{config}\nEND\nsystemctl start qosd")

    def run_in(self, slice_: str, name: str, command: str) -> None:
        self.sh(
            f"systemd-run -q --collect -p MemoryAccounting=yes --unit=bench-{name} --slice={slice_} {command}"
        )

    def hot(self, slice_: str, file: str, pause: float = 0.2) -> None:
        self.run_in(
            slice_, file, f"python3 /var/tmp/load.py hot /var/tmp/{file} /var/tmp/{file}.passes {pause}"
        )

    def passes(self, file: str) -> int:
        return int(self.sh(f"cat /var/tmp/{file}.passes 2>/dev/null || echo 0"))

    def until_passes(self, file: str, more: int) -> None:
        until = self.passes(file) + more
        self.sh(
            f"until [ $(cat /var/tmp/{file}.passes 2>/dev/null || echo 0) -ge {until} ]; do sleep 0.2; done",
            300,
        )

    def resident(self, file: str) -> float:
        return float(self.sh(f"python3 /var/tmp/load.py resident /var/tmp/{file}"))

    def stat(self, group: str, key: str) -> int:
        return int(self.sh(f"awk '$1 == \"{key}\" {{print $2}}' /sys/fs/cgroup/{group}/memory.stat"))

    def stalled_usec(self, group: str) -> int:
        return int(self.sh(f"sed -n 's/^some.*total=//p' /sys/fs/cgroup/{group}/memory.pressure"))

    def uptime_usec(self) -> int:
        return round(float(self.sh("cut -d' ' -f1 /proc/uptime")) * 1e6)


def protect(guest: Guest, mode: str) -> dict[str, Any]:
    guest.clean()
    guest.hot("hot.slice", "hot", LS_PAUSE)
    guest.until_passes("hot", 4)
    if mode == "qosd":
        guest.qosd(PROTECT_CONFIG)
        guest.sh("until [ $(cat /sys/fs/cgroup/hot.slice/memory.low) -gt 0 ]; do sleep 0.5; done", 300)
    refaults = guest.stat("hot.slice", "workingset_refault_file")
    read = f"dd if=/dev/disk/by-id/virtio-disk0 of=/dev/null bs=1M count={STREAM // PASSES} status=none"
    guest.run_in("be.slice", "stream", f"bash -c 'for _ in $(seq {PASSES}); do {read}; done'")
    seen = []
    while guest.sh("sleep 4; systemctl is-active bench-stream || true").strip() == "active":
        seen.append(guest.resident("hot"))
    return {
        "resident_min": min(seen),
        "resident_mean": statistics.fmean(seen),
        "looks": len(seen),
        "refaulted_pages": guest.stat("hot.slice", "workingset_refault_file") - refaults,
        "memory_low": int(guest.sh("cat /sys/fs/cgroup/hot.slice/memory.low")),
    }


def reclaim(guest: Guest, mode: str) -> dict[str, Any]:
    guest.clean()
    guest.hot("ls.slice", "hot")
    guest.hot("be.slice", "behot")
    guest.until_passes("hot", 3)
    guest.until_passes("behot", 3)
    guest.run_in("be.slice", "cold", "bash -c 'cat /var/tmp/cold >/dev/null; sleep inf'")
    guest.sh(
        "until [ $(awk '/^inactive_file|^active_file/ {s += $2} END {printf \"%d\", s / 1048576}'"
        f" /sys/fs/cgroup/be.slice/memory.stat) -ge {COLD_MIB + BE_HOT_MIB - 20} ]; do sleep 0.5; done",
        300,
    )
    before_cache = sum(guest.stat("be.slice", key) for key in ("inactive_file", "active_file"))
    refaults = guest.stat("be.slice", "workingset_refault_file")
    watermark = f'page_cache_high = "{BE_HOT_MIB + 140}MiB"\npage_cache_low = "{BE_HOT_MIB + 40}MiB"\n'
    guest.qosd(RECLAIM_CONFIG + (watermark if mode == "reclaim" else ""))
    guest.sh("sleep 5")
    stalled, at, worked = guest.stalled_usec("ls.slice"), guest.uptime_usec(), guest.passes("behot")
    guest.sh(f"sleep {RECLAIM_SECONDS}", RECLAIM_SECONDS + 60)
    passed = guest.uptime_usec() - at
    told = json.loads(guest.sh("qosctl status --json"))["memory"]["workloads"]
    be = next(each for each in told if each["path"] == "be.slice")
    after_cache = sum(guest.stat("be.slice", key) for key in ("inactive_file", "active_file"))
    return {
        "cache_before_mib": before_cache / MIB,
        "cache_after_mib": after_cache / MIB,
        "freed_share": (before_cache - after_cache) / (COLD_MIB * MIB),
        "refaulted_share": (guest.stat("be.slice", "workingset_refault_file") - refaults) * 4096 / be["freed"]
        if be["freed"]
        else None,
        "freed_mib": be["freed"] / MIB,
        "be_passes_per_second": (guest.passes("behot") - worked) / (passed / 1e6),
        "ls_stalled_share": (guest.stalled_usec("ls.slice") - stalled) / passed,
        "phase": be["phase"],
    }


PARTS = {"protect": (protect, ("none", "qosd")), "reclaim": (reclaim, ("none", "reclaim"))}


def turns(modes: tuple[str, str], rounds: int) -> list[str]:
    """ABBA, so that a drift of the machine meets both alike."""
    return [mode for n in range(rounds) for mode in (modes if n % 2 == 0 else modes[::-1])]


def table(part: str, rows: list[tuple[str, dict[str, Any]]]) -> None:
    print(f"\n{part}: median (least to most) of {len(rows) // 2} rounds each, in turns")
    keys = [key for key, value in rows[0][1].items() if not isinstance(value, str)]
    for key in keys:
        line = f"  {key:22}"
        for mode in dict.fromkeys(mode for mode, _ in rows):
            values = [row[key] for name, row in rows if name == mode and row[key] is not None]
            said = (
                f"{statistics.median(values):.5g} ({min(values):.5g} to {max(values):.5g})" if values else "-"
            )
            line += f"  {mode}: {said:36}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kernel", default="6.12")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    built = sorted((ROOT / "dist").glob("qosd_*.deb"))
    assert built, "dist has no package: make deb"
    results: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    with Machine.boot(
        kernel=arguments.kernel, memory=RAM, share=built[-1].parent, extra_disks=[f"{STREAM}M"]
    ) as machine:
        guest = Guest(machine)
        guest.prepare(built[-1].name)
        print(f"Linux {guest.sh('uname -r').strip()}, {RAM} of RAM, {machine.accelerator}")
        for part in arguments.parts:
            measure, modes = PARTS[part]
            rows = results[part] = []
            for mode in turns(modes, arguments.rounds):
                rows.append((mode, measure(guest, mode)))
                print(f"  {part} {mode}: {rows[-1][1]}", flush=True)
            table(part, rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
