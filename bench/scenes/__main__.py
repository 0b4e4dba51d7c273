"""Labelled scenes of interference in the lab's guest: what qosd says of them, and what was true.

`make bench-scenes`. A seed's events are run in parts, a boot each; a part whose result is there is not run
again. Tune on one seed, quote another.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from bench.scenes import again, report
from bench.scenes.events import Event, plan
from bench.scenes.labels import decode
from bench.scenes.score import Done, Scored, kills, of_verdict, score
from qosd.config import decode as decode_config
from qosd.interference.view import VerdictRecord
from qosd.lab.channel import CommandError, MachineLostError
from qosd.lab.machine import Machine, Options

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HARDWARE: Options = {"smp": "1", "memory": "512M", "extra_disks": ("1G",), "icount": "shift=2"}
"""QEMU's -icount, 4 ns an instruction: what else the host does is hardly felt in the guest. One CPU, since
two would take turns on the host's, unseen by the guest's scheduler.
"""
RESULTS = {"result.json": ".json", "log.bin": ".log", "trace.jsonl.gz": ".trace.jsonl.gz"}


def build(share: Path) -> None:
    command = ("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread")
    subprocess.run([*command, "-o", str(share / "load"), str(HERE / "load.c")], check=True)


def run(events: tuple[Event, ...], deb: Path, stem: Path, kernel: str, minutes: float) -> None:
    """Run them in one boot; what was found is beside `stem`."""
    with tempfile.TemporaryDirectory() as directory:
        share = Path(directory)
        build(share)
        shutil.copy(deb, share / "qosd.deb")
        shutil.copy(HERE / "guest.py", share)
        (share / "plan.json").write_bytes(msgspec.json.encode(events))
        try:
            _in_guest(share, kernel, minutes)
        except (CommandError, MachineLostError) as stopped:
            print(f"stopped: {stopped}")
        for name, suffix in RESULTS.items():
            if (share / name).exists():
                shutil.copy(share / name, f"{stem}{suffix}")


def _in_guest(share: Path, kernel: str, minutes: float) -> None:
    hardware: Options = {**HARDWARE, "kernel": kernel}
    with Machine.boot(share=share, **hardware) as machine:
        install = "apt-get install -q -y --no-install-recommends /mnt/share/qosd.deb"
        machine.run(f"DEBIAN_FRONTEND=noninteractive {install}", timeout=300)
        machine.run(["tee", "/etc/qosd/qosd.toml"], input=(HERE / "qosd.toml").read_bytes())
        command = ["/usr/lib/qosd/bin/python3", "-I", "/mnt/share/guest.py"]
        done = machine.run(command, timeout=minutes * 60, check=False)
        print(done.stdout + done.stderr, flush=True)
        if done.returncode:
            print(machine.run("journalctl -u qosd -n 30 --no-pager", check=False).stdout)


def _as_written(done: Done) -> Done:
    """With what the file says now of who is to blame, and by which signals it may be seen."""
    event = next((each for each in plan(0) if each.id == done.event.id), done.event)
    told = msgspec.structs.replace(done.event, cause=event.cause, signals=event.signals)
    return msgspec.structs.replace(done, event=told)


def read(stem: Path, *, anew: bool) -> tuple[list[Scored], list[dict[str, Any]], dict[str, Any]]:
    """The events, the decisions and all else that was found; `anew`: as the laws would say now."""
    found: dict[str, Any] = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
    done = [_as_written(each) for each in msgspec.convert(found["done"], list[Done])]
    requests = decode(Path(f"{stem}.log").read_bytes())
    if anew:
        config = decode_config((HERE / "qosd.toml").read_text(encoding="utf-8"))
        said = again.verdicts(config, Path(f"{stem}.trace.jsonl.gz"), done)
    else:
        records = msgspec.convert(found["verdicts"], list[VerdictRecord])
        said = [of_verdict(each.verdict) for each in records]
    return score(done, requests, said), found["decisions"], found


def parts(events: tuple[Event, ...], number: int) -> list[tuple[Event, ...]]:
    size = -(-len(events) // number)
    return [events[start : start + size] for start in range(0, len(events), size)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.scenes", description=__doc__)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--only", help="kinds or events, comma-separated")
    parser.add_argument("--limit", type=int, help="so many events at most")
    parser.add_argument("--parts", type=int, default=2, help="boots in which the events are run")
    parser.add_argument("--part", type=int, help="run this one alone")
    parser.add_argument("--minutes", type=float, default=15, help="what is not done by then is left out")
    parser.add_argument("--out", type=Path, default=ROOT / "bench-scenes")
    parser.add_argument("--json", type=Path, help="also write every event, its label and its verdicts here")
    parser.add_argument("--kernel", default="6.12")
    parser.add_argument("--fresh", action="store_true", help="run again what was run")
    parser.add_argument("--no-run", action="store_true", help="score what is there")
    parser.add_argument("--again", action="store_true", help="judge what was seen by the laws of this tree")
    return parser.parse_args()


def chosen(options: argparse.Namespace) -> tuple[Event, ...]:
    events = plan(options.seed)
    if options.only:
        names = set(options.only.split(","))
        events = tuple(event for event in events if {event.kind, event.id} & names)
    return events[: options.limit]


def main() -> None:
    options = _arguments()
    debs = sorted((ROOT / "dist").glob("qosd_*.deb"))
    if not debs:
        sys.exit("dist has no package: make deb")
    options.out.mkdir(parents=True, exist_ok=True)
    scored: list[Scored] = []
    ended = 0
    wrong: list[str] = []
    for number, events in enumerate(parts(chosen(options), options.parts), 1):
        if options.part not in {None, number}:
            continue
        name = f"seed{options.seed}" + (f".{options.only[:40]}" if options.only else "")
        stem = options.out / f"{name}.{number}of{options.parts}"
        if not options.no_run and (options.fresh or not os.path.exists(f"{stem}.json")):
            run(events, debs[-1], stem, options.kernel, options.minutes)
        mine, decisions, found = read(stem, anew=options.again)
        count, bad = kills(mine, decisions)
        print(f"part {number}: {len(mine)} events, a tick {found['tick_ms']} ms, {found['late_ticks']} late")
        scored, ended, wrong = scored + mine, ended + count, wrong + bad
    print("\n".join(report.lines(scored)))
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(scored), indent=1))
    print(f"kills: {ended}, wrong: {len(wrong)}", *wrong, sep="\n")


if __name__ == "__main__":
    main()
