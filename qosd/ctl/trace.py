"""`qosctl record`, `qosctl replay`: what the daemon saw, and what another configuration would have done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import click
import msgspec

from qosd.compare import Difference, compare
from qosd.configfile import read_config
from qosd.ctl import client, exits, tracefile
from qosd.ctl.options import print_json
from qosd.errors import ConfigError, QosdError
from qosd.model import Snapshot
from qosd.replay import Step, load, replay

_ASK_SECONDS = 1.0  # the daemon keeps the last 128 ticks: 12 s at the shortest interval


class Seen(NamedTuple):
    ticks: int = 0
    last: int = 0
    missed: int = 0


def record(socket: str, file: str, duration_usec: int, *, json: bool) -> None:
    """Follow the daemon for a while, or until Ctrl-C. An existing file is not overwritten."""
    end = time.monotonic() + duration_usec / 1e6
    seen = Seen()
    with tracefile.create(file) as trace:
        try:
            for snapshots in _followed(socket, end):
                for snapshot in snapshots:
                    trace.write(msgspec.json.encode(snapshot) + b"\n")
                    gap = snapshot.tick - seen.last - 1 if seen.ticks else 0
                    seen = Seen(seen.ticks + 1, snapshot.tick, seen.missed + max(gap, 0))
                trace.flush()  # compressed or not: what was written so far can be read whatever comes
        except KeyboardInterrupt:
            pass  # the usual way to end it early; what is in the file is whole
    if json:
        print_json(msgspec.json.encode({"file": file, **seen._asdict()}))
        return
    lost = f", {seen.missed} missed" if seen.missed else ""
    click.echo(f"{file}: {seen.ticks} ticks up to {seen.last}{lost}")


def _followed(socket: str, end: float) -> Iterator[list[Snapshot]]:
    """Every snapshot from the current one on, in batches, until the end."""
    last = 0
    while True:
        snapshots = client.ask_for(socket, "snapshots", list[Snapshot], after=last)
        if last == 0:
            snapshots = snapshots[-1:]
        if snapshots:
            last = snapshots[-1].tick
        yield snapshots
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(_ASK_SECONDS, left))


def replay_file(file: str, config: str, against: str | None, *, json: bool) -> None:
    try:
        steps = _steps(file, config)
        difference = None if against is None else compare(_steps(file, against), steps)
    except ConfigError as error:
        raise exits.Failure(str(error), exits.REFUSED_CONFIG) from None
    except (OSError, QosdError) as error:
        raise exits.Failure(f"{file}: {error}", exits.NO) from None
    if json:
        print_json(msgspec.json.encode(steps if difference is None else difference))
        return
    for line in lines(steps) if difference is None else told(difference):
        click.echo(line)


def _steps(file: str, config: str) -> tuple[Step, ...]:
    chosen = read_config(config)
    return tuple(replay(chosen, load(tracefile.lines(file))))


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


def told(difference: Difference) -> list[str]:
    """The two configurations side by side: what they would have written, allowed and held back."""
    before, after = difference.before, difference.after
    rows = [("", "now", "then"), ("ticks", f"{before.ticks}", f"{after.ticks}")]
    rows += [
        (f"writes of {file}", f"{before.writes.get(file, 0)}", f"{after.writes.get(file, 0)}")
        for file in sorted(before.writes.keys() | after.writes.keys())
    ]
    rows.append(("mean BE allowance, CPUs", _cores(before.mean_allowance), _cores(after.mean_allowance)))
    for path in sorted(before.held_back.keys() | after.held_back.keys()):
        was, would = before.held_back.get(path, 0.0), after.held_back.get(path, 0.0)
        rows.append((f"CPU s held back of {path}", f"{was:.1f}", f"{would:.1f}"))
    out = [f"{name:<40} {one:>12} {other:>12}" for name, one, other in rows]
    first = difference.first_tick
    return [*out, "the same at every tick" if first is None else f"they first differ at tick {first}"]


def _cores(cores: float | None) -> str:
    return "unlimited" if cores is None else f"{cores:.2f}"
