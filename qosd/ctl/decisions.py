"""`qosctl decisions`: the writes and restores of late, each with its reason."""

from __future__ import annotations

import time

import msgspec
from rich.table import Table
from rich.text import Text

from qosd.audit import NETWORK
from qosd.ctl import client, screen
from qosd.ctl.options import print_json
from qosd.ctl.status import short_reason
from qosd.status import DecisionRecord


def fetch(socket: str, last: int | None = None) -> tuple[DecisionRecord, ...]:
    """What the daemon remembers, oldest first; with `last` only so many of the newest."""
    arguments = {} if last is None else {"last": last}
    return client.ask_for(socket, "decisions", tuple[DecisionRecord, ...], **arguments)


def select(
    records: tuple[DecisionRecord, ...], since: float | None, path: str | None
) -> tuple[DecisionRecord, ...]:
    """Those at or after `since` (wall clock) that are about `path` or a cgroup below it."""
    return tuple(
        record
        for record in records
        if (since is None or record.time >= since)
        and (path is None or record.path == path or record.path.startswith(f"{path}/"))
    )


def table(records: tuple[DecisionRecord, ...], now: float) -> Table:
    built = screen.table("AGO", "CGROUP", "FILE", "CHANGE", "RESULT", "WHY", right=("AGO",))
    for record in records:
        change = f"{record.old} -> {record.new}" if record.old else record.new
        text = record.reason.text
        # What happened to an uplink has no other place that says it whole.
        why = (text if record.file == NETWORK else short_reason(text)) + (
            f"; {record.error}" if record.error else ""
        )
        style = "yellow" if record.error else ""
        ago = screen.duration(max(now - record.time, 0.0))
        built.add_row(ago, record.path, record.file, change, record.result, Text(why, style))
    return built


def show(socket: str, since_usec: int | None, path: str | None, *, json: bool) -> None:
    now = time.time()
    since = None if since_usec is None else now - since_usec / 1e6
    chosen = select(fetch(socket), since, path)
    if json:
        print_json(msgspec.json.encode(chosen))
    elif chosen:
        screen.console().print(table(chosen, now))
    else:
        screen.console().print("No decisions: nothing was written in that time.")
