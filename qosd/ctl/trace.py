"""`qosctl record`, `qosctl replay`: what the daemon saw, and what another configuration would have done."""

from __future__ import annotations

import time

import click
import msgspec

from qosd.configfile import read_config
from qosd.ctl import client, exits
from qosd.ctl.options import print_json
from qosd.errors import ConfigError, QosdError
from qosd.model import Snapshot
from qosd.replay import Step, load, replay


def record(socket: str, file: str, duration_usec: int, *, json: bool) -> None:
    """Follow the daemon for a while. An existing file is not overwritten."""
    end = time.monotonic() + duration_usec / 1e6
    seen = 0
    try:
        trace = open(file, "xb")  # noqa: SIM115 - closed below; only the opening is the operator's to mend
    except OSError as error:
        raise exits.Failure(f"{file}: {error.strerror}", exits.NO) from None
    with trace:
        while time.monotonic() < end:
            snapshot = client.ask_for(socket, "snapshot", Snapshot)
            if snapshot.tick != seen:
                trace.write(msgspec.json.encode(snapshot) + b"\n")
                trace.flush()
                seen = snapshot.tick
            time.sleep(0.2)  # the shortest interval is 100 ms; a trace of every second or third is one too
    if json:
        print_json(msgspec.json.encode({"file": file, "last_tick": seen}))
    else:
        click.echo(f"{file}: up to tick {seen}")


def replay_file(file: str, config: str, *, json: bool) -> None:
    try:
        chosen = read_config(config)
        with open(file, "rb") as trace:
            steps = tuple(replay(chosen, load(trace)))
    except ConfigError as error:
        raise exits.Failure(str(error), exits.REFUSED_CONFIG) from None
    except QosdError as error:
        raise exits.Failure(f"{file}: {error}", exits.NO) from None
    if json:
        print_json(msgspec.json.encode(steps))
        return
    for line in lines(steps):
        click.echo(line)


def lines(steps: tuple[Step, ...]) -> list[str]:
    """A line a write, and a summary."""
    start = steps[0].monotonic_usec if steps else 0
    out = [
        f"{(step.monotonic_usec - start) / 1e6:8.1f} s  {change.path} {change.file}:"
        f" {change.old} -> {change.new}  {change.why}"
        for step in steps
        for change in step.writes
    ]
    known = [step.allowance_cores for step in steps if step.allowance_cores is not None]
    mean = f"{sum(known) / len(known):.2f} CPUs" if known else "unknown"
    writes = sum(len(step.writes) for step in steps)
    return [*out, f"{len(steps)} ticks, {writes} writes, mean BE allowance {mean}"]
