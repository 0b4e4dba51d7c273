"""`python3 -m scenario DIRECTORY`: works DIRECTORY/plan.json off, a line of JSON on stdout per step."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import rounds, service, units
from .planned import Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNTIME_UNITS = "/run/systemd/system"


def say(what: str, **more: object) -> None:
    print(json.dumps({"what": what, **more}), flush=True)


@contextmanager
def throw_away_slices(plan: Plan) -> Iterator[None]:
    """The plan's own slices, for as long as the demo runs; nothing of them stays."""
    for name, text in plan.slices.items():
        os.makedirs(RUNTIME_UNITS, exist_ok=True)
        with open(os.path.join(RUNTIME_UNITS, name), "w", encoding="utf-8") as file:
            file.write(text)
    if plan.slices:
        units.command("systemctl", "daemon-reload")
    try:
        yield
    finally:
        units.stop_all()
        for name in plan.slices:
            units.command("systemctl", "stop", name, check=False)
            os.unlink(os.path.join(RUNTIME_UNITS, name))
        if plan.slices:
            units.command("systemctl", "daemon-reload", check=False)
        shutil.rmtree(service.RUNTIME, ignore_errors=True)


def facts() -> dict[str, Any]:
    with open("/etc/os-release", encoding="utf-8") as file:
        names = [
            line.partition("=")[2].strip().strip('"') for line in file if line.startswith("PRETTY_NAME=")
        ]
    return {
        "kernel": platform.release(),
        "system": names[0] if names else None,
        "cpus": os.cpu_count(),
        "virtualisation": units.command("systemd-detect-virt", check=False).strip(),
        "redis": units.command("redis-server", "--version").split(" ")[2],
        "stress_ng": units.command("stress-ng", "--version").split(" ")[2],
    }


def keep(directory: str, name: str, value: object) -> None:
    with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
        json.dump(value, file)


def run(plan: Plan, directory: str) -> None:
    keep(directory, "facts.json", facts())
    say("calibrating")
    load = service.calibrate(plan, directory)
    keep(directory, "load.json", load)
    say("calibrated", **load)
    stage = rounds.Stage(plan, load, directory)
    if plan.warm_up is not None:
        say("round", number=0, mode=plan.warm_up)
        rounds.play(stage, plan.warm_up, "warm-up")
    last = len(plan.rounds)
    for number, modes in enumerate(plan.rounds, start=1):
        for mode in modes:
            say("round", number=number, mode=mode)
            ask = mode == "qosd" and number == last
            played = rounds.play(stage, mode, f"{number}-{mode}", ask=ask)
            keep(directory, f"{number}-{mode}.json", {**played, "round": number})


def main() -> int:
    directory = sys.argv[1]
    plan = Plan.read(os.path.join(directory, "plan.json"))
    units.stop_all()  # of a demo that was killed
    if plan.daemon is not None:
        units.command(*plan.daemon.stop, check=False)
    try:
        with throw_away_slices(plan):
            run(plan, directory)
    except (RuntimeError, OSError) as error:
        say("failed", error=str(error))
        return 1
    say("done")  # only now: whoever started us takes the directory away
    return 0


if __name__ == "__main__":
    sys.exit(main())
