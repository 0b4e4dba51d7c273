"""`qosctl reload`, `pause`, `resume`, `restore`: what changes something, for root only."""

from __future__ import annotations

import os
import time
from typing import Any

import click
import msgspec

from qosd.ctl import client
from qosd.ctl.exits import NO, NOT_PERMITTED, Failure
from qosd.ctl.options import Options, as_json, print_json, use, whole_duration
from qosd.model import printable


@click.command()
@as_json
@use
def reload(options: Options, json: bool) -> None:  # noqa: FBT001 - click passes flags by name
    """Read the configuration again and say what changed; a refused one (78) changes nothing."""
    answer = client.ask(options.socket, "reload")
    if json:
        print_json(answer)
        return
    changes = msgspec.json.decode(answer)["changes"]
    click.echo("\n".join(changes) or "Reloaded; nothing changed.")


@click.command()
@click.argument("duration", required=False)
@as_json
@use
def pause(options: Options, duration: str | None, json: bool) -> None:  # noqa: FBT001 - as above
    """Give everything back and write nothing for DURATION (90s, 10m, 1h), or until `qosctl resume`."""
    arguments = {} if duration is None else {"duration": f"{whole_duration(duration)}us"}
    answer = client.ask(options.socket, "pause", **arguments)
    if json:
        print_json(answer)
        return
    click.echo(f"Paused {_until(answer)}: every original is back and qosd only looks on.")


@click.command()
@as_json
@use
def resume(options: Options, json: bool) -> None:  # noqa: FBT001 - as above
    """End a pause."""
    answer = client.ask(options.socket, "resume")
    if json:
        print_json(answer)
        return
    click.echo(f"Resumed: mode {msgspec.json.decode(answer)['mode']}.")


@click.command()
@click.option("--cgroup-root", hidden=True, help="Where cgroup2 is mounted; found by itself.")
@as_json
@use
def restore(options: Options, cgroup_root: str | None, json: bool) -> None:  # noqa: FBT001 - as above
    """Put back every original now: by a pause without end, or from the journal of a dead daemon."""
    if client.is_running(options.socket):
        client.ask(options.socket, "pause")
        held = _held(options.socket)
        if json:
            print_json(msgspec.json.encode({"daemon": "paused", "held": held}))
        else:
            click.echo(
                "qosd is running and now paused: every original is back. `qosctl resume` lets it act again."
            )
        if held:
            raise Failure(f"could not be put back yet, qosd keeps trying: {', '.join(held)}", NO)
        return
    outcomes = _restore_from_journal(os.path.dirname(options.socket), cgroup_root)
    if json:
        print_json(msgspec.json.encode({"daemon": "down", "outcomes": outcomes}))
    else:
        click.echo(
            "qosd is not running; its journal holds nothing to put back." if not outcomes else _list(outcomes)
        )
    if any(outcome["result"] == "failed" for outcome in outcomes):
        raise Failure("some files could not be put back; they stay in the journal", NO)


def _until(answer: bytes) -> str:
    until = msgspec.json.decode(answer)["paused_until"]
    if until is None:
        return "until `qosctl resume`"
    return f"until {time.strftime('%H:%M:%S', time.localtime(until))}"


def _held(socket: str) -> list[str]:
    settings = msgspec.json.decode(client.ask(socket, "status"))["settings"]
    return [f"{setting['path']}/{setting['file']}" for setting in settings if setting["original"] is not None]


def _restore_from_journal(directory: str, cgroup_root: str | None) -> list[dict[str, Any]]:
    """The same restore as after a crash. Raises `Failure`."""
    from qosd import journal  # noqa: PLC0415 - only when the daemon is dead
    from qosd.net import undo  # noqa: PLC0415 - same
    from qosd.procfs import cgroup2_mount  # noqa: PLC0415 - same
    from qosd.sys import Sys  # noqa: PLC0415 - same

    if os.geteuid() != 0:
        raise Failure(
            "qosd is not running, and restoring from its journal needs root: sudo qosctl restore",
            NOT_PERMITTED,
        )
    network = [
        {"path": device, "file": "egress", "result": result, "detail": detail}
        for device, result, detail in undo.remove_all_said().outcomes
    ]
    root = cgroup_root or cgroup2_mount()
    if root is None:
        raise Failure("no cgroup v2 hierarchy is mounted: nothing to restore", NO)
    try:
        outcomes = journal.restore_from(Sys(), directory, root, journal.read_boot_id())
    except OSError as error:
        raise Failure(f"cannot restore: {error}", NO) from None
    return network + [
        {"path": printable(done.path), "file": done.key.file, "result": done.result, "detail": done.detail}
        for done in outcomes
    ]


def _list(outcomes: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"{done['path']} {done['file']}: {done['result']} ({done['detail']})" for done in outcomes
    )
