"""From a burst of LS to BE's limit: by a trigger, and by the tick alone, interleaved. `make bench-fast`.

In the lab's guest, since short PSI windows need Linux 6.5 and CAP_SYS_RESOURCE. Emulated time is slow, so
only the ratio of the two sides means anything; both are of one boot.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from qosd.lab.machine import Machine

ROOT = Path(__file__).resolve().parent.parent
SIDES = {"trigger": 64, "poll": 0}

GUEST = r"""
import json, os, random, signal, subprocess, sys, time

rounds, sides = json.loads(sys.argv[1])
CG = "/sys/fs/cgroup"
LIMIT = CG + "/be.slice/cpu.max"
random.seed(7)

def start(slice_, name, threads):
    subprocess.run(["systemd-run", "-q", "--collect", "--unit=" + name, "--slice=" + slice_,
                    "stress-ng", "--quiet", "--cpu", str(threads)], check=True)

def freeze(on):
    with open(CG + "/ls.slice/bench-ls.service/cgroup.freeze", "w") as file:
        file.write("1" if on else "0")

def share():
    quota, period = open(LIMIT).read().split()
    return float("inf") if quota == "max" else int(quota) / int(period)

CONFIG = '''interval = "1s"
[cpu.bandwidth]
enforce = "max"
[fast]
cut_idle = true
hold_max = "1s"
threshold_pct = 30
max_triggers = '''

def configure(triggers):
    with open("/etc/qosd/qosd.toml", "w") as file:
        file.write(CONFIG + str(triggers) + "\n")
    subprocess.run(["qosctl", "reload"], check=True, stdout=subprocess.DEVNULL)

def wait(holds, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.005)
    return False

start("be.slice", "bench-be", 2)
start("ls.slice", "bench-ls", 4)
time.sleep(2)
freeze(True)
found = {side: [] for side in sides}
for number in range(rounds):
    for side in random.sample(sorted(sides), len(sides)):
        configure(sides[side])
        # Calm: BE has its limit of calm again, and keeps it for a while.
        assert wait(lambda: share() > 1.0), open(LIMIT).read()
        time.sleep(2 + random.random())
        before = share()
        began = time.monotonic()
        freeze(False)
        cut = wait(lambda: share() < before * 0.9, 30)
        if cut:
            found[side].append(time.monotonic() - began)
        freeze(True)
subprocess.run(["systemctl", "stop", "bench-ls", "bench-be"])
status = json.loads(subprocess.run(["qosctl", "status", "--json"], capture_output=True, check=True).stdout)
print(json.dumps({"seconds": found, "reactions": status["reflex"]["reactions"]}))
"""


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]


def spread(values: list[float]) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:7.3f} s ({low:.3f}-{high:.3f}), p90 {quantile(values, 0.9):.3f}, n={len(values)}"


def measure(deb: Path, kernel: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    with tempfile.TemporaryDirectory() as directory:
        share = Path(directory)
        (share / "qosd.deb").write_bytes(deb.read_bytes())
        (share / "bench.py").write_text(GUEST, encoding="utf-8")
        with Machine.boot(kernel=kernel, share=share) as machine:
            install = "apt-get install -q -y --no-install-recommends /mnt/share/qosd.deb"
            machine.run(f"DEBIAN_FRONTEND=noninteractive {install} && systemctl start qosd", timeout=300)
            arguments = json.dumps([rounds, SIDES])
            command = ["/usr/lib/qosd/bin/python3", "-I", "/mnt/share/bench.py", arguments]
            done = machine.run(command, timeout=rounds * 60 + 120)
            document: dict[str, dict[str, list[float]]] = json.loads(done.stdout.splitlines()[-1])
            return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--kernel", default="6.12")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    debs = sorted((ROOT / "dist").glob("qosd_*.deb"))
    if not debs:
        sys.exit("dist has no package: make deb")
    found = measure(debs[-1], options.kernel, options.rounds)
    sides = found["seconds"]
    for side, seconds in sides.items():
        print(f"{side:<8} {spread(seconds) if seconds else 'BE was never cut'}")
    if all(sides.values()):
        ratio = statistics.median(sides["trigger"]) / statistics.median(sides["poll"])
        print(f"trigger / poll, medians: {ratio:.2f}")
    print(f"reactions: {found['reactions']}")
    if options.json is not None:
        options.json.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
