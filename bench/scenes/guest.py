"""What runs in the guest: the service, the daemon, one event after the other, and everything written down.

By the package's own interpreter, with its own client: `qosctl verdicts --json` asks the same socket the same
question, but is a Python that starts, which emulated would be the largest load of all.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

from qosd.ctl import client
from qosd.ctl.exits import Failure

CGROUP = "/sys/fs/cgroup"
SHARE = "/mnt/share"
LOAD = f"{SHARE}/load"
LOG = "/run/scenes.log"
DATA = "/var/tmp/scenes.data"  # noqa: S108 - a throw-away machine
DATA_MIB = 48
DEVICE = "/dev/disk/by-id/virtio-disk0"
SLICES = {name: f"{name}.slice" for name in ("web", "side", "batch", "keep")} | {"system": "system.slice"}
ACCOUNTING = ("CPUAccounting=yes", "MemoryAccounting=yes", "IOAccounting=yes")
SETTLE_SECONDS = 34.0
PATIENCE_SECONDS = 12.0
TRIES = 5
EVENTS_A_SAVE = 6
OUTCOMES = ("SIGTERM", "cgroup.kill", "cgroup.freeze", "cpu.max")


def sh(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def cgroup(name: str) -> str:
    return f"{CGROUP}/{SLICES[name]}/scenes-{name}.service"


def anchor(name: str) -> None:
    """A service that does nothing. Loads are started in its cgroup, so systemd takes no part in an event."""
    if os.path.exists(f"{cgroup(name)}/cgroup.procs"):
        return
    subprocess.run(["systemctl", "stop", f"scenes-{name}.service"], check=False, capture_output=True)
    unit = ("systemd-run", "-q", "--collect", f"--unit=scenes-{name}", f"--slice={SLICES[name]}")
    sh(*unit, *(f"-p{each}" for each in ACCOUNTING), "sleep", "100000")


def load(where: str, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([LOAD, where, *words], stderr=sys.stderr)


class Watch:
    """What the daemon says, written down as it goes."""

    def __init__(self, trace: str) -> None:
        self._trace = trace
        self._lines: list[bytes] = []
        self._tick = 0
        self.verdicts: dict[int, Any] = {}
        self.decisions: dict[int, Any] = {}

    def ask(self, command: str, **arguments: Any) -> Any:  # noqa: ANN401 - JSON
        for _ in range(TRIES):
            try:
                return json.loads(client.ask(client.DEFAULT_SOCKET, command, **arguments))
            except Failure as failure:
                print(f"qosd: {failure}", file=sys.stderr, flush=True)
                time.sleep(1)
        raise SystemExit("qosd does not answer")

    def look(self) -> None:
        for snapshot in self.ask("snapshots", after=self._tick):
            self._tick = snapshot["tick"]
            self._lines.append(json.dumps(snapshot, separators=(",", ":")).encode() + b"\n")
        self.verdicts |= {each["verdict"]["id"]: each for each in self.ask("verdicts")}
        recent = self.ask("decisions", last=60)
        self.decisions |= {each["id"]: each for each in recent if each["file"] in OUTCOMES}

    def is_quiet(self) -> bool:
        interference = self.ask("status")["interference"]
        rungs = {each["rung"] for each in interference["rungs"]}
        return not interference["verdicts"] and rungs <= {"idle"} and not interference["killing"]

    def save(self) -> None:
        """The trace grows by a whole member of gzip."""
        with gzip.open(self._trace, "ab", compresslevel=1) as file:
            file.writelines(self._lines)
        self._lines = []


def prepare() -> tuple[int, list[subprocess.Popen[bytes]]]:
    sh("systemctl", "stop", "qosd")
    sh("dd", "if=/dev/zero", f"of={DATA}", "bs=1M", f"count={DATA_MIB}", "conv=fsync")
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("1")
    for name in SLICES:
        anchor(name)
    turns = int(sh(LOAD, "calibrate"))
    with open("/proc/self/cgroup", encoding="ascii") as file:
        own = CGROUP + file.read().strip().rpartition("::")[2]
    return turns, [
        load(cgroup("web"), "serve", LOG, DATA, DEVICE, str(turns)),
        load(own, "pace", LOG, str(turns // 10)),
    ]


def limit(value: str) -> None:
    with open(f"{CGROUP}/web.slice/cpu.max", "w", encoding="ascii") as file:
        file.write(value)


def start(event: dict[str, Any], turns: int) -> list[subprocess.Popen[bytes]]:
    started = []
    for by, what in event["loads"]:
        mode, *words = what.format(device=DEVICE, turns=turns * 10).split()
        started.append(load(cgroup(by), mode, str(event["seconds"]), *words))
    return started


def run(event: dict[str, Any], turns: int) -> tuple[int, int]:
    """When it began and ended, by CLOCK_MONOTONIC."""
    begun = time.monotonic_ns()
    if event["limit"]:
        limit(event["limit"])
    jobs = start(event, turns)
    time.sleep(max(begun / 1e9 + event["seconds"] - time.monotonic(), 0))
    if event["limit"]:
        limit("max 100000")
    for job in jobs:
        job.kill()
        job.wait()
    return begun, time.monotonic_ns()


def calm(watch: Watch, seconds: float) -> None:
    """For so long, and until no verdict lasts and nothing is answered any more."""
    for name in SLICES:
        anchor(name)
    begun = time.monotonic()
    time.sleep(seconds / 2)
    watch.look()
    while time.monotonic() < begun + seconds or not watch.is_quiet():
        time.sleep(0.5)
        if time.monotonic() > begun + seconds + PATIENCE_SECONDS:
            break
    watch.look()


def save(watch: Watch, turns: int, done: list[dict[str, Any]]) -> None:
    """Everything so far, where the host finds it whatever comes."""
    watch.save()
    status = watch.ask("status")
    result = {
        "turns": turns,
        "tick_ms": status["tick_ms"],
        "late_ticks": status["late_ticks"],
        "done": done,
        "verdicts": list(watch.verdicts.values()),
        "decisions": list(watch.decisions.values()),
    }
    with open(f"{SHARE}/result.json", "w", encoding="utf-8") as file:
        json.dump(result, file)
    shutil.copy(LOG, f"{SHARE}/log.bin")


def main() -> None:
    with open(f"{SHARE}/plan.json", encoding="utf-8") as file:
        plan = json.load(file)
    turns, services = prepare()
    sh("systemctl", "start", "qosd")
    watch = Watch(f"{SHARE}/trace.jsonl.gz")
    calm(watch, SETTLE_SECONDS)
    done: list[dict[str, Any]] = []
    for event in plan:
        wall = time.time()
        begun, ended = run(event, turns)
        calm(watch, event["gap"])
        done.append({"event": event, "begin": wall, "begin_ns": begun, "end_ns": ended})
        print(event["id"], flush=True)
        if len(done) % EVENTS_A_SAVE == 0 or event is plan[-1]:
            save(watch, turns, done)
    for service in services:
        service.kill()


if __name__ == "__main__":
    main()
