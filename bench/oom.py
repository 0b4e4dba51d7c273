"""One hog of memory in be.slice, and who ends it: the kernel, qosd, or one of four other daemons.

`make bench-oom`. In the lab's guest with 1 GiB of RAM: LS answers fifty requests a second in ls.slice, a
small BE job does nothing wrong, and another takes 100 MiB a second until somebody stops it. All modes take
turns in each round, in another order each time; the shipped slices are there in all of them. Emulated time
says nothing: latencies are ratios to the calm seconds of the same round.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qosd.lab.image import cache_dir
from qosd.lab.machine import Machine, Options
from qosd.lab.tiers import tiers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACKAGES = ("earlyoom", "nohang", "oomd", "libjsoncpp25", "lsb-base")
LIMITS = '[memory.limits]\nenforce = "high"\n'
KILL = '[interference]\nanswer = "kill"\n[interference.kill]\nafter = "1s"\n' + tiers("kill = true")
QOSD = {
    "qosd limits": LIMITS,
    "qosd freeze": '[interference]\nanswer = "freeze"\n',
    "qosd kill": KILL,
    "qosd both": LIMITS + KILL,
}
SPOILT = 1.0  # seconds: no memory is short for a process that is locked in it
MODES = ("none", "qosd limits", "qosd kill", "qosd both", "systemd-oomd", "oomd", "earlyoom", "nohang")
# Debian's own rules for user.slice, for be.slice instead.
OOMD_JSON = {
    "rulesets": [
        {
            "name": "best-effort protection",
            "detectors": [
                [
                    "be.slice pressure above 60 for 30s",
                    {
                        "name": "pressure_above",
                        "args": {
                            "cgroup": "be.slice",
                            "resource": "memory",
                            "threshold": "60",
                            "duration": "30",
                        },
                    },
                    {"name": "memory_reclaim", "args": {"cgroup": "be.slice", "duration": "10"}},
                ]
            ],
            "actions": [{"name": "kill_by_memory_size_or_growth", "args": {"cgroup": "be.slice/*"}}],
        },
        {
            "name": "protection against low swap",
            "detectors": [
                ["free swap goes below 10 percent", {"name": "swap_free", "args": {"threshold_pct": "10"}}]
            ],
            "actions": [{"name": "kill_by_swap_usage", "args": {"cgroup": "be.slice/*"}}],
        },
    ]
}


def fetch() -> list[Path]:
    """The daemons' Debian packages, kept beside the lab's images."""
    kept = cache_dir() / "oom"
    kept.mkdir(exist_ok=True)
    missing = [name for name in PACKAGES if not list(kept.glob(f"{name}_*.deb"))]
    if missing:
        subprocess.run(["apt-get", "-q", "download", *missing], cwd=kept, check=True)
    return sorted(kept.glob("*.deb"))


def install(machine: Machine) -> None:
    quiet = "DEBIAN_FRONTEND=noninteractive"
    policy = "printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d"
    machine.run(policy)  # nothing starts because it was installed
    machine.run(f"{quiet} apt-get install -q -y --no-install-recommends /mnt/share/*.deb", timeout=400)
    machine.run("systemctl stop qosd earlyoom nohang oomd 2>/dev/null; true")
    options = 'DAEMON_OPTS="--interval 1 --config /etc/oomd/oomd.json"'
    machine.run(f"echo '{options}' >/etc/default/oomd")
    machine.run(["cp", "/mnt/share/oomd.json", "/etc/oomd/oomd.json"])


def play(machine: Machine, mode: str, seconds: float) -> dict[str, Any]:
    """A daemon that cannot run says so with its own words, and has no figures."""
    command = ["python3", "-I", "/mnt/share/oom_guest.py", "round", mode, str(seconds)]
    done = machine.run(command, timeout=4 * seconds + 240, check=False, input=QOSD.get(mode, "").encode())
    if done.returncode:
        return {"mode": mode, "failed": (done.stderr or done.stdout).strip()[-300:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(rounds: int, modes: list[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    debs = sorted((ROOT / "dist").glob("qosd_*.deb"))
    assert debs, "dist has no package: make deb"
    with tempfile.TemporaryDirectory() as directory:
        share = Path(directory)
        for deb in (debs[-1], *fetch()):
            shutil.copy(deb, share)
        for file in ("oom_guest.py", "oom_why.py"):
            shutil.copy(HERE / file, share)
        (share / "oomd.json").write_text(json.dumps(OOMD_JSON))
        hardware: Options = {
            "kernel": options.kernel,
            "memory": "1G",
            "smp": options.smp,
            "swap": options.swap,
            "icount": options.icount,
        }
        with Machine.boot(share=share, **hardware) as machine:
            install(machine)
            print(f"Linux {machine.run('uname -r').stdout.strip()}, {hardware}", flush=True)
            for number in range(rounds):
                order = random.Random(options.seed + number)  # noqa: S311 - an order to be had again
                for mode in order.sample(modes, len(modes)):
                    yield {**play(machine, mode, options.seconds), "swap": options.swap}


def spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def table(rows: list[dict[str, Any]]) -> None:
    keys = ("calm_p99", "event_p99", "event_worst", "late_s", "ls_pressed_s", "hog_s", "frozen_s")
    counted = ("ls_killed", "bystander_killed", "hog_gone", "kernel_kills")
    print(f"{'mode':14} n  {'  '.join(f'{key:>18}' for key in keys)}  {'  '.join(counted)}")
    for mode in dict.fromkeys(row["mode"] for row in rows):
        done = [row for row in rows if row["mode"] == mode and "failed" not in row]
        good = [row for row in done if row["stood_still_s"] < SPOILT]
        cells = [spread([row[key] for row in good if row[key] is not None]) for key in keys]
        counts = [f"{sum(row[key] for row in good):>{len(key)}}" for key in counted]
        print(f"{mode:14} {len(good)}  {'  '.join(f'{cell:>18}' for cell in cells)}  {'  '.join(counts)}")
        if len(good) < len(done):
            print(f"               spoilt: {len(done) - len(good)}, the measuring process itself stood still")
        for said in dict.fromkeys(row["failed"] for row in rows if row["mode"] == mode and "failed" in row):
            print(f"               did not run: {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modes", nargs="*", default=list(MODES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=50, help="at most, from the hog's start")
    parser.add_argument("--kernel", default="6.12")
    parser.add_argument("--swap", help="size of a swap disk, as 512M")
    parser.add_argument("--smp", default="2")
    parser.add_argument("--icount", help="QEMU's -icount: with shift=2 the host is hardly felt in the guest")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="kept, and what is in there already counts too")
    options = parser.parse_args()
    rows = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    for row in run(options.rounds, options.modes, options) if options.rounds else ():
        print(f"  {row}", flush=True)
        rows.append(row)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    for swap in dict.fromkeys(row["swap"] for row in rows):
        print(f"\nswap {swap}: median (least-most), latencies as multiples of the round's calm median")
        table([row for row in rows if row["swap"] == swap])


if __name__ == "__main__":
    main()
